"""Disturb the Hub on purpose: its answers come late, are refused or are cut."""

import threading
from dataclasses import dataclass
from typing import Literal

Kind = Literal["status", "cut_request", "cut_response", "slow"]


@dataclass
class Fault:
    """One disturbance of the requests that it matches."""

    kind: Kind
    method: str | None = None
    """None matches every method."""
    path_contains: str = ""
    times: int | None = 1
    """How many more requests are disturbed; None: all."""
    status: int = 500
    message: str = "Internal error, made by the test."
    after: int = 0
    """Bytes of the body that still pass before the connection is cut."""
    seconds: float = 0.0

    def matches(self, method: str, path: str) -> bool:
        return self.method in (None, method) and self.path_contains in path and self.times != 0


class Faults:
    """The disturbances that are still to come."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, kind: Kind, method: str, path: str) -> Fault | None:
        """The oldest disturbance of a kind that matches the request, counted as used."""
        with self._lock:
            for fault in self._faults:
                if fault.kind == kind and fault.matches(method, path):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None
