"""What is measured: groups and cases, and the load each of them is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path as File
from typing import ClassVar

from . import backend, manifests, tools
from .model import Load, Path, Target

# Runs a command in the client's pod, at most so many seconds long, and returns what it prints.
Run = Callable[[list[str], float], str]

VERSION_2 = {backend.VERSION: "v2"}
CALL = "/grpc.health.v1.Health/Check"


@dataclass(frozen=True)
class Place:
    """Files that loads need."""

    directory: File
    load_program: File
    echo_program: File

    @property
    def call(self) -> File:
        return self.directory / "call"

    def write(self) -> None:
        # One gRPC message of no bytes: a flag and a length.
        self.call.write_bytes(bytes(5))


@dataclass(frozen=True)
class Requests:
    """As many requests over HTTP/1.1 as the connections carry. With `Connection: close`, each on a connection of its own."""

    connections: int
    path: str = "/"
    headers: dict[str, str] = field(default_factory=dict)

    is_repeated: ClassVar[bool] = True  # the longer, the more of it

    def run(self, run: Run, target: Target, seconds: float, _: Place) -> Load:
        command = tools.wrk(target.url(self.path), self.connections, seconds, self.headers)
        return tools.read_wrk(run(command, seconds + 30))


@dataclass(frozen=True)
class Streams:
    """As many requests over HTTP/2 as so many streams carry."""

    streams: int
    path: str = "/"
    headers: dict[str, str] = field(default_factory=dict)
    is_call: bool = False

    is_repeated: ClassVar[bool] = True  # the longer, the more of it

    def run(self, run: Run, target: Target, seconds: float, place: Place) -> Load:
        log = place.directory / "h2load.log"
        log.unlink(missing_ok=True)
        body = str(place.call) if self.is_call else None
        command = tools.h2load(target.url(self.path), self.streams, seconds, str(log), self.headers, body)
        output = run(command, seconds + 30)
        return tools.read_h2load(output, log.read_text(), seconds)


@dataclass(frozen=True)
class Bulk:
    """`direction`: `up` to the server or `down` from it."""

    streams: int
    direction: str

    is_repeated: ClassVar[bool] = True  # the longer, the more of it

    def run(self, run: Run, target: Target, seconds: float, _: Place) -> Load:
        command = tools.iperf3(target.host, target.port, self.streams, seconds, self.direction)
        return tools.read_iperf3(run(command, seconds + 30))


@dataclass(frozen=True)
class FixedRate:
    """Requests at a rate that does not depend on answers, their latency counted from when they were due."""

    rate: int
    connections: int
    seconds: float

    is_repeated: ClassVar[bool] = True  # the longer, the more of it

    def run(self, run: Run, target: Target, seconds: float, place: Place) -> Load:
        lasts = min(self.seconds, max(seconds * 6, 1))
        command = tools.fixed_rate(str(place.load_program), target.url("/"), self.rate, lasts, self.connections)
        return tools.read_load(run(command, lasts + 30))


@dataclass(frozen=True)
class Idle:
    """Connections that are opened, carry a byte each way, and are then held. What matters is the memory they take."""

    connections: int

    is_repeated: ClassVar[bool] = False  # the longer, the more of it

    def run(self, run: Run, target: Target, seconds: float, place: Place) -> Load:
        began = time.monotonic()
        command = tools.hold(str(place.echo_program), target.host, target.port, self.connections)
        failed = tools.read_hold(run(command, 240), self.connections)
        return Load(time.monotonic() - began, self.connections, failed)


@dataclass(frozen=True)
class First:
    """The first connection between each client and each server of the target, with one request."""

    is_repeated: ClassVar[bool] = False

    def run(self, run: Run, target: Target, seconds: float, place: Place) -> Load:
        urls = [f"http://{server}:{target.port}/" for server in target.servers]
        command = tools.first(str(place.load_program), urls, list(target.clients))
        return tools.read_load(run(command, 240))


AnyLoad = Requests | Streams | Bulk | FixedRate | Idle | First


@dataclass(frozen=True)
class Case:
    group: str
    name: str
    path: Path
    load: AnyLoad
    is_quick: bool = False

    @property
    def unit(self) -> str:
        match self.load:
            case Bulk():
                return "GiB"
            case Idle():
                return "connection"
            case First():
                return "tunnel"
            case _:
                return "request"


CLOSE = {"Connection": "close"}
GRPC = {"content-type": "application/grpc", "te": "trailers", **VERSION_2}
ORDERS = "/orders/17/items/3"


def _keep_alive(group: str, path: Path) -> list[Case]:
    quick = (16, 64)
    return [
        Case(group, f"keep-alive, {count} connections", path, Requests(count), count in quick)
        for count in (1, 16, 64, 256)
    ]


def _short(group: str, path: Path) -> list[Case]:
    return [
        Case(group, f"connection per request, {count} at a time", path, Requests(count, headers=CLOSE), count == 16)
        for count in (16, 64)
    ]


def _bulk() -> list[Case]:
    return [
        Case(
            "L4",
            f"{streams} bulk stream{'s' if streams > 1 else ''} {direction}",
            Path.BULK,
            Bulk(streams, direction),
            streams == 1,
        )
        for streams in (1, 8)
        for direction in ("up", "down")
    ]


CASES: tuple[Case, ...] = (
    *_keep_alive("L7", Path.WEIGHTED),
    Case("L7", "HTTP/2, 100 streams", Path.STREAMS, Streams(100), True),
    Case("L7", "gRPC unary, 100 streams", Path.CALLS, Streams(100, CALL, GRPC, is_call=True)),
    Case("L7", "1 MiB response, 16 connections", Path.WEIGHTED, Requests(16, backend.LARGE)),
    Case("L7", "regular expression, header, rewrite, mirror", Path.REGEX, Requests(16, ORDERS, VERSION_2), True),
    Case("L7", "5,000 routes", Path.MANY, Requests(16, manifests.many_path(manifests.ROUTES - 1))),
    *_short("L7", Path.WEIGHTED),
    *_keep_alive("L4", Path.OPAQUE),
    *_short("L4", Path.OPAQUE),
    *_bulk(),
    Case("L4", f"new tunnel per connection, {manifests.CALLERS} at a time", Path.COLD, First()),
    Case("L4", "10,000 idle connections", Path.ECHO, Idle(10_000)),
    Case("fixed rate", "L7, 1,000 requests/s", Path.WEIGHTED, FixedRate(1000, 16, 30), True),
    Case("fixed rate", "L4, 1,000 requests/s", Path.OPAQUE, FixedRate(1000, 16, 30), True),
)
