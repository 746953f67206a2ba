"""Models from disk or the hub: our folders, published `.pth` files, hub repositories.

Nothing is loaded before every name, shape and value has been checked, and no step holds two full copies of a model.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Module

from ..config import VARSRConfig
from ..varsr import FULL_PRECISION, VARSR
from ..vqvae import VQVAE
from .hub import (
    CONFIG_FILE,
    LOCAL_FOLDER,
    PUBLISHED_REPO,
    PUBLISHED_REPOS,
    TOKENIZER_FILE,
    TRANSFORMER_FILE,
    WEIGHT_SUFFIXES,
    WEIGHTS_FILE,
    download_model,
    parse_hub_id,
)
from .published import (
    CODE_USAGE,
    REBUILT,
    from_published,
    infer_config,
    infer_scales,
    infer_vqvae_config,
    our_name,
    require_refiner,
    split_published,
    to_published,
    vqvae_from_published,
    vqvae_to_published,
)
from .safetensors_file import DTYPE_NAMES, MappedFile, finite, read_safetensors
from .unpickle import CheckpointError, load_pickle

TRANSFORMER_FILES = (TRANSFORMER_FILE, "VARSR_C2I.pth", "var_d24.pth")  # what a folder is searched for, in order
TOKENIZER_FILES = (TOKENIZER_FILE, "vae_ch160v4096z32.pth")
LISTED_NAMES = 8  # names per kind in an error message

State = dict[str, Tensor]


def load_pretrained(source: str | PathLike, *, dtype: torch.dtype | None = None, revision: str | None = None,
                    cache_dir: str | PathLike | None = None,
                    local_files_only: bool = False) -> tuple[VARSRConfig, State]:
    """Configuration and checked tensors (our names, on the CPU) of a model, in `dtype` or the file's own types.

    source: a folder of ours; a folder with `VARSR.pth`, or such a file itself, its tokenizer beside it as `VQVAE.pth`
    or inside it; or a hub id: `qyp2000/VARSR`, `qyp2000/VARSR/VARSR_C2I.pth`, or a repository in our format.
    Raises FileNotFoundError or CheckpointError; the message names the file and the remedy.
    """
    path = _locate(source, revision, cache_dir, local_files_only)
    return _load_folder(path, dtype) if path.is_dir() else _load_published(path, dtype)


def _locate(source: str | PathLike, revision: str | None, cache_dir: str | PathLike | None,
            local_files_only: bool) -> Path:
    """The folder of ours or the `.pth` file that a source means, fetched from the hub if need be."""
    path = Path(source)
    if path.is_file():
        return path.parent if path.name == CONFIG_FILE or path.suffix == ".safetensors" else path
    if path.is_dir():
        if (path / CONFIG_FILE).exists() or (path / WEIGHTS_FILE).exists():
            return path
        found = [path / name for name in TRANSFORMER_FILES if (path / name).exists()]
        if not found:
            raise FileNotFoundError(f"{path} holds no model: neither {CONFIG_FILE} with {WEIGHTS_FILE} nor "
                                    f"{' or '.join(TRANSFORMER_FILES)}")
        return found[0]
    hub_id = parse_hub_id(source)
    if hub_id is None:
        remedy = "check the path"
        if path.suffix in WEIGHT_SUFFIXES:
            repo = next((repo for repo, names in PUBLISHED_REPOS.items() if path.name in names), PUBLISHED_REPO)
            remedy = f"download {path.name} from https://huggingface.co/{repo} and put it into {LOCAL_FOLDER}"
        raise FileNotFoundError(f"{path} does not exist: {remedy}")
    return download_model(*hub_id, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only)


def _load_folder(folder: Path, dtype: torch.dtype | None = None) -> tuple[VARSRConfig, State]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist: a model folder holds {CONFIG_FILE} and "
                                    f"{WEIGHTS_FILE}, so copy both")
    try:
        config = VARSRConfig.load(folder / CONFIG_FILE)
        expected = _meta_state(config)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    tensors = read_safetensors(folder / WEIGHTS_FILE)
    _check(expected, tensors, folder / WEIGHTS_FILE)
    return config, _convert(tensors, dtype, folder / WEIGHTS_FILE)


def _load_published(path: Path, dtype: torch.dtype | None) -> tuple[VARSRConfig, State]:
    parts = split_published(load_pickle(path), str(path))
    if parts.transformer is None:
        raise CheckpointError(f"{path} is a tokenizer file (VQVAE) and holds no transformer: give {TRANSFORMER_FILE} "
                              "and put this file beside it")
    require_refiner(parts.transformer, str(path))
    tokenizer = _tokenizer_beside(path)
    if tokenizer is not None:
        parts.vqvae = _tokenizer_tensors(tokenizer)
    elif parts.vqvae is None:
        raise FileNotFoundError(f"{path.parent / TOKENIZER_FILE} does not exist and {path.name} holds no tokenizer: "
                                f"download {TOKENIZER_FILE} from https://huggingface.co/{PUBLISHED_REPO} and put it "
                                f"beside {path.name}")
    config = infer_config(parts.transformer, parts.vqvae, str(path))
    expected = to_published(config, _meta_state(config))
    _check(expected.transformer, parts.transformer, path)
    _check(expected.vqvae, parts.vqvae, tokenizer or path)
    return config, _convert(from_published(config, parts.transformer, parts.vqvae), dtype, path)


def _tokenizer_beside(path: Path) -> Path | None:
    return next((path.parent / name for name in TOKENIZER_FILES if (path.parent / name).is_file()), None)


def _tokenizer_tensors(path: Path) -> State:
    parts = split_published(load_pickle(path), str(path))
    if parts.vqvae is None:
        raise CheckpointError(f"{path} is a transformer file and holds no tokenizer: put {TOKENIZER_FILE} in its place")
    return parts.vqvae


def load_vqvae(source: str | PathLike, scales: Sequence[int] | None = None, *, dtype: torch.dtype = torch.float32,
               device: str | torch.device = "cpu") -> VQVAE:
    """The tokenizer alone: of a model folder of ours, or of a published file such as `VQVAE.pth`.

    scales: sides of the token maps where the file does not tell (a published tokenizer with unusual ones).
    Raises FileNotFoundError or CheckpointError.
    """
    path = Path(source)
    if path.is_dir() and not (path / CONFIG_FILE).exists():
        path = _tokenizer_beside(path / TRANSFORMER_FILE) or path
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give {TOKENIZER_FILE} or a model folder")
    if path.is_dir():
        whole, tensors = _load_folder(path)
        require_complete(whole, path)
        config = whole.vqvae
    else:
        published = _tokenizer_tensors(path)
        config = infer_vqvae_config(published, None if scales is None else tuple(scales), str(path))
        expected = {f"vqvae.{name}": tensor for name, tensor in _on_meta(VQVAE, config).state_dict().items()}
        _check(vqvae_to_published(expected), published, path)
        tensors = vqvae_from_published(config, published)
    vqvae = _on_meta(VQVAE, config)
    state = {name.removeprefix("vqvae."): tensor.to(device, stored_type(name, tensor, dtype))
             for name, tensor in tensors.items() if name.startswith("vqvae.")}
    vqvae.load_state_dict(state, strict=True, assign=True)
    return vqvae.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _on_meta(kind: type[Module], config: object) -> Module:
    """A module with shapes and no memory."""
    with torch.device("meta"):
        return kind(config)


def _meta_state(config: VARSRConfig) -> State:
    return _on_meta(VARSR, config).state_dict()


def _convert(tensors: State, dtype: torch.dtype | None, path: Path) -> State:
    """Convert floating tensors of a file in place of the originals, one at a time."""
    file = MappedFile(path)
    for name, tensor in tensors.items():
        wanted = stored_type(name, tensor, dtype)
        if tensor.dtype != wanted:
            tensors[name] = tensor.to(wanted)
            file.release(tensor)
    return tensors


def stored_type(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Type of one of our tensors in a model of `dtype`."""
    if dtype is None or not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if name.startswith(FULL_PRECISION) else dtype


