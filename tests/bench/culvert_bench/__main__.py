"""`tests/bench/run`: measures, or compares reports."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path as File

from . import (
    backend,
    certificates,
    checks,
    compare,
    envoy,
    instructions,
    isolation,
    manifests,
    plots,
    processes,
    report,
    rounds,
    scale,
    ztunnel,
)
from .cases import CASES, Case, Place
from .contenders import Contender, Culvert, Direct, Envoys, envoy_program
from .model import Path, Refused, Result
from .rounds import say
from .sandbox import Sandbox

ROOT = File(__file__).resolve().parents[3]
# Those without loads, each measured in a way of its own.
GROUPS = (scale.GROUP, isolation.GROUP, instructions.GROUP)
STORED = File(__file__).resolve().parents[1] / "stored.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description="Culvert beside no mesh and a pair of Envoys.")
    parser.add_argument("--quick", action="store_true", help="a selection, within five minutes")
    parser.add_argument("--only", metavar="NAME", help="cases whose group or name has these words in it")
    parser.add_argument("--rounds", type=int, default=3, help="how often the contenders take turns")
    parser.add_argument("--seconds", type=float, help="how long one measurement lasts (5, with --quick 1)")
    parser.add_argument(
        "--compare", type=File, metavar="OLD.json", help="afterwards, print this run divided by that one"
    )
    parser.add_argument(
        "--with", dest="new", type=File, metavar="NEW.json", help="with --compare: measure nothing, compare these two"
    )
    parser.add_argument("--ztunnel", type=File, metavar="PATH", help="ztunnel takes part in L4: the program")
    parser.add_argument("--check", action="store_true", help="fail if a stored ratio or instruction count is not kept")
    parser.add_argument("--store", action="store_true", help="store this run's instruction counts for --check")
    return parser.parse_args()


def selected(only: str | None, is_quick: bool) -> list[Case]:
    words = (only or "").lower().split()
    found = [
        case
        for case in CASES
        if (case.is_quick or not is_quick) and all(word in f"{case.group} {case.name}".lower() for word in words)
    ]
    if not found and only not in GROUPS:
        names = "\n".join(f"  {case.group}: {case.name}" for case in CASES)
        raise Refused(f"no case has {only!r} in its name. There are, beside {', '.join(GROUPS)}:\n{names}")
    return found


def is_asked(group: str, only: str | None, is_quick: bool) -> bool:
    """Of a group that is no load and has no rival: by its name, and in the full run."""
    return only == group or not (is_quick or only)


def variants(is_quick: bool, workers: int) -> list[envoy.Variant]:
    """As many workers as Culvert has, and Envoy's best number of them; HTTP/1.1 between the two as the other choice."""
    all_of_them = [
        envoy.Variant("envoy", workers, "h2", 16000),
        envoy.Variant("envoy-1", 1, "h2", 16100),
        envoy.Variant("envoy-h1", 1, "h1", 16200),
    ]
    return all_of_them[1:2] if is_quick else all_of_them


def main() -> int:
    options = arguments()
    if options.new:
        if not options.compare:
            raise Refused("--with needs --compare")
        print("\n".join(compare.against(report.read(options.new)[1], report.read(options.compare)[1])))
        return 0
    binaries, output = File(os.environ["CULVERT_BIN_DIR"]), File(os.environ["CULVERT_BENCH_DIR"])
    output.mkdir(parents=True, exist_ok=True)
    about = {
        "command": " ".join(["tests/bench/run", *sys.argv[1:]]),
        "commit": report.commit(ROOT),
        "machine": report.machine(),
        "idle_memory_mb": {},
        "rounds": max(1, options.rounds),
        "seconds": options.seconds or (1.0 if options.quick else 5.0),
    }
    cases = selected(options.only, options.quick)
    results: list[Result] = []
    # 5,000 routes and 100 pods are sandboxes of their own: nobody else carries them.
    apart = (Path.MANY, Path.COLD)
    for part in (
        [case for case in cases if case.path not in apart],
        *([case for case in cases if case.path is path] for path in apart),
    ):
        if part:
            results += run_cases(part, options, about, binaries, output)
    if is_asked(scale.GROUP, options.only, options.quick):
        results += scale.measure(
            scale.plan(options.quick, about["rounds"]), binaries, binaries / "culvert-bench-load", output
        )
    if is_asked(isolation.GROUP, options.only, options.quick):
        results += isolation.measure(ROOT)
    if options.check or options.store or is_asked(instructions.GROUP, options.only, options.quick):
        about["instructions"] = instructions.count(binaries, output)
    document = report.document(results, about)
    (output / "report.json").write_text(json.dumps(document, indent=1))
    drawn = plots.draw(results, output) if results else {}
    text = report.markdown(document, results, drawn)
    (output / "report.md").write_text(text)
    print(text)
    say(f"written: {output / 'report.md'}, {output / 'report.json'}")
    if options.compare:
        print("\n".join(compare.against(results, report.read(options.compare)[1])))
    if options.store:
        store(about["instructions"])
    return judge(results, about["instructions"]) if options.check else 0


