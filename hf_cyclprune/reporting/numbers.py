"""How numbers are written for people, in the console, on the card and in pictures alike."""


def number(value: float | None) -> str | None:
    """Write a measured value with four decimals; None stays None.

    Where these would be zeros or too many, it has four significant digits instead.

    >>> number(0.85), number(0.000012345), number(123456.7)
    ('0.8500', '1.234e-05', '1.235e+05')
    """
    if value is None:
        return None
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e5
    return f"{value:.4f}" if is_plain else f"{value:.4g}"


def percent(share: float | None, decimals: int = 2) -> str | None:
    """Write a counted share in percent; None stays None.

    It has more decimals than asked for where only they tell it from 0% or from 100%.

    >>> percent(0.8), percent(0.0), percent(0.999996), percent(0.8, 4)
    ('80.00%', '0.00%', '99.9996%', '80.0000%')
    """
    if share is None:
        return None
    while 0 < share < 1 and decimals < 12 and float(f"{share:.{decimals + 2}f}") in (0.0, 1.0):
        decimals += 1
    return f"{share:.{decimals}%}"


def ratio(share: float) -> str:
    """Write a share that somebody chose in percent, with the digits that it has.

    >>> ratio(0.5), ratio(0.125)
    ('50%', '12.5%')
    """
    return f"{100 * share:g}%"


def count(number_of_things: int) -> str:
    """Write a whole number with commas between the thousands.

    >>> count(1234567)
    '1,234,567'
    """
    return f"{number_of_things:,}"
