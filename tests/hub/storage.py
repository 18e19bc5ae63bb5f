"""The contents of the Hub of the tests, in memory: users, and repositories with their commits."""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property

LARGE = (".safetensors", ".parquet")
GIT_ATTRIBUTES = "".join(f"*{end} filter=lfs diff=lfs merge=lfs -text\n" for end in LARGE).encode()


class HubError(Exception):
    """Ends a request with a status, and the headers from which the client chooses its exception."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.body = body
        self.headers: dict[str, str] = {}


@dataclass(frozen=True)
class User:
    """The owner of a token; `can_write` is a property of the token, as on the Hub."""

    name: str
    orgs: tuple[str, ...] = ()
    can_write: bool = True

    def is_in(self, namespace: str) -> bool:
        """Whether the user owns the namespace, or is a member of it."""
        return namespace == self.name or namespace in self.orgs


@dataclass(frozen=True)
class Blob:
    """The content of one file, in git or in the store of large files."""

    content: bytes
    is_lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """The pointer that git keeps in the place of a large file."""
        return (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{self.sha256}\nsize {len(self.content)}\n"
        ).encode()

    @cached_property
    def git_oid(self) -> str:
        kept = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def oid(self) -> str:
        """The value that the client compares with a local file."""
        return self.sha256 if self.is_lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files."""

    title: str
    files: Mapping[str, Blob]
    author: str
    description: str = ""
    parent: "Commit | None" = None
    date: datetime = field(default_factory=lambda: datetime.now(timezone.utc))

    @cached_property
    def oid(self) -> str:
        tree = sorted((path, blob.git_oid) for path, blob in self.files.items())
        parent = self.parent.oid if self.parent else None
        text = repr((parent, self.title, self.description, self.date.isoformat(), tree))
        return hashlib.sha1(text.encode()).hexdigest()

    @property
    def date_text(self) -> str:
        return self.date.strftime("%Y-%m-%dT%H:%M:%S.") + f"{self.date.microsecond // 1000:03d}Z"

    def history(self) -> "list[Commit]":
        """This commit and the ones before it, the newest first."""
        commits = [self]
        while (parent := commits[-1].parent) is not None:
            commits.append(parent)
        return commits

    def last_change(self, path: str) -> "Commit":
        """The newest commit that changed a file, or any file of a folder."""

        def part(commit: Commit) -> dict[str, Blob]:
            inside = f"{path}/"
            files = commit.files.items()
            return {name: b for name, b in files if name == path or name.startswith(inside)}

        last = self
        while last.parent is not None and part(last.parent) == part(self):
            last = last.parent
        return last


@dataclass
class Repository:
    """Commits that branches and tags point to."""

    repo_id: str
    repo_type: str = "model"
    private: bool = False
    gated: bool = False
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.repo_id.partition("/")[0]

    def find(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a commit id (seven characters are enough)."""
        for refs in (self.branches, self.tags):
            name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
            if name in refs:
                return refs[name]
        if len(revision) >= 7:
            for head in (*self.branches.values(), *self.tags.values()):
                for commit in head.history():
                    if commit.oid.startswith(revision):
                        return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(
        self,
        title: str,
        files: Mapping[str, Blob],
        author: str,
        branch: str = "main",
        description: str = "",
    ) -> Commit:
        """Puts a snapshot on a branch; a branch that there is not yet begins with it."""
        parent = self.branches.get(branch)
        made = Commit(title, dict(files), author, description, parent)
        self.branches[branch] = made
        return made


class Storage:
    """All repositories, large files and users of a Hub; hold `lock` while reading or writing."""

    def __init__(self, users: Mapping[str, User], lfs_threshold: int | None) -> None:
        self.users = dict(users)
        self.lfs_threshold = lfs_threshold
        self.lock = threading.RLock()
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.aliases: dict[tuple[str, str], str] = {}
        self.large_files: dict[str, bytes] = {}

    def is_large(self, path: str, size: int) -> bool:
        """Whether a file belongs to the store of large files."""
        if self.lfs_threshold is None or size == 0:
            return False
        return size >= self.lfs_threshold or path.endswith(LARGE)

    def blob(self, path: str, content: bytes) -> Blob:
        """A file's content, stored where the file belongs."""
        made = Blob(content, self.is_large(path, len(content)))
        if made.is_lfs:
            self.large_files[made.sha256] = content
        return made

    def create(self, repo_id: str, repo_type: str, private: bool = False) -> Repository:
        """A new repository without any commit."""
        made = Repository(repo_id, repo_type, private)
        self.repositories[repo_type, repo_id] = made
        return made

    def find(self, repo_id: str, repo_type: str, user: User | None) -> Repository:
        """The repository, if the user may know that there is one."""
        found = self.repositories.get((repo_type, repo_id))
        is_member = found is not None and user is not None and user.is_in(found.namespace)
        if found is not None and (not found.private or is_member):
            return found
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def find_for_writing(self, repo_id: str, repo_type: str, user: User | None) -> Repository:
        """The repository, if the user may change it."""
        found = self.find(repo_id, repo_type, user)
        self.check_write(user, found.namespace)
        return found

    @staticmethod
    def check_write(user: User | None, namespace: str) -> None:
        """Refuses who has no token, a read-only one, or no part in the namespace."""
        if user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        if not user.can_write:
            raise HubError(403, "Forbidden: you must use a write token to do this.")
        if not user.is_in(namespace):
            raise HubError(403, f"Forbidden: you have no write access to '{namespace}'.")
