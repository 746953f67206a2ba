"""A stand-in for the recording of CUDA graphs."""
from __future__ import annotations

import torch

from models.speed.graphs import Run


class Recorder:
    """Counts recordings and replays. Like CUDA it keeps the operands' places; it computes with what lies there when it
    replays. `spoil` changes what replays give."""

    def __init__(self, error: Exception | None = None, spoil: float = 0.0) -> None:
        self.error, self.spoil = error, spoil
        self.recordings = self.replays = 0

    def __call__(self, run: Run) -> Run:
        self.recordings += 1
        if self.error is not None:
            raise self.error
        output = run()

        def replay() -> torch.Tensor:
            self.replays += 1
            return output.copy_(run() + self.spoil)
        return replay
