"""What processes used, from /proc (proc_pid_stat(5), proc_pid_status(5))."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path as File

from .model import Refused, Usage

TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Snapshot:
    """Totals of some processes since they began."""

    user: float
    system: float
    switches: int


def parse_stat(text: str) -> tuple[float, float]:
    """User and system time in seconds. The command may have blanks and brackets of its own."""
    fields = text.rpartition(")")[2].split()
    return int(fields[11]) * TICK, int(fields[12]) * TICK


def parse_status(text: str) -> dict[str, int]:
    """The numbers of a status file by name; sizes in bytes."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def find(*words: str) -> list[int]:
    """Processes whose command line has all these words in it, oldest first."""
    found = []
    for entry in File("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if all(any(word in argument for argument in line) for word in words):
                found.append(int(entry.name))
    return sorted(found)


def program(pid: int) -> str:
    """The first word of its command line; nothing if it has ended."""
    try:
        return File(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


def snapshot(pids: list[int]) -> Snapshot:
    user = system = 0.0
    switches = 0
    for pid in pids:
        one, other = parse_stat(File(f"/proc/{pid}/stat").read_text())
        user, system = user + one, system + other
        for status in File(f"/proc/{pid}/task").glob("*/status"):
            values = parse_status(status.read_text())
            switches += values["voluntary_ctxt_switches"] + values["nonvoluntary_ctxt_switches"]
    return Snapshot(user, system, switches)


def forget_peaks(pids: list[int]) -> None:
    """Peak memory begins anew (proc_pid_clear_refs(5))."""
    for pid in pids:
        File(f"/proc/{pid}/clear_refs").write_text("5")


def resident(pids: list[int]) -> int:
    return sum(parse_status(File(f"/proc/{pid}/status").read_text())["VmRSS"] for pid in pids)


def peak(pids: list[int]) -> int:
    return sum(parse_status(File(f"/proc/{pid}/status").read_text())["VmHWM"] for pid in pids)


def usage(pids: list[int], before: Snapshot) -> Usage:
    try:
        after = snapshot(pids)
        highest = peak(pids)
    except OSError as error:
        raise Refused(f"a proxy ended while it was measured: {error}") from error
    return Usage(after.user - before.user, after.system - before.system, highest, after.switches - before.switches)


def image(pid: int) -> str:
    """The program that runs: not what its command line says."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def innermost(pid: int) -> int:
    """Its number in its own PID namespace (proc_pid_status(5), NSpid)."""
    for line in File(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return pid


def parent(pid: int) -> int:
    return parse_status(File(f"/proc/{pid}/status").read_text())["PPid"]
