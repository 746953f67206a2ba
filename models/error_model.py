"""A calibrated model of a result's error: a network of 1x1 layers from what is known of a pixel to the error to expect
there, and how wide a band holds 90 % of the true values.

It belongs to one model's weights and lies beside them (`calibration_file`); `python -m calibration` fits it. What the
inputs are is decided by `inference/uncertainty.py`.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.errors import UserError, first_line
from utils.files import replacing

from .weights.weight_file import weights_of

FORMAT = "2"
FOLDER_FILE, FILE_ENDING = "uncertainty.safetensors", "_uncertainty.safetensors"
CLAMP = 4.0  # standard deviations: inputs beyond say no more than that
TYPICAL_ERROR = 4.0  # levels, what an unfitted network expects
LEAST_ERROR = 0.05  # levels
MARGIN = 1.0  # level, which errors are counted from: what is nearly perfect would decide all otherwise
HIDDEN = 32


class ErrorHead(nn.Module):
    """Inputs (F, H, W) to the expected absolute error of luma (H, W), in levels of 0 to 255."""

    def __init__(self, inputs: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.register_buffer("band", torch.ones(()))  # how many expected errors wide the 90 % band is, see `within`
        # of whole pictures' mean inputs: how far from `centre` is far, measured by `whitening`
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("whitening", torch.zeros(inputs, inputs))
        self.register_buffer("limit", torch.ones(()))
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
                                    nn.Linear(hidden, 1))
        nn.init.constant_(self.layers[-1].bias, torch.tensor(TYPICAL_ERROR).log().item())

    def forward(self, inputs: Tensor) -> Tensor:
        rows = self.log_error(inputs.flatten(1).T)
        return (rows.exp() - MARGIN).clamp(min=LEAST_ERROR).view(inputs.shape[1:])

    def within(self, expected: Tensor) -> Tensor:
        """The levels that the true value is within, 90 % of the time, where so much error is expected."""
        return self.band * (expected + MARGIN)

    def log_error(self, rows: Tensor) -> Tensor:
        """Logarithm of the expected error and its margin (M,) of inputs (M, F)."""
        return self.layers(((rows - self.mean) / self.deviation).clamp(-CLAMP, CLAMP))[:, 0]

    def fit_range(self, rows: Tensor) -> None:
        """Take the inputs' means and deviations from examples (M, F)."""
        self.mean.copy_(rows.mean(0))
        self.deviation.copy_(rows.std(0).clamp(min=1e-3))

    def fit_familiar(self, pictures: Tensor, ridge: float = 0.05) -> None:
        """Learn what mean inputs (M, F) of whole pictures are like; `strangeness` of 99 % of them is below 1."""
        normal = (pictures - self.mean) / self.deviation
        self.centre.copy_(normal.mean(0))
        spread = (normal - self.centre).T @ (normal - self.centre) / len(normal)
        values, vectors = torch.linalg.eigh(spread + ridge * torch.eye(len(spread)))
        self.whitening.copy_(vectors * values.rsqrt())
        self.limit.fill_(1.0)
        self.limit.copy_(torch.tensor([self.strangeness(each) for each in pictures]).quantile(0.99))

    def strangeness(self, picture: Tensor) -> float:
        """How far a picture's mean inputs (F,) lie from those of the calibration (Mahalanobis' distance); above 1 they
        are further than 99 % of those were."""
        normal = (picture - self.mean) / self.deviation - self.centre
        return float((normal @ self.whitening).norm() / self.limit)


@dataclass(frozen=True)
class Fitted:
    """What a calibration says of itself: whose it is, and what it was fitted to."""

    model: str  # `models.weights.load.identity`
    inputs: tuple[str, ...]
    crops: int
    data: str
    coverage: float = 0.9


@dataclass(frozen=True)
class Calibration:
    """The heads of a model by the number of results that they know: "one", and "several", which see the spread of the
    further results too."""

    fitted: Fitted
    heads: Mapping[str, ErrorHead]

    def head(self, samples: int) -> ErrorHead:
        """The one for so many further results."""
        return self.heads["several" if samples else "one"]

    @property
    def digest(self) -> str:
        """Tells calibrations with other numbers apart."""
        found = hashlib.sha256()
        for head in self.heads.values():
            for value in head.state_dict().values():
                found.update(value.contiguous().numpy().tobytes())
        return found.hexdigest()

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        from safetensors.torch import save
        tensors = {f"{name}.{key}": value.contiguous() for name, head in self.heads.items()
                   for key, value in head.state_dict().items()}
        with replacing(path) as temporary:
            temporary.write_bytes(save(tensors, {"format": FORMAT, "fitted": json.dumps(asdict(self.fitted))}))


def calibration_file(weights: Path) -> Path:
    """Where the calibration of a model lies: in its folder, or beside its published file."""
    return weights / FOLDER_FILE if weights.is_dir() else weights.with_name(weights.stem + FILE_ENDING)


def load_calibration(path: Path, model: str, inputs: Mapping[str, Sequence[str]]) -> Calibration:
    """Read a calibration. model: the identity of the weights in use. inputs: names of each head's inputs.

    Raises UserError naming the file, where it is damaged, of another version or of another model.
    """
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: no readable calibration ({first_line(error)}): fit it again with python -m "
                        "calibration") from error
    again = "fit it again with python -m calibration"
    if said.get("format") != FORMAT:
        raise UserError(f"{path}: a calibration of another version: {again}")
    fitted = _fitted(said.get("fitted", ""), path)
    if weights_of(fitted.model) != weights_of(model):
        raise UserError(f"{path}: a calibration of {fitted.model}, not of {model}: {again}")
    heads = {}
    for name, names in inputs.items():
        heads[name] = ErrorHead(len(names)).eval().requires_grad_(False)
        state = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        expected = {key: value.shape for key, value in heads[name].state_dict().items()}
        if {key: value.shape for key, value in state.items()} != expected or fitted.inputs != tuple(inputs["several"]):
            raise UserError(f"{path}: a calibration of other inputs than this version's: {again}")
        if not all(bool(torch.isfinite(value).all()) for value in state.values()):
            raise UserError(f"{path}: a damaged calibration (numbers that are none): {again}")
        heads[name].load_state_dict(state)
    return Calibration(fitted, heads)


def _fitted(text: str, path: Path) -> Fitted:
    try:
        values = json.loads(text)
        return Fitted(str(values["model"]), tuple(map(str, values["inputs"])), int(values["crops"]),
                      str(values["data"]), float(values["coverage"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: a damaged calibration: fit it again with python -m calibration") from error
