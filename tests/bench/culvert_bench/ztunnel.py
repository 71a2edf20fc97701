"""A pair of ztunnels, one for the pods of each node, in the way in which Istio's ambient mode runs them: sockets in the pods'
network namespaces, connections redirected there, HBONE between the two.

No cluster is needed: the workloads are read from a file, and certificates are its own (`--features testing` when it is
built). Connections are not logged, as those of the others are not; everything else is as shipped.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path as File

from . import backend, manifests, processes
from .contenders import Contender, by_destination
from .model import Path, Refused, Target
from .sandbox import run
from .zds import Agent, Pod

# Of Services that only ztunnel knows. No other network of the sandbox has them.
ADDRESSES = {Path.OPAQUE: "10.97.0.1", Path.BULK: "10.97.0.2", Path.ECHO: "10.97.0.3"}
PORTS = {
    Path.OPAQUE: (80, backend.V1),
    Path.BULK: (backend.BULK, backend.BULK),
    Path.ECHO: (backend.ECHO, backend.ECHO),
}
METRICS = 15020
READY = 15021
DEADLINE = 60.0


@dataclass(frozen=True)
class Variant:
    """Its name is that of the namespace of its pods, too: those that it redirects are nobody else's."""

    name: str
    workers: int


def variants(is_quick: bool, workers: int) -> list[Variant]:
    """As many workers as Culvert has, and its best number of them."""
    both = [Variant("ztunnel", workers), Variant("ztunnel-1", 1)]
    return both[1:] if is_quick else both


# What Istio's CNI plugin sets up in a pod (cni/pkg/iptables, as of 1.30), without DNS: 0x539 marks ztunnel's own packets, 0x111
# connections to which it has given the client's address.
RULES = """
table ip ztunnel {
  chain mark_in { type filter hook prerouting priority mangle;
    meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111
  }
  chain mark_out { type route hook output priority mangle;
    ct mark & 0xfff == 0x111 meta mark set ct mark
  }
  chain redirect_in { type nat hook prerouting priority dstnat;
    ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
  }
  chain redirect_out { type nat hook output priority -100;
    meta l4proto tcp meta mark & 0xfff == 0x111 accept
    oifname "lo" ip daddr != 127.0.0.1 accept
    ip daddr != 127.0.0.1 meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001
  }
}
"""
ROUTES = "ip rule add fwmark 0x111/0xfff pref 32764 lookup 100 && ip route add local 0.0.0.0/0 dev lo table 100"


def write_rules(directory: File) -> File:
    file = directory / "redirect.nft"
    file.write_text(RULES)
    return file


def setup(rules: File) -> str:
    """A shell's command, inside a pod."""
    return f"nft -f {rules} && {ROUTES}"


def hostname(path: Path, namespace: str) -> str:
    return f"{path.value}.{namespace}.svc.cluster.local"


def configuration(namespace: str, pods: dict[str, tuple[str, str]], server: str) -> str:
    """The file of workloads and Services. `pods`: address and node by name; `server`: the pod behind the Services."""
    workloads = []
    for name, (address, node) in pods.items():
        services = {f"{namespace}/{hostname(path, namespace)}": dict([PORTS[path]]) for path in ADDRESSES}
        workloads.append(
            {
                "uid": f"Kubernetes//Pod/{namespace}/{name}",
                "name": name,
                "namespace": namespace,
                "serviceAccount": name,
                "workloadIps": [address],
                "protocol": "HBONE",
                "node": node,
                "network": "",
                "services": services if name == server else {},
            }
        )
    services = [
        {
            "name": path.value,
            "namespace": namespace,
            "hostname": hostname(path, namespace),
            "vips": [f"/{address}"],
            "ports": dict([PORTS[path]]),
        }
        for path, address in ADDRESSES.items()
    ]
    # JSON is YAML, but for the ports that are keys: ztunnel takes numbers only.
    return re.sub(r'"(\d+)":', r"\1:", json.dumps({"workloads": workloads, "services": services}))


def environment(node: str, workers: int, configuration: File, agent: File) -> list[str]:
    """Words for env(1)."""
    values = {
        "NODE_NAME": node,
        "LOCAL_XDS_PATH": configuration,
        "FAKE_CA": "true",
        "XDS_ADDRESS": "",
        "INPOD_UDS": agent,
        "ZTUNNEL_WORKER_THREADS": workers,
        "ISTIO_META_DNS_CAPTURE": "false",
        "IPV6_ENABLED": "false",
        "RUST_LOG": "warn",
    }
    return [f"{name}={value}" for name, value in values.items()]


