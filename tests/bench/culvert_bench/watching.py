"""Clients that keep asking, and tell when their answers change."""

from __future__ import annotations

import queue
import subprocess
import threading
import time

from . import tools
from .model import Refused
from .tools import Change, Ended, Failure

CONNECTIONS = 4


class Watcher:
    """One client: `CONNECTIONS` connections. Any request that fails, or is answered by what was in force before, is an error."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        self._lines: queue.Queue[Change | Failure | Ended] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.put(tools.read_watch(line.decode()))

    def begin(self, value: str, deadline: float) -> None:
        """Returns when every connection has had that answer; what it was answered before that does not count."""
        until = time.monotonic() + deadline
        known: dict[int, str] = {}
        while list(known.values()) != [value] * CONNECTIONS:
            match self._next(until, value):
                case Change(connection, found, _):
                    known[connection] = found
                case line:
                    raise Refused(f"{self.name}: {line}")

    def _next(self, until: float, awaited: str) -> Change | Failure | Ended:
        try:
            return self._lines.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise Refused(f"{self.name}: {awaited!r} was not answered on all of its connections") from None

    def wait_for(self, value: str, deadline: float) -> int:
        """When the last of its connections had that answer, in nanoseconds since 1970. `deadline`: in seconds from now."""
        until = time.monotonic() + deadline
        seen: dict[int, int] = {}
        while len(seen) < CONNECTIONS:
            match self._next(until, value):
                case Change(connection, found, at) if found == value:
                    seen[connection] = at
                case Change(connection, found, _):
                    raise Refused(f"{self.name}: connection {connection} was answered {found!r}, which is not in force")
                case line:
                    raise Refused(f"{self.name}: {line}")
        return max(seen.values())

    def end(self) -> int:
        """How many requests were answered; none has failed."""
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._reader.join(timeout=60)
        said = self._process.stderr.read().decode(errors="replace")
        while not self._lines.empty():
            match self._lines.get():
                case Ended(answered, 0) if answered:
                    return answered
                case Change(connection, found, _):
                    raise Refused(f"{self.name}: connection {connection} was answered {found!r} after the last edit")
                case line:
                    raise Refused(f"{self.name}: {line}")
        raise Refused(f"{self.name} ended without a word: {said}")

    def stop(self) -> None:
        """Whatever it does."""
        self._process.kill()
        self._process.wait(timeout=60)
        self._reader.join(timeout=60)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            stream.close()
