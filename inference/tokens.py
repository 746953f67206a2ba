"""What a picture was drawn as: the codes of every window and scale, and the latents that the refiner made of them.

Kept beside a result (`NAME_tokens.safetensors`), parts of it can be drawn anew (`redo.py`). Such a file is written and
read window by window.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config import GenerationConfig, VARSRConfig, build
from models.varsr import VARSR
from models.weights.weight_file import ALIGNMENT, HEADER_LENGTH, MAX_HEADER, weights_of
from pictures.rgb import PictureSource
from utils.errors import UserError, first_line
from utils.files import replacing

from .windows import LatentStore

FORMAT, VERSION = "varsr-tokens", "1"
CODE_TYPES = {torch.uint8: "U8", torch.int16: "I16", torch.int32: "I32"}  # the smallest that holds a model's codes
ROWS = 64  # of a picture, digested at a time
REMEDY = "restore the picture again with --save_tokens"


@dataclass(frozen=True)
class Making:
    """How a picture was drawn. size: (height, width) of the result; source: see `digest`; line: what the result's file
    says of its making, the model first ("" where nobody said which); weights: `VARSR.fingerprint`, "" where nobody
    said."""

    size: tuple[int, int]
    source: str
    overlap: float
    seed: int
    generation: GenerationConfig
    color_fix: str
    line: str = ""
    weights: str = ""

    @property
    def model(self) -> str:
        """The digest of the model's weights, "" where nobody said which."""
        return weights_of(self.line)

    def to_json(self) -> str:
        """As text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Making:
        """Build from text. Raises ValueError, TypeError or KeyError for anything else than `to_json` gives."""
        values = json.loads(text)
        height, width = (int(side) for side in values["size"])
        return cls((height, width), str(values["source"]), float(values["overlap"]), int(values["seed"]),
                   build(GenerationConfig, dict(values["generation"])), str(values["color_fix"]), str(values["line"]),
                   str(values.get("weights", "")))  # files of before have none


def digest(source: PictureSource) -> str:
    """SHA-256 of a picture's size and pixels."""
    state = hashlib.sha256(f"{source.width}x{source.height}".encode())
    for top in range(0, source.height, ROWS):
        rows = source.region(top, 0, min(ROWS, source.height - top), source.width)
        state.update(rows.contiguous().numpy().tobytes())
    return state.hexdigest()


@dataclass(frozen=True)
class TokenState:
    """A picture as it was drawn: `codes` (tokens,) and `latents` (c, N, N) float32 of its windows, by number."""

    making: Making
    codes: LatentStore
    latents: LatentStore
    windows: int

    @contextmanager
    def written_to(self, path: Path, config: VARSRConfig) -> Iterator[None]:
        """The state's file, which takes its name when the block ends well. Raises OSError."""
        with replacing(path) as temporary:
            self._write(temporary, config)
            yield

    def _write(self, path: Path, config: VARSRConfig) -> None:
        dtype, shape = code_type(config), latent_shape(config)
        parts = {"latents": ("F32", shape, torch.float32, self.latents),  # wide types first keep all aligned
                 "codes": (CODE_TYPES[dtype], (token_count(config),), dtype, self.codes)}
        header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "version": VERSION,
                                                   "making": self.making.to_json()}}
        end = 0
        for name, (kind, each, stored, _) in parts.items():
            start, end = end, end + self.windows * math.prod(each) * stored.itemsize
            header[name] = {"dtype": kind, "shape": [self.windows, *each], "data_offsets": [start, end]}
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % ALIGNMENT)
        with path.open("wb") as file:
            file.write(len(encoded).to_bytes(HEADER_LENGTH, "little") + encoded)
            for _, _, stored, store in parts.values():
                for index in range(self.windows):
                    file.write(store[index].to(stored).contiguous().numpy().tobytes())


def flat(state: TokenState) -> TokenState:
    """A copy that holds on to nothing that the state was made from: earlier states, whole batches, files."""
    codes, latents = ({index: store[index].clone() for index in range(state.windows)}
                      for store in (state.codes, state.latents))
    return TokenState(state.making, codes, latents, state.windows)


def require_codes(generation: GenerationConfig) -> None:
    """Raise UserError for a sampling that codes do not say everything of."""
    if generation.more_smooth:
        raise UserError("with more_smooth codes are mixed, so tokens do not say what was drawn: leave --save_tokens "
                        "and --mask out")


