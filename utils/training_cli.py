"""What the training scripts share: device and preset look-up, the progress bar, the exit code."""
from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from .loop import LoopConfig, Stage, TrainingDiverged, TrainLoop

log = logging.getLogger(__name__)
Config = TypeVar("Config")


def training_device(name: str) -> torch.device:
    """"auto" is the first GPU if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def preset_config(name: str, presets: Mapping[str, Config]) -> Config:
    """A preset by name. Raises ValueError with the names there are."""
    if name not in presets:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(presets)}")
    return presets[name]


def run_stage(stage: Stage, config: LoopConfig, settings: dict[str, Any]) -> int:
    """Train a stage with a progress bar; the exit code is 0 when finished, 1 when it diverged or was stopped."""
    loop = TrainLoop(stage, config, settings)
    with tqdm(total=config.max_iters, unit="it", dynamic_ncols=True, mininterval=5.0) as bar:
        def advance(done: int, metrics: dict[str, float]) -> None:
            bar.n = done
            bar.set_postfix({"loss": f"{metrics['loss']:.4f}"}, refresh=False)
            bar.update(0)
        try:
            finished = loop.run(advance)
        except TrainingDiverged as error:
            log.error("%s", error)
            return 1
    return 0 if finished else 1
