"""Is everything right on this GPU, and how fast is it: `make gpu`, or `python -m benchmarks.gpu`.

Tests marked gpu, generation, a large picture, training, data, compiled generation: each in a process of its own with a
time limit, so that one that fails or hangs never stops the next. Results are files in --results, written after every
single measurement, and a summary (docs/performance.md). A dry run without a GPU: `--device cpu`.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_parts import COMPILED, DATA, GENERATION, PICTURE, TRAINING
from benchmarks.gpu_summary import Results, summary
from utils.files import replacing

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TESTS = "tests"
GPU_TESTS = re.compile(r"mark\.gpu\b|\bEVERY_DEVICE\b")  # the second is tests/conftest.py's
MINUTES, DRY_MINUTES = 3.9, 25.0  # of a GPU, of a CPU
LEAST = 8.0  # seconds without which no part starts: importing torch takes most of them
ENDING = 2.0  # seconds that a part has to end
PASSED = "passed"
TAIL, TESTS_TAIL = 40, 400  # lines of what a part said that are kept where it failed
TELLING = 6.0  # seconds of its limit in which a part that is too slow may tell what it found
CUBLAS = ":4096:8"  # work spaces for sums in the same order, which tests ask for; read once in a process


@dataclass(frozen=True)
class Part:
    """A process with a limit. share: its seconds of the default budget; what a part leaves goes to those after it."""

    name: str
    share: float


PARTS = (Part(TESTS, 55), Part(GENERATION, 48), Part(PICTURE, 22), Part(TRAINING, 47), Part(DATA, 12),
         Part(COMPILED, 50))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--results", type=Path, default=RESULTS, help="folder for the files (default: benchmarks/results)")
    add("--device", default="cuda", help="cpu: a dry run of everything, with small sizes")
    add("--preset", help="of models/config.py, in place of the published size")
    add("--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART",
        help=f"some of {', '.join(part.name for part in PARTS)}")
    add("--minutes", type=float, help=f"for all parts together; what does not fit is left out ({MINUTES:g}; dry runs "
                                      f"{DRY_MINUTES:g})")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the parts; 0 where all passed."""
    began = time.monotonic()
    args = build_parser().parse_args(argv)

    import torch

    from benchmarks.machine import describe
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(f"benchmarks.gpu: PyTorch {torch.__version__} sees no CUDA GPU here (--device cpu: a dry run)")
        return 1
    machine = describe(torch.device(args.device))
    name = str(machine.get("gpu", f"{machine['cpu']} (a dry run)"))
    slug = re.sub(r"[^a-z0-9]+", "-", str(machine.get("gpu", args.device)).lower()).strip("-")
    args.results.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if args.only is None or part.name in args.only]
    files = {part.name: args.results / f"{slug}_{part.name}.json" for part in chosen}
    for file in files.values():
        file.unlink(missing_ok=True)  # of an earlier run
    minutes = args.minutes or (MINUTES if args.device.startswith("cuda") else DRY_MINUTES)
    scale = 60 * minutes / sum(part.share for part in chosen)
    results: Results = {}
    end = began
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the part that runs is stopped too
    for part in chosen:
        end += part.share * scale
        seconds = end - time.monotonic()
        results[part.name] = run_part(part.name, args, files[part.name], seconds, machine)
        text = summary(f"{name}, torch {machine['torch']}", results)
        with replacing(args.results / f"{slug}_summary.txt") as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}\n{args.results}: {slug}_*.json, {slug}_summary.txt; {time.monotonic() - began:.0f} s")
    return 0 if all(result["status"].startswith(PASSED) for result in results.values()) else 1


def run_part(name: str, args: argparse.Namespace, file: Path, seconds: float,
             machine: dict[str, Any]) -> dict[str, Any]:
    """Run a part for some seconds at most; what its file then holds, with how it went."""
    if seconds < LEAST:
        print(f"{name}: left out, no time left", flush=True)
        return _close(file, {"part": name, "machine": machine, "status": "left out: no time left", "seconds": 0.0})
    print(f"{name} ({seconds:.0f} s at most)", flush=True)
    began, is_tests = time.monotonic(), name == TESTS
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
        code = run(command_of(name, args, file, seconds), seconds, said, all_of_it=is_tests)
        said.seek(0)
        tail = said.read().splitlines()[-(TESTS_TAIL if is_tests else TAIL):]
    status = {0: PASSED, None: f"over its limit of {seconds:.0f} s"}.get(code, f"failed, exit code {code}")
    result = {"part": name, "machine": machine, **_read(file)}
    if is_tests:
        counts = tail[-1].strip("= ") if tail else ""
        status += f": {counts}"
        print(f"  {counts}", flush=True)
    if code != 0:
        result["said"] = tail
        print("\n".join(f"  | {line}" for line in tail), flush=True)
    return _close(file, {**result, "status": status, "seconds": round(time.monotonic() - began, 1)})


def command_of(name: str, args: argparse.Namespace, file: Path, seconds: float) -> list[str]:
    """What runs a part."""
    if name == TESTS:
        return [sys.executable, "-m", "pytest", "-m", "gpu", "-o", "addopts=", "-v", "-rfE", "--durations=5",
                "--continue-on-collection-errors", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=20",
                "--device", args.device, *map(str, gpu_tests())]
    return [sys.executable, "-m", "benchmarks.gpu_parts", name, "--output", str(file.resolve()),
            "--device", args.device, "--until", str(time.time() + seconds - ENDING),
            *(("--preset", args.preset) if args.preset else ())]


def gpu_tests() -> list[Path]:
    """Files that hold tests marked gpu: what the others import may not be here."""
    return [path.relative_to(ROOT) for path in sorted((ROOT / "tests").rglob("test_*.py"))
            if GPU_TESTS.search(path.read_text(encoding="utf-8"))]


def run(command: list[str], seconds: float, said: IO[str], all_of_it: bool = False) -> int | None:
    """The exit code of a command, None where it and all that it started had to be stopped. said: takes its errors, or
    all that it says: of such a one by Ctrl-C's signal first, upon which pytest tells what failed."""
    child = subprocess.Popen(command, cwd=ROOT, stdout=said if all_of_it else None, stderr=said, start_new_session=True,
                             env={**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1",
                                  "CUBLAS_WORKSPACE_CONFIG": CUBLAS})
    telling = TELLING if all_of_it else 0.0
    try:
        return child.wait(max(seconds - telling, 0.0))
    except subprocess.TimeoutExpired:
        with contextlib.suppress(subprocess.TimeoutExpired, ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)
            child.wait(telling)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _read(file: Path) -> dict[str, Any]:
    """What a part has written."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _close(file: Path, result: dict[str, Any]) -> dict[str, Any]:
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    sys.exit(main())
