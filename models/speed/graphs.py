"""Compiled parts, and generations recorded once as CUDA graphs: the host starts one with a single call.

A small batch leaves a GPU waiting for the thousands of kernels that the host names one by one. A graph holds them all,
with the places of their operands, so what differs between two generations is copied to where the first one had it:
pictures, classes and random numbers.
"""
from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from utils.errors import first_line

from ..sampling import Noise
from ..varsr import VARSR

Run = Callable[[], Tensor]
MAX_GRAPHS = 2  # kept at a time, each with the memory of its generation: a full batch and the last, smaller one
TOLERANCE = 1e-2  # relative difference of a replayed latent from the one that was computed without a graph

log = logging.getLogger(__name__)


class RepeatableNoise(Noise):
    """Random numbers that lie where they lay when they were first asked for."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        super().__init__(seeds, device)
        self.draws: list[tuple[str, tuple[int, ...], Tensor]] = []
        self.position = 0

    def rewind(self) -> None:
        """The next numbers asked for are the first again."""
        self.position = 0

    def draw_again(self, seeds: Sequence[int]) -> None:
        """Put the numbers of other seeds in place of all that were asked for so far."""
        other = Noise(seeds, self.device)
        for name, shape, numbers in self.draws:
            numbers.copy_(getattr(other, name)(*shape), non_blocking=True)

    def uniform(self, *shape: int) -> Tensor:
        return self._numbers("uniform", shape)

    def normal(self, *shape: int) -> Tensor:
        return self._numbers("normal", shape)

    def _numbers(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if self.position == len(self.draws):
            self.draws.append((name, shape, getattr(super(), name)(*shape)))
        self.position += 1
        return self.draws[self.position - 1][2]


def capture_cuda(run: Run) -> Run:
    """Record what `run` does on the current GPU; the result does it again, with the same tensors, and returns the same
    output tensor. `run` must have been called before, so that nothing is loaded or compiled meanwhile."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # allocations and work spaces settle on a stream like the one that is recorded
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            output = run()
    except BaseException:
        torch.cuda.set_stream(stream)  # a recording that fails leaves its own behind
        raise

    def replay() -> Tensor:
        graph.replay()
        return output
    return replay


class RecordedGeneration:
    """A generation of one kind and its operands. `first`: the latents that it gave when it was recorded."""

    def __init__(self, generate: Callable[[dict[str, Tensor], Noise], Tensor], inputs: dict[str, Tensor],
                 seeds: Sequence[int], device: torch.device, capture: Callable[[Run], Run]) -> None:
        self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self.noise = RepeatableNoise(seeds, device)

        def run() -> Tensor:
            self.noise.rewind()
            return generate(self.inputs, self.noise)
        self.first = run().clone()
        self.replay: Run | None = None  # None: cannot be recorded, or was recorded wrongly
        try:
            self.replay = capture(run)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("generation goes on without a CUDA graph, which could not be recorded: %s",
                        first_line(error))
            self._forget()
            return
        difference = (self.replay() - self.first).norm() / self.first.norm()
        if not difference < TOLERANCE:
            log.warning("generation goes on without a CUDA graph: replayed, it differed by %.1e", difference)
            self._forget()

    def _forget(self) -> None:
        """Nothing is replayed: let go of the operands."""
        self.replay, self.inputs, self.noise = None, {}, None

    def again(self, inputs: dict[str, Tensor], seeds: Sequence[int]) -> Tensor:
        """Latents of other inputs of the same shapes, with other seeds."""
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor, non_blocking=True)
        self.noise.draw_again(seeds)
        return self.replay().clone()


class GenerationGraphs:
    """The recorded generations of a model, the latest used ones. One caller at a time: operands are shared."""

    def __init__(self, capture: Callable[[Run], Run] = capture_cuda) -> None:
        self.capture, self.lock = capture, threading.Lock()
        self.recorded: OrderedDict[Hashable, RecordedGeneration] = OrderedDict()

    def generate(self, kind: Hashable, generate: Callable[[dict[str, Tensor], Noise], Tensor],
                 inputs: dict[str, Tensor], seeds: Sequence[int], device: torch.device) -> Tensor:
        """`generate(inputs, noise of seeds)`, recorded if it is the first of its kind and shapes, else replayed."""
        key = (kind, *((name, tensor.shape) for name, tensor in sorted(inputs.items())))
        with self.lock, torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            if key not in self.recorded:
                while len(self.recorded) >= MAX_GRAPHS:
                    self.recorded.popitem(last=False)
                self.recorded[key] = RecordedGeneration(generate, inputs, seeds, device, self.capture)
                return self.recorded[key].first
            self.recorded.move_to_end(key)
            recorded = self.recorded[key]
            if recorded.replay is None:
                return generate(inputs, Noise(seeds, device))
            return recorded.again(inputs, seeds)


def compile_model(model: VARSR) -> VARSR:
    """For many pictures: compile what PyTorch's compiler makes faster; on a GPU, record generations as CUDA graphs.

    The first picture then takes a minute more, the first of another batch size or of other settings some seconds.
    Generations that are watched (`on_scale`) are not recorded.
    """
    for block in model.transformer.blocks:
        block.compile_elementwise()
    if not model.is_packed:
        for block in model.refiner.blocks:
            block.compile(dynamic=True)
    model.vqvae.decoder.compile()
    model.graphs = GenerationGraphs() if model.device.type == "cuda" else None
    return model
