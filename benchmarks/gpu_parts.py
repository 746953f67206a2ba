"""The parts of `make gpu`, each a process of its own: `python -m benchmarks.gpu_parts NAME --output FILE`.

A part is a list of measurements. What each gives, or why it gave nothing, is in the file before the next one starts:
a part that is stopped leaves what it had.
"""
from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.errors import UserError, first_line
from utils.files import replacing

if TYPE_CHECKING:
    import torch

    from benchmarks.bench_train import Task
    from models.varsr import VARSR

TERA, GIGA, MEGAPIXEL = 1e12, 1e9, 2 ** 20
GENERATION, PICTURE, TRAINING, DATA, COMPILED = "generation", "picture", "training", "data", "compiled"
FAST, GRAPHS = "--fast", "graphs"
PLAIN_WAY, GRAPHS_WAY, COMPILED_WAY = EXACT_WAYS = ("bf16 plain", f"bf16 {GRAPHS}", "bf16 --compile")
PUBLISHED = "fp32 weights, fp16 autocast"
SAMPLES = Path(__file__).resolve().parent.parent / "testset" / "sample" / "HR"
PROFILE = "profile, "  # names of measurements that show what bounds others
BRIEF, LONG, COMPILING = 4.0, 10.0, 20.0  # seconds that must be left for a measurement
# What a line on the screen shows of a measurement, where it has it: (key, factor, format)
SHOWN = (("seconds_per_picture", 1e3, "{:.1f} ms a picture"), ("step_seconds", 1e3, "{:.1f} ms a step"),
         ("samples_per_second", 1, "{:.1f} samples/s"), ("tflops", 1, "{:.1f} TFLOP/s"),
         ("share_of_gemm_rate", 100, "{:.0f} % of GEMM"), ("seconds", 1, "{:.3f} s"), ("windows", 1, "{} windows"),
         ("kernels", 1, "{:.0f} kernels"), ("busy_share", 100, "busy {:.0f} %"),
         ("peak_memory_gb", 1, "{:.2f} GB"))


@dataclass(frozen=True)
class Sizes:
    """How much is measured: seconds and repetitions of a measurement, batches, sides in pixels."""

    preset: str = "varsr-d24"
    tiny: str = "varsr-tiny"
    seconds: float = 1.0
    few_seconds: float = 0.5  # of what no target depends on
    steps: int = 3
    batches: tuple[int, ...] = (1, 8, 4)  # of generation, the most telling ones first
    training_batches: tuple[int, ...] = (4, 8)
    tiny_batches: tuple[int, ...] = (256, 64)
    picture_side: int = 4096
    degradations: tuple[tuple[int, int, int], ...] = ((128, 256, 64), (512, 32, 16))  # side, batch, group
    degradation_steps: int = 10
    gemm_size: int | None = None
    gemm_seconds: float = 0.4
    read_bytes: int = 2 ** 32
    compiling: bool = True


# Everything runs once, and the compiler, which takes a minute on a CPU, not at all.
DRY = Sizes("varsr-debug", "varsr-debug", 0.05, 0.05, 1, (1, 2), (1, 2), (2,), 64, ((32, 4, 2), (64, 2, 2)), 1, 256,
            0.02, 2 ** 24, False)


