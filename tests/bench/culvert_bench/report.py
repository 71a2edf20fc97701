"""The report: JSON with every round, Markdown with medians and spread."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path as File

from .model import Result
from .numbers import Summary, summarize_rounds

COLUMNS = {
    "rate": "{unit}s/s",
    "lowest_ms": "lowest ms",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "cpu_us": "CPU µs per {unit}",
    "user_us": "user",
    "system_us": "system",
    "switches": "switches",
    "peak_memory_mb": "peak MB",
    "memory_kb": "kB more per {unit}",
    "ready_s": "s until ready",
    "complete_s": "s until all is in force",
    "cpu_s": "CPU s",
    "memory_mb": "MB",
    "memory_before_mb": "MB without it",
    "cpu_ms": "CPU ms per s",
    "cpu_each_ms": "CPU ms per {unit}",
    "translate_ms": "ms to translate",
    "lowest_ns": "lowest ns",
    "ns": "ns",
}


def machine() -> dict:
    """Where the figures are from, and what else it was doing."""
    model = next(
        (
            line.split(":")[1].strip()
            for line in File("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {"processor": model, "cores": os.cpu_count(), "kernel": platform.release(), "load": list(os.getloadavg())}


def commit(root: File) -> str:
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "unknown"


def document(results: list[Result], about: dict) -> dict:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"at": now, **about, "results": [asdict(result) for result in results]}


def read(file: File) -> tuple[dict, list[Result]]:
    """What `document` wrote."""
    found = json.loads(file.read_text())
    return found, [Result(**result) for result in found.pop("results")]


def number(value: float) -> str:
    """Three digits that mean something."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:.1f}k"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def cell(summary: Summary) -> str:
    return f"{number(summary.median)} ±{summary.spread * 100:.0f} %"


def table(result: Result) -> str:
    summaries = {name: summarize_rounds(rounds) for name, rounds in result.rounds.items()}
    shown = [column for column in COLUMNS if any(column in one for one in summaries.values())]
    if result.unit != "connection":
        # Memory is taken by connections, not by what they carry.
        shown = [column for column in shown if column != "memory_kb"]
    titles = [COLUMNS[column].format(unit=result.unit) for column in shown]
    lines = [
        f"| {result.case} | " + " | ".join(titles) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for name, one in summaries.items():
        cells = [cell(one[column]) if column in one else "–" for column in shown]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown(found: dict, results: list[Result], plots: dict[str, str]) -> str:
    """`plots`: file by group."""
    about = found["machine"]
    load = ", ".join(f"{one:.1f}" for one in about["load"])
    lines = [
        "# Benchmarks",
        "",
        f"`{found['command']}`, commit {found['commit']}, {found['at']}.",
        "",
        f"{about['processor']}, {about['cores']} cores, Linux {about['kernel']}; load of the machine when it began: {load}.",
        f"Medians of {found['rounds']} rounds in which the contenders took turns, each of {found['seconds']:g} s; "
        "± is half the range of the rounds. CPU, switches and memory are those of both proxies.",
    ]
    group = None
    for result in results:
        if result.group != group:
            group = result.group
            lines += ["", f"## {group}", ""]
            if group in plots:
                lines += [f"![{group}]({plots[group]})", ""]
        lines += [table(result), ""]
    if idle := found.get("idle_memory_mb"):
        lines += ["", "## Memory", "", "| after the checks, both proxies | MB |", "|---|---|"]
        lines += [f"| {name} | {number(size)} |" for name, size in idle.items()]
    if instructions := found.get("instructions"):
        lines += ["", "## Instructions", "", "| path | instructions |", "|---|---|"]
        lines += [f"| {name} | {count:,.0f} |" for name, count in instructions.items()]
    return "\n".join(lines) + "\n"
