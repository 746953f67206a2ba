"""Hubs that mean harm: what they call a file stays in the folder, what they say of it is checked, and links in the way
are not followed."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_stub import HubStub, running_hub

from models.weights.download import main
from models.weights.hub_files import LIST_FILE, PARTIAL_FOLDER, HubError, HubFile, list_files, remember, remembered
from models.weights.load import parse_hub_id

REPO = "someone/small"
CONTENT = b"content" * 1000
SHA1, SHA256 = "0" * 40, hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture()
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    with running_hub() as stub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", stub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE",
                            stub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield stub


def run(hub: HubStub, folder: Path, *flags: str) -> int:
    return main(["--repo", REPO, "--output", str(folder), "--endpoint", hub.endpoint, *flags])


NAMES = ["../evil.pth", "a/../../evil.pth", "/tmp/evil.pth", "//evil.pth", "..", ".", "", "a//b.pth", "a/./b.pth", "a/",
         "C:evil.pth", "C:/evil.pth", "a\\..\\..\\evil.pth", "\\\\server\\evil.pth", "evil\0.pth", "evil\n.pth",
         "\x1b[2Jevil.pth", "evil\u202e.pth", ".part/../evil.pth", ".part/x.pth", LIST_FILE, "x" * 300 + ".pth",
         "evil\udc80.pth", "con?.pth"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none_of_a_file_below(name: str, tmp_path: Path) -> None:
    with pytest.raises(HubError) as caught:
        HubFile(name, 1, None, SHA1)
    assert "the hub names a file" in str(caught.value) and str(caught.value).isprintable()
    (tmp_path / LIST_FILE).write_text(json.dumps(
        {REPO: [{"path": name, "size": 1, "sha256": None, "git_sha1": SHA1}]}))
    with pytest.raises(HubError, match=LIST_FILE):
        remembered(tmp_path, REPO, ["*"])


@pytest.mark.parametrize("name", ["../evil.pth", "a/../../evil.pth", ".part/../../evil.pth"])
def test_nothing_is_fetched_under_such_a_name(hub: HubStub, name: str, tmp_path: Path,
                                              capsys: pytest.CaptureFixture) -> None:
    hub.repos[REPO] = {"VARSR.pth": CONTENT, name: CONTENT}
    assert run(hub, tmp_path / "checkpoints") == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("download: ") and "evil.pth" in error and "\n" not in error
    assert not hub.ranges and list(tmp_path.rglob("*")) == []


def test_names_of_files_below(hub: HubStub, tmp_path: Path) -> None:
    for name in ("a/b c.pth", "ü.pth"):
        assert HubFile(name, 0, None, SHA1).path == name
    names = ("VARSR.pth", "..a.pth", "a..b/c.pth", ".hidden.pth")
    hub.repos[REPO] = dict.fromkeys(names, CONTENT)
    assert run(hub, tmp_path, "--files", "*") == 0
    assert all((tmp_path / name).read_bytes() == CONTENT for name in names)


@pytest.mark.parametrize("changes", [
    {"size": -1}, {"size": "1"}, {"size": True}, {"size": None}, {"size": 1.0}, {"sha256": "x" * 64}, {"sha256": "ab"},
    {"sha256": "../" * 21 + "a"}, {"sha256": SHA256.upper()}, {"sha256": SHA256 + "\n"}, {"sha256": 5}, {"sha256": ""},
    {"git_sha1": None}, {"git_sha1": ""}, {"git_sha1": "g" * 40}, {"git_sha1": SHA256}, {"path": 3}, {"path": None}],
    ids=str)
def test_sizes_and_hashes_that_are_none(changes: dict, tmp_path: Path) -> None:
    file = {"path": "a.pth", "size": 1, "sha256": SHA256, "git_sha1": SHA1, **changes}
    with pytest.raises(HubError):
        HubFile(**file)
    (tmp_path / LIST_FILE).write_text(json.dumps({REPO: [file]}))
    with pytest.raises(HubError):
        remembered(tmp_path, REPO, ["*"])


def test_hashes_of_a_hub_that_are_none(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                       capsys: pytest.CaptureFixture) -> None:
    hub.repos[REPO] = {"VARSR.pth": CONTENT}
    monkeypatch.setattr(HubStub, "etag", lambda *_: "../../../../etc/x")
    assert run(hub, tmp_path) == 1
    assert "VARSR.pth: its hash" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [
    "", "[]", "3", "null", '"x"', "[" * 100_000, '{"someone/small": 3}', '{"someone/small": {"a": 1}}',
    '{"someone/small": ["a"]}', '{"someone/small": [{"path": "a.pth"}]}', '{"someone/small": [{"more": 1}]}',
    '{"someone/small": "abc"}', '{"someone/small": null}'], ids=lambda text: text[:40])
def test_lists_that_are_none(content: str, tmp_path: Path) -> None:
    (tmp_path / LIST_FILE).write_text(content)
    with pytest.raises(HubError, match="is damaged: delete it"):
        remembered(tmp_path, REPO, ["*"])
    with pytest.raises(HubError, match="is damaged: delete it"):
        remember(tmp_path, REPO, [HubFile("a.pth", 1, None, SHA1)])
    assert (tmp_path / LIST_FILE).read_text() == content


def test_lists_of_other_repositories_stay(tmp_path: Path) -> None:
    remember(tmp_path, "another/one", [HubFile("b.pth", 2, SHA256, SHA1)])
    remember(tmp_path, REPO, [HubFile("a.pth", 1, None, SHA1)])
    remember(tmp_path, REPO, [HubFile("c.pth", 3, None, SHA1)])
    assert [file.path for file in remembered(tmp_path, REPO, ["*"])] == ["a.pth", "c.pth"]
    assert [file.size for file in remembered(tmp_path, "another/one", ["*"])] == [2]


def test_a_list_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.hf_api import RepoFile

    def endless(*_: object, **__: object) -> Iterator[RepoFile]:
        while True:
            yield RepoFile(path="a.pth", size=1, oid=SHA1)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", endless)
    with pytest.raises(HubError, match="more than"):
        list_files(REPO, ["*"])


def partial(folder: Path, content: bytes = CONTENT) -> Path:
    return folder / PARTIAL_FOLDER / f"VARSR.pth.{hashlib.sha256(content).hexdigest()[-12:]}.part"


def test_a_planted_link_is_not_followed(hub: HubStub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    hub.repos[REPO] = {"VARSR.pth": CONTENT}
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    link = partial(tmp_path / "checkpoints")
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    assert run(hub, tmp_path / "checkpoints") == 1 and victim.read_bytes() == b"mine"
    assert "could not be downloaded" in capsys.readouterr().err


def test_a_planted_folder_is_not_followed(hub: HubStub, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    hub.repos[REPO] = {"VARSR.pth": CONTENT}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / PARTIAL_FOLDER).symlink_to(tmp_path / "elsewhere")
    assert run(hub, tmp_path / "checkpoints") == 1 and list((tmp_path / "elsewhere").iterdir()) == []
    assert "is a link" in capsys.readouterr().err


def test_no_more_is_written_than_was_said(hub: HubStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture) -> None:
    """A mirror that sends without an end fills the disk otherwise."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.repos[REPO] = {"VARSR.pth": CONTENT}
    tree = hub.tree(REPO)
    hub.repos[REPO]["VARSR.pth"] = CONTENT + bytes(10 ** 6)
    monkeypatch.setattr(HubStub, "tree", lambda *_: tree)
    assert run(hub, tmp_path) == 1
    assert "sends more than" in capsys.readouterr().err and partial(tmp_path).stat().st_size <= len(CONTENT)


def test_a_partial_file_that_is_too_long_begins_anew(hub: HubStub, tmp_path: Path) -> None:
    hub.repos[REPO] = {"VARSR.pth": CONTENT}
    partial(tmp_path).parent.mkdir()
    partial(tmp_path).write_bytes(bytes(2 * len(CONTENT)))
    assert run(hub, tmp_path) == 0 and (tmp_path / "VARSR.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("source", ["owner/..", "../name", "owner/name/../x.pth", "owner/name/..", "owner/.name",
                                    "./x/y", "owner/name/a/b.pth", "owner\\name", "owner/na\nme", "owner/name\n",
                                    "owner/na\0me", "owner/name/x.pth\n", "-/../x"])
def test_what_is_no_hub_id(source: str) -> None:
    assert parse_hub_id(source) is None
