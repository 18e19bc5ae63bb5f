"""Repositories, commits and files as the Hub describes them in JSON."""

import hashlib
import json
from typing import Any

from tests.hub.cards import read_metadata, tags_of
from tests.hub.storage import Blob, Commit, HubError, Repository, User

PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}


def user_info(user: User) -> dict[str, Any]:
    """The owner of a token."""
    role = "write" if user.can_write else "read"
    return {
        "type": "user",
        "id": hashlib.sha1(user.name.encode()).hexdigest()[:24],
        "name": user.name,
        "fullname": user.name,
        "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.orgs],
        "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
    }


def repo_info(repo: Repository, commit: Commit | None, with_blobs: bool = False) -> dict[str, Any]:
    """A repository at a commit; one without commits has no files and no sha."""
    files = commit.files if commit else {}
    data = _metadata(files.get("README.md"))
    info = {
        "_id": hashlib.sha1(repo.repo_id.encode()).hexdigest()[:24],
        "id": repo.repo_id,
        "author": repo.namespace,
        "sha": commit.oid if commit else None,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags_of(data),
        "cardData": data or None,
        "siblings": [_sibling(path, files[path], with_blobs) for path in sorted(files)],
    }
    if commit:
        first = commit.history()[-1]
        info |= {"lastModified": commit.date_text, "createdAt": first.date_text}
    if repo.repo_type == "model":
        names = ("library_name", "pipeline_tag", "model-index")
        info |= {"modelId": repo.repo_id} | {name: data[name] for name in names if name in data}
        if "config.json" in files:
            config = json.loads(files["config.json"].content)
            info["config"] = {k: config[k] for k in ("architectures", "model_type") if k in config}
    return info


def _metadata(readme: Blob | None) -> dict[str, Any]:
    try:
        return read_metadata(readme.content.decode()) if readme else {}
    except ValueError:
        return {}


def _sibling(path: str, blob: Blob, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    entry = {"rfilename": path, "size": len(blob.content), "blobId": blob.git_oid}
    if blob.is_lfs:
        size = len(blob.content)
        entry["lfs"] = {"sha256": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
    return entry


def tree(commit: Commit, folder: str, recursive: bool, expand: bool) -> list[dict[str, Any]]:
    """The files and folders in a folder.

    Raises:
        HubError: no such folder.
    """
    inside = f"{folder}/" if folder else ""
    paths = [path for path in commit.files if path.startswith(inside)]
    if folder and not paths:
        raise HubError(404, f"{folder} does not exist on this revision", "EntryNotFound")
    found = {path for path in paths if recursive or "/" not in path[len(inside) :]}
    for path in paths:
        parents = path[len(inside) :].split("/")[:-1]
        depths = range(1, len(parents) + 1) if recursive else range(1, min(len(parents), 1) + 1)
        found |= {inside + "/".join(parents[:depth]) for depth in depths}
    return [entry for path in sorted(found) if (entry := tree_entry(commit, path, expand))]


def tree_entry(commit: Commit, path: str, expand: bool = False) -> dict[str, Any] | None:
    """A file or a folder; None if there is no such path."""
    blob = commit.files.get(path)
    if blob is not None:
        entry: dict[str, Any] = {"type": "file", "oid": blob.git_oid, "size": len(blob.content)}
        if blob.is_lfs:
            size = len(blob.content)
            entry["lfs"] = {"oid": blob.sha256, "size": size, "pointerSize": len(blob.pointer)}
    else:
        oids = [b.git_oid for name, b in sorted(commit.files.items()) if _is_in(name, path)]
        if not oids:
            return None
        entry = {"type": "directory", "oid": hashlib.sha1(repr(oids).encode()).hexdigest()}
        entry["size"] = 0
    if expand:
        last = commit.last_change(path)
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date_text}
    return entry | {"path": path}


def _is_in(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")


def commit_entry(commit: Commit) -> dict[str, Any]:
    """A commit as a line of the history."""
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.description,
        "authors": [{"user": commit.author}],
        "date": commit.date_text,
    }


def refs(repo: Repository) -> dict[str, Any]:
    """The branches and tags of a repository."""

    def listed(kind: str, commits: dict[str, Commit]) -> list[dict[str, str]]:
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit.oid}
            for name, commit in commits.items()
        ]

    return {
        "branches": listed("heads", repo.branches),
        "converts": [],
        "tags": listed("tags", repo.tags),
        "pullRequests": [],
    }


def web_path(repo: Repository) -> str:
    """The address of the repository in a browser."""
    return PREFIXES[repo.repo_type] + repo.repo_id
