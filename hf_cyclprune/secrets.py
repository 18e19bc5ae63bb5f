"""A token that no file can hold."""

import re
from typing import Any

_SECRET = re.compile(r"\b(?:hf|api_org)_(?:oauth_|jwt_)?[A-Za-z0-9]{10,}[\w.-]*")
_FLAG = re.compile(r"-+[\w-]*(token|password|secret|api[_-]?key)", re.IGNORECASE)


class Secret(str):
    """Text that is the same in use, and None once it was pickled.

    transformers pickles its arguments into training_args.bin, the token for the Hub among them, and
    uploads that file.

    >>> import pickle
    >>> "Bearer " + Secret("hf_x"), pickle.loads(pickle.dumps(Secret("hf_x")))
    ('Bearer hf_x', None)
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(None), ()

    def __copy__(self) -> "Secret":
        return self

    def __deepcopy__(self, memo: Any) -> "Secret":
        return self


def hide_token(args: Any) -> None:
    """Keep the token of training arguments out of training_args.bin; None is left alone."""
    if getattr(args, "hub_token", None) is not None:
        args.hub_token = Secret(args.hub_token)


def redact(arguments: list[str], token: str | None = None) -> list[str]:
    """A command line without the values of its tokens.

    Args:
        arguments: as they were given.
        token: one that is known, whatever the flag was that gave it.

    >>> redact(["glue", "--hub_token", "hf_x", "--hub-token=hf_x", "--seed", "1", "hf_abcdefghij"])
    ['glue', '--hub_token', '<token>', '--hub-token=<token>', '--seed', '1', '<token>']
    >>> redact(["--hub_tok=mine", "hf_runs"], "mine")
    ['--hub_tok=<token>', 'hf_runs']
    """
    shown = []
    is_value = False
    for argument in arguments:
        name, is_joined, _ = argument.partition("=")
        is_flag = _FLAG.fullmatch(name) is not None
        text = argument.replace(token, "<token>") if token else argument
        text = f"{name}=<token>" if is_flag and is_joined else _SECRET.sub("<token>", text)
        shown.append("<token>" if is_value else text)
        is_value = is_flag and not is_joined
    return shown
