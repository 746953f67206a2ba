"""Weight files from the Hugging Face hub, through its cache."""
from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
PUBLISHED_REPO = "qyp2000/VARSR"
TRANSFORMER_FILE, TOKENIZER_FILE = "VARSR.pth", "VQVAE.pth"
PUBLISHED_REPOS = {  # repo id -> default transformer file, tokenizer file
    PUBLISHED_REPO: (TRANSFORMER_FILE, TOKENIZER_FILE),
    "FoundationVision/var": ("var_d24.pth", "vae_ch160v4096z32.pth"),
}
LOCAL_FOLDER = "checkpoints/"
WEIGHT_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".json")

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
    paths = [_fetch(repo, name, revision, cache_dir, local_files_only, target) for name in dict.fromkeys(names)]
    return paths[-1].parent if names[-1] == WEIGHTS_FILE else paths[-1]


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
