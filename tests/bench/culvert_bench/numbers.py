"""Medians and spread of few rounds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    median: float
    lowest: float
    highest: float

    @property
    def spread(self) -> float:
        """Half the range, as a share of the median: the `±` of the report."""
        return (self.highest - self.lowest) / (2 * self.median) if self.median else 0.0


def summarize(values: Sequence[float]) -> Summary:
    return Summary(statistics.median(values), min(values), max(values))


def summarize_rounds(rounds: Sequence[dict[str, float]]) -> dict[str, Summary]:
    """Each figure that every round has."""
    if not rounds:
        return {}
    names = [name for name in rounds[0] if all(name in other for other in rounds)]
    return {name: summarize([one[name] for one in rounds]) for name in names}


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least `share` of all do not exceed. `ordered` ascends and is not empty."""
    return ordered[max(1, math.ceil(len(ordered) * share)) - 1]
