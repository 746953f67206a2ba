"""What `make gpu` found, on one screen: every target beside what was reached, then the numbers behind it."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_parts import COMPILED, DATA, EXACT_WAYS, GENERATION, PICTURE, PROFILE, TRAINING, line_of

Results = dict[str, dict[str, Any]]  # the contents of the parts' files, by part
MILLI = 1e3
PERCENT = 100
MAX_PROBLEMS = 8


@dataclass(frozen=True)
class Target:
    """A number to reach on an H100. reached: the number and how it came about, None where it was not measured."""

    name: str
    goal: float
    unit: str
    reached: Callable[[Results], tuple[float, str] | None]
    least: bool = False  # whether more is better

    def line(self, results: Results) -> str:
        """The target beside what was reached."""
        found = self.reached(results)
        goal = f"{'at least' if self.least else 'at most'} {self.goal:g} {self.unit}"
        if found is None:
            return f"{self.name:<52}{'not measured':>14}   {goal}"
        value, how = found
        met = value >= self.goal if self.least else value <= self.goal
        return f"{self.name:<52}{value:>9.4g} {self.unit:<4}   {goal}: {'reached' if met else 'missed'} ({how})"


def measurements(results: Results, *parts: str) -> Iterator[dict[str, Any]]:
    """Those of some parts that gave numbers, without profiles."""
    for part in parts:
        for name, measured in results.get(part, {}).get("measurements", {}).items():
            if not name.startswith(PROFILE) and "measured_in_seconds" in measured:
                yield measured


def per_picture(batch: int) -> Callable[[Results], tuple[float, str] | None]:
    """Milliseconds a picture at a batch size, of the fastest way that computes the same in bf16."""
    def reached(results: Results) -> tuple[float, str] | None:
        found = [(row["seconds_per_picture"] * MILLI, row["way"])
                 for row in measurements(results, GENERATION, COMPILED)
                 if row.get("way") in EXACT_WAYS and row.get("batch_size") == batch and "seconds_per_picture" in row]
        return min(found, default=None)
    return reached


def of_windows(results: Results) -> tuple[float, str] | None:
    """How many times longer a large picture takes than its windows."""
    found = [(row["of_windows"], f"{row['windows']} windows, {row['seconds']:.1f} s, .{row['file']}")
             for row in measurements(results, PICTURE) if row.get("of_windows")]
    return min(found, default=None)


def training_share(results: Results) -> tuple[float, str] | None:
    """Percent of the GEMM rate in training of the published size, without checkpointing."""
    found = [(row["share_of_gemm_rate"] * PERCENT, f"batch {row['batch_size']}")
             for row in measurements(results, TRAINING)
             if row.get("embedded") is False and not row["checkpointing"] and "share_of_gemm_rate" in row]
    return max(found, default=None)


def embedded_samples(results: Results) -> tuple[float, str] | None:
    """Samples a second of the embedded model's transformer stage."""
    found = [(row["samples_per_second"], f"batch {row['batch_size']}")
             for row in measurements(results, TRAINING)
             if row.get("embedded") and row["stage"] == "transformer" and "samples_per_second" in row]
    return max(found, default=None)


TARGETS = (
    Target("one picture, bf16 (bound by operations: 18 ms)", 45, "ms", per_picture(1)),
    Target("a picture in batches of 8, bf16 (the same: 18 ms)", 30, "ms", per_picture(8)),
    Target("4096x4096 pixels, times its windows in batches of 8", 1.3, "x", of_windows),
    Target("training without checkpointing, of the GEMM rate", 40, "%", training_share, least=True),
    Target("training the embedded model's transformer", 4000, "/s", embedded_samples, least=True),
)


def summary(name: str, results: Results) -> str:
    """The text for the screen and the file; name: of the GPU."""
    lines = [f"VARSR on {name}", "", f"{'part':<12}{'seconds':>8}  status"]
    lines += [f"{part:<12}{result.get('seconds', 0):>8.0f}  {result.get('status', 'running')}"
              for part, result in results.items()]
    lines += ["", "targets, set for an H100"]
    lines += [target.line(results) for target in TARGETS]
    for table in (_machine(results), _ways(results), _training(results), _data(results), _problems(results)):
        lines += ["", *table] if table else []
    return "\n".join(lines) + "\n"


def _machine(results: Results) -> list[str]:
    for row in measurements(results, GENERATION):
        if "read_gb_per_second" in row:
            return [f"matrix products {row['tflops']:.0f} TFLOP/s in bf16, {row['fp16_tflops']:.0f} in fp16; reading "
                    f"{row['read_gb_per_second']:.0f} GB/s"]
    return []


def _ways(results: Results) -> list[str]:
    """Milliseconds a picture by way and batch size."""
    ways: dict[str, dict[int, dict[str, Any]]] = {}
    for row in measurements(results, GENERATION, COMPILED):
        if "seconds_per_picture" in row:
            ways.setdefault(row["way"], {})[row["batch_size"]] = row
    if not ways:
        return []
    batches = sorted({batch for rows in ways.values() for batch in rows})
    lines = [f"{'milliseconds a picture, by batch size':<40}" + "".join(f"{batch:>10}" for batch in batches)
             + f"{'first call':>12}{'GB':>8}"]
    for way, rows in ways.items():
        cells = "".join(f"{rows[batch]['seconds_per_picture'] * MILLI:>10.1f}" if batch in rows else f"{'':>10}"
                        for batch in batches)
        lines.append(f"{way:<40}{cells}{max(row['first_seconds'] for row in rows.values()):>10.1f} s"
                     f"{max(row['peak_memory_gb'] for row in rows.values()):>8.1f}")
    return lines


def _training(results: Results) -> list[str]:
    """A line a kind of step, with what its kernels say where they were recorded."""
    found = results.get(TRAINING, {}).get("measurements", {})
    lines = []
    for name, row in found.items():
        if "step_seconds" in row:
            profile = found.get(PROFILE + name, {})
            kernels = f"{profile['kernels']:>9.0f}{profile['busy_share']:>7.0%}" if "kernels" in profile else ""
            lines.append(f"{name:<40}{row['step_seconds'] * MILLI:>10.1f}{row['samples_per_second']:>11.1f}"
                         f"{row['share_of_gemm_rate']:>9.0%}{row['peak_memory_gb']:>8.1f}{kernels}")
    head = f"{'training':<40}{'ms a step':>10}{'samples/s':>11}{'of GEMM':>9}{'GB':>8}{'kernels':>9}{'busy':>7}"
    return [head, *lines] if lines else []


def _data(results: Results) -> list[str]:
    rows = results.get(DATA, {}).get("measurements", {})
    return [f"{name}: {line_of(row)}" for name, row in rows.items() if "samples_per_second" in row]


def _problems(results: Results) -> list[str]:
    """Measurements that gave nothing, or something to be wary of."""
    lines = []
    for part, result in results.items():
        if "running" in result:
            lines.append(f"{part}: stopped in {result['running']}")
        for name, row in result.get("measurements", {}).items():
            if "measured_in_seconds" not in row or {"error", "out_of_memory", "not_here", "warnings"} & row.keys() \
                    or row.get("finite") is False:
                lines.append(f"{part}: {name}: {line_of(row)}"[:160])
    more = [f"and {len(lines) - MAX_PROBLEMS} more, in the files"] if len(lines) > MAX_PROBLEMS else []
    return [*lines[:MAX_PROBLEMS], *more]
