"""The requests and the responses of the Hub of the tests."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from tests.hub.storage import HubError, Repository, Storage, User


@dataclass(frozen=True)
class Request:
    """A request that was received, without its token: `has_token` says whether it had one."""

    method: str
    path: str
    """The path with the query."""
    headers: Mapping[str, str]
    body: bytes
    has_token: bool

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers.items() if k.lower() == name.lower()), None)

    @property
    def base_url(self) -> str:
        return f"http://{self.header('Host')}"


@dataclass
class Response:
    """A response that is sent."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A request to a repository's address, taken apart."""

    storage: Storage
    request: Request
    user: User | None
    repo_type: str = "model"
    repo_id: str = ""
    rest: tuple[str, ...] = ()
    """The segments after the verb."""

    @property
    def query(self) -> dict[str, str]:
        parts = parse_qs(self.request.path.partition("?")[2])
        return {name: values[-1] for name, values in parts.items()}

    def flag(self, name: str) -> bool:
        return self.query.get(name, "").lower() in ("1", "true")

    def json(self) -> Any:
        try:
            return json.loads(self.request.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"The body must be JSON: {error}") from error

    def repo(self, writing: bool = False) -> Repository:
        find = self.storage.find_for_writing if writing else self.storage.find
        return find(self.repo_id, self.repo_type, self.user)

    def revision(self) -> str:
        return self.rest[0] if self.rest else "main"

    def path_in_repo(self) -> str:
        return "/".join(self.rest[1:])


def answer_json(
    value: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response with a JSON body."""
    body = json.dumps(value, default=str).encode()
    return Response(status, body, {"Content-Type": "application/json", **(headers or {})})


def answer_error(error: HubError) -> Response:
    """A refusal, with the headers that the client reads."""
    headers = {"X-Error-Message": error.message.partition("\n")[0], **error.headers}
    if error.code:
        headers["X-Error-Code"] = error.code
    return answer_json({"error": error.message, **error.body}, error.status, headers)
