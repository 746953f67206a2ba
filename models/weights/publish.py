"""A model goes to the hub, with its card: a README.md with what the hub reads (front matter) and what people read."""
from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import torch

from utils.errors import UserError, first_line

from ..config import VARSRConfig
from ..varsr import VARSR
from .load import CONFIG_FILE, WEIGHTS_FILE
from .save import save_pretrained

CARD_FILE = "README.md"

PAPER = "https://arxiv.org/abs/2501.18993"
_PLAIN = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class CardFacts:
    """What only the author knows. Nothing is claimed that is not given here.

    license: its short name on the hub, such as "mit" or "cc-by-4.0". data: what the model was trained on, in words.
    metrics: values by name, measured on `test_set`.
    """

    license: str
    data: str
    test_set: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    notes: str = ""

    def __post_init__(self) -> None:
        if not _PLAIN.fullmatch(self.license):
            raise UserError(f"license {self.license!r} is no short name of a licence such as 'mit' or 'cc-by-4.0'")
        if not self.data.strip():
            raise UserError("say what the model was trained on (data)")
        if self.metrics and not self.test_set.strip():
            raise UserError("metrics need the name of the pictures that they were measured on (test_set)")


def model_card(config: VARSRConfig, parameters: int, facts: CardFacts, repo: str) -> str:
    """README.md of a model on the hub."""
    is_restoring = config.transformer.prefix is not None
    task = "image super-resolution" if is_restoring else "class-to-image generation"
    front = ["---", f"license: {facts.license}", "library_name: varsr",
             f"pipeline_tag: {'image-to-image' if is_restoring else 'unconditional-image-generation'}", "tags:",
             "- varsr", f"- {'super-resolution' if is_restoring else 'class-to-image'}", "- visual-autoregression",
             "---"]
    use = (f'model = VARSR.from_pretrained("{repo}")  # from the VARSR code\n'
           + (f"# python test_varsr.py -i photo.jpg --model {repo}" if is_restoring
              else f"# python test_C2I.py --model {repo}"))
    sections = [
        f"# {repo.rpartition('/')[2]}",
        f"{task.capitalize()} by next-scale visual autoregression ([VARSR]({PAPER})): {parameters / 1e6:.1f} million "
        f"parameters, pictures of {config.image_size}x{config.image_size} pixels made of maps of "
        f"{', '.join(str(side) for side in config.vqvae.scales)} tokens a side.",
        f"## Use\n```python\nfrom models.varsr import VARSR\n\n{use}\n```",
        f"## Training data\n{facts.data.strip()}"]
    if facts.metrics:
        rows = "\n".join(f"| {name} | {value:g} |" for name, value in facts.metrics.items())
        sections.append(f"## Results\nOn {facts.test_set.strip()}:\n\n| metric | mean |\n|---|---|\n{rows}")
    sections.append(f"## Licence\nWeights: {facts.license}.")
    if facts.notes.strip():
        sections.append(f"## Notes\n{facts.notes.strip()}")
    return "\n".join(front) + "\n" + "\n\n".join(sections) + "\n"


def push_to_hub(model: VARSR, repo: str, facts: CardFacts, *, dtype: torch.dtype | None = None, private: bool = False,
                token: str | None = None, message: str = "Add the model", endpoint: str | None = None) -> str:
    """Upload a model with a card to the hub repository `owner/name`; returns the commit's address.

    See `upload_model` for the other arguments and the errors. `VARSR.from_pretrained(repo)` loads it again.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, dtype)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        (Path(folder) / CARD_FILE).write_text(model_card(model.config, parameters, facts, repo), encoding="utf-8")
        return upload_model(folder, repo, private=private, token=token, message=message, endpoint=endpoint)


def upload_model(folder: str | PathLike, repo: str, *, private: bool = False, token: str | None = None,
                 message: str = "Add the model", endpoint: str | None = None) -> str:
    """Upload a folder of ours with its card, making the repository where there is none. Returns the commit's address.

    token: of the hub, by default the one that `hf auth login` stored. endpoint: another hub's address.
    Raises ValueError for a name that is none, OSError with the cause and the remedy otherwise.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    api = huggingface_hub.HfApi(endpoint=endpoint, token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message,
                                   allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE])
    except HFValidationError as error:
        raise UserError(f"{repo!r} is no name of a repository on the hub: give owner/name") from error
    except Exception as error:  # refusals, the network, the disk: which types they have depends on the client's version
        line = first_line(error)
        raise OSError(f"{repo} could not be uploaded ({line}): check the name and log in with `hf auth login`"
                      ) from error
    return str(commit.commit_url)
