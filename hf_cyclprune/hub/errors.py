"""The errors of a push to the Hub, in sentences that say what to do."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx  # the module that the client itself uses
from safetensors import SafetensorError

HUB_ERRORS = (httpx.HTTPError, ConnectionError, TimeoutError)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class PushError(OSError):
    """A push that failed: the repository is unchanged, and the local files are intact."""


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turn the errors of the Hub's client, and those of a full disk, into a PushError."""
    try:
        yield
    except PushError:
        raise
    except Exception as error:
        is_known = isinstance(_reason(error), (*HUB_ERRORS, LocalTokenNotFoundError))
        if not is_known and _full_disk(error) is None:
            raise
        raise PushError(explain(repo_id, error)) from error


def explain(repo_id: str, error: BaseException) -> str:
    """Return a sentence on why the push to `repo_id` failed, and one on what to do."""
    error = _reason(error)
    got = f"{type(error).__name__} ({str(error).strip()})"
    full = _full_disk(error)
    if full is not None:
        place = getattr(error, "filename", None)
        reason = os.strerror(full) + (f" at {place}" if place else "")
        return (
            f"The disk has no room for the files of the push to '{repo_id}': {reason}. Your files "
            "are intact; try again when there is room."
        )
    if isinstance(error, LocalTokenNotFoundError):
        return _NO_TOKEN.format(repo=repo_id, reason="none was found")
    if isinstance(error, HfHubHTTPError) and getattr(error, "response", None) is not None:
        return _explain_answer(repo_id, error)
    if isinstance(error, OfflineModeIsEnabled):
        return f"Nothing can be pushed to '{repo_id}' while HF_HUB_OFFLINE is set. Unset it."
    if isinstance(error, HUB_ERRORS):
        return (
            f"The Hub cannot be reached for the push to '{repo_id}': {got}. Your files are intact; "
            "try again when it can."
        )
    return f"The push to '{repo_id}' failed: {got}. Your files are intact; try again."


_NO_TOKEN = (
    "The push to '{repo}' needs a valid token for the Hub: {reason}. Run `hf auth login`, or set "
    "HF_TOKEN."
)


def _explain_answer(repo_id: str, error: HfHubHTTPError) -> str:
    status = error.response.status_code
    reason = error.server_message or str(error).strip().split("\n")[0]
    answer = f"{status} ({reason})"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"'{repo_id}' has no branch with the name that was given as revision: the Hub answered "
            f"{answer}. Name another one, or none for the main branch."
        )
    if status == 401:
        return _NO_TOKEN.format(repo=repo_id, reason=f"the Hub answered {answer}")
    if status in (403, 404):
        return (
            f"Your token may not write to '{repo_id}': the Hub answered {answer}. Choose another "
            "repository, or a token with the right to write."
        )
    return f"The Hub rejected the push to '{repo_id}': {answer}. Your files are intact; try again."


def _reason(error: BaseException) -> BaseException:
    """Return the error that says why: the client raises some inside a RuntimeError."""
    cause = error.__cause__
    return cause if isinstance(error, RuntimeError) and cause is not None else error


def _full_disk(error: BaseException) -> int | None:
    """Return the error's number if there was no room for a file."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    return number if number in _FULL else None
