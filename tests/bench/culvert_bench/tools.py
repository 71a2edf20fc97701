"""Command lines of the load generators, and what they print read back. No I/O."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from .model import Latency, Load, Refused
from .numbers import percentile

UNITS_OF_TIME = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


def milliseconds(text: str) -> float:
    """`612.00us`, `1.20ms`, `2.01s`."""
    found = re.fullmatch(r"([0-9.]+)(us|ms|s|m)", text.strip())
    if not found:
        raise Refused(f"not a time: {text!r}")
    return float(found[1]) * UNITS_OF_TIME[found[2]]


def whole(seconds: float) -> int:
    """The tools take no others."""
    return max(1, round(seconds))


def wrk(url: str, connections: int, seconds: float, headers: dict[str, str]) -> list[str]:
    # One thread: the generator shares the machine with what it measures, and one is enough for it.
    command = ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{whole(seconds)}s", "--timeout", "10s"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    return [*command, url]


def read_wrk(output: str) -> Load:
    total = re.search(r"(\d+) requests in ([0-9.]+(?:us|ms|s|m)),", output)
    if not total or int(total[1]) == 0:
        raise Refused(f"wrk got no answers:\n{output}")
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    failed = sum(map(int, errors.groups())) if errors else 0
    failed += int(refused[1]) if refused else 0
    parts = {share: milliseconds(time) for share, time in re.findall(r"^\s+(50|99)%\s+(\S+)$", output, re.MULTILINE)}
    if set(parts) != {"50", "99"}:
        raise Refused(f"wrk printed no percentiles:\n{output}")
    return Load(milliseconds(total[2]) / 1e3, int(total[1]), failed, Latency(parts["50"], parts["99"]))


def h2load(url: str, streams: int, seconds: float, log: str, headers: dict[str, str], body: str | None) -> list[str]:
    """100 streams are spread over ten connections at most ten to one, as a client's pool would."""
    connections = max(1, streams // 10)
    command = [
        "h2load",
        "-t1",
        f"-c{connections}",
        f"-m{streams // connections}",
        f"-D{whole(seconds)}",
        f"--log-file={log}",
    ]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    if body:
        command += ["-d", body]
    return [*command, url]


def read_h2load(output: str, log: str, seconds: float) -> Load:
    """The log has a line per request: start in microseconds, status, duration in microseconds."""
    lines = [line.split("\t") for line in log.splitlines()]
    answered = sorted(int(line[2]) / 1e3 for line in lines if line[1].startswith("2"))
    if not answered:
        raise Refused(f"h2load got no answers:\n{output}")
    latency = Latency(percentile(answered, 0.5), percentile(answered, 0.99))
    return Load(whole(seconds), len(answered), len(lines) - len(answered), latency)


def iperf3(host: str, port: int, streams: int, seconds: float, direction: str) -> list[str]:
    command = ["iperf3", "-c", host, "-p", str(port), "-P", str(streams), "-t", str(whole(seconds)), "-J"]
    return [*command, "-R"] if direction == "down" else command


def read_iperf3(output: str) -> Load:
    """What arrived, in GiB."""
    try:
        report = json.loads(output)
        arrived = report["end"]["sum_received"]
        return Load(arrived["seconds"], arrived["bytes"] / 2**30)
    except (ValueError, KeyError) as error:
        raise Refused(f"iperf3 failed ({error!r}):\n{output[:2000]}") from error


def fixed_rate(program: str, url: str, rate: int, seconds: float, connections: int) -> list[str]:
    return [program, "rate", "--rate", str(rate), "--seconds", f"{seconds:g}", "--connections", str(connections), url]


def first(program: str, urls: list[str], namespaces: list[str]) -> list[str]:
    """A request from each namespace to each URL."""
    return [program, "first", *(word for one in namespaces for word in ("--from", one)), *urls]


def read_load(output: str) -> Load:
    report = json.loads(output)
    latency = Latency(report["p50_ms"], report["p99_ms"], report["p999_ms"])
    return Load(report["seconds"], report["answered"], report["failed"], latency)


def hold(program: str, host: str, port: int, connections: int) -> list[str]:
    """The line on its standard input asks for another byte on each connection, once all are open and were quiet for a while."""
    held = f"{program} hold --connections {connections} --parallel 64 --timeout 60000 {host}:{port}"
    return ["sh", "-c", f"(sleep 3; echo) | {held}"]


def read_hold(output: str, connections: int) -> int:
    """How many connections failed. Two lines: all are open; a byte came back on each."""
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    if len(lines) != 2:
        raise Refused(f"connections were not held:\n{output}")
    return connections - min(line["ok"] for line in lines)


@dataclass(frozen=True)
class Change:
    """The answer on a connection is another than before, from then on (nanoseconds since 1970)."""

    connection: int
    value: str
    at: int


@dataclass(frozen=True)
class Failure:
    why: str


@dataclass(frozen=True)
class Ended:
    answered: int
    failed: int


def watch(program: str, url: str, header: str | None, connections: int) -> list[str]:
    """Without a header, the first word of the body is watched."""
    command = [program, "watch", "--connections", str(connections), url]
    return [*command, "--header", header] if header else command


def read_watch(line: str) -> Change | Failure | Ended:
    found = json.loads(line)
    match found["event"]:
        case "changed":
            return Change(found["connection"], found["value"], found["at_ns"])
        case "failed":
            return Failure(found["why"])
        case "ended":
            return Ended(found["answered"], found["failed"])
        case other:
            raise Refused(f"no such event: {other}")