@dataclass(kw_only=True)
class Ztunnels(Contender):
    """Each runs in the namespace of the first pod of its node, where its ports are free; its pods it is told of by an agent."""

    variant: Variant
    program: File
    directory: File
    # The sandbox's files, as seen from outside.
    root: File
    _started: dict[str, subprocess.Popen] = field(default_factory=dict)
    _agents: dict[str, Agent] = field(default_factory=dict)

    def carries(self, path: Path) -> bool:
        return path in ADDRESSES or path is Path.COLD

    def target(self, path: Path) -> Target:
        if path is Path.COLD:
            return self.all_pairs(backend.V1)
        return Target(ADDRESSES[path], PORTS[path][0])

    def addresses(self) -> set[str]:
        return {self.servers, *self.sandbox.pod_addresses(self.namespace, f"{manifests.CALLEE}-").values()}

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        rules = write_rules(self.directory)
        pods = self.sandbox.pods(self.namespace, "")
        for pod in pods:
            entry = self.sandbox.entry(self.namespace, pod["metadata"]["name"])
            run([*entry, "sh", "-c", setup(rules)], deadline=20)
        known = {pod["metadata"]["name"]: (pod["status"]["podIP"], pod["spec"]["nodeName"]) for pod in pods}
        self._configuration.write_text(configuration(self.namespace, known, manifests.BACKEND))
        for pod in (manifests.BACKEND, manifests.CLIENT):
            self._start(pod)

    @property
    def _configuration(self) -> File:
        return self.directory / f"{self.name}.json"

    def _start(self, pod: str) -> None:
        """That of the node of this pod."""
        pods = self.sandbox.pods(self.namespace, "")
        [node] = [one["spec"]["nodeName"] for one in pods if one["metadata"]["name"] == pod]
        told = [
            Pod(
                one["metadata"]["uid"],
                one["metadata"]["name"],
                self.namespace,
                one["metadata"]["name"],
                self.root / f"run/netns/pod-{one['metadata']['uid']}",
            )
            for one in pods
            if one["spec"]["nodeName"] == node
        ]
        agent = Agent(self.directory / f"{self.name}-{node}.sock", told)
        self._agents[pod] = agent
        words = environment(node, self.variant.workers, self._configuration, agent.path)
        # It looks at its first word only; the second tells it from others.
        command = ["env", *words, str(self.program), "proxy", self._mark(pod)]
        log = self.directory / f"{self.name}-{node}.log"
        with log.open("w") as out:
            self._started[pod] = subprocess.Popen(
                [*self.sandbox.entry(self.namespace, pod), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            agent.wait()
            self._until_ready(pod)
        except Refused as refused:
            raise Refused(f"{self.name} does not start: {refused}\n{log.read_text()[-2000:]}") from refused

    def _mark(self, pod: str) -> str:
        return f"{self.name}-of-{pod}"

    def _until_ready(self, pod: str) -> None:
        asked = [*self.sandbox.entry(self.namespace, pod), "curl", "-sf", f"http://127.0.0.1:{READY}/healthz/ready"]
        deadline = time.monotonic() + DEADLINE
        while subprocess.run(asked, capture_output=True, check=False, timeout=20).returncode != 0:
            if time.monotonic() > deadline or self._started[pod].poll() is not None:
                raise Refused("it is not ready")
            time.sleep(0.1)

    def forget_tunnels(self) -> None:
        """The client's side keeps them."""
        self._stop(manifests.CLIENT)
        self._start(manifests.CLIENT)

    def stop(self) -> None:
        for pod in list(self._started):
            self._stop(pod)

    def _stop(self, pod: str) -> None:
        process = self._started.pop(pod)
        process.terminate()
        process.wait(timeout=60)
        self._agents.pop(pod).close()

    def pids(self) -> list[int]:
        found = [
            pid
            for pod in (manifests.CLIENT, manifests.BACKEND)
            for pid in processes.find(self._mark(pod))
            if processes.image(pid) == str(self.program)
        ]
        if len(found) != 2:
            raise Refused(f"{self.name}: two processes expected, found {found}")
        return found

    def served(self, path: Path) -> dict[str, int]:
        entry = self.sandbox.entry(self.namespace, manifests.CLIENT)
        asked = [*entry, "curl", "-sf", f"http://127.0.0.1:{METRICS}/metrics"]
        counted = by_destination(run(asked, deadline=20), "istio_tcp_connections_opened_total")
        if path is Path.COLD:
            # It counts no tunnels. Those to pods' addresses have no Service.
            return {path.value: sum(count for name, count in counted.items() if name == "unknown")}
        return counted
