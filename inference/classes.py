"""Drawing pictures of classes: which, in what order, under which seeds."""
from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models.config import GenerationConfig, VARSRConfig
from models.varsr import VARSR, ScaleStep
from utils.errors import UserError

ALL = "all"
OnScale = Callable[[Sequence["ClassPicture"], ScaleStep], None]


@dataclass(frozen=True)
class ClassPicture:
    """The index-th picture of a class."""

    label: int
    index: int

    def seed(self, base: int) -> int:
        """Its own seed, so that it does not depend on the batch or on the other classes asked for."""
        return zlib.crc32(f"{base}/{self.label}/{self.index}".encode())

    @property
    def file_name(self) -> str:
        """The published script's name."""
        return f"class_{self.label}_img_{self.index}.png"


def class_title(config: VARSRConfig, label: int) -> str:
    """A class's number, and its name where it is known."""
    return f"{label} {config.class_names[label]}" if config.class_names else str(label)


def parse_classes(words: Sequence[str], config: VARSRConfig) -> list[int]:
    """Class numbers from numbers, class names, "all", or text files that hold such words; each once, in order.

    Raises ValueError naming the word and what is valid.
    """
    return list(dict.fromkeys(_labels(words, config, ())))


def _labels(words: Sequence[str], config: VARSRConfig, files: tuple[str, ...]) -> list[int]:
    """files: that led here, one naming the next."""
    labels: list[int] = []
    for word in words:
        if word == ALL:
            labels += range(config.num_classes)
        elif word in config.class_names:
            labels.append(config.class_names.index(word))
        elif word.lstrip("-").isdecimal():
            labels.append(_checked(int(word), config))
        elif Path(word).is_file():
            labels += _labels(_words_of(word, files), config, (*files, word))
        else:
            known = f"the names {', '.join(config.class_names)}, " if config.class_names else ""
            raise UserError(f"class {word!r} is unknown: give numbers from 0 to {config.num_classes - 1}, {known}"
                             f"a text file of them, or {ALL}")
    return labels


def _words_of(file: str, before: tuple[str, ...]) -> list[str]:
    if file in before:
        raise UserError(f"{file}: a list of classes that names itself")
    try:
        words = Path(file).read_text(encoding="utf-8").split()
    except ValueError as error:
        raise UserError(f"{file}: is no text file of classes") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    if not words:
        raise UserError(f"{file}: names no classes")
    return words


def _checked(label: int, config: VARSRConfig) -> int:
    if not 0 <= label < config.num_classes:
        raise UserError(f"class {label} is out of range: this model knows 0 to {config.num_classes - 1}")
    return label


def draw(model: VARSR, requested: Sequence[ClassPicture], options: GenerationConfig, seed: int,
         batch_size: int, on_scale: OnScale | None = None) -> Iterator[tuple[ClassPicture, Tensor]]:
    """Every requested picture with its values (3, S, S) in [0, 1] on the CPU; the same whatever the batch size.

    on_scale: called after each scale with the pictures whose rows the step holds; what it raises ends the run.
    """
    for start in range(0, len(requested), batch_size):
        batch = requested[start:start + batch_size]
        labels = torch.tensor([item.label for item in batch])
        report = partial(on_scale, batch) if on_scale is not None else None
        pictures = model.generate(labels=labels, options=options, seed=[item.seed(seed) for item in batch],
                                  on_scale=report)
        yield from zip(batch, pictures.float().cpu(), strict=True)
