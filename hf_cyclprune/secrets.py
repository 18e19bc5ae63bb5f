"""Keep access tokens out of files and logs."""

import re
from typing import Any

_SECRET = re.compile(r"\b(?:hf|api_org)_(?:oauth_|jwt_)?[A-Za-z0-9]{10,}[\w.-]*")
_FLAG = re.compile(r"-+[\w-]*(token|password|secret|api[_-]?key)", re.IGNORECASE)


class Secret(str):
    """A string that can be used like any other, but is None after pickling.

    transformers pickles the training arguments, which can hold a token for the Hub, into
    training_args.bin and uploads that file.

    >>> import pickle
    >>> "Bearer " + Secret("hf_x"), pickle.loads(pickle.dumps(Secret("hf_x")))
    ('Bearer hf_x', None)
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def __deepcopy__(self, memo: object = None) -> "Secret":
        return self

    __copy__ = __deepcopy__


def hide_token(args: Any) -> None:
    """Make the token in training arguments, if there is one, a `Secret`."""
    if getattr(args, "hub_token", None) is not None:
        args.hub_token = Secret(args.hub_token)


def redact(arguments: list[str], token: str | None = None) -> list[str]:
    """Return a command line with "<token>" for every token, and wherever the known `token` occurs.

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
