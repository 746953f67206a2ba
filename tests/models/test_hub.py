"""The hub, both ways, against one on this machine: round trip of a model, downloads verified and continued."""
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import yaml
from conftest import small_class_model
from hub_stub import HubStub, running_hub

from models.varsr import VARSR
from models.weights.download import main
from models.weights.publish import CardFacts, model_card, push_to_hub

REPO = "someone/small"
FACTS = CardFacts("cc-by-4.0", "33 photographs", "ten photographs", {"PSNR-Y": 27.62}, "A demonstration.")
CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture()
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStub]:
    """A hub that takes the place of the real one, with an empty cache."""
    with running_hub() as stub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            stub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield stub


def test_round_trip(hub: HubStub, model: VARSR, tmp_path: Path) -> None:
    hub.token = "secret"
    address = push_to_hub(model, REPO, FACTS, token="secret", endpoint=hub.endpoint)
    assert address.startswith(f"{hub.endpoint}/{REPO}/commit/")
    assert sorted(hub.repos[REPO]) == ["README.md", "config.json", "model.safetensors"]
    loaded = VARSR.from_pretrained(REPO, cache_dir=tmp_path)
    assert loaded.config == model.config
    own, theirs = model.state_dict(), loaded.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    hub.repos.clear()
    again = VARSR.from_pretrained(REPO, cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(again.transformer.head.weight, own["transformer.head.weight"])


def test_the_card_says_what_the_model_is(model: VARSR) -> None:
    _, front, body = model_card(model.config, 1_500_000, FACTS, REPO).split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["license"] == "cc-by-4.0" and facts["pipeline_tag"] == "image-to-image"
    for said in ("# small", "1.5 million", "33 photographs", "| PSNR-Y | 27.62 |", f'from_pretrained("{REPO}")'):
        assert said in body
    assert "class-to-image" in model_card(small_class_model().config, 1, CardFacts("mit", "none"), REPO)


@pytest.mark.parametrize("facts, said", [
    ({"license": "a b\nx: y", "data": "d"}, "licence"), ({"license": "mit", "data": " "}, "trained on"),
    ({"license": "mit", "data": "d", "metrics": {"a": 1}}, "test_set")])
def test_a_card_claims_nothing_without_its_source(facts: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CardFacts(**facts)


def test_refused_uploads_have_a_remedy(hub: HubStub, model: VARSR) -> None:
    hub.token = "secret"
    with pytest.raises(OSError, match="log in with `hf auth login`"):
        push_to_hub(model, REPO, FACTS, token="wrong", endpoint=hub.endpoint)
    with pytest.raises(ValueError, match="owner/name"):
        push_to_hub(model, "a/b/c", FACTS, endpoint=hub.endpoint)
    with pytest.raises(OSError, match="could not be uploaded"):
        push_to_hub(model, REPO, FACTS, endpoint="http://127.0.0.1:1")


# --- python -m models.weights.download ---

@pytest.fixture()
def published(hub: HubStub) -> HubStub:
    """A repository with two weight files, one of them small, and a text."""
    hub.repos[REPO] = {"VARSR.pth": CONTENT, "VQVAE.pth": b"small", "README.md": b"text"}
    return hub


def run(hub: HubStub, folder: Path, *flags: str) -> int:
    return main(["--repo", REPO, "--output", str(folder), "--endpoint", hub.endpoint, *flags])


def test_download_and_verify(published: HubStub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(published, tmp_path) == 0
    assert (tmp_path / "VARSR.pth").read_bytes() == CONTENT and (tmp_path / "VQVAE.pth").read_bytes() == b"small"
    assert not (tmp_path / "README.md").exists()
    printed = capsys.readouterr().out
    assert hashlib.sha256(CONTENT).hexdigest() in printed and "2 of 2 files are whole" in printed
    downloads = len(published.ranges)
    assert run(published, tmp_path) == 0 and len(published.ranges) == downloads  # nothing is fetched twice


def test_a_damaged_file_is_fetched_again(published: HubStub, tmp_path: Path) -> None:
    assert run(published, tmp_path) == 0
    (tmp_path / "VARSR.pth").write_bytes(CONTENT[:-1] + b"x" if CONTENT[-1:] != b"x" else CONTENT[:-1] + b"y")
    assert run(published, tmp_path) == 0 and (tmp_path / "VARSR.pth").read_bytes() == CONTENT


def test_an_interrupted_download_goes_on(published: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 10_000)  # what is kept of a broken download
    published.cut_after, published.is_gone_after_cut = 100_000, True
    assert run(published, tmp_path, "--files", "VARSR.pth") == 1 and not (tmp_path / "VARSR.pth").exists()
    published.is_gone_after_cut = False
    published.ranges.clear()
    assert run(published, tmp_path, "--files", "VARSR.pth") == 0
    assert (tmp_path / "VARSR.pth").read_bytes() == CONTENT and published.ranges == ["bytes=100000-"]


def test_what_arrives_damaged_does_not_stay(published: HubStub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    part = tmp_path / ".part" / f"VARSR.pth.{hashlib.sha256(CONTENT).hexdigest()[-12:]}.part"
    part.parent.mkdir()
    part.write_bytes(bytes(1000))  # not what the file begins with
    assert run(published, tmp_path, "--files", "VARSR.pth") == 1 and "arrived damaged" in capsys.readouterr().err
    assert not part.exists() and not (tmp_path / "VARSR.pth").exists()
    assert run(published, tmp_path, "--files", "VARSR.pth") == 0


def test_offline_verifies_without_asking(published: HubStub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(published, tmp_path, "--offline") == 1 and "run once with a network" in capsys.readouterr().err
    assert run(published, tmp_path) == 0
    published.asked.clear()
    assert run(published, tmp_path, "--offline") == 0 and published.asked == []
    (tmp_path / "VQVAE.pth").write_bytes(b"smell")
    (tmp_path / "VARSR.pth").unlink()
    assert run(published, tmp_path, "--offline") == 1 and published.asked == []
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("download: ")]
    assert len(errors) == 2 and "VARSR.pth is missing" in errors[0] and "VQVAE.pth is damaged" in errors[1]


def test_listing_downloads_nothing(published: HubStub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(published, tmp_path / "x", "--list") == 0
    assert "300,000 bytes" in capsys.readouterr().out and not (tmp_path / "x").exists() and not published.ranges


@pytest.mark.parametrize("flags, said", [(("--repo", "no/body"), "cannot be asked"), (("--files", "*.gguf"), "*.gguf"),
                                         (("--repo", "a/b/c"), "a/b/c")])
def test_mistakes_are_one_line(published: HubStub, tmp_path: Path, capsys: pytest.CaptureFixture, flags: tuple,
                               said: str) -> None:
    assert run(published, tmp_path, *flags) == 1
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error and list(tmp_path.iterdir()) == []


def test_published_models_are_the_default() -> None:
    from models.weights.download import build_parser
    args = build_parser().parse_args([])
    assert args.repo == "qyp2000/VARSR" and args.output.name == "checkpoints"
