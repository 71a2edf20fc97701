"""Instructions that the node proxies execute per request, counted by callgrind while the mesh runs.

One client that waits for each answer, one worker: then the same work is done for each request, in the same order, whatever
else the machine does. What the kernel executes is not counted, nor is time: these figures find what a change costs in our code
and its libraries, to within two percent on a busy machine.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path as File

from . import backend, cases, manifests, processes
from .model import Path, Refused
from .rounds import say
from .sandbox import Sandbox, run

GROUP = "instructions"
REQUESTS = 1000
WARM_UP = 200

# The programs are looked for in one directory; there the node proxy is this script.
WRAPPER = """#!/bin/sh
exec valgrind --tool=callgrind --instr-atstart=no --callgrind-out-file={directory}/callgrind.%p \\
  {program} "$@" --workers 1
"""


@dataclass(frozen=True)
class Counted:
    """What is counted. `path` and `headers` are those of each request."""

    name: str
    path: Path
    where: str
    headers: dict[str, str]


COUNTED = (
    Counted("L7 request, keep-alive", Path.WEIGHTED, "/", {}),
    Counted("L7 request, regular expression, rewrite and mirror", Path.REGEX, cases.ORDERS, cases.VERSION_2),
    # Not an L7 request on a connection of its own: how the pool is used then depends on time, by 5 %.
    Counted("L4 request, keep-alive", Path.OPAQUE, "/", {}),
    Counted("L4 request, connection of its own", Path.OPAQUE, "/", cases.CLOSE),
)


def count(binaries: File, output: File) -> dict[str, float]:
    """Instructions per request by what is counted and by node: `client` or `server`."""
    directory = output / GROUP
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("callgrind.*"):
        old.unlink()
    wrapped = wrap(binaries, directory)
    for namespace in (manifests.PLAIN, manifests.MESHED):
        backend.write_nginx(directory / namespace)
    manifests.write(manifests.cluster(directory), directory / "cluster.yaml")
    sandbox = Sandbox(binaries)
    say("Counting instructions ...")
    sandbox.up(directory / "cluster.yaml", "--bin-dir", str(wrapped), "--wait", "300s")
    try:
        proxies = {"client": Proxy(sandbox, "node1", directory), "server": Proxy(sandbox, "node2", directory)}
        found: dict[str, float] = {}
        for counted in COUNTED:
            for node, instructions in count_one(sandbox, proxies, counted).items():
                found[f"{counted.name}, {node}'s node"] = instructions
                say(f"  {counted.name}, {node}'s node: {instructions:,.0f}")
        return found
    finally:
        sandbox.down()


def wrap(binaries: File, directory: File) -> File:
    """A directory of the mesh's programs, with the node proxy under callgrind."""
    wrapped = directory / "programs"
    wrapped.mkdir(exist_ok=True)
    for name in ("culvert", "culvert-ca", "culvert-controller", "culvert-echo"):
        link = wrapped / name
        link.unlink(missing_ok=True)
        link.symlink_to(binaries / name)
    script = wrapped / "culvert-node-proxy"
    script.write_text(WRAPPER.format(directory=directory, program=binaries / "culvert-node-proxy"))
    script.chmod(0o755)
    return wrapped


class Proxy:
    """A node proxy under callgrind."""

    def __init__(self, sandbox: Sandbox, node: str, directory: File) -> None:
        self.sandbox, self.node, self.directory = sandbox, node, directory
        ours = processes.find(str(directory), f"/nodes/{node}/")
        found = [pid for pid in ours if "valgrind" in processes.image(pid)]
        if len(found) != 1:
            raise Refused(f"{node}: one node proxy under callgrind expected, not {found}")
        # callgrind_control runs inside the sandbox, where processes have other numbers.
        self.pid = processes.innermost(found[0])
        self.control("-i", "on")

    def control(self, *words: str) -> None:
        run([*self.sandbox.node_entry(self.node), "callgrind_control", *words, str(self.pid)], deadline=60)

    def dump(self) -> int:
        """Instructions since the counters were last at nought."""
        before = set(self._dumps())
        self.control("-d")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for new in set(self._dumps()) - before:
                if found := re.search(r"^totals: (\d+)", new.read_text(), re.MULTILINE):
                    return int(found[1])
            time.sleep(0.05)
        raise Refused(f"{self.node}: callgrind wrote no counts")

    def _dumps(self) -> list[File]:
        return list(self.directory.glob(f"callgrind.{self.pid}.*"))


def count_one(sandbox: Sandbox, proxies: dict[str, Proxy], counted: Counted) -> dict[str, float]:
    url = f"http://{counted.path.value}.{manifests.MESHED}{counted.where}"

    def send(number: int) -> bool:
        command = ["h2load", "--h1", "-t1", "-c1", "-m1", f"-n{number}"]
        for name, value in counted.headers.items():
            command += ["-H", f"{name}: {value}"]
        said = run([*sandbox.entry(manifests.MESHED, manifests.CLIENT), *command, url], deadline=300)
        return f" {number} 2xx" in said

    # A first handshake under callgrind may take longer than the proxy waits.
    deadline = time.monotonic() + 120
    while not send(WARM_UP):
        if time.monotonic() > deadline:
            raise Refused(f"{counted.name}: not every request is answered")
    for proxy in proxies.values():
        proxy.control("-z")
    if not send(REQUESTS):
        raise Refused(f"{counted.name}: not all of {REQUESTS} requests were answered")
    return {node: proxy.dump() / REQUESTS for node, proxy in proxies.items()}
