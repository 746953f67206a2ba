"""Read damaged files of every kind, for minutes: `python -m tests.security.fuzz --minutes 10 --keep findings`.

Mutated files (`fuzz_mutations`) and files that Hypothesis makes up (`fuzz_structures`) are read in processes that are
watched (`fuzz_process`). Each must be read well or be refused by the one-line error of its reader: never a crash, a
hang, much memory or another exception. The exit code is 1 where one was not.
"""
from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Lock

from tests.security.fuzz_mutations import mutated
from tests.security.fuzz_process import Answer, Input, Watched
from tests.security.fuzz_seeds import seeds
from tests.security.fuzz_structures import STRUCTURES, made_up

ROUND = 200  # mutated inputs between those that Hypothesis makes up
MADE_UP = 10  # of each structure at a time
KEPT_PER_CAUSE = 10
OUTCOMES = ("ok", "refused", "raised", "memory", "hang", "crash")
SHARES = {"tiff": 0.25, "png": 0.14, "jpeg": 0.09, "pth": 0.05, "safetensors": 0.03, "config": 0.05, "states": 0.04,
          "shard": 0.06, "list": 0.02, "json": 0.02}  # of the inputs; the other kinds share what is left


@dataclass
class Report:
    """What came of a run's inputs."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    findings: dict[str, list[tuple[Input, Answer]]] = field(default_factory=lambda: defaultdict(list))
    slowest: float = 0.0
    largest: int = 0
    _lock: Lock = field(default_factory=Lock)

    def add(self, given: Input, answer: Answer) -> None:
        """Note what came of an input."""
        with self._lock:
            self.counts[given.kind][answer.outcome] += 1
            if answer.is_finding:
                self.findings[f"{given.reader}: {answer.cause}"].append((given, answer))
            else:
                self.slowest = max(self.slowest, answer.seconds)
                self.largest = max(self.largest, answer.peak - answer.picture)

    @property
    def total(self) -> int:
        """Inputs that were read."""
        return sum(sum(counts.values()) for counts in self.counts.values())

    def __str__(self) -> str:
        rows = [("kind", "inputs", *OUTCOMES)]
        everything: Counter[str] = Counter()
        for kind, counts in sorted(self.counts.items()):
            rows.append((kind, str(sum(counts.values())), *(str(counts[outcome]) for outcome in OUTCOMES)))
            everything += counts
        rows.append(("all", str(self.total), *(str(everything[outcome]) for outcome in OUTCOMES)))
        table = "\n".join(f"{row[0]:12}" + "".join(f"{cell:>9}" for cell in row[1:]) for row in rows)
        text = f"{table}\nslowest {self.slowest:.2f} s, most memory above a picture {self.largest / 2 ** 20:.0f} MB"
        for cause, found in sorted(self.findings.items(), key=lambda item: -len(item[1])):
            given, answer = found[0]
            kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(each.kind for each, _ in found).items())
            text += f"\n\n{len(found)} x {cause}\n  in {kinds}; the first: {given.name} ({given.origin})\n  {answer}"
        return text


def mutated_inputs(seed: int, kinds: Sequence[str] = ()) -> Iterator[Input]:
    """Without end; the same for the same seed."""
    by_kind: dict[str, list[Input]] = defaultdict(list)
    for each in seeds():
        if not kinds or each.kind in kinds:
            by_kind[each.kind].append(each)
    rest = max(1 - sum(SHARES.values()), 0) / max(len(set(by_kind) - set(SHARES)), 1)
    weights = [SHARES.get(kind, rest) for kind in by_kind]
    for number in itertools.count():
        random = Random(f"{seed} {number}")
        chosen = random.choices(list(by_kind), weights)[0]
        yield mutated(random.choice(by_kind[chosen]), random)


def all_inputs(seed: int, kinds: Sequence[str] = ()) -> Iterator[Input]:
    """Mutated ones and made-up ones in turns, without end."""
    mutations = mutated_inputs(seed, kinds) if not kinds or {each.kind for each in seeds()} & set(kinds) else iter(())
    for turn in itertools.count():
        yield from itertools.islice(mutations, ROUND)
        for name, structure in STRUCTURES.items():
            if not kinds or structure.kind in kinds:
                yield from made_up(name, MADE_UP, seed=seed * 100_003 + turn)


def run(inputs: Iterable[Input], processes: int = 1, report: Report | None = None) -> Report:
    """Read all inputs, in so many processes."""
    report, waiting, lock = report or Report(), iter(inputs), Lock()

    def work() -> None:
        with Watched() as process:
            while True:
                with lock:
                    given = next(waiting, None)
                if given is None:
                    return
                report.add(given, process.read(given))

    with ThreadPoolExecutor(processes) as pool:
        for done in [pool.submit(work) for _ in range(processes)]:
            done.result()
    return report


def _until(inputs: Iterable[Input], end: float) -> Iterator[Input]:
    return itertools.takewhile(lambda _: time.monotonic() < end, inputs)


def keep(report: Report, folder: Path) -> None:
    """Write the inputs of the findings, each with what came of it: the first few of every cause."""
    for number, (cause, found) in enumerate(sorted(report.findings.items())):
        for count, (given, answer) in enumerate(found[:KEPT_PER_CAUSE]):
            path = given.write(folder / f"{number:02d}-{answer.outcome}-{given.kind}-{count}")
            (path.parent / "finding.txt").write_text(f"{cause}\n{given.origin}\n{answer}\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    kinds = sorted({each.kind for each in seeds()} | {each.kind for each in STRUCTURES.values()})
    parser = argparse.ArgumentParser(prog="python -m tests.security.fuzz", description="Read damaged files.")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="another number, other files (default 0)")
    parser.add_argument("--kind", action="append", choices=kinds, default=[], help="only this one; may be given again")
    parser.add_argument("--keep", type=Path, help="a folder for the files of the findings")
    parser.add_argument("--processes", type=int, default=1, help="that read at a time (default 1)")
    options = parser.parse_args(arguments)
    report = Report()
    try:
        run(_until(all_inputs(options.seed, options.kind), time.monotonic() + 60 * options.minutes),
            options.processes, report)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    print(report)
    if options.keep is not None:
        keep(report, options.keep)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