def _check(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Compare names, shapes, kinds and values with what a configuration asks for; CheckpointError lists all faults.

    Tensors of published files that are rebuilt anyway may be absent, and code usage may have any number of rows.
    """
    faults, file = _Faults(str(path)), MappedFile(path)
    for name, wanted in expected.items():
        if name not in tensors:
            if name != CODE_USAGE and not REBUILT.fullmatch(name):
                faults.missing.append(name)
            continue
        tensor = tensors[name]
        floating = wanted.is_floating_point()
        plain = tensor.layout is torch.strided and tensor.dtype in DTYPE_NAMES
        if not plain or tensor.is_floating_point() != floating:
            faults.misshapen.append(f"{name} ({tensor.dtype}, not {'floating' if floating else 'integer'} values)")
        elif name != CODE_USAGE and tensor.shape != wanted.shape:
            faults.misshapen.append(f"{name} {tuple(tensor.shape)} instead of {tuple(wanted.shape)}")
        elif not REBUILT.fullmatch(name) and not finite(tensor):
            faults.not_finite.append(name)
        file.release(tensor)
    faults.unknown += [name for name in tensors if name not in expected]
    faults.report(expected)


@dataclass
class _Faults:
    """What is wrong with a file's tensors, by name."""

    source: str
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)

    def report(self, expected: Mapping[str, Tensor]) -> None:
        """Raise CheckpointError if there is any fault."""
        kinds = {"missing": self.missing, "not known to this model": self.unknown, "of another shape": self.misshapen,
                 "with NaN or infinite values": self.not_finite}
        parts = [f"{len(names)} tensor(s) {kind}: {', '.join(names[:LISTED_NAMES])}"
                 + (f" and {len(names) - LISTED_NAMES} more" if len(names) > LISTED_NAMES else "")
                 for kind, names in kinds.items() if names]
        if parts:
            raise CheckpointError(f"{self.source}: {'; '.join(parts)}. Likely cause: {self._cause(expected)}")

    def _cause(self, expected: Mapping[str, Tensor]) -> str:
        def ours(names: Iterable[str], part: str) -> set[str]:
            return {name for name in names if (our_name(name) or name).startswith(part)}

        def lacks(part: str) -> bool:
            wanted = ours(expected, part)
            return bool(wanted) and wanted <= set(self.missing)

        prefix = "transformer.prefix_encoder."
        if lacks("transformer.blocks."):
            return "a tokenizer file where a whole model is needed"
        if lacks("vqvae.encoder."):
            return "a transformer file where a tokenizer or a whole model is needed"
        if lacks(prefix):
            return "a class-to-image file where a super-resolution one is needed"
        if lacks("refiner."):
            return "a bare VAR file without the diffusion refiner"
        if ours(self.unknown, prefix):
            return "a super-resolution file where a class-to-image one is needed"
        if self.misshapen:
            return "a model of another size, or a configuration or tokenizer that belongs to another model"
        if self.missing:
            return "a truncated or edited file: download it again"
        if self.unknown:
            return "a file of another version or architecture"
        return "a damaged download or a training that diverged"


