"""The words of a run: paths through a contender, loads, measurements. Values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Path(enum.Enum):
    """A way through a contender, as a client sees it. The value is the name of the Service in the meshed namespace."""

    WEIGHTED = "web"  # requests: a rule by header, else 90 % to v1 and 10 % to v2
    STREAMS = "streams"  # the same over HTTP/2
    REGEX = "regex"  # requests: regular expression, header, rewrite, mirror
    MANY = "many"  # requests: one rule of 5,000 routes
    CALLS = "grpc"  # gRPC unary: a rule by header, else one backend
    OPAQUE = "opaque"  # bytes: the HTTP server of v1
    BULK = "bulk"  # bytes: iperf3
    ECHO = "echo"  # bytes: the echo server
    COLD = "cold"  # bytes: the HTTP server of v1, each connection on a tunnel of its own


@dataclass(frozen=True)
class Target:
    host: str
    port: int
    # Of a path with many clients and servers: the clients' network namespaces, as files; the servers; and one more server.
    clients: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    another: str = ""

    def url(self, path: str) -> str:
        return f"http://{self.host}:{self.port}{path}"


@dataclass(frozen=True)
class Latency:
    """Percentiles in milliseconds."""

    p50: float
    p99: float
    p999: float | None = None


@dataclass(frozen=True)
class Load:
    """What a load generator says of one run."""

    seconds: float
    units: float  # requests, or GiB of a bulk case
    failed: int = 0
    latency: Latency | None = None

    @property
    def rate(self) -> float:
        return self.units / self.seconds


@dataclass(frozen=True)
class Usage:
    """What the proxies used in the meantime. Times in seconds, memory in bytes."""

    user: float
    system: float
    peak_memory: int
    switches: int


@dataclass(frozen=True)
class Measurement:
    """One contender, one case, one round."""

    load: Load
    usage: Usage | None = None  # none for `direct`, which has no proxy
    idle_memory: int = 0  # of the proxies, before they carried anything but the checks

    def figures(self) -> dict[str, float]:
        """The comparable figures by name; the unit is part of the name."""
        found: dict[str, float] = {"rate": self.load.rate}
        if latency := self.load.latency:
            found |= {"p50_ms": latency.p50, "p99_ms": latency.p99}
            if latency.p999 is not None:
                found["p999_ms"] = latency.p999
        if usage := self.usage:
            each = 1e6 / self.load.units
            found |= {
                "cpu_us": (usage.user + usage.system) * each,
                "user_us": usage.user * each,
                "system_us": usage.system * each,
                "switches": usage.switches / self.load.units,
                "peak_memory_mb": usage.peak_memory / 1e6,
                "memory_kb": (usage.peak_memory - self.idle_memory) / 1e3 / self.load.units,
            }
        return found


@dataclass
class Result:
    """All rounds of one case."""

    group: str
    case: str
    unit: str
    # By contender; where only Culvert takes part, perhaps by process.
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def add(self, contender: str, measurement: Measurement) -> None:
        self.add_figures(contender, measurement.figures())

    def add_figures(self, who: str, figures: dict[str, float]) -> None:
        self.rounds.setdefault(who, []).append(figures)


class Refused(Exception):
    """A path does not do what it says, or a tool failed: nothing is reported then."""
