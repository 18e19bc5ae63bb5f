"""The addresses of the Hub, and the functions that answer them."""

import re
from collections.abc import Callable
from urllib.parse import quote, unquote

from tests.hub import reading, writing
from tests.hub.messages import Call, Request, Response, answer_error
from tests.hub.storage import HubError, Storage, User

Answer = Callable[[Call], Response]

PLAIN: dict[tuple[str, str], Answer] = {
    ("GET", "/api/whoami-v2"): reading.whoami,
    ("POST", "/api/validate-yaml"): reading.validate_yaml,
    ("POST", "/api/repos/create"): writing.create_repo,
    ("DELETE", "/api/repos/delete"): writing.delete_repo,
}
OF_A_REPO: dict[tuple[str, str], Answer] = {
    ("GET", "info"): reading.repo_info,
    ("GET", "revision"): reading.repo_info,
    ("GET", "auth-check"): reading.check_access,
    ("GET", "tree"): reading.tree,
    ("POST", "paths-info"): reading.paths_info,
    ("GET", "commits"): reading.commits,
    ("GET", "refs"): reading.refs,
    ("POST", "preupload"): writing.preupload,
    ("POST", "commit"): writing.commit,
    ("POST", "branch"): writing.create_branch,
    ("DELETE", "branch"): writing.delete_branch,
    ("POST", "tag"): writing.create_tag,
    ("DELETE", "tag"): writing.delete_tag,
    ("PUT", "settings"): writing.update_settings,
    ("GET", "resolve"): reading.resolve,
    ("HEAD", "resolve"): reading.resolve,
    ("POST", "batch"): writing.large_batch,
    ("POST", "verify"): writing.large_verify,
    ("PUT", "lfs"): writing.large_put,
    ("GET", "cdn"): reading.large_get,
    ("HEAD", "cdn"): reading.large_get,
}

_VERBS = "|".join(sorted({verb for _, verb in OF_A_REPO}))
_REPO = rf"(?P<repo>[^/]+(?:/(?!(?:{_VERBS})(?:/|$))[^/]+)?)"
ADDRESSES = [
    re.compile(
        rf"/api/(?P<type>models|datasets|spaces)/{_REPO}(?:/(?P<verb>{_VERBS})(?P<rest>/.*)?)?"
    ),
    re.compile(rf"/(?:(?P<type>datasets|spaces)/)?{_REPO}/(?P<verb>resolve)(?P<rest>/.+)"),
    re.compile(
        r"/(?:(?P<type>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/"
        r"(?P<verb>batch|verify)(?P<rest>/.*)?"
    ),
    re.compile(r"/(?P<verb>lfs|cdn)(?P<type>)(?P<repo>)(?P<rest>/\w+)"),
]


def answer(storage: Storage, request: Request, user: User | None) -> Response:
    """The answer to a request, whatever it is."""
    try:
        with storage.lock:
            return _dispatch(storage, request, user)
    except HubError as error:
        return answer_error(error)


def _dispatch(storage: Storage, request: Request, user: User | None) -> Response:
    path = request.path.partition("?")[0]
    plain = PLAIN.get((request.method, path))
    if plain is not None:
        return plain(Call(storage, request, user))
    for address in ADDRESSES:
        found = address.fullmatch(path)
        chosen = found and OF_A_REPO.get((request.method, found["verb"] or "info"))
        if found and chosen:
            repo_type = (found["type"] or "models")[:-1]
            rest = tuple(unquote(part) for part in (found["rest"] or "/").split("/")[1:] if part)
            now = storage.aliases.get((repo_type, found["repo"]))
            if now is not None:
                moved = request.path.replace(found["repo"], quote(now), 1)
                return Response(307, b"", {"Location": moved})
            return chosen(Call(storage, request, user, repo_type, found["repo"], rest))
    raise HubError(404, f"Not an address of this Hub: {request.method} {path}")