def require_kind(config: VARSRConfig, super_resolution: bool, source: str | PathLike) -> None:
    """Raise CheckpointError when a model is of the other kind than a script needs."""
    if config.is_super_resolution != super_resolution:
        kinds = {True: ("super-resolution", TRANSFORMER_FILE), False: ("class-to-image", "VARSR_C2I.pth")}
        wanted, file = kinds[super_resolution]
        raise CheckpointError(f"{source} is a {kinds[not super_resolution][0]} model, but a {wanted} one is needed: "
                              f"give one such as {file}")


def require_complete(config: VARSRConfig, source: str | PathLike) -> None:
    """Raise CheckpointError for an inference export, which lacks what training and encoding need."""
    if config.inference:
        raise CheckpointError(f"{source} is an inference export without what training needs: give the model that it "
                              "was made from")


@dataclass(frozen=True)
class LooseTensors:
    """What a file holds, unchecked: tensors by our names (theirs where we have none) and, where it tells them, the
    sides of its token maps."""

    tensors: State
    scales: tuple[int, ...] | None
    super_resolution: bool | None  # None: a tokenizer alone
    complete: bool  # transformer, refiner and (in the file or beside it) tokenizer


def load_loose(source: str | PathLike) -> LooseTensors:
    """Whatever a model file holds, to start a training from: anything that `load_pretrained` takes, or a published
    part alone, such as a bare VAR (`var_d24.pth`), a class-to-image transformer, a tokenizer.

    Raises FileNotFoundError or CheckpointError.
    """
    path = _locate(source, None, None, False)
    if path.is_dir():
        config, tensors = _load_folder(path)
        require_complete(config, source)
        return LooseTensors(tensors, config.vqvae.scales, config.is_super_resolution, True)
    parts = split_published(load_pickle(path), str(path))
    tensors = {our_name(name) or name: tensor
               for part in (parts.transformer, parts.vqvae) if part for name, tensor in part.items()}
    if parts.transformer is None:
        return LooseTensors(tensors, None, None, False)
    try:
        scales = infer_scales(parts.transformer, str(path))
    except CheckpointError:  # a bare VAR may not tell
        scales = None
    super_resolution = any(name.startswith("transformer.prefix_encoder.") for name in tensors)
    complete = any(name.startswith("refiner.") for name in tensors) and (
        parts.vqvae is not None or _tokenizer_beside(path) is not None)
    return LooseTensors(tensors, scales, super_resolution, complete)
