"""Whether the hub is there is known before its client goes through its six attempts."""
from __future__ import annotations

import socket
from pathlib import Path
from urllib.request import getproxies_environment

import huggingface_hub
import pytest
from hub_stub import running_hub
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from models.varsr import VARSR
from models.weights import download, load
from models.weights.load import hub_at_once, hub_is_reachable


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def closed_port() -> int:
    """A port of this machine at which nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_a_hub_that_answers_is_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub() as stub:
        monkeypatch.setattr(constants, "ENDPOINT", stub.endpoint)
        assert hub_is_reachable()
        with hub_at_once():
            assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "hub.invalid"])
def test_nobody_there(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"https://{host.format(closed_port())}")
    assert not hub_is_reachable()
    with pytest.raises(KeyError), hub_at_once():
        assert constants.HF_HUB_OFFLINE
        raise KeyError
    assert not constants.HF_HUB_OFFLINE


def test_offline_mode_asks_nobody_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub() as stub:
        monkeypatch.setattr(constants, "ENDPOINT", stub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub_is_reachable()
        with hub_at_once():
            assert constants.HF_HUB_OFFLINE
        assert constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("variable, believed", [("HTTPS_PROXY", True), ("ALL_PROXY", True), ("all_proxy", True),
                                                ("HTTP_PROXY", False)])
def test_a_proxy_is_believed(monkeypatch: pytest.MonkeyPatch, variable: str, believed: bool) -> None:
    """One that the hub's client, which asks for https, goes through."""
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr(load, "getproxies", getproxies_environment)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(variable, "http://proxy.invalid:3128")
    assert hub_is_reachable() == believed


@pytest.mark.parametrize("endpoint", ["hub.invalid", "ftp://hub.invalid", "http://hub.invalid:many", "http://[hub"])
def test_what_is_no_address_is_left_to_the_client(endpoint: str) -> None:
    assert hub_is_reachable(endpoint)


def test_a_download_from_a_hub_out_of_reach_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    assert download.main(["--output", str(tmp_path), "--endpoint", f"http://127.0.0.1:{closed_port()}"]) == 1
    error = capsys.readouterr().err.strip()
    assert "the hub is out of reach" in error and "\n" not in error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answers", [True, False])
def test_a_model_of_a_hub_out_of_reach_is_looked_for_in_the_cache_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                                        answers: bool) -> None:
    asked = []

    def download(*_: object, local_files_only: bool, **__: object) -> str:
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("no")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(load, "hub_is_reachable", lambda: answers)
    with pytest.raises(FileNotFoundError, match="the hub is out of reach"):
        VARSR.from_pretrained("someone/model", cache_dir=tmp_path)
    assert asked == [not answers]
