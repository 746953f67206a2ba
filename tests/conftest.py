"""Shared builders: a model small enough for tests, the device of the tests marked gpu, a browser."""
from __future__ import annotations

import dataclasses
import multiprocessing
import os
import shutil
import signal
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at a process's first product alone

import numpy as np
import pytest
import torch
from PIL import Image

from models.weights.save import save_pretrained

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.config import PRESETS
from models.initialization import initialize
from models.varsr import VARSR

if TYPE_CHECKING:
    from tests.page_gate import Gate

# For `@pytest.mark.parametrize("device", EVERY_DEVICE, indirect=True)`: the CPU, and what `--device` names.
EVERY_DEVICE = ["cpu", pytest.param(None, marks=pytest.mark.gpu, id="gpu")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="of the tests marked gpu: cuda by default, where there is none they are skipped; "
                                      "cpu is a dry run of all that needs no CUDA")


def pytest_configure() -> None:
    """Workers of pytest-xdist ignore Ctrl-C, and so would the programs that tests start and stop by it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "forkserver" in multiprocessing.get_all_start_methods():
        # All children come from one server, which the first test to start one sets off. Unless it has imported by then
        # what the page's children need, each of them imports it anew, and takes a second for what takes none otherwise.
        multiprocessing.get_context("forkserver").set_forkserver_preload(["web.decoding"])


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu`, files without such tests are not even imported: machines with a GPU may lack what they need."""
    if config.getoption("markexpr") != "gpu" or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text(encoding="utf-8")
    return True if "mark.gpu" not in text and "EVERY_DEVICE" not in text else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # first, so that processes beside each other end together
    if config.getoption("--device") is None and not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="NOTICE: needs a GPU"))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the tests marked gpu compute."""
    return torch.device(getattr(request, "param", None) or request.config.getoption("--device") or "cuda")


@pytest.fixture()
def cuda(device: torch.device) -> torch.device:
    """The same, for what a dry run cannot show."""
    if device.type != "cuda":
        pytest.skip("NOTICE: needs a GPU, a dry run cannot show it")
    return device


@pytest.fixture()
def full_precision() -> Iterator[None]:
    """Products of float32 without TensorFloat-32."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """On a GPU, what makes the host wait for it raises RuntimeError."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def small_model(preset: str = "varsr-debug", seed: int = 0) -> VARSR:
    """A model with random weights that are large enough for every part to matter."""
    torch.manual_seed(seed)
    model = VARSR(PRESETS[preset])
    initialize(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.vqvae.quantizer.codebook.weight.normal_(std=0.7)
        model.transformer.head.weight.normal_(std=0.3)
    return model.eval().requires_grad_(False)


def small_class_model(classes: int = 3, names: tuple[str, ...] | None = None) -> VARSR:
    """A random class-to-image model of the debug preset whose classes are named a, b, c, ... or as said."""
    config = PRESETS["varsr-debug"]
    names = names or tuple("abcdefgh"[:classes])
    transformer = dataclasses.replace(config.transformer, prefix=None, class_rows=len(names) + 1)
    torch.manual_seed(0)
    model = VARSR(dataclasses.replace(config, transformer=transformer, class_names=names))
    initialize(model)
    with torch.no_grad():
        model.vqvae.quantizer.codebook.weight.normal_(std=0.7)
        model.transformer.head.weight.normal_(std=0.3)
        model.transformer.class_embedding.weight.normal_()
    return model.eval().requires_grad_(False)


def noise_picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise: every crop has detail and is unlike every other one."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def jpeg_segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


@pytest.fixture(scope="session")
def model() -> VARSR:
    """A random super-resolution model of the debug preset; tests must not change it."""
    return small_model()


@pytest.fixture(scope="session")
def pictures(model: VARSR) -> torch.Tensor:
    """Three LR pictures at output size, in [0, 1]."""
    size = model.config.image_size
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(small_model(), folder)
    return folder


@pytest.fixture()
def resident_crops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices of all that is made in this test to hold photographs there (--data_on_device)."""
    from dataloader.resident import ResidentCrops
    made, begin = [], ResidentCrops.__init__

    def noted(self: ResidentCrops, crops: object, device: torch.device) -> None:
        made.append(str(device))
        begin(self, crops, device)
    monkeypatch.setattr(ResidentCrops, "__init__", noted)
    return made


@pytest.fixture()
def testset(tmp_path: Path) -> Path:
    """Two LR pictures of different aspect, one with HR, and a broken file."""
    random = np.random.default_rng(0)
    for folder, name, size in (("LR", "a", (8, 8)), ("LR", "b", (12, 9)), ("HR", "a", (32, 32))):
        (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / folder / f"{name}.png")
    (tmp_path / "set" / "LR" / "broken.png").write_bytes(b"nonsense")
    return tmp_path


def icc_number(*values: float) -> bytes:
    """Numbers of an ICC profile: 16 bits before the point and behind it."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def icc_file(tags: dict[bytes, bytes], kind: bytes, space: str, connection: bytes) -> bytes:
    """An ICC v2 profile of tags (ICC.1:2001-04), which always has a description, a licence and a white point. kind:
    "mntr" of monitors, "scnr" of scanners; connection: the space that it leads to."""
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + b"\0" * 78,
            b"cprt": b"text\0\0\0\0made for a test\0",
            b"wtpt": b"XYZ \0\0\0\0" + icc_number(0.9642, 1.0, 0.8249), **tags}
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s28s", start + len(data), b"", 0x02100000, kind, space.encode(), connection,
                       struct.pack(">6H", 2020, 1, 1, 0, 0, 0), b"acsp", b"") + icc_number(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def color_profile(space: str = "RGB ", gamma: float = 2.19921875) -> bytes:
    """An ICC v2 profile made by hand (ICC.1:2001-04): Adobe RGB's primaries with a gamma, or "GRAY" with a gamma."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    if space == "RGB ":
        tags = {b"rXYZ": b"XYZ \0\0\0\0" + icc_number(0.60974, 0.31111, 0.01947),
                b"gXYZ": b"XYZ \0\0\0\0" + icc_number(0.20528, 0.62567, 0.06087),
                b"bXYZ": b"XYZ \0\0\0\0" + icc_number(0.14919, 0.06322, 0.74457),
                b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    else:
        tags = {b"kTRC": curve}
    return icc_file(tags, b"mntr", space, b"XYZ ")


CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Headless Chromium; the test is skipped where it or Playwright is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="NOTICE: no browser test without playwright")
    program = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("NOTICE: no browser test without Chromium (tests/browser/install_chromium.sh installs it)")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    """Holds the jobs of a page that is served here, where a test closes it."""
    from tests.page_gate import Gate
    with pytest.MonkeyPatch.context() as patch:
        yield Gate(patch)
