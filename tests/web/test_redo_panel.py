"""Redoing over HTTP: a result is its session's alone, paintings are uploads, whatever is wrong is a line."""
from __future__ import annotations

import io
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest
from conftest import noise_picture, small_model
from PIL import Image

import app
from models.weights.save import save_pretrained
from tests.loops import LOOPBACK, free_port, run
from tests.security.page_client import STATUS, Visitor, plain, visiting

pytest.importorskip("gradio", reason="NOTICE: no test of the web page without gradio")

KEY, SIZE = 8, (16, 20)  # place of a result's key among the outputs; height and width of a result


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page's address, with a small model."""
    from web.page import build_page
    from web.server import serve
    model = tmp_path_factory.mktemp("model") / "small"
    save_pretrained(small_model(), model)
    args = app.build_parser().parse_args(["--port", str(free_port()), "--device", "cpu", "--dtype", "fp32",
                                          "--max_pixels", "0.05", "--model", str(model)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        page = build_page(args)
        serve(page, args, quiet=True)
        yield f"http://{LOOPBACK}:{args.port}"
        page.close(verbose=False)


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


async def layer(visitor: Visitor, size: tuple[int, int] = SIZE) -> str:
    """An uploaded painting."""
    pixels = np.zeros((*size, 4), np.uint8)
    pixels[4:12, 4:12] = 255
    return (await visitor.upload("layer.png", png(Image.fromarray(pixels))))["path"]


async def restored(visitor: Visitor, **settings: object) -> list:
    outputs = await visitor.restore(await visitor.upload("noise.png", png(noise_picture(4, 5))), **settings)
    assert plain(outputs[STATUS]).startswith("✔ noise_x4.png")
    return outputs


async def variants(visitor: Visitor, painting: object, key: object) -> str:
    """What the page says in the end."""
    return plain((await visitor.ask("variants", [painting, key]))[STATUS])


def visit(server: str, act: Callable[..., Awaitable[None]], count: int = 1) -> None:
    async def both() -> None:
        async with visiting(server) as one, visiting(server) as other:
            await act(*(one, other)[:count])
    run(both())


def test_variants_of_ones_own_result(server: str) -> None:
    async def act(visitor: Visitor) -> None:
        key = (await restored(visitor))[KEY]
        assert "variant 4 of 4 (seed 4)" in await variants(visitor, await layer(visitor), key)
        assert "variant 4 of 4 (seed 8)" in await variants(visitor, await layer(visitor), key)
    visit(server, act)


def test_results_are_not_shared(server: str) -> None:
    async def act(one: Visitor, other: Visitor) -> None:
        key = (await restored(one))[KEY]
        assert "restore the picture first" in await variants(other, await layer(other), key)
        own = (await restored(other))[KEY]
        assert own != key and "has changed meanwhile" in await variants(other, await layer(other), key)
        assert "variant 4 of 4" in await variants(one, await layer(one), key)
    visit(server, act, 2)


def test_a_new_picture_takes_the_place_of_the_old(server: str) -> None:
    async def act(visitor: Visitor) -> None:
        old, new = [(await restored(visitor, seed=seed))[KEY] for seed in range(2)]
        painting = await layer(visitor)
        assert "has changed meanwhile" in await variants(visitor, painting, old)
        assert "variant 4 of 4 (seed 5)" in await variants(visitor, painting, new)
        await restored(visitor, dial="2")  # what --lr_consistency promises would not hold
        assert "restore the picture first" in await variants(visitor, painting, new)
    visit(server, act)


@pytest.mark.parametrize("painting", ["/etc/passwd", "http://127.0.0.1/x.png", 5, ["a"], {"a": 1}, True],
                         ids=lambda value: str(value)[:9])
def test_a_painting_is_an_uploaded_file(server: str, painting: object) -> None:
    async def act(visitor: Visitor) -> None:
        key = (await restored(visitor))[KEY]
        status = await variants(visitor, painting, key)
        assert status.startswith("⚠ ") and "drop it again" in status
    visit(server, act)


def test_paintings_that_do_not_fit_are_told(server: str) -> None:
    async def act(visitor: Visitor) -> None:
        key = (await restored(visitor))[KEY]
        assert (await variants(visitor, "", key)).startswith("⚠ nothing is painted")
        assert "the painting: 30x16 pixels" in await variants(visitor, await layer(visitor, (16, 30)), key)
        broken = await visitor.upload("layer.png", png(noise_picture(16, 20))[:60])
        assert (await variants(visitor, broken["path"], key)).startswith("⚠ layer.png")
        large = await visitor.upload("layer.png", png(Image.new("RGBA", (1000, 900))))
        assert (await variants(visitor, large["path"], key)).startswith("⚠ layer.png")  # over --max_pixels
    visit(server, act)


@pytest.mark.parametrize("name, value, word", [("errors", 1, "expected error"), ("dial", "much", "LR consistency"),
                                               ("dial", "-1", "LR consistency"), ("dial", [], "LR consistency")])
def test_bad_fields_are_told(server: str, name: str, value: object, word: str) -> None:
    async def act(visitor: Visitor) -> None:
        file = await visitor.upload("noise.png", png(noise_picture(4, 5)))
        status = plain((await visitor.restore(file, **{name: value}))[STATUS])
        assert status.startswith("⚠ ") and word in status and "\n" not in status
    visit(server, act)
