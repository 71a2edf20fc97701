"""Measuring: contenders take turns, because the machine is shared with others whose work comes and goes."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

from . import processes
from .cases import Case, First, Place, Requests, Run
from .contenders import Contender
from .envoy import TUNNELLED
from .model import Measurement, Refused, Result
from .sandbox import run

# Requests that were under way when a generator stopped are counted by the proxy and not by it.
SHARE_UNCOUNTED = 0.02


@dataclass(frozen=True)
class Plan:
    rounds: int
    seconds: float
    # Before the first measurement of a case, under the same load: pools, tunnels and caches are filled.
    warm_up: float
    place: Place


def measure(case: Case, contenders: list[Contender], plan: Plan) -> Result:
    result = Result(case.group, case.name, case.unit)
    for contender in contenders if case.load.is_repeated else []:
        case.load.run(runner(contender, case), contender.target(case.path), plan.warm_up, plan.place)
    for number in range(plan.rounds):
        for contender in contenders:
            measurement = once(case, contender, plan)
            result.add(contender.name, measurement)
            say(f"  round {number + 1}  {contender.name:12} {one_line(measurement, case.unit)}")
    return result


def runner(contender: Contender, case: Case) -> Run:
    return lambda command, deadline: run([*contender.entry(case.path), *command], deadline)


def once(case: Case, contender: Contender, plan: Plan) -> Measurement:
    if isinstance(case.load, First):
        target = contender.target(case.path)
        contender.forget_tunnels()
        # What each client's first connection of all waits for is no part of it: a proxy that has just been started.
        elsewhere = replace(target, servers=(target.another,))
        case.load.run(runner(contender, case), elsewhere, plan.seconds, plan.place)
    pids = contender.pids()
    processes.forget_peaks(pids)
    served = contender.served(case.path) if contender.is_routing else {}
    before = processes.snapshot(pids)
    load = case.load.run(runner(contender, case), contender.target(case.path), plan.seconds, plan.place)
    usage = processes.usage(pids, before) if pids else None
    if load.failed:
        raise Refused(f"{contender.name}, {case.name}: {load.failed} of {load.units:.0f} requests failed")
    if contender.is_routing:
        judge_served(case, contender, load.units, served, contender.served(case.path))
    return Measurement(load, usage, contender.idle_memory)


def judge_served(case: Case, contender: Contender, units: float, before: dict[str, int], after: dict[str, int]) -> None:
    """The contender's own counters must know of the load: else it went another way."""
    grown = {name: count - before.get(name, 0) for name, count in after.items()}
    if isinstance(case.load, First):
        if grown.get(case.path.value, 0) != units:
            raise Refused(f"{contender.name}, {case.name}: {units:.0f} connections, but its counters grew by {grown}")
        return
    if case.path in TUNNELLED:
        if not isinstance(case.load, Requests) or "Connection" in case.load.headers:
            return
        if grown.get(case.path.value, 0) < 1:
            raise Refused(f"{contender.name}, {case.name}: its counters know of no connection: {grown}")
        return
    if sum(grown.values()) < units * (1 - SHARE_UNCOUNTED):
        raise Refused(f"{contender.name}, {case.name}: {units:.0f} requests, but its counters grew by {grown}")


def one_line(measurement: Measurement, unit: str) -> str:
    figures = measurement.figures()
    words = [f"{figures['rate']:10.2f} {unit}s/s"]
    if "cpu_us" in figures:
        words.append(f"{figures['cpu_us']:9.1f} µs CPU")
    if "p99_ms" in figures:
        words.append(f"p50 {figures['p50_ms']:.2f} ms, p99 {figures['p99_ms']:.2f} ms")
    return "  ".join(words)


def say(text: str) -> None:
    """Progress; standard output belongs to results."""
    print(text, file=sys.stderr, flush=True)
