"""The errors of a push, in words that say what to do."""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # the one that the client uses, whatever its name
from safetensors import SafetensorError

HUB_ERRORS = (httpx.HTTPError, ConnectionError, TimeoutError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PushError(OSError):
    """A push that failed; the Hub has no half of it, and nothing was lost here."""


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turn the client's errors, and those of a full disk, into a PushError."""
    try:
        yield
    except PushError:
        raise
    except Exception as error:
        is_known = isinstance(_reason(error), (*HUB_ERRORS, LocalTokenNotFoundError))
        if not is_known and _full_disk(error) is None:
            raise
        raise PushError(explain(repo_id, error)) from error


def _reason(error: BaseException) -> BaseException:
    """Some errors of the client are around the one that says why."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and cause is not None else error


def _full_disk(error: BaseException) -> int | None:
    """The number of the error if there is no room for a file."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    return number if number in _FULL else None


def explain(repo_id: str, error: BaseException) -> str:
    """What went wrong with a push, and what to do."""
    error = _reason(error)
    full = _full_disk(error)
    if full is not None:
        place = getattr(error, "filename", None)
        return (
            f"the disk must have room for the files of a push to '{repo_id}'; got "
            f"'{os.strerror(full)}'{f' at {place}' if place else ''}. Nothing is lost: push again "
            "when there is room."
        )
    if isinstance(error, LocalTokenNotFoundError):
        return _ADVICE[(401,)].format(repo=repo_id, got="none")
    if isinstance(error, HfHubHTTPError) and getattr(error, "response", None) is not None:
        return _explain_answer(repo_id, error)
    got = f"{type(error).__name__} ({str(error).strip()})"
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE must not be set to push to '{repo_id}'; got it set. Unset it."
    if isinstance(error, HUB_ERRORS):
        return (
            f"the Hub must be reachable to push to '{repo_id}'; got {got}. Nothing is lost: push "
            "again when it is."
        )
    return f"the push to '{repo_id}' must be done whole; got {got}. Nothing is lost: push again."


def _explain_answer(repo_id: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    reason = error.server_message or str(error).strip().split("\n")[0]
    got = f"{status} ({reason})"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"revision must be a branch of '{repo_id}'; got {got}. Name another one, or none for "
            "the main branch."
        )
    for statuses, advice in _ADVICE.items():
        if status in statuses:
            return advice.format(repo=repo_id, got=got)
    return f"the Hub must take the push to '{repo_id}'; got {got}. Nothing is lost: push again."


_ADVICE: Mapping[tuple[int, ...], str] = {
    (401,): (
        "a token for the Hub must be given to push to '{repo}'; got {got}. Run `hf auth login`, or "
        "set HF_TOKEN."
    ),
    (403, 404): (
        "the repository must be one that your token may write to; got '{repo}', {got}. Choose "
        "another name, or a token with the right to write."
    ),
}