def token_count(config: VARSRConfig) -> int:
    """Codes of a window, all scales together."""
    return sum(side * side for side in config.vqvae.scales)


def latent_shape(config: VARSRConfig) -> tuple[int, int, int]:
    """Of a window's latent."""
    return config.vqvae.latent_channels, config.vqvae.side, config.vqvae.side


def code_type(config: VARSRConfig) -> torch.dtype:
    """The smallest type that all of a model's codes fit into."""
    return next(dtype for dtype in CODE_TYPES if config.vqvae.vocab_size - 1 <= torch.iinfo(dtype).max)


def is_token_file(path: Path) -> bool:
    """Whether a file is one of ours, of whichever version."""
    try:
        return _metadata(path).get("format") == FORMAT
    except (OSError, ValueError, RuntimeError):  # RuntimeError: of a header that is nested too deep
        return False


def _metadata(path: Path) -> dict[str, str]:
    """The texts of a safetensors file's header. Raises OSError, or ValueError for another file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH), "little")
        if not 0 < length <= MAX_HEADER:
            raise ValueError("no header")
        header = json.loads(file.read(length))
    found = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(found, dict):
        raise ValueError("no metadata")
    return found


class _Part:
    """One tensor of a token file, by window."""

    def __init__(self, file: Any, name: str, path: Path) -> None:
        self.part, self.path = file.get_slice(name), path
        self.shape, self.kind = tuple(self.part.get_shape()), self.part.get_dtype()

    def __contains__(self, index: int) -> bool:
        return 0 <= index < self.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        return self.part[index:index + 1][0].clone()

    def __setitem__(self, index: int, latent: Tensor) -> None:
        raise TypeError(f"{self.path} is read, not written")


def read_tokens(path: Path) -> TokenState:
    """The state in a file, whose windows are read as they are asked for; `require_fit` checks them against a model.

    Raises UserError with the file and the remedy for a damaged one, or one of another version.
    """
    from safetensors import SafetensorError, safe_open
    try:
        said = _metadata(path)
        if said.get("format") != FORMAT:
            raise UserError(f"{path}: holds no tokens of a picture: {REMEDY}")
        if said.get("version") != VERSION:
            raise UserError(f"{path}: its format version {said.get('version')} is not {VERSION}: {REMEDY}")
        making, file = Making.from_json(said["making"]), safe_open(path, "pt")
        codes, latents = (_Part(file, name, path) for name in ("codes", "latents"))
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: is damaged ({error}): {REMEDY}") from error
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path}: is damaged ({first_line(error)}): {REMEDY}") from error
    if len(codes.shape) != 2 or len(latents.shape) != 4 or codes.shape[0] != latents.shape[0] \
            or codes.kind not in CODE_TYPES.values() or latents.kind != "F32":
        raise UserError(f"{path}: is damaged (tensors of other shapes): {REMEDY}")
    return TokenState(making, codes, latents, codes.shape[0])


def require_fit(state: TokenState, model: VARSR, windows: int, path: Path | str) -> None:
    """Raise UserError where a state is not that of so many windows of a model, or was drawn with other weights."""
    config = model.config
    shape = None if not state.windows else (tuple(state.codes[0].shape), tuple(state.latents[0].shape))
    if state.windows != windows or shape != ((token_count(config),), latent_shape(config)):
        raise UserError(f"{path}: has {state.windows} windows of other shapes than this model's {windows}: {REMEDY}")
    if state.making.weights and state.making.weights != model.fingerprint():
        raise UserError(f"{path}: was drawn by a model of other weights: load that one, or restore the picture with "
                        "this one")


def checked_codes(state: TokenState, index: int, config: VARSRConfig) -> Tensor:
    """Codes (tokens,) of a window, int64. Raises UserError for numbers that the model has no code for."""
    codes = state.codes[index].long()
    if codes.min() < 0 or codes.max() >= config.vqvae.vocab_size:
        raise UserError(f"the tokens of window {index} are damaged: {REMEDY}")
    return codes


def checked_latent(state: TokenState, index: int) -> Tensor:
    """Latent (c, N, N) of a window. Raises UserError for what is no number."""
    latent = state.latents[index]
    if not latent.isfinite().all():
        raise UserError(f"the latents of window {index} are damaged: {REMEDY}")
    return latent
