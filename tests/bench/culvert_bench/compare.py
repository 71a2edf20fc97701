"""Ratios to another report, and to the stored ones."""

from __future__ import annotations

from dataclasses import dataclass

from .model import Result
from .numbers import summarize_rounds

# What is compared with another report; more is better for the first only.
COMPARED = ("rate", "cpu_us", "p50_ms", "p99_ms", "memory_mb", "cpu_each_ms", "complete_s", "ns")
OURS = "culvert"


def key(result: Result) -> str:
    return f"{result.group}: {result.case}"


def medians(results: list[Result]) -> dict[tuple[str, str, str], float]:
    """By case, contender and figure."""
    return {
        (key(result), who, figure): summary.median
        for result in results
        for who, rounds in result.rounds.items()
        for figure, summary in summarize_rounds(rounds).items()
    }


def against(new: list[Result], old: list[Result]) -> list[str]:
    """A line for each figure that both have: new divided by old."""
    before, after = medians(old), medians(new)
    lines = []
    for (case, who, figure), value in after.items():
        known = before.get((case, who, figure))
        if figure in COMPARED and known:
            lines.append(f"{case:60} {who:12} {figure:8} {value / known:6.2f} x  ({known:.4g} -> {value:.4g})")
    return lines


@dataclass(frozen=True)
class Bound:
    """Of a ratio of ours to a rival's in the same run. One of the two ends is given."""

    case: str
    rival: str
    figure: str
    stored: float
    # How much worse it may be, as a share: `rate` lower, everything else higher.
    tolerance: float

    def judge(self, found: dict[tuple[str, str, str], float]) -> str | None:
        """What is wrong."""
        ours, theirs = found.get((self.case, OURS, self.figure)), found.get((self.case, self.rival, self.figure))
        name = f"{self.case}: {self.figure} beside {self.rival}"
        if not ours or not theirs:
            return f"{name} was not measured"
        ratio = ours / theirs
        is_rate = self.figure == "rate"
        bound = self.stored * (1 - self.tolerance) if is_rate else self.stored * (1 + self.tolerance)
        if (ratio < bound) if is_rate else (ratio > bound):
            return f"{name} is {ratio:.2f}, stored {self.stored:.2f}; {'at least' if is_rate else 'at most'} {bound:.2f} is accepted"
        return None


def check_ratios(results: list[Result], bounds: list[Bound]) -> list[str]:
    found = medians(results)
    return [wrong for bound in bounds if (wrong := bound.judge(found))]


def check_instructions(found: dict[str, float], stored: dict[str, float], tolerance: float) -> list[str]:
    """Both ways: what got cheaper is stored, or the next regression hides behind it."""
    wrong = []
    for name in sorted(found.keys() | stored.keys()):
        if name not in found or name not in stored:
            wrong.append(f"{name}: {'not counted' if name in stored else 'not stored'}")
        elif abs(found[name] / stored[name] - 1) > tolerance:
            wrong.append(
                f"{name}: {found[name]:,.0f} instructions, stored {stored[name]:,.0f} (±{tolerance:.0%} is accepted)"
            )
    return wrong
