"""Models from disk or the hub: our folders, published `.pth` files, hub repositories.

Nothing is loaded before every name, shape and value has been checked, and no step holds two full copies of a model.
"""
from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch.nn import Module

from ..config import ConfigError, VARSRConfig
from ..varsr import VARSR
from ..vqvae import VQVAE
from .published import (
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
from .unpickle import CheckpointError, load_pickle
from .weight_file import SUFFIX, State, check_tensors, convert_tensors, read_safetensors, stored_type

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PORTS = {"http": 80, "https": 443}
HUB_TIMEOUT = 5.0  # seconds until the hub counts as out of reach
PUBLISHED_REPO = "qyp2000/VARSR"
TRANSFORMER_FILE, TOKENIZER_FILE = "VARSR.pth", "VQVAE.pth"
PUBLISHED_REPOS = {  # repo id -> default transformer file, tokenizer file
    PUBLISHED_REPO: (TRANSFORMER_FILE, TOKENIZER_FILE),
    "FoundationVision/var": ("var_d24.pth", "vae_ch160v4096z32.pth"),
}
LOCAL_FOLDER = "checkpoints/"
CHECKPOINTS = Path(__file__).resolve().parents[2] / LOCAL_FOLDER
WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".json")

TRANSFORMER_FILES = (TRANSFORMER_FILE, "VARSR_C2I.pth", "var_d24.pth")  # what a folder is searched for, in order
TOKENIZER_FILES = (TOKENIZER_FILE, "vae_ch160v4096z32.pth")
HASHED_WHOLE, HASHED_BLOCK, HASHED_PARTS, HASH_DIGITS = 2 ** 28, 2 ** 20, 128, 16
_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(/(?P<file>[\w.-]+\.pth))?")


def parse_hub_id(source: str | PathLike) -> tuple[str, str | None] | None:
    """(repo id, file or None) of `owner/name` or `owner/name/file.pth`; None for what can only be a local path.

    A path object, a weight file's name, or anything inside an existing folder is local.
    """
    match = _ID.fullmatch(source) if isinstance(source, str) else None
    if match is None or match["repo"].endswith(WEIGHT_SUFFIXES) or Path(source).parts[0] == LOCAL_FOLDER.rstrip("/"):
        return None
    if match["repo"] not in PUBLISHED_REPOS and Path(source).parent.is_dir():
        return None
    return match["repo"], match["file"]


def download_model(repo: str, file: str | None = None, revision: str | None = None,
                   cache_dir: str | PathLike | None = None, local_files_only: bool = False) -> Path:
    """Fetch a model's files, or find them in the cache.

    Returns the `.pth` file (published repositories; its tokenizer lies beside it) or the folder with `config.json`.
    Raises FileNotFoundError that names the file, the repository and where to put the file by hand.
    """
    if repo in PUBLISHED_REPOS or file is not None:
        transformer, tokenizer = PUBLISHED_REPOS.get(repo, PUBLISHED_REPOS[PUBLISHED_REPO])
        names = [tokenizer, file or transformer]
        target = LOCAL_FOLDER
    else:
        names = [CONFIG_FILE, WEIGHTS_FILE]
        target = f"{LOCAL_FOLDER}{repo.rpartition('/')[2]}/"
    local = local_files_only or not hub_is_reachable()
    paths = [_fetch(repo, name, revision, cache_dir, local, target) for name in dict.fromkeys(names)]
    return paths[-1].parent if names[-1] == WEIGHTS_FILE else paths[-1]


def hub_is_reachable(endpoint: str | None = None) -> bool:
    """Whether somebody answers at the hub's address, by default the environment's: its client tries six times, for half
    a minute, before it says no. A proxy's users are believed: only the proxy knows. So is what is no address, which the
    client has its own words for."""
    from huggingface_hub import constants
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        address = urlsplit(endpoint or constants.ENDPOINT)
        port = address.port or PORTS[address.scheme]
    except (ValueError, KeyError):
        return True
    if {address.scheme, "all"} & getproxies().keys():  # "all": of ALL_PROXY, which the client uses too
        return True
    try:
        socket.create_connection((address.hostname, port), HUB_TIMEOUT).close()
    except OSError:
        return False
    return True