def run_cases(
    cases: list[Case], options: argparse.Namespace, about: dict, binaries: File, output: File
) -> list[Result]:
    ztunnels = ztunnel.variants(options.quick, workers()) if options.ztunnel else []
    others = tuple(variant.name for variant in ztunnels)
    state = output / "state"
    state.mkdir(exist_ok=True)
    place = Place(state, binaries / "culvert-bench-load", binaries / "culvert-echo")
    place.write()
    for namespace in (manifests.PLAIN, manifests.MESHED, *others):
        backend.write_nginx(state / namespace)
    documents = manifests.cluster(state, others)
    paths = {case.path for case in cases}
    if Path.MANY in paths:
        documents += manifests.many_routes()
    if Path.COLD in paths:
        documents += manifests.many_pods(state, (manifests.MESHED, *others))
    manifests.write(documents, state / "cluster.yaml")
    sandbox = Sandbox(binaries)
    say("Starting the sandbox ...")
    sandbox.up(state / "cluster.yaml")
    contenders: list[Contender] = []
    try:
        contenders = make_contenders(sandbox, state, options.quick)
        if ztunnels:
            contenders += make_ztunnels(sandbox, state, ztunnels, options.ztunnel)
        for contender in contenders:
            say(f"Checking {contender.name} ...")
            contender.start()
            checks.check(contender, {path for path in paths if contender.carries(path)}, place)
            contender.idle_memory = processes.resident(contender.pids())
            if contender.pids():
                about["idle_memory_mb"].setdefault(contender.name, contender.idle_memory / 1e6)
        plan = rounds.Plan(about["rounds"], about["seconds"], about["seconds"] / 4, place)
        results = []
        for case in cases:
            say(f"{case.group}: {case.name}")
            results.append(rounds.measure(case, [one for one in contenders if one.carries(case.path)], plan))
        return results
    finally:
        for contender in contenders:
            contender.stop()
        sandbox.down()


def workers() -> int:
    """As many as the node proxy takes by default."""
    return min(4, os.cpu_count() or 1)


def make_ztunnels(sandbox: Sandbox, state: File, found: list[ztunnel.Variant], program: File) -> list[Contender]:
    root = sandbox.root()
    return [
        ztunnel.Ztunnels(
            variant.name,
            variant.name,
            sandbox,
            sandbox.pod_addresses(variant.name)[manifests.BACKEND],
            variant=variant,
            program=program.resolve(),
            directory=state / "ztunnel",
            root=root,
        )
        for variant in found
    ]


def make_contenders(sandbox: Sandbox, state: File, is_quick: bool) -> list[Contender]:
    plain = sandbox.pod_addresses(manifests.PLAIN)[manifests.BACKEND]
    made: list[Contender] = [
        Direct("direct", manifests.PLAIN, sandbox, plain),
        Culvert("culvert", manifests.MESHED, sandbox, sandbox.pod_addresses(manifests.MESHED)[manifests.BACKEND]),
    ]
    keys = certificates.make(state / "certificates")
    for variant in variants(is_quick, workers()):
        made.append(
            Envoys(
                variant.name,
                manifests.PLAIN,
                sandbox,
                plain,
                variant=variant,
                program=envoy_program(),
                directory=state / "envoy",
                certificates=keys,
            )
        )
    return made


def store(counted: dict[str, float]) -> None:
    stored = json.loads(STORED.read_text())
    stored["instructions"]["counts"] = {name: round(count) for name, count in counted.items()}
    STORED.write_text(json.dumps(stored, indent=2) + "\n")


def judge(results: list[Result], counted: dict[str, float]) -> int:
    stored = json.loads(STORED.read_text())
    wrong = compare.check_instructions(counted, stored["instructions"]["counts"], stored["instructions"]["tolerance"])
    wrong += compare.check_ratios(results, [compare.Bound(**bound) for bound in stored["ratios"]])
    for one in wrong:
        say(f"FAILED: {one}")
    if not wrong:
        say("Every stored instruction count and ratio is kept.")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refused as refused:
        say(f"Refused: {refused}")
        sys.exit(1)
