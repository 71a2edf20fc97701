"""Whether a path does what it says. Whatever does not is refused before anything is measured."""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path as File

from . import backend, cases, manifests, tools
from .contenders import Contender
from .model import Path, Refused
from .sandbox import Sandbox, run

TOKEN_HEADER = "x-bench-token"
SAMPLES = 200
# After each response that curl prints: in none of them.
SEPARATOR = "\x1e"


@dataclass(frozen=True)
class Answer:
    status: int
    head: str
    body: str


def read_answers(output: str) -> list[Answer]:
    """What curl printed with `-i` and the separator of `ask`."""
    found = []
    for part in output.split(SEPARATOR)[:-1]:
        head, _, body = part.partition("\r\n\r\n")
        words = head.split()
        if len(words) < 2 or not words[1].isdigit():
            raise Refused(f"no HTTP response: {part[:200]!r}")
        found.append(Answer(int(words[1]), head, body))
    return found


@dataclass(frozen=True)
class Asking:
    contender: Contender
    place: cases.Place
    token: str

    def ask(self, path: Path, where: str, *more: str, count: int = 1) -> list[Answer]:
        url = self.contender.target(path).url(where)
        token = f"{TOKEN_HEADER}: {self.token}"
        # One curl for all, which keeps its connection as a client does; it counts in the query.
        counted = f"?[1-{count}]" if count > 1 else ""
        command = ["curl", "-s", "-i", "--max-time", "20", "-H", token, *more, "-w", SEPARATOR, url + counted]
        answers = read_answers(run([*self.contender.entry(path), *command], deadline=60))
        if len(answers) != count:
            raise Refused(f"{self.contender.name}: {len(answers)} answers to {count} requests for {url}")
        return answers

    def expect(self, path: Path, where: str, wanted: str, *more: str) -> None:
        [found] = self.ask(path, where, *more)
        if found.status != 200 or not found.body.startswith(wanted):
            raise Refused(
                f"{self.contender.name}, {path.value}: {where} {' '.join(more)} should be answered by "
                f"{wanted!r}, not with {found.status} {found.body[:80]!r}\n{found.head}"
            )

    def expect_status(self, path: Path, where: str, status: int, *more: str) -> None:
        [found] = self.ask(path, where, *more)
        if found.status != status:
            raise Refused(
                f"{self.contender.name}, {path.value}: {where} should be answered {status}, not {found.status}"
            )


TO_V2 = ("-H", f"{backend.VERSION}: v2")
HTTP2 = "--http2-prior-knowledge"


def check(contender: Contender, paths: set[Path], place: cases.Place) -> None:
    """All paths of a contender, while the link between the nodes is recorded. The first requests it ever gets."""
    token = secrets.token_hex(12)
    asking = Asking(contender, place, token)
    with Recording(contender.sandbox, place.directory / f"{contender.name}.pcap") as recording:
        # HTTP/2 and gRPC compress headers: the word would not be readable, encrypted or not.
        for path in sorted(paths | {Path.OPAQUE}, key=lambda path: path.value):
            _wait_for_endpoints(asking, path)
            CHECKS[path](asking)
    summary = recording.summary(token)
    judge_link(contender, summary)
    if Path.COLD in paths:
        judge_tunnels(contender, summary)


def _wait_for_endpoints(asking: Asking, path: Path) -> None:
    """Pods are ready before everybody knows that they are."""
    if path in (Path.BULK, Path.ECHO, Path.COLD):
        return
    deadline = time.monotonic() + 120
    more = (HTTP2,) if path is Path.STREAMS else ()
    while True:
        [found] = _call(asking) if path is Path.CALLS else asking.ask(path, "/", *more)
        if found.status != 503 and "grpc-status: 14" not in found.head:
            return
        if time.monotonic() > deadline:
            raise Refused(f"{asking.contender.name}, {path.value}: no endpoint\n{found.head}")
        time.sleep(0.2)


def _judge_shares(who: str, path: Path, counted: dict[str, int]) -> None:
    """About a tenth with v2. By chance (Envoy) 2 % or 25 % of 200 would be as likely as never."""
    shares = {version: sum(n for name, n in counted.items() if name.startswith(version)) for version in ("v1", "v2")}
    if sum(shares.values()) != SAMPLES or not 0.02 < shares["v2"] / SAMPLES < 0.25:
        raise Refused(f"{who}, {path.value}: 90 % and 10 % of {SAMPLES} became {shares}")


