"""Answers of the Hub that change nothing."""

import re
from urllib.parse import parse_qs

from tests.hub import describe
from tests.hub.cards import find_errors, read_metadata
from tests.hub.messages import Call, Request, Response, answer_json
from tests.hub.storage import HubError, Repository


def whoami(call: Call) -> Response:
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    return answer_json(describe.user_info(call.user))


def validate_yaml(call: Call) -> Response:
    content = call.json()["content"]
    errors = [{"message": message} for message in find_errors(content)]
    warnings = []
    if not errors and not read_metadata(content):
        warnings.append({"message": "empty or missing yaml metadata in repo card"})
    return answer_json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def repo_info(call: Call) -> Response:
    repo = call.repo()
    is_empty = not repo.branches and not call.rest
    commit = None if is_empty else repo.find(call.revision())
    return answer_json(describe.repo_info(repo, commit, call.flag("blobs")))


def check_access(call: Call) -> Response:
    _check_gate(call, call.repo())
    return answer_json({})


def tree(call: Call) -> Response:
    commit = call.repo().find(call.revision())
    folder, recursive, expand = call.path_in_repo(), call.flag("recursive"), call.flag("expand")
    return answer_json(describe.tree(commit, folder, recursive, expand))


def paths_info(call: Call) -> Response:
    commit = call.repo().find(call.revision())
    if "json" in (call.request.header("Content-Type") or ""):
        body = call.json()
        paths, expand = body["paths"], bool(body.get("expand"))
    else:
        form = parse_qs(call.request.body.decode())
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
    entries = [describe.tree_entry(commit, path.strip("/"), expand) for path in paths]
    return answer_json([entry for entry in entries if entry])


def commits(call: Call) -> Response:
    history = call.repo().find(call.revision()).history()
    entries = [describe.commit_entry(commit) for commit in history]
    return answer_json(entries, headers={"X-Total-Count": str(len(entries))})


def refs(call: Call) -> Response:
    return answer_json(describe.refs(call.repo()))


def resolve(call: Call) -> Response:
    """A file; a large one by a redirect to another host, as the Hub does."""
    repo = call.repo()
    _check_gate(call, repo)
    commit = repo.find(call.revision())
    blob = commit.files.get(call.path_in_repo())
    headers = {"X-Repo-Commit": commit.oid}
    if blob is None:
        error = HubError(404, "Entry not found", "EntryNotFound")
        error.headers = headers
        raise error
    headers["ETag"] = f'"{blob.oid}"'
    if blob.is_lfs:
        port = call.request.base_url.rpartition(":")[2]
        headers["Location"] = f"http://localhost:{port}/cdn/{blob.sha256}"
        headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        return Response(302, b"", headers)
    return _content(call.request, blob.content, headers)


def _check_gate(call: Call, repo: Repository) -> None:
    if repo.gated and (call.user is None or not call.user.is_in(repo.namespace)):
        status = 401 if call.user is None else 403
        raise HubError(status, f"Access to {repo.repo_type} {repo.repo_id} is gated.", "GatedRepo")


def _content(request: Request, content: bytes, headers: dict[str, str]) -> Response:
    """All of a file, or the range that was asked for."""
    headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.header("Range") or "")
    if wanted is None or not any(wanted.groups()):
        return Response(200, content, headers)
    size = len(content)
    first, last = wanted.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last), size - 1) if first and last else size - 1
    if start > end:
        return Response(416, b"", {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Response(206, content[start : end + 1], headers)


def large_get(call: Call) -> Response:
    content = call.storage.large_files.get(call.rest[0])
    if content is None:
        raise HubError(404, "No such large file")
    return _content(call.request, content, {"ETag": f'"{call.rest[0]}"'})
