"""A Hugging Face Hub on the loopback interface, in memory, that the real clients talk to.

    with HubServer() as hub:
        hub.add_repo("lab/bert", {"config.json": b"{}"})
        subprocess.run([...], env=hub.environment(tmp_path))
        assert "config.json" in hub.files("tester/pruned")

The clients read their environment when they are imported, so they run in a process of their own.
"""

import base64
import os
import re
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from tests.hub.faults import Fault, Faults, Kind
from tests.hub.loopback import Server, close
from tests.hub.messages import Request
from tests.hub.storage import Commit, Repository, Storage, User

WRITE_TOKEN = "hf_writerOfTheTests"
READ_TOKEN = "hf_readerOfTheTests"
STRANGER_TOKEN = "hf_strangerOfTheTests"
USERS = {
    WRITE_TOKEN: User("tester", orgs=("lab",)),
    READ_TOKEN: User("tester", orgs=("lab",), can_write=False),
    STRANGER_TOKEN: User("stranger"),
}


class HubServer:
    """The server, what it keeps, and what it received.

    Args:
        users: who each token belongs to; `USERS` if left out.
        lfs_threshold: files of so many bytes, safetensors and parquet are large files, which
            the clients send and fetch apart (without Xet: `environment` turns it off); None: none
            are.
    """

    def __init__(
        self, users: Mapping[str, User] | None = None, lfs_threshold: int | None = None
    ) -> None:
        self.storage = Storage(USERS if users is None else users, lfs_threshold)
        self.requests: list[Request] = []
        self.crashes: list[str] = []
        """Tracebacks of errors in the server itself; leaving the context raises them."""
        self.faults = Faults()
        self.stopping = threading.Event()
        self.connections: set[socket.socket] = set()
        self._port = 0
        self._server: Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Begins to answer; after `stop` at the same address, with everything still there."""
        if self._server is None:
            self.stopping.clear()
            self._server = Server(self, self._port)
            self._port = self._server.server_address[1]
            options = {"poll_interval": 0.02}
            run = threading.Thread(target=self._server.serve_forever, kwargs=options, daemon=True)
            run.start()

    def stop(self) -> None:
        """Refuses connections from now on, and closes the open ones."""
        if self._server is not None:
            self.stopping.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            for connection in list(self.connections):
                close(connection)

    def __enter__(self) -> "HubServer":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if kind is None and self.crashes:
            raise RuntimeError("the Hub of the tests failed:\n" + "\n".join(self.crashes))

    # What it keeps

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        repo_type: str = "model",
        private: bool = False,
        gated: bool = False,
    ) -> None:
        """A new repository with these files as its first commit."""
        with self.storage.lock:
            if (repo_type, repo_id) in self.storage.repositories:
                raise ValueError(f"there is a {repo_type} '{repo_id}' already")
            self.storage.create(repo_id, repo_type, private).gated = gated
            self.add_files(repo_id, files, repo_type, "initial commit")

    def add_files(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        repo_type: str = "model",
        message: str = "add files",
    ) -> str:
        """A new commit on main, with these files beside those there; returns its id."""
        with self.storage.lock:
            repo = self._repo(repo_id, repo_type)
            blobs = {path: self.storage.blob(path, content) for path, content in files.items()}
            before = repo.branches["main"].files if repo.branches else {}
            return repo.commit(message, {**before, **blobs}, repo.namespace).oid

    def add_folder(
        self, repo_id: str, folder: str | Path, repo_type: str = "model", private: bool = False
    ) -> None:
        """A new repository with the files of a folder."""
        root = Path(folder)
        paths = sorted(path for path in root.rglob("*") if path.is_file())
        files = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
        self.add_repo(repo_id, files, repo_type, private)

    def add_alias(self, old_id: str, repo_id: str, repo_type: str = "model") -> None:
        """Redirects a former name, such as `bert-base-uncased`, to a repository."""
        self.storage.aliases[repo_type, old_id] = repo_id

    def files(
        self, repo_id: str, revision: str = "main", repo_type: str = "model"
    ) -> dict[str, bytes]:
        """The content of every file at a revision."""
        with self.storage.lock:
            commit = self._repo(repo_id, repo_type).find(revision)
            return {path: blob.content for path, blob in commit.files.items()}

    def commits(
        self, repo_id: str, revision: str = "main", repo_type: str = "model"
    ) -> list[Commit]:
        """The history of a revision, the newest first."""
        with self.storage.lock:
            return self._repo(repo_id, repo_type).find(revision).history()

    def has_repo(self, repo_id: str, repo_type: str = "model") -> bool:
        return (repo_type, repo_id) in self.storage.repositories

    def is_private(self, repo_id: str, repo_type: str = "model") -> bool:
        return self._repo(repo_id, repo_type).private

    def _repo(self, repo_id: str, repo_type: str) -> Repository:
        found = self.storage.repositories.get((repo_type, repo_id))
        if found is None:
            raise KeyError(
                f"no {repo_type} '{repo_id}'; there are {list(self.storage.repositories)}"
            )
        return found

    def find(self, text: str) -> list[str]:
        """Where a text was received: in the address, the headers or the body of a request.

        Bodies are searched as they are and with their base64 decoded, so that a token in an
        uploaded file is found too. The Authorization header is where a token belongs: not searched.
        """
        return [f"{r.method} {r.path}" for r in self.requests if _mentions(r, text.encode())]

    def environment(
        self, tmp_path: Path, token: str | None = WRITE_TOKEN, **more: str
    ) -> dict[str, str]:
        """The whole environment of a process whose Hub is this, with caches of its own."""
        own = re.compile(r"(HF|HUGGING_?FACE|TRANSFORMERS)_")
        inherited = {name: value for name, value in os.environ.items() if not own.match(name)}
        hosts = "127.0.0.1,localhost"
        settings = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(tmp_path / "hf_home"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": hosts,
            "no_proxy": hosts,
        }
        if token is not None:
            settings["HF_TOKEN"] = token
        if self.storage.lfs_threshold is not None:
            settings["HF_HUB_DISABLE_XET"] = "1"
        return {**inherited, **settings, **more}

    # What goes wrong

    def fail_next(
        self,
        method: str | None = None,
        path_contains: str = "",
        status: int = 500,
        times: int | None = 1,
        message: str = "Internal error, made by the test.",
    ) -> None:
        """Answers the next matching requests with an error, without doing what they ask."""
        self.faults.add(Fault("status", method, path_contains, times, status, message))

    def cut_connection(
        self,
        method: str | None = None,
        path_contains: str = "",
        after: int = 0,
        during: Literal["request", "response"] = "response",
        times: int | None = 1,
    ) -> None:
        """Closes the connection of the next matching requests after so many bytes of a body.

        A request that is cut does nothing; one whose response is cut has been done.
        """
        kind: Kind = "cut_request" if during == "request" else "cut_response"
        self.faults.add(Fault(kind, method, path_contains, times, after=after))

    def slow(
        self,
        seconds: float,
        method: str | None = None,
        path_contains: str = "",
        times: int | None = None,
    ) -> None:
        """Waits before it answers matching requests, by default all of them."""
        self.faults.add(Fault("slow", method, path_contains, times, seconds=seconds))

    def clear_faults(self) -> None:
        self.faults.clear()


def _mentions(request: Request, wanted: bytes) -> bool:
    headers = "\n".join(f"{name}: {value}" for name, value in request.headers.items())
    received = [request.path.encode(), headers.encode(), request.body]
    for run in re.findall(rb"[A-Za-z0-9+/]{4,}={0,2}", request.body):
        whole = run.rstrip(b"=")
        whole = whole[: len(whole) - (len(whole) % 4 == 1)]
        received.append(base64.b64decode(whole + b"=" * (-len(whole) % 4)))
    return any(wanted in part for part in received)