class Bench:
    """Takes measurements, one by one, and keeps the file with what there is."""

    def __init__(self, part: str, device: torch.device, sizes: Sizes, output: Path, until: float) -> None:
        """until: on the clock `time.time`; no measurement starts after it."""
        from benchmarks.machine import describe
        self.device, self.sizes, self.output, self.until = device, sizes, output, until
        self.failed = self.lost = False  # lost: the process cannot use its device any more
        self._rates: dict[torch.dtype, float] = {}
        self.result: dict[str, Any] = {"part": part, "preset": sizes.preset,
                                       "machine": describe(device), "measurements": {}}

    def gemm(self, dtype: torch.dtype) -> float:
        """The rate of matrix products of a type, FLOP/s, measured when it is first asked for."""
        from benchmarks.machine import gemm_rate
        if dtype not in self._rates:
            self._rates[dtype] = gemm_rate(self.device, dtype, self.sizes.gemm_seconds, self.sizes.gemm_size)
            self.result.setdefault("gemm_tflops", {})[_name(dtype)] = self._rates[dtype] / TERA
        return self._rates[dtype]

    def measure(self, name: str, call: Callable[[], dict[str, Any]], least: float = BRIEF) -> dict[str, Any]:
        """Record what `call` measures, or the first line of its error. least: seconds that must be left for it."""
        from benchmarks.machine import reset_peak_memory
        if self.until - time.time() < least:
            return self._record(name, {"left_out": "no time left"})
        self.result["running"] = name
        self.write()
        self.free()
        reset_peak_memory(self.device)
        began, warnings = time.monotonic(), []
        with _warnings_in(warnings):
            measured = self._call(call)
        if warnings:
            measured["warnings"] = warnings
        measured = self._record(name, {**measured, "measured_in_seconds": round(time.monotonic() - began, 2)})
        if self.lost:
            raise SystemExit(1)
        return measured

    def _call(self, call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        import torch
        try:
            return call()
        except UserError as error:
            return {"not_here": first_line(error)}  # what this GPU cannot do
        except torch.OutOfMemoryError as error:
            return {"out_of_memory": first_line(error)}  # which says nothing of the installation either
        except Exception as error:  # whatever happens to one measurement, the others go on
            self.failed = True
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.lost = not self._device_works()
            return {"error": f"{type(error).__name__}: {first_line(error)}", "at": f"{last.filename}:{last.lineno}"}

    def _device_works(self) -> bool:
        """Whether a broken measurement has left the process able to use its device."""
        import torch
        try:
            return torch.ones(1, device=self.device).item() == 1
        except RuntimeError:
            return False

    def _record(self, name: str, measured: dict[str, Any]) -> dict[str, Any]:
        self.result["measurements"][name] = measured
        self.result.pop("running", None)
        self.write()
        print(f"  {name}: {line_of(measured)}", flush=True)
        return measured

    def write(self) -> None:
        """The file as it is now."""
        with replacing(self.output) as temporary:
            temporary.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")

    def free(self) -> None:
        """Give back what nobody uses."""
        import torch
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


class Held:
    """One thing at a time that is costly to make and large: asked for under another name, the last one goes first."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.name, self.thing = bench, None, None

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The thing of that name."""
        if name != self.name:
            self.drop()
            self.thing = make()
            self.name = name
        return self.thing

    def drop(self) -> None:
        """Hold nothing."""
        self.name = self.thing = None
        self.bench.free()


@contextmanager
def _warnings_in(messages: list[str]) -> Iterator[None]:
    """What our modules warn of meanwhile: a graph that could not be recorded, a batch that was halved."""
    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())
    collector = Collector(logging.WARNING)
    logging.getLogger().addHandler(collector)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(collector)


def line_of(measured: dict[str, Any]) -> str:
    """A measurement on one line."""
    for key in ("error", "out_of_memory", "not_here", "left_out"):
        if key in measured:
            return f"{key.replace('_', ' ')}: {measured[key]}"
    shown = [form.format(measured[key] * factor if factor != 1 else measured[key]) for key, factor, form in SHOWN
             if measured.get(key) is not None]
    return ", ".join([*shown, *measured.get("warnings", [])])


