"""Functions of the node proxy without a proxy around them: the Cargo benches, run and read."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as File

from .model import Refused, Result
from .rounds import say

GROUP = "isolation"


@dataclass(frozen=True)
class Bench:
    """A bench target of a package, and what of it is reported: its functions, each with a name for its argument."""

    package: str
    target: str
    functions: dict[str, str]


BENCHES = (
    Bench("culvert-routing", "select", {"select_among": "select, {} routes of 10 rules"}),
    Bench("culvert-node-proxy", "large", {"pick": "pick, {} endpoints", "pod_event": "a pod's event, {} workloads"}),
)
FACTORS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}


def measure(root: File) -> list[Result]:
    """Compiles them first, which takes minutes once."""
    found = []
    for bench in BENCHES:
        say(f"{GROUP}: {bench.package}, {bench.target} ...")
        command = ["cargo", "bench", "--locked", "-p", bench.package, "--bench", bench.target, "--", *bench.functions]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Refused(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stderr[-2000:]}")
        found += results(bench, done.stdout)
    return found


def results(bench: Bench, output: str) -> list[Result]:
    """A result for each argument of each function."""
    measured = dict(read(output))
    made = []
    for function, name in bench.functions.items():
        arguments = [argument for found, argument in measured if found == function]
        if not arguments:
            raise Refused(f"{bench.package}: the bench {bench.target} has printed nothing of {function}:\n{output}")
        for argument in arguments:
            fastest, median = measured[function, argument]
            result = Result(GROUP, name.format(f"{int(argument):,}"), "item")
            result.add_figures("culvert", {"lowest_ns": fastest, "ns": median})
            made.append(result)
    return made


def read(output: str) -> Iterator[tuple[tuple[str, str], tuple[float, float]]]:
    """Function and argument; nanoseconds for each item, the fastest and the median. Of the tables that divan prints: a row for
    the function, below it two for each argument, the times of an iteration and the items per second."""
    function = argument = ""
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.lstrip("│├╰─ ").split("│")]
        if len(cells) < 5:
            continue
        fastest, median = rate(cells[0]), rate(cells[2])
        if fastest and median:
            yield (function, argument), (1e9 / fastest, 1e9 / median)
        elif (name := cells[0].split()) and name[0].isdigit():
            argument = name[0]
        elif name:
            function = name[0]


def rate(cell: str) -> float | None:
    """Items per second."""
    found = re.fullmatch(r"([0-9.]+) ([KMG]?)item/s", cell)
    return float(found[1]) * FACTORS[found[2]] if found else None
