"""HTTP on the loopback interface: reads requests, sends answers, and breaks what it is told to."""

import contextlib
import socket
import sys
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from tests.hub.messages import Request, Response, answer_error
from tests.hub.routes import answer
from tests.hub.storage import HubError

if TYPE_CHECKING:
    from tests.hub.server import HubServer


def close(connection: socket.socket) -> None:
    """Ends what is sent and received on a connection, in the middle of it if need be."""
    with contextlib.suppress(OSError):  # The other side may have been faster.
        connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """Takes connections, each in a thread of its own."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: "HubServer", port: int) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", port), Handler)

    def server_bind(self) -> None:
        """Bind without looking up the host's name, as HTTPServer would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: object, client_address: object) -> None:
        """Keep every error of the server, but not that a client hung up."""
        if not isinstance(sys.exc_info()[1], OSError):
            self.hub.crashes.append(traceback.format_exc())


class Handler(BaseHTTPRequestHandler):
    """Reads requests, lets `answer` answer them, and disturbs them as the test wishes."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.hub.connections.add(self.connection)

    def finish(self) -> None:
        self.server.hub.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _handle(self) -> None:
        hub = self.server.hub
        cut = hub.faults.take("cut_request", self.command, self.path)
        body = self._read_body(cut.after if cut else None)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "authorization"}
        authorization = self.headers.get("Authorization")
        request = Request(self.command, self.path, headers, body, authorization is not None)
        hub.requests.append(request)
        if cut:
            self._hang_up()
        else:
            self._send(self._answer(request, authorization))

    def _answer(self, request: Request, authorization: str | None) -> Response:
        hub = self.server.hub
        if wait := hub.faults.take("slow", self.command, self.path):
            hub.stopping.wait(wait.seconds)
        if fault := hub.faults.take("status", self.command, self.path):
            return answer_error(HubError(fault.status, fault.message))
        user = None
        if authorization is not None:
            user = hub.storage.users.get(authorization.removeprefix("Bearer "))
            if user is None:
                message = "Invalid credentials in Authorization header"
                return answer_error(HubError(401, message))
        try:
            return answer(hub.storage, request, user)
        except Exception:
            hub.crashes.append(traceback.format_exc())
            return answer_error(HubError(500, "The Hub of the tests failed."))

    def _read_body(self, limit: int | None) -> bytes:
        """The body, or its first bytes, sent with its length or in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            size = int(self.headers.get("Content-Length", 0))
            return self._read(size if limit is None else min(size, limit))
        body = b""
        while size := int(self._read_line().partition(b";")[0], 16):
            body += self._read(size)
            self._read_line()
            if limit is not None and len(body) >= limit:
                return body[:limit]
        while self._read_line().strip():
            pass  # Trailers.
        return body

    def _read(self, size: int) -> bytes:
        read = self.rfile.read(size)
        if len(read) < size:
            raise ConnectionAbortedError("the client hung up in the middle of a body")
        return read

    def _read_line(self) -> bytes:
        line = self.rfile.readline()
        if not line.endswith(b"\n"):
            raise ConnectionAbortedError("the client hung up in the middle of a body")
        return line

    def _send(self, response: Response) -> None:
        cut = self.server.hub.faults.take("cut_response", self.command, self.path)
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[: cut.after] if cut else response.body)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        close(self.connection)


for _method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"):
    setattr(Handler, f"do_{_method}", Handler._handle)