def _name(dtype: torch.dtype) -> str:
    return {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[str(dtype).removeprefix("torch.")]


def _model(bench: Bench, dtype: torch.dtype, eight_bit: str | None = None, compiled: bool = False) -> VARSR:
    """The preset with random weights, ready as the scripts have it."""
    from benchmarks.random_weights import random_model
    from inference.settings import check_eight_bit, prepare
    from models.config import PRESETS
    if bench.device.type == "cuda" or bench.sizes.preset != DRY.preset:  # small enough to imitate fp8 on a CPU
        check_eight_bit(bench.device, eight_bit)
    config = replace(PRESETS[bench.sizes.preset], inference=True)
    return prepare(random_model(config, dtype, bench.device), eight_bit, compiled)


@dataclass(frozen=True)
class Way:
    """One way to generate pictures."""

    name: str
    dtype: torch.dtype
    eight_bit: str | None = None
    fast: bool = False
    graphs: bool = False
    compiled: bool = False

    @property
    def model_name(self) -> str:
        """Ways of the same name share a model."""
        return f"{self.dtype}, {self.eight_bit}, {self.compiled}"


@contextmanager
def _subject(bench: Bench, held: Held, way: Way) -> Iterator[VARSR]:
    """The model of a way; where it asks for graphs, they are recorded meanwhile."""
    model = held.get(way.model_name, lambda: _model(bench, way.dtype, way.eight_bit, way.compiled))
    if way.graphs:
        model.graphs = _graphs(bench.device)
    try:
        yield model
    finally:
        if way.graphs:
            model.graphs = None


def _generate(bench: Bench, held: Held, way: Way, batch: int, seconds: float) -> dict[str, Any]:
    """One way at one batch size."""
    from benchmarks.bench_generate import Case, measure
    with _subject(bench, held, way) as model:
        case = Case.of(model.config, batch, way.fast)
        measured = measure(model, case, bench.gemm(way.dtype), seconds, 1 if way.eight_bit else None)
        if model.graphs is not None:
            measured["recorded"] = all(each.replay is not None for each in model.graphs.recorded.values())
    return {"way": way.name, **measured}


def _profile_generation(bench: Bench, held: Held, way: Way, batch: int, steady: float) -> dict[str, Any]:
    """What bounds a generation: its kernels."""
    from benchmarks.bench_generate import Case, generation
    from benchmarks.kernel_profile import profile_kernels
    with _subject(bench, held, way) as model:
        call = generation(model, Case.of(model.config, batch, way.fast))
        call()  # is what is recorded as a graph
        return {"batch_size": batch, **profile_kernels(call, bench.device, steady)}


def _graphs(device: torch.device):
    """The recorder of CUDA graphs; on a CPU, which has none, one that runs everything again."""
    from models.speed.graphs import GenerationGraphs
    return GenerationGraphs() if device.type == "cuda" else GenerationGraphs(lambda run: run)


def _published(bench: Bench, held: Held, batch: int) -> dict[str, Any]:
    """As the published code runs: fp32 weights, nothing folded, under autocast."""
    import torch

    from benchmarks.bench_generate import Case, generation
    from benchmarks.clock import timed_calls
    from benchmarks.machine import peak_memory
    from benchmarks.random_weights import random_model
    from models.config import PRESETS
    model = held.get(PUBLISHED, lambda: random_model(PRESETS[bench.sizes.preset], torch.float32, bench.device))
    call = generation(model, Case.of(model.config, batch))

    def autocast() -> None:
        with torch.autocast(bench.device.type, torch.float16):
            call()
    times = timed_calls(autocast, bench.device, bench.sizes.few_seconds)
    return {"way": PUBLISHED, "batch_size": batch, "first_seconds": times.first, "seconds": times.steady,
            "seconds_per_picture": times.steady / batch, "peak_memory_gb": peak_memory(bench.device) / GIGA}


def generation(bench: Bench) -> None:
    """A picture's seconds, by ways, batch sizes and stages; bf16 first, for the targets are about it."""
    import torch

    from benchmarks.machine import read_rate
    sizes, held, bf16, fp16 = bench.sizes, Held(bench), torch.bfloat16, torch.float16
    bench.measure("machine", lambda: {
        "tflops": bench.gemm(bf16) / TERA, "fp16_tflops": bench.gemm(fp16) / TERA,
        "read_gb_per_second": read_rate(bench.device, sizes.read_bytes) / GIGA})

    def measure(ways: Sequence[Way], seconds: float) -> dict[tuple[Way, int], dict[str, Any]]:
        return {(way, batch): bench.measure(f"{way.name}, batch {batch}", lambda way=way, batch=batch:
                                            _generate(bench, held, way, batch, seconds))
                for way in ways for batch in sizes.batches}
    exact = measure((Way(PLAIN_WAY, bf16), Way(GRAPHS_WAY, bf16, graphs=True)), sizes.seconds)
    measure((Way(f"bf16 {FAST}", bf16, fast=True), Way(f"bf16 {FAST} {GRAPHS}", bf16, fast=True, graphs=True)),
            sizes.few_seconds)
    for (way, batch), measured in exact.items():
        if batch in sizes.batches[:2] and "seconds" in measured:
            bench.measure(f"{PROFILE}{way.name}, batch {batch}", lambda way=way, batch=batch, measured=measured:
                          _profile_generation(bench, held, way, batch, measured["seconds"]))
    for batch in sizes.batches[:2]:
        bench.measure(f"{PUBLISHED}, batch {batch}", lambda batch=batch: _published(bench, held, batch))
    measure((Way("fp8", bf16, "fp8"), Way(f"fp8 {GRAPHS}", bf16, "fp8", graphs=True), Way("int8", bf16, "int8"),
             Way("fp16 plain", fp16), Way(f"fp16 {FAST}", fp16, fast=True)), sizes.few_seconds)


def _machine(bench: Bench) -> None:
    """The rate that shares are taken of, measured before anything is weighed."""
    import torch
    bench.measure("machine", lambda: {"tflops": bench.gemm(torch.bfloat16) / TERA})


def compiled(bench: Bench) -> None:
    """Generation with PyTorch's compiler and CUDA graphs, as --compile has it."""
    import torch
    if not bench.sizes.compiling:
        torch.compiler.set_stance("force_eager")
    _machine(bench)
    held, way = Held(bench), Way(COMPILED_WAY, torch.bfloat16, compiled=True)
    for batch in bench.sizes.batches[:2]:
        bench.measure(f"{way.name}, batch {batch}", lambda batch=batch:
                      _generate(bench, held, way, batch, bench.sizes.few_seconds), COMPILING)


def picture(bench: Bench) -> None:
    """A large picture, and how many times longer it takes than its windows in batches of eight."""
    import torch

    from benchmarks.bench_generate import Case
    from benchmarks.bench_generate import measure as measure_generation
    held, dtype, eight = Held(bench), torch.bfloat16, max(bench.sizes.batches)

    def model() -> VARSR:
        return held.get("bf16", lambda: _model(bench, dtype))

    def windows() -> dict[str, Any]:
        case = Case.of(model().config, eight, cfg=model().config.generation.tiled_cfg)
        return measure_generation(model(), case, bench.gemm(dtype), bench.sizes.few_seconds)
    _machine(bench)
    window = bench.measure(f"windows, batch {eight}", windows).get("seconds_per_picture")
    for name, clocked in (("in parts", True), ("as a whole", False)):
        bench.measure(f"{bench.sizes.picture_side} pixels, {name}",
                      lambda clocked=clocked: _large_picture(bench, model(), window, clocked), LONG)


def _large_picture(bench: Bench, model: VARSR, window: float | None, clocked: bool) -> dict[str, Any]:
    """Seconds of a whole picture, file included; window: seconds of one window in a batch. clocked: those of its parts
    too, which then wait for each other: host and device do not work side by side any more."""
    from importlib.util import find_spec

    from benchmarks.bench_tile import attach, restore_mosaic
    from benchmarks.machine import peak_memory
    side = bench.sizes.picture_side
    ext = "png" if find_spec("pyvips") else "bmp"  # what Pillow alone can write
    with attach(model, bench.device) if clocked else nullcontext() as clock:
        record, seconds, processor = restore_mosaic(model, side, ext)
    parts = dict(sorted(clock.sums.items(), key=lambda item: -item[1])) if clocked else {}
    return {"side": side, "file": ext, "windows": record.windows, "seconds": seconds,
            "seconds_per_megapixel": seconds / (side ** 2 / MEGAPIXEL), "processor_seconds": processor,
            "generate_seconds": record.generate_seconds, "render_seconds": record.render_seconds,
            "write_seconds": record.write_seconds, "parts": parts,
            "seconds_of_windows": window and window * record.windows,
            "of_windows": window and seconds / (window * record.windows),
            "peak_memory_gb": peak_memory(bench.device) / GIGA}


def training(bench: Bench) -> None:
    """Steps of the published size and of the embedded model's, with the kernels of some of them."""
    from benchmarks.bench_train import TOKENIZER, Task
    from models.config import PRESETS
    held, sizes = Held(bench), bench.sizes
    large, tiny = PRESETS[sizes.preset], PRESETS[sizes.tiny]
    (_, _, small_group), (_, _, large_group) = sizes.degradations[0], sizes.degradations[-1]

    def measure(title: str, task: Task, embedded: bool, profiled: bool = False) -> None:
        name = f"{title}, batch {task.batch_size}{', checkpointing' if task.checkpointing else ''}"
        measured = bench.measure(name, lambda: _train(bench, held, name, task, embedded),
                                 BRIEF if embedded else LONG)
        if profiled and "step_seconds" in measured:
            bench.measure(f"{PROFILE}{name}", lambda: _profile_step(bench, held, measured["step_seconds"]), LONG)
        held.drop()
    small = [Task(tiny, batch_size=batch, group=min(batch, small_group)) for batch in sizes.tiny_batches]
    plain = [Task(large, batch_size=batch, group=min(batch, large_group)) for batch in sizes.training_batches]
    _machine(bench)
    measure(f"{tiny.name} transformer", small[0], True, profiled=True)
    for task in plain:
        measure(large.name, task, False, profiled=task is plain[0])
    measure(f"{tiny.name} tokenizer", Task(tiny, TOKENIZER, sizes.tiny_batches[-1]), True, profiled=True)
    for task in small[1:]:
        measure(f"{tiny.name} transformer", task, True, profiled=True)
    for task in plain:
        measure(large.name, replace(task, checkpointing=True), False)


def _train(bench: Bench, held: Held, name: str, task: Task, embedded: bool) -> dict[str, Any]:
    """Steps of one kind. embedded: of the small model."""
    import torch

    from benchmarks.bench_train import build_stage, measure
    stage = held.get(name, lambda: build_stage(task, bench.device))
    return {"model": task.config.name, "embedded": embedded, "stage": task.stage, "group": task.group,
            **measure(stage, task, bench.gemm(torch.bfloat16), bench.sizes.steps)}


def _profile_step(bench: Bench, held: Held, seconds: float) -> dict[str, Any]:
    """The kernels of steps of the stage that was measured last."""
    from itertools import count

    from benchmarks.kernel_profile import profile_kernels
    stage, numbers = held.thing, count(100)
    return profile_kernels(lambda: stage.train_step(next(numbers)), bench.device, seconds)


def data(bench: Bench) -> None:
    """Samples a second of what makes training batches on the device."""
    measurements: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    for size, batch, group in bench.sizes.degradations:
        measurements.append((f"degradation, {size} pixels, batch {batch}, groups of {group}",
                             lambda size=size, batch=batch, group=group: _degradation(bench, size, batch, group)))
    side, batch, group = bench.sizes.degradations[0]
    measurements.append((f"crops cut on the device and degraded, {side} pixels, batch {batch}, groups of {group}",
                         lambda: _resident_pairs(bench, side, batch, group)))
    for name, call in measurements:
        bench.measure(name, call)


def _resident_pairs(bench: Bench, size: int, batch: int, group: int) -> dict[str, Any]:
    """Training pairs as --data_on_device makes them, and the crops alone."""
    from benchmarks.bench_data import per_second, resident_pairs
    pairs = resident_pairs(SAMPLES, size, batch, group, bench.device)
    steps = bench.sizes.degradation_steps
    return {"size": size, "batch_size": batch, "group": group,
            "crops_per_second": per_second(lambda: next(pairs.loader), batch, steps, bench.device),
            "samples_per_second": per_second(lambda: pairs.draw(bench.device), batch, steps, bench.device)}


def _degradation(bench: Bench, size: int, batch: int, group: int) -> dict[str, Any]:
    """The degradation alone, of crops that lie on the device, with its kernels; and its two ways to filter."""
    from benchmarks.bench_data import degradation_step, filter_times, per_second
    from benchmarks.kernel_profile import profile_kernels
    step = degradation_step(size, batch, group, bench.device)
    rate = per_second(step, batch, bench.sizes.degradation_steps, bench.device)
    profile = profile_kernels(step, bench.device, batch / rate)
    return {"size": size, "batch_size": batch, "group": group, "samples_per_second": rate,
            "filter_seconds": filter_times(size, batch, bench.device), "kernels": profile["kernels"],
            "busy_share": profile["busy_share"], "profile": profile}


PARTS: dict[str, Callable[[Bench], None]] = {GENERATION: generation, PICTURE: picture, TRAINING: training, DATA: data,
                                             COMPILED: compiled}


def sizes_for(device: str, preset: str | None) -> Sizes:
    """All of it on a GPU, a dry run elsewhere; preset: in place of the published size."""
    sizes = Sizes() if device.startswith("cuda") else DRY
    return replace(sizes, preset=preset) if preset else sizes


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--preset", help="in place of the published size")
    parser.add_argument("--until", type=float, help="seconds since the epoch: no measurement starts later")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Take a part's measurements; 1 where one of them broke."""
    args = build_parser().parse_args(argv)

    import torch

    from utils.device import keep_freed_memory
    device = torch.device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    bench = Bench(args.part, device, sizes_for(args.device, args.preset), args.output, args.until or math.inf)
    bench.write()
    PARTS[args.part](bench)
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
