"""How good pictures of classes are: `python benchmarks/bench_classes.py --data trainset_c2i --models MODEL`.

--data: what `dataloader.assemble.class_set` wrote. For each model, and for crops of the training as what is possible:
the Fréchet distance of EfficientNet-Lite0's features (no FID: see `evaluation/class_quality.py`) to crops that were
held out, over all and by class, and the share of pictures that a linear probe, fitted to crops of the training, finds
in their own class. Both are of the classes that a model's names share with --data, and once more of those that all the
models share. Beside them, whether a model repeats its training: how far its pictures are from the nearest of many
training crops, as a share of how far held-out crops are; --sheet draws samples beside those.
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.subject import add_run_flags, plain_model

if TYPE_CHECKING:
    from torch import Tensor

    from evaluation.class_quality import ClassFeatures
    from models.varsr import VARSR

BATCH = 16
SHEET_SAMPLES = 4  # of each class
TIMED_PICTURES = 16
TRAINING_SEED, COMPARED_SEED, HELD_OUT_SEED = 1, 2, 3


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with train/CLASS and held_out/CLASS")
    add("--models", nargs="+", required=True, help="folders or files of class-to-image models")
    add("--samples", type=int, default=100, help="pictures of each class (default: %(default)s)")
    add("--crops", type=int, default=400, help="training crops of each class that are searched for the nearest one, "
                                               "and that the probe learns (default: %(default)s)")
    add("--cfg", type=float, help="guidance (default: the model's)")
    add("--top_k", type=int, help="codes to draw from (default: the model's)")
    add("--top_p", type=float, help="their share of probability (default: the model's)")
    add("--sheet", type=Path, help="PNG of samples of the last model, each beside the nearest training crop")
    add_run_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, report."""
    import torch

    from benchmarks.machine import describe
    from evaluation.class_quality import ClassFeatures
    args = build_parser().parse_args(argv)
    study = Study(args, ClassFeatures(torch.device(args.device)))
    results = {"training crops": study.of_crops()}
    print(json.dumps(results), flush=True)
    for name in args.models:
        results[name] = study.of_model(name)
        print(json.dumps({name: results[name]}), flush=True)
    report = {"samples": args.samples, "crops": args.crops, "classes": study.names, "dtype": args.dtype,
              "machine": describe(torch.device(args.device)), "results": results}
    if args.output:
        Path(args.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


class Crops(NamedTuple):
    """Pictures of classes (M, 3, S, S), labels (M,) and features (M, D)."""

    pictures: Tensor
    labels: Tensor
    features: Tensor

    def of(self, labels: list[int]) -> Crops:
        """Those of some classes."""
        chosen = sum(self.labels == label for label in labels).bool()
        return Crops(*(each[chosen] for each in self))


class Study:
    """Real crops and their probe, which models are compared with."""

    def __init__(self, args: argparse.Namespace, features: ClassFeatures) -> None:
        from dataloader.class_crops import class_folders
        from evaluation.class_quality import LinearProbe, nearest
        self.args, self.features = args, features
        self.names = [folder.name for folder in class_folders(args.data / "train")]
        self.models = {name: plain_model(args, name) for name in args.models}
        configs = [model.config for model in self.models.values()]
        self.size = configs[0].image_size
        if any(config.image_size != self.size for config in configs):
            raise SystemExit("the models draw pictures of different sizes: measure them apart")
        self.shared = [label for label, name in enumerate(self.names)
                       if all(name in config.class_names for config in configs)]
        self.training = self._crops("train", args.crops, TRAINING_SEED)
        self.held_out = self._crops("held_out", args.samples, HELD_OUT_SEED)
        self.probe = LinearProbe(self.training.features, self.training.labels)
        self.usual = nearest(self.held_out.features, self.training.features)[1].mean().item()

    def _crops(self, part: str, count: int, seed: int) -> Crops:
        """So many crops of each class."""
        import torch

        from dataloader.class_crops import ClassCrops
        from dataloader.pairs import LEVELS
        drawn = [[] for _ in self.names]
        source = ClassCrops(self.args.data / part, self.size)
        if list(source.names) != self.names:
            raise SystemExit(f"{self.args.data / part} has not the classes of {self.args.data / 'train'}")
        position = 0
        while min(map(len, drawn)) < count:
            pixels, label = source.sample(position, seed)
            position += 1
            if len(drawn[label]) < count:
                drawn[label].append(torch.from_numpy(pixels.copy()).permute(2, 0, 1) / LEVELS)
        pictures = torch.stack(sum(drawn, []))
        return Crops(pictures, torch.arange(len(self.names)).repeat_interleave(count),
                     self.features.of_all(pictures.split(BATCH)))

    def of_crops(self) -> dict:
        """What other crops of the training reach, and what the probe finds in held-out ones."""
        crops = self._crops("train", self.args.samples, COMPARED_SEED)
        held_out = self._compared(self.held_out, list(range(len(self.names))))
        return {**self._measured(crops), "probe_on_held_out": held_out["probe"]}

    def of_model(self, name: str) -> dict:
        """A model's pictures of the classes that it shares with the data."""
        import torch
        model = self.models[name]
        shared = [label for label in model.config.class_names if label in self.names]
        if not shared:
            raise SystemExit(f"{name} knows none of the classes {', '.join(self.names)}")
        began = time.perf_counter()
        pictures = torch.cat(list(self._drawn(model, shared)))
        seconds = (time.perf_counter() - began) / len(pictures)
        labels = torch.tensor([self.names.index(label) for label in shared]).repeat_interleave(self.args.samples)
        drawn = Crops(pictures, labels, self.features.of_all(pictures.split(BATCH)))
        if self.args.sheet:
            self._write_sheet(drawn)
        return {**self._measured(drawn), f"seconds_of_{TIMED_PICTURES}": seconds * TIMED_PICTURES}

    def _drawn(self, model: VARSR, shared: list[str]) -> Iterator[Tensor]:
        """Pictures (1, 3, S, S) of the classes, one after the other."""
        import dataclasses

        from inference.classes import ClassPicture, draw
        changes = {key: value for key in ("cfg", "top_k", "top_p") if (value := getattr(self.args, key)) is not None}
        options = dataclasses.replace(model.config.generation, **changes)
        requested = [ClassPicture(model.config.class_names.index(label), i) for label in shared
                     for i in range(self.args.samples)]
        for _, picture in draw(model, requested, options, self.args.seed, BATCH):
            yield picture[None]

    def _measured(self, crops: Crops) -> dict:
        from evaluation.class_quality import nearest
        labels = crops.labels.unique().tolist()
        return {**self._compared(crops, labels), "of_shared_classes": self._compared(crops, self.shared),
                "nearest": nearest(crops.features, self.training.features)[1].mean().item() / self.usual,
                "by_class": {self.names[label]: self._compared(crops, [label]) for label in labels}}

    def _compared(self, crops: Crops, labels: list[int]) -> dict[str, float]:
        """Distance to held-out crops and the probe's share, of some classes."""
        from evaluation.class_quality import frechet_distance
        if not labels:
            return {}
        drawn, real = crops.of(labels), self.held_out.of(labels)
        right = self.probe.predict(drawn.features) == drawn.labels
        return {"distance": frechet_distance(drawn.features, real.features), "probe": right.double().mean().item()}

    def _write_sheet(self, drawn: Crops) -> None:
        """A row a class: each sample, then the training crop whose features are nearest."""
        import torch

        from evaluation.class_quality import nearest
        from pictures.sheets import write_grid
        rows = []
        for label in drawn.labels.unique().tolist():
            chosen = (drawn.labels == label).nonzero().flatten()[:SHEET_SAMPLES]
            crops = self.training.pictures[nearest(drawn.features[chosen], self.training.features)[0]]
            rows.append(torch.stack([drawn.pictures[chosen], crops], 1).flatten(0, 1))
        write_grid(self.args.sheet, rows)


if __name__ == "__main__":
    sys.exit(main())
