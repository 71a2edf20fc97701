"""The sandbox of a run, over the `culvert` command."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path as File

from . import processes
from .model import Refused

NAME = "bench"


@dataclass(frozen=True)
class Sandbox:
    binaries: File

    def _culvert(self, *arguments: str, deadline: float = 120) -> str:
        command = [str(self.binaries / "culvert"), "sandbox", *arguments]
        return run(command, deadline)

    def up(self, manifests: File, *more: str) -> None:
        self.down()
        self._culvert("up", "--name", NAME, "-f", str(manifests), "--nodes", "2", "--detach", *more, deadline=600)

    def down(self) -> None:
        self._culvert("down", "--name", NAME)

    def apply(self, manifests: File) -> None:
        self._culvert("apply", "--name", NAME, "-f", str(manifests), deadline=600)

    def wait(self) -> None:
        self._culvert("wait", "--name", NAME, deadline=600)

    def root(self) -> File:
        """Its files, as seen from outside: it has a mount namespace of its own, in which the parent of its processes is."""
        program = str(self.binaries / "culvert-controller")
        found = [pid for pid in processes.find(program, "/run/sandbox/") if processes.image(pid) == program]
        if len(found) != 1:
            raise Refused(f"one {program} is expected to run, not {found}: is there another sandbox?")
        return File(f"/proc/{processes.parent(found[0])}/root")

    def component(self, action: str, name: str) -> None:
        self._culvert("component", action, name, "--name", NAME)

    def objects(self, kind: str, namespace: str) -> list[dict]:
        found = json.loads(self._culvert("get", kind, "-n", namespace, "--name", NAME, "-o", "json"))
        return found["items"] if isinstance(found, dict) else found

    def pods(self, namespace: str, prefix: str) -> list[dict]:
        """By number, where their names end with one."""
        found = [pod for pod in self.objects("pods", namespace) if pod["metadata"]["name"].startswith(prefix)]
        return sorted(found, key=lambda pod: (len(pod["metadata"]["name"]), pod["metadata"]["name"]))

    def pod_addresses(self, namespace: str, prefix: str = "") -> dict[str, str]:
        """By name."""
        return {pod["metadata"]["name"]: pod["status"]["podIP"] for pod in self.pods(namespace, prefix)}

    def network_namespaces(self, namespace: str, prefix: str) -> list[str]:
        """Of those pods, as files inside the sandbox."""
        return [f"/run/netns/pod-{pod['metadata']['uid']}" for pod in self.pods(namespace, prefix)]

    def entry(self, namespace: str, pod: str) -> list[str]:
        """What goes before a command, so that it runs in a pod."""
        return [str(self.binaries / "culvert"), "sandbox", "exec", "--name", NAME, "-n", namespace, pod, "--"]

    def node_entry(self, node: str) -> list[str]:
        return [str(self.binaries / "culvert"), "sandbox", "exec", "--name", NAME, "--node", node, "--"]


def run(command: list[str], deadline: float) -> str:
    """Standard output of a command that succeeds within the deadline (seconds)."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=deadline, check=False)
    except subprocess.TimeoutExpired as late:
        raise Refused(f"`{' '.join(command)}` took longer than {deadline:g} s") from late
    # As it is: text mode would change the ends of lines.
    printed, said = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    if done.returncode != 0:
        raise Refused(f"`{' '.join(command)}` ended with {done.returncode}:\n{said.strip() or printed[-2000:]}")
    return printed