@contextmanager
def hub_at_once() -> Iterator[None]:
    """Within it other libraries too find the hub's files in the cache, or not at all, where it cannot be reached: as
    under HF_HUB_OFFLINE=1."""
    from huggingface_hub import constants
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = not hub_is_reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _fetch(repo: str, name: str, revision: str | None, cache_dir: str | PathLike | None, local_files_only: bool,
           target: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    by_hand = f"download {name} from https://huggingface.co/{repo} and put it into {target}"
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision, cache_dir=cache_dir,
                                                    local_files_only=local_files_only))
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(f"'{repo}' is neither a local path nor a repository on the hub that may be read: "
                                "check the name") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo} has no revision {revision} on the hub") from error
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{name} of {repo}{at} is not in the cache and the hub is out of reach (or offline "
                                f"mode is on): {by_hand}") from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repo}{at} on the hub holds no {name}, so it is no model that VARSR can load"
                                ) from error
    except OSError as error:  # connection, permission, disk
        raise FileNotFoundError(f"{name} of {repo}{at} could not be downloaded ({error}): {by_hand}") from error


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
    """The folder of ours or the `.pth` file that a source means, fetched from the hub if need be. Raises
    FileNotFoundError, and CheckpointError for a weight file that is not the one of a folder of ours."""
    path = Path(source)
    if path.is_file():
        if path.name in (CONFIG_FILE, WEIGHTS_FILE):
            return path.parent
        if path.suffix == SUFFIX:  # its neighbours are another model's
            raise CheckpointError(f"{path} is no model by itself: give a folder of {CONFIG_FILE} and {WEIGHTS_FILE} "
                                  "(a tokenizer is what --vqvae of train.py takes)")
        return path
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


def located(source: str | PathLike) -> Path:
    """Where a model that is here lies: its folder, or its published file."""
    return _locate(source, None, None, local_files_only=True)


def identity(source: str | PathLike) -> str:
    """What a result says of its model, which is here: its name and the first digits of its weights' SHA-256, no path.

    source: as for `load_pretrained`. Of files above 256 MB, which would take seconds, the hash is that of their size
    and of evenly spread parts ("sampled").
    """
    path = located(source)
    name = path.resolve().name if Path(source).exists() else str(source)
    weights = path / WEIGHTS_FILE if path.is_dir() else path
    size = weights.stat().st_size
    whole = size <= HASHED_WHOLE
    places = range(0, size, HASHED_BLOCK) if whole else (size * i // HASHED_PARTS for i in range(HASHED_PARTS))
    digest = hashlib.sha256(b"" if whole else str(size).encode())
    with open(weights, "rb") as stream:
        for place in places:
            stream.seek(place)
            digest.update(stream.read(HASHED_BLOCK))
    return f"{name} ({'' if whole else 'sampled '}sha256 {digest.hexdigest()[:HASH_DIGITS]})"


def _load_folder(folder: Path, dtype: torch.dtype | None = None) -> tuple[VARSRConfig, State]:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist: a model folder holds {CONFIG_FILE} and "
                                    f"{WEIGHTS_FILE}, so copy both")
    try:
        config = VARSRConfig.load(folder / CONFIG_FILE)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
    tensors = read_safetensors(folder / WEIGHTS_FILE)
    check_tensors(_meta_state(config), tensors, folder / WEIGHTS_FILE)
    return config, convert_tensors(tensors, dtype, folder / WEIGHTS_FILE)


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
    check_tensors(expected.transformer, parts.transformer, path)
    check_tensors(expected.vqvae, parts.vqvae, tokenizer or path)
    tensors = from_published(config, parts.transformer, parts.vqvae, str(path))
    return config, convert_tensors(tensors, dtype, path)


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
        check_tensors(vqvae_to_published(expected), published, path)
        tensors = vqvae_from_published(config, published, str(path))
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


def require_kind(config: VARSRConfig, super_resolution: bool, source: str | PathLike) -> None:
    """Raise CheckpointError when a model is of the other kind than a script needs."""
    if config.is_super_resolution != super_resolution:
        kinds = {True: ("super-resolution", TRANSFORMER_FILE), False: ("class-to-image", "VARSR_C2I.pth")}
        target, file = kinds[super_resolution]
        raise CheckpointError(f"{source} is a {kinds[not super_resolution][0]} model, but a {target} one is needed: "
                              f"give one such as {file}")


def require_complete(config: VARSRConfig, source: str | PathLike) -> None:
    """Raise CheckpointError for an inference export, which lacks what training and encoding need."""
    if config.inference:
        raise CheckpointError(f"{source} is an inference export without what training needs: give the model that it "
                              "was made from")


@dataclass(frozen=True)
class LooseTensors:
    """What a file holds, unchecked: tensors by our names (theirs where we have none) and, where it tells them, the
    sides of its token maps; of a folder of ours, its configuration."""

    tensors: State
    scales: tuple[int, ...] | None
    super_resolution: bool | None  # None: a tokenizer alone
    complete: bool  # transformer, refiner and (in the file or beside it) tokenizer
    config: VARSRConfig | None = None


def load_loose(source: str | PathLike) -> LooseTensors:
    """Whatever a model file holds, to start a training from: anything that `load_pretrained` takes, or a published
    part alone, such as a bare VAR (`var_d24.pth`), a class-to-image transformer, a tokenizer.

    Raises FileNotFoundError or CheckpointError.
    """
    path = _locate(source, None, None, False)
    if path.is_dir():
        config, tensors = _load_folder(path)
        require_complete(config, source)
        return LooseTensors(tensors, config.vqvae.scales, config.is_super_resolution, True, config)
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