def _grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in after.items()}


def _versions(asking: Asking) -> None:
    """By header to v2; else v1 and v2. Who answered says so, and the contender's counters agree."""
    who, path = asking.contender, Path.WEIGHTED
    if not who.is_routing:
        return asking.expect(path, "/", "v1")
    asking.expect(path, "/", "v2", *TO_V2)
    before = who.served(path)
    answers = asking.ask(path, "/", count=SAMPLES)
    answered = {version: sum(one.body.startswith(version) for one in answers) for version in ("v1", "v2")}
    _judge_shares(who.name, path, answered)
    counted = {name: count for name, count in _grown(before, who.served(path)).items() if count}
    if counted != answered:
        raise Refused(f"{who.name}, {path.value}: the servers answered {answered}, its counters say {counted}")
    return None


def _streams(asking: Asking) -> None:
    """The same over HTTP/2. h2load shows no bodies; the counters were shown to be true above."""
    who, path = asking.contender, Path.STREAMS
    if not who.is_routing:
        return asking.expect(path, "/", "v1", HTTP2)
    asking.expect(path, "/", "v2", HTTP2, *TO_V2)
    before = who.served(path)
    header = f"{TOKEN_HEADER}: {asking.token}"
    command = ["h2load", "-c1", "-m1", f"-n{SAMPLES}", "-H", header, who.target(path).url("/")]
    said = run([*who.entry(path), *command], deadline=60)
    if f" {SAMPLES} 2xx" not in said:
        raise Refused(f"{who.name}, {path.value}: not every request was answered:\n{said}")
    _judge_shares(who.name, path, _grown(before, who.served(path)))
    return None


def _weighted(asking: Asking) -> None:
    _versions(asking)
    [large] = asking.ask(Path.WEIGHTED, backend.LARGE)
    if large.status != 200 or len(large.body) != 2**20:
        raise Refused(f"{asking.contender.name}: {backend.LARGE} has {len(large.body)} bytes")


def _regex(asking: Asking) -> None:
    if not asking.contender.is_routing:
        return asking.expect(Path.REGEX, cases.ORDERS, "v1")
    before = asking.contender.mirrored()
    asking.expect(Path.REGEX, cases.ORDERS, "v2 items", *TO_V2)
    asking.expect_status(Path.REGEX, cases.ORDERS, 404)
    asking.expect_status(Path.REGEX, "/orders/x/items", 404, *TO_V2)
    deadline = time.monotonic() + 20
    while asking.contender.mirrored() == before:
        if time.monotonic() > deadline:
            raise Refused(f"{asking.contender.name}: no copy reached the mirror")
        time.sleep(0.1)
    return None


def _many(asking: Asking) -> None:
    last = manifests.many_path(manifests.ROUTES - 1)
    if not asking.contender.is_routing:
        return asking.expect(Path.MANY, last, "v1")
    asking.expect(Path.MANY, last, "v2")
    asking.expect(Path.MANY, manifests.many_path(0), "v1")
    return asking.expect_status(Path.MANY, "/nobody", 404)


def _call(asking: Asking) -> list[Answer]:
    message = ("--data-binary", f"@{asking.place.call}")
    headers = [word for name, value in cases.GRPC.items() for word in ("-H", f"{name}: {value}")]
    return asking.ask(Path.CALLS, cases.CALL, HTTP2, *headers, *message)


def _calls(asking: Asking) -> None:
    [found] = _call(asking)
    # Trailers come after the body, where curl shows them.
    if found.status != 200 or "grpc-status: 0" not in (found.head + found.body):
        raise Refused(f"{asking.contender.name}: the call was answered {found.status}\n{found.head}\n{found.body!r}")


def _echo(asking: Asking) -> None:
    target = asking.contender.target(Path.ECHO)
    program = str(asking.contender.sandbox.binaries / "culvert-echo")
    said = run(
        [
            *asking.contender.entry(Path.ECHO),
            program,
            "tcp",
            "send",
            f"{target.host}:{target.port}",
            "--data",
            asking.token,
        ],
        deadline=30,
    )
    if asking.token not in said:
        raise Refused(f"{asking.contender.name}: the echo server said {said!r}")


