"""What the state of a large cluster costs, and how long a change takes to the last proxy that uses it.

The sandbox runs two nodes with a client each. Its controller is stopped, and one with the same flags started that reads and
writes directories of its own, so that neither the CA nor the sandbox looks at thousands of files meanwhile.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as File

from . import backend, cluster_state, manifests, processes, tools
from .cluster_state import EDIT_HEADER, EDITED, MOVING, Directory, Size
from .manifests import MESHED
from .model import Refused, Result
from .numbers import percentile
from .rounds import say
from .sandbox import Sandbox, run
from .watching import CONNECTIONS, Watcher

GROUP = "scale"
NODES = {"node1": "10.89.0.11", "node2": "10.89.0.12"}
CONTROLLER = "10.89.0.2"
ADMIN = 15000
# Inside the sandbox, where its own files are.
OWN = "/run/sandbox/scale"
FIRST, SECOND = "first", "second"  # the pods that serve, as v1 and as v2
# Until what was just started or changed is in force everywhere.
PATIENCE = 300
UNWATCHED_PAUSE = 1.0


@dataclass(frozen=True)
class Plan:
    size: Size
    rounds: int
    edits: int  # of each kind, in a round
    idle: float  # seconds
    # Edits that nobody watches: what an edit costs, without the requests of those who wait for it.
    unwatched: int = 10


def plan(is_quick: bool, rounds: int) -> Plan:
    return Plan(cluster_state.QUICK, 1, 10, 5) if is_quick else Plan(cluster_state.FULL, rounds, 100, 20)


def measure(plan: Plan, binaries: File, load_program: File, output: File) -> list[Result]:
    directory = output / GROUP
    directory.mkdir(parents=True, exist_ok=True)
    sandbox = Sandbox(binaries)
    manifests.write(sandbox_objects(directory), directory / "cluster.yaml")
    say("Starting the sandbox ...")
    sandbox.up(directory / "cluster.yaml")
    try:
        with Mesh.taken_over(sandbox) as mesh:
            return Measurement(mesh, plan, load_program).all()
    finally:
        sandbox.down()


def client(node: str) -> str:
    return f"client-{node}"


def sandbox_objects(directory: File) -> list[dict]:
    """A client on each node, and two servers. `moving` has no selector: its endpoints are written here."""
    idle = [{"name": "idle", "command": ["sleep", "infinity"]}]
    nginx = backend.containers(directory)[:1]
    backend.write_nginx(directory)
    metadata = {"name": MESHED, "labels": {"culvert.dev/mesh": "enabled"}}
    found: list[dict] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}]
    for node in NODES:
        found += manifests.pod(MESHED, client(node), node, idle)
    for name, node in zip((FIRST, SECOND), NODES, strict=True):
        found += manifests.pod(MESHED, name, node, nginx)
    for name, more in ((EDITED, {"selector": {"app": FIRST}}), (MOVING, {})):
        spec = {**more, "ports": [{"name": "http", "port": 80, "targetPort": backend.V1}]}
        metadata = {"name": name, "namespace": MESHED}
        found.append({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
    return found


@dataclass(frozen=True)
class Translations:
    """How often the controller has made resources of all objects, and how many seconds that took."""

    count: int
    seconds: float

    @staticmethod
    def read(metrics: str) -> Translations:
        found = dict(
            re.findall(r"^culvert_controller_translate_duration_seconds_(sum|count) (\S+)$", metrics, re.MULTILINE)
        )
        if found.keys() != {"sum", "count"}:
            raise Refused("the controller does not say how long it translates")
        return Translations(int(found["count"]), float(found["sum"]))

    def since(self, before: Translations) -> float:
        """Seconds for each."""
        count = self.count - before.count
        if count <= 0:
            raise Refused("the controller translated nothing although a route was edited")
        return (self.seconds - before.seconds) / count


@dataclass
class Mesh:
    """The processes that are measured, and the objects that they read."""

    sandbox: Sandbox
    directory: Directory
    command: list[str]
    servers: dict[str, str]
    _started: subprocess.Popen | None = None

    @classmethod
    @contextmanager
    def taken_over(cls, sandbox: Sandbox) -> Iterator[Mesh]:
        """The sandbox's controller makes way; its objects are copied."""
        [pid] = cls._running(sandbox, "culvert-controller")
        words = File(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        root = sandbox.root()
        for name in ("objects", "statuses", "wanted"):
            words[words.index(f"--{name}") + 1] = f"{OWN}/{name}"
        sandbox.component("stop", "controller")
        own = File(f"{root}{OWN}")
        own.mkdir()
        shutil.copytree(f"{root}/run/sandbox/objects", own / "objects")
        for name in ("statuses", "wanted"):
            (own / name).mkdir()
        pods = sandbox.pod_addresses(MESHED)
        mesh = cls(sandbox, Directory(own / "objects"), words, pods)
        try:
            yield mesh
        finally:
            mesh.stop_controller()

    @staticmethod
    def _running(sandbox: Sandbox, program: str, *words: str) -> list[int]:
        path = str(sandbox.binaries / program)
        return [pid for pid in processes.find(path, *words) if processes.image(pid) == path]

    def controller(self) -> int:
        return self._only("culvert-controller", f"{OWN}/objects")

    def proxy(self, node: str) -> int:
        return self._only("culvert-node-proxy", f"/nodes/{node}/")

    def _only(self, program: str, word: str) -> int:
        found = self._running(self.sandbox, program, word)
        if len(found) != 1:
            raise Refused(f"one {program} with {word} is expected, not {found}; is there another sandbox?")
        return found[0]

    def pids(self) -> dict[str, int]:
        return {"controller": self.controller(), **{f"proxy of {node}": self.proxy(node) for node in NODES}}

    def start_controller(self) -> None:
        quiet = subprocess.DEVNULL
        command = [*self.sandbox.node_entry("control-plane"), *self.command]
        self._started = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)

    def stop_controller(self) -> None:
        if self._started:
            self._started.terminate()
            self._started.wait(timeout=60)
            self._started = None

    def translated(self) -> Translations:
        asked = ["curl", "-sf", f"http://{CONTROLLER}:{ADMIN}/metrics"]
        return Translations.read(run([*self.sandbox.node_entry("node1"), *asked], deadline=20))

    def ready(self, address: str) -> None:
        """Returns when the process with that admin address says so."""
        self._until(f"curl -sf http://{address}:{ADMIN}/healthz/ready >/dev/null")

    def complete(self, node: str, size: Size) -> None:
        """Returns when the proxy has all of the state, from the controller."""
        wanted = f'w >= {size.pods} && s >= {size.services} && stale == "0"'
        read = "/^culvert_workloads /{w=$2} /^culvert_services /{s=$2} /^culvert_snapshot_stale /{stale=$2}"
        counted = f"awk '{read} END {{exit !({wanted})}}'"
        self._until(f"curl -sf http://{NODES[node]}:{ADMIN}/metrics | {counted}")

    def edited(self, value: str) -> None:
        """Returns when that edit of the route is in force for the client of each node."""
        asked = f"curl -s -o /dev/null -D - http://{EDITED}.{MESHED}/ | grep -qi '^{EDIT_HEADER}: {value}.$'"
        for node in NODES:
            self._until(asked, self.entry(node))

    def _until(self, condition: str, entry: list[str] | None = None) -> None:
        # One process that asks over and over: starting one each time would take longer than what is waited for.
        loop = f"until {condition}; do sleep 0.02; done"
        run([*(entry or self.sandbox.node_entry("node1")), "sh", "-c", loop], PATIENCE)

    def entry(self, node: str) -> list[str]:
        return self.sandbox.entry(MESHED, client(node))


