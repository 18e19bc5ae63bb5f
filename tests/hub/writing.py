"""Answers of the Hub that change what it keeps."""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from tests.hub import describe
from tests.hub.cards import find_errors
from tests.hub.messages import Call, Response, answer_json
from tests.hub.storage import GIT_ATTRIBUTES, Blob, Commit, HubError, Repository, Storage


def _named_repo(call: Call) -> tuple[str, str]:
    """The type and full id of the repository that a body names."""
    body = call.json()
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    name = body["name"]
    repo_id = name if "/" in name else f"{body.get('organization') or call.user.name}/{name}"
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repo_id):
        raise HubError(400, f"Invalid repository name '{repo_id}'")
    return body.get("type") or "model", repo_id


def create_repo(call: Call) -> Response:
    repo_type, repo_id = _named_repo(call)
    call.storage.check_write(call.user, repo_id.partition("/")[0])
    url = f"{call.request.base_url}/{describe.PREFIXES[repo_type]}{repo_id}"
    if (repo_type, repo_id) in call.storage.repositories:
        message = f"You already created this {repo_type} repo"
        raise HubError(409, message, url=url, name=repo_id, id=repo_id)
    body = call.json()
    private = bool(body.get("private")) or body.get("visibility") == "private"
    repo = call.storage.create(repo_id, repo_type, private)
    files = {".gitattributes": Blob(GIT_ATTRIBUTES)}
    repo.commit("initial commit", files, _author(call))
    return answer_json({"url": url, "name": repo_id, "id": repo_id})


def delete_repo(call: Call) -> Response:
    repo_type, repo_id = _named_repo(call)
    call.storage.find_for_writing(repo_id, repo_type, call.user)
    del call.storage.repositories[repo_type, repo_id]
    return answer_json({})


def update_settings(call: Call) -> Response:
    repo, body = call.repo(writing=True), call.json()
    if "visibility" in body:
        body["private"] = body["visibility"] == "private"
    repo.private = bool(body.get("private", repo.private))
    repo.gated = bool(body.get("gated", repo.gated))
    return answer_json({"private": repo.private, "gated": repo.gated})


def preupload(call: Call) -> Response:
    """Tell for each file how to send it, and whether its content is there already."""
    files = _branch(call.repo(writing=True), call.revision()).files

    def entry(path: str, size: int) -> dict[str, Any]:
        mode = "lfs" if call.storage.is_large(path, size) else "regular"
        oid = files[path].oid if path in files else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    return answer_json({"files": [entry(f["path"], f["size"]) for f in call.json()["files"]]})


def commit(call: Call) -> Response:
    repo, branch = call.repo(writing=True), call.revision()
    if call.flag("create_pr"):
        raise HubError(400, "There are no pull requests on this Hub.")
    head = _branch(repo, branch)
    lines = [json.loads(line) for line in call.request.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    parent = header.get("parentCommit")
    if parent and not head.oid.startswith(parent):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for line in lines:
        if line["key"] != "header":
            _apply(call.storage, files, line["key"], line["value"])
    _check_card(files, head.files)
    summary, description = header["summary"], header.get("description", "")
    made = repo.commit(summary, files, _author(call), branch, description)
    url = f"{call.request.base_url}/{describe.web_path(repo)}/commit/{made.oid}"
    return answer_json({"success": True, "commitOid": made.oid, "commitUrl": url})


def _author(call: Call) -> str:
    assert call.user is not None, "writers have a name"
    return call.user.name


def _branch(repo: Repository, name: str) -> Commit:
    if name not in repo.branches:
        raise HubError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return repo.branches[name]


def _check_card(files: dict[str, Blob], before: Mapping[str, Blob]) -> None:
    card = files.get("README.md")
    if card is not None and card != before.get("README.md"):
        errors = find_errors(card.content.decode())
        if errors:
            raise HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))


def _apply(storage: Storage, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
    """One operation of a commit."""
    path = value["path"]
    if key == "file":
        files[path] = Blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        if value["oid"] not in storage.large_files:
            raise HubError(400, f"{path} points to a large file that was not uploaded")
        files[path] = Blob(storage.large_files[value["oid"]], is_lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        inside = path.rstrip("/") + "/"
        gone = [p for p in files if p == path or (key != "deletedFile" and p.startswith(inside))]
        if not gone:
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation '{key}'")


def create_branch(call: Call) -> Response:
    repo, name = call.repo(writing=True), "/".join(call.rest)
    if name in repo.branches:
        raise HubError(409, f"Reference already exists: {name}")
    repo.branches[name] = repo.find(call.json().get("startingPoint") or "main")
    return answer_json({})


def delete_branch(call: Call) -> Response:
    repo, name = call.repo(writing=True), "/".join(call.rest)
    if name == "main":
        raise HubError(403, "The branch main cannot be deleted")
    _branch(repo, name)
    del repo.branches[name]
    return answer_json({})


def create_tag(call: Call) -> Response:
    repo, name = call.repo(writing=True), call.json()["tag"]
    if name in repo.tags:
        raise HubError(409, f"Tag reference exists already: {name}")
    repo.tags[name] = repo.find(call.revision())
    return answer_json({})


def delete_tag(call: Call) -> Response:
    repo = call.repo(writing=True)
    if repo.tags.pop("/".join(call.rest), None) is None:
        raise HubError(404, "Tag not found", "RevisionNotFound")
    return answer_json({})


def large_batch(call: Call) -> Response:
    """Tell where to put each large file that is not there yet."""
    repo, base = call.repo(writing=True), call.request.base_url

    def entry(oid: str, size: int) -> dict[str, Any]:
        if oid in call.storage.large_files:
            return {"oid": oid, "size": size}
        verify = f"{base}/{describe.web_path(repo)}.git/info/lfs/objects/verify"
        actions = {"upload": {"href": f"{base}/lfs/{oid}"}, "verify": {"href": verify}}
        return {"oid": oid, "size": size, "actions": actions}

    objects = [entry(item["oid"], item["size"]) for item in call.json()["objects"]]
    return answer_json({"transfer": "basic", "objects": objects})


def large_verify(call: Call) -> Response:
    call.repo(writing=True)
    content = call.storage.large_files.get(call.json()["oid"])
    if content is None or len(content) != call.json()["size"]:
        raise HubError(404, "The large file was not uploaded")
    return answer_json({})


def large_put(call: Call) -> Response:
    blob = Blob(call.request.body, is_lfs=True)
    if blob.sha256 != call.rest[0]:
        raise HubError(400, "The content is not what its name says")
    call.storage.large_files[blob.sha256] = blob.content
    return Response(200)