def _bulk(asking: Asking) -> None:
    target = asking.contender.target(Path.BULK)
    # Slowly: whatever the recording loses cannot be judged.
    command = ["iperf3", "-c", target.host, "-p", str(target.port), "-t", "1", "-b", "10M", "-J"]
    if tools.read_iperf3(run([*asking.contender.entry(Path.BULK), *command], deadline=60)).units == 0:
        raise Refused(f"{asking.contender.name}: no bytes came through")


def _opaque(asking: Asking) -> None:
    before = asking.contender.served(Path.OPAQUE) if asking.contender.is_routing else {}
    asking.expect(Path.OPAQUE, "/", "v1")
    if asking.contender.is_routing and asking.contender.served(Path.OPAQUE) == before:
        raise Refused(f"{asking.contender.name}: its counters do not know of a connection it carried")


def _cold(asking: Asking) -> None:
    """Each pair once. That there was a tunnel for each of them is seen on the link."""
    who, target = asking.contender, asking.contender.target(Path.COLD)
    load = cases.First().run(lambda words, late: run([*who.entry(Path.COLD), *words], late), target, 0, asking.place)
    if load.failed or load.units != len(target.clients) * len(target.servers):
        raise Refused(f"{who.name}: {load.units:.0f} connections succeeded and {load.failed} failed")


CHECKS = {
    Path.WEIGHTED: _weighted,
    Path.STREAMS: _streams,
    Path.REGEX: _regex,
    Path.MANY: _many,
    Path.CALLS: _calls,
    Path.OPAQUE: _opaque,
    Path.BULK: _bulk,
    Path.ECHO: _echo,
    Path.COLD: _cold,
}


class Recording:
    """What is on the link between the nodes, seen from the client's node."""

    def __init__(self, sandbox: Sandbox, file: File) -> None:
        self.sandbox, self.file = sandbox, file

    def __enter__(self) -> Recording:
        program = str(self.sandbox.binaries / "culvert")
        self.file.unlink(missing_ok=True)
        command = [
            *self.sandbox.node_entry("node1"),
            program,
            "capture",
            "--interface",
            "eth0",
            "--write",
            str(self.file),
        ]
        # It stops when its standard input closes.
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        # The first line says that frames are being kept.
        if b"capturing" not in self.process.stdout.readline():
            raise Refused(f"the link between the nodes cannot be recorded: {self.process.stderr.read().decode()}")
        return self

    def __exit__(self, *_: object) -> None:
        _, said = self.process.communicate(timeout=60)
        if self.process.returncode != 0:
            raise Refused(f"recording the link failed: {said.decode(errors='replace')}")

    def summary(self, token: str) -> dict:
        program = str(self.sandbox.binaries / "culvert")
        return json.loads(run([program, "capture", "--read", str(self.file), "--token", token], deadline=120))


def connections(contender: Contender, summary: dict) -> list[dict]:
    """Those to the contender's servers."""
    addresses = contender.addresses()
    return [one for one in summary["connections"] if one["server"].rsplit(":", 1)[0] in addresses]


def judge_tunnels(contender: Contender, summary: dict) -> None:
    """On the path of cold connections each has a tunnel of its own."""
    target = contender.target(Path.COLD)
    wanted, found = len(target.clients) * len(target.servers), len(connections(contender, summary))
    if found < wanted:
        raise Refused(f"{contender.name}: {wanted} connections had only {found} between the nodes")


def judge_link(contender: Contender, summary: dict) -> None:
    """Encrypted: TLS 1.3 and nothing else between the two pods, the token nowhere. Plaintext: the token must be readable, or
    not finding it would mean nothing."""
    if not contender.is_encrypted:
        if not summary["token_seen"]:
            raise Refused(f"{contender.name}: the link carries no plaintext; what is measured is not without a mesh")
        return
    if summary["token_seen"]:
        raise Refused(f"{contender.name}: the link carries plaintext: {summary['token_seen'][:3]}")
    ours = connections(contender, summary)
    carried = sum(one["sent"] for one in ours)
    if carried == 0:
        raise Refused(f"{contender.name}: nothing of it was seen on the link")
    for one in ours:
        if one["tls"] not in ("v13", "no_payload"):
            raise Refused(f"{contender.name}: {one['client']} to {one['server']} is not TLS 1.3: {one['tls']}")