@dataclass
class Measurement:
    mesh: Mesh
    plan: Plan
    load_program: File
    _edit: int = 0

    def all(self) -> list[Result]:
        small = self._resident_alone()
        self._write()
        starts = self._starts()
        self._check()
        idle = self._idle(small)
        watched = [
            self._watched("route edit", EDITED, EDIT_HEADER, self._next_edit),
            self._watched("endpoint change", MOVING, None, self._next_move),
        ]
        return [idle, *starts, *watched, self._unwatched()]

    def _named(self, name: str, unit: str) -> Result:
        return Result(GROUP, f"{name}, {self.plan.size}", unit)

    def _resident_alone(self) -> dict[str, int]:
        """Before there is more than the sandbox itself."""
        self.mesh.directory.put(cluster_state.edited_route("0"))
        self._move("v1")
        self.mesh.start_controller()
        self.mesh.ready(CONTROLLER)
        for node in NODES:
            self.mesh.complete(node, Size(len(self.mesh.servers), 2, 1))
        found = {name: processes.resident([pid]) for name, pid in self.mesh.pids().items()}
        self.mesh.stop_controller()
        return found

    def _write(self) -> None:
        say(f"Writing {self.plan.size} ...")
        for document in cluster_state.documents(self.plan.size):
            self.mesh.directory.put(document)

    def _starts(self) -> list[Result]:
        """Of the controller with all of it, then of one node's proxy."""
        controller = self._named("start of the controller", "start")
        proxy = self._named("start of a node proxy", "start")
        for number in range(self.plan.rounds):
            self.mesh.stop_controller()
            controller.add_figures("culvert", self._start_controller())
            proxy.add_figures("culvert", self._start_proxy())
            for result in (controller, proxy):
                say(f"  round {number + 1}  {result.case}: {result.rounds['culvert'][-1]}")
        return [controller, proxy]

    def _start_controller(self) -> dict[str, float]:
        began = time.monotonic()
        self.mesh.start_controller()
        self.mesh.ready(CONTROLLER)
        ready = time.monotonic() - began
        for node in NODES:
            self.mesh.complete(node, self.plan.size)
        return self._started(self.mesh.controller(), ready, time.monotonic() - began)

    def _start_proxy(self) -> dict[str, float]:
        node, address = next(iter(NODES.items()))
        self.mesh.sandbox.component("kill", f"node-proxy/{node}")
        began = time.monotonic()
        self.mesh.sandbox.component("start", f"node-proxy/{node}")
        self.mesh.ready(address)
        ready = time.monotonic() - began
        self.mesh.complete(node, self.plan.size)
        return self._started(self.mesh.proxy(node), ready, time.monotonic() - began)

    @staticmethod
    def _started(pid: int, ready: float, complete: float) -> dict[str, float]:
        used = processes.snapshot([pid])
        return {
            "ready_s": ready,
            "complete_s": complete,
            "cpu_s": used.user + used.system,
            "peak_memory_mb": processes.peak([pid]) / 1e6,
        }

    def _check(self) -> None:
        """That the last route decides, for clients of both nodes."""
        size = self.plan.size
        last = size.routes - 1
        address = cluster_state.service_address(cluster_state.service_of(last, size))
        asked = ["curl", "-s", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"]
        asked += ["-H", f"{cluster_state.PROBE}: yes", f"http://{address}{cluster_state.route_path(last)}/x"]
        for node in NODES:
            said = run([*self.mesh.entry(node), *asked], deadline=60)
            if not said.startswith("302 ") or not said.endswith(f"/route-{last}"):
                raise Refused(f"the client of {node} should be redirected to /route-{last}; it was told {said!r}")

    def _idle(self, before: dict[str, int]) -> Result:
        result = self._named("memory and CPU, nothing to do", "second")
        for _ in range(self.plan.rounds):
            pids = self.mesh.pids()
            began = {name: processes.snapshot([pid]) for name, pid in pids.items()}
            time.sleep(self.plan.idle)
            for name, pid in pids.items():
                used = processes.usage([pid], began[name])
                memory = processes.resident([pid])
                figures = {
                    "memory_mb": memory / 1e6,
                    "memory_before_mb": before[name] / 1e6,
                    "cpu_ms": (used.user + used.system) * 1e3 / self.plan.idle,
                }
                result.add_figures(name, figures)
                say(f"  {name}: {figures}")
        return result

    # The edits.

    def _next_edit(self) -> tuple[dict, str]:
        self._edit += 1
        return cluster_state.edited_route(str(self._edit)), str(self._edit)

    def _next_move(self) -> tuple[dict, str]:
        self._edit += 1
        value = ("v1", "v2")[self._edit % 2]
        return self._moved(value), value

    def _moved(self, value: str) -> dict:
        pod, port = {"v1": (FIRST, backend.V1), "v2": (SECOND, backend.V2)}[value]
        endpoint = cluster_state.endpoint(pod, MESHED, self.mesh.servers[pod])
        return cluster_state.endpoint_slice(MOVING, MESHED, [endpoint], port)

    def _move(self, value: str) -> None:
        self.mesh.directory.put(self._moved(value))

    def _watched(self, name: str, service: str, header: str | None, change: Callable[[], tuple[dict, str]]) -> Result:
        """From when the file is there until the last connection of the last client is answered by it."""
        result = self._named(f"{name}, to the last proxy", "edit")
        document, value = change()
        self.mesh.directory.put(document)
        watchers = []
        try:
            for node in NODES:
                command = tools.watch(str(self.load_program), f"http://{service}.{MESHED}/", header, CONNECTIONS)
                watchers.append(Watcher(client(node), [*self.mesh.entry(node), *command]))
            for watcher in watchers:
                watcher.begin(value, PATIENCE)
            for number in range(self.plan.rounds):
                took = sorted(self._take(watchers, change) for _ in range(self.plan.edits))
                figures = {"p50_ms": percentile(took, 0.5), "p99_ms": percentile(took, 0.99), "lowest_ms": took[0]}
                result.add_figures("culvert", figures)
                say(f"  round {number + 1}  {result.case}: {figures}")
            answered = sum(watcher.end() for watcher in watchers)
            say(f"  {answered} requests meanwhile, none failed")
        finally:
            for watcher in watchers:
                watcher.stop()
        return result

    def _take(self, watchers: list[Watcher], change: Callable[[], tuple[dict, str]]) -> float:
        """Milliseconds."""
        document, value = change()
        draft = self.mesh.directory.prepare(document)
        began = time.time_ns()
        os.replace(draft, self.mesh.directory.path(document))
        took = (max(watcher.wait_for(value, PATIENCE) for watcher in watchers) - began) / 1e6
        # Not in step with anything that happens now and then.
        time.sleep(random.uniform(0.02, 0.1))
        return took

    def _unwatched(self) -> Result:
        result = self._named("CPU of a route edit", "edit")
        for _ in range(self.plan.rounds):
            time.sleep(UNWATCHED_PAUSE)
            pids = self.mesh.pids()
            began = {name: processes.snapshot([pid]) for name, pid in pids.items()}
            translated = self.mesh.translated()
            for _ in range(self.plan.unwatched):
                document, value = self._next_edit()
                self.mesh.directory.put(document)
                time.sleep(UNWATCHED_PAUSE)
                self.mesh.edited(value)
            of_controller = {"translate_ms": self.mesh.translated().since(translated) * 1e3}
            for name, pid in pids.items():
                used = processes.usage([pid], began[name])
                figures = {"cpu_each_ms": (used.user + used.system) * 1e3 / self.plan.unwatched}
                result.add_figures(name, figures | (of_controller if name == "controller" else {}))
        return result
