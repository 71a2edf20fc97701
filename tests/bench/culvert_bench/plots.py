"""One plot per group: what each contender reaches, and what it costs."""

from __future__ import annotations

from pathlib import Path as File

from .model import Result
from .numbers import summarize_rounds
from .report import COLUMNS

FIGURES = (
    ("rate", "requests or GiB per second, as a share of the best"),
    ("cpu_us", "CPU of both proxies, as a share of the worst"),
)
# Of groups without rivals: figures as they are, side by side.
ABSOLUTE = {
    "scale": (("ms", ("p50_ms", "p99_ms", "cpu_each_ms")), ("MB", ("memory_mb", "memory_before_mb", "peak_memory_mb"))),
    "isolation": (("ns", ("lowest_ns", "ns")),),
}


def draw(results: list[Result], directory: File) -> dict[str, str]:
    """Files by group."""
    # Slow to load, and not needed by those who only compare.
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    # Text stays text: small files, and searchable.
    matplotlib.rcParams["svg.fonttype"] = "none"
    drawn = {}
    for group in dict.fromkeys(result.group for result in results):
        ours = [result for result in results if result.group == group]
        figure = absolute(pyplot, ours, ABSOLUTE[group]) if group in ABSOLUTE else beside_rivals(pyplot, ours)
        file = f"{group.replace(' ', '-').lower()}.svg"
        figure.savefig(directory / file, metadata={"Date": None})
        pyplot.close(figure)
        drawn[group] = file
    return drawn


def beside_rivals(pyplot, results: list[Result]):
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 1 + 0.9 * len(results)), sharey=True, layout="constrained")
    for axis, (name, title) in zip(axes, FIGURES, strict=True):
        bars(axis, results, name)
        axis.set_title(title, fontsize=10)
    axes[0].legend(fontsize=8, loc="best")
    return figure


def absolute(pyplot, results: list[Result], panels: tuple[tuple[str, tuple[str, ...]], ...]):
    """A panel for each unit, a bar for each row of a result that has one of its figures."""
    found = [rows(results, names) for _, names in panels]
    height = 1 + 0.25 * max(1, *(len(labelled) for labelled in found))
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(12, height * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (unit, _), labelled in zip(axes[:, 0], panels, found, strict=True):
        drawn = axis.barh([label for label, _ in labelled], [value for _, value in labelled])
        axis.bar_label(drawn, fmt="%.4g", fontsize=8, padding=3)
        axis.set_title(unit, fontsize=10)
        axis.invert_yaxis()
    return figure


def rows(results: list[Result], names: tuple[str, ...]) -> list[tuple[str, float]]:
    """What is drawn of these figures: a label and the median."""
    return [
        (f"{result.case}: {who}, {COLUMNS[name].format(unit=result.unit)}", summary[name].median)
        for result in results
        for who, rounds in result.rounds.items()
        for name in names
        if name in (summary := summarize_rounds(rounds))
    ]


def shares(results: list[Result], name: str) -> dict[str, list[float]]:
    """By contender: the median of each case, divided by the highest of that case; 0 where there is none."""
    medians = [
        {
            who: summary[name].median
            for who, rounds in result.rounds.items()
            if name in (summary := summarize_rounds(rounds))
        }
        for result in results
    ]
    contenders = dict.fromkeys(who for result in results for who in result.rounds)
    return {
        who: [
            of_case.get(who, 0.0) / max(of_case.values(), default=0.0) if of_case.get(who) else 0.0
            for of_case in medians
        ]
        for who in contenders
    }


def bars(axis, results: list[Result], name: str) -> None:
    found = shares(results, name)
    height = 0.8 / max(1, len(found))
    for place, (who, values) in enumerate(found.items()):
        offsets = [row + place * height for row in range(len(results))]
        axis.barh(offsets, values, height, label=who)
    axis.set_yticks([row + 0.4 - height / 2 for row in range(len(results))], [result.case for result in results])
    axis.set_xlim(0, 1.02)
    axis.invert_yaxis()
