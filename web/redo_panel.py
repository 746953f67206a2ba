"""The part of the page that redoes a region of a result: an editor to paint it in, variants to choose from."""
from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import gradio as gr

from pictures.rgb import enlarged, laid_over_white, read_image, to_pillow
from utils.errors import UserError

from .fields import whole
from .jobs import Tell, Update
from .kept import MAX_REDO_PIXELS
from .parts import AT_ONCE, Given
from .preview import fitted
from .redoing import NOTHING, VARIANTS, chosen, draw_variants, region_of, write_result
from .sessions import Job
from .workshop import Work, Workshop, status_line

BRUSH, SHOWN_SIDE = "#ff3b30", 384  # of a variant, in pixels
PAINTED = "painting => painting?.layers?.[0]?.path ?? ''"  # of the editor: the file of its one layer
HINT = ("Paint over what shall be drawn anew, and a little more, then let four variants be drawn and click on the "
        f"best. For results of up to {MAX_REDO_PIXELS / 1e6:.0f} million pixels.")


class RedoPanel:
    """Made inside the page; `parts` are outputs of whatever shows another picture, in the order of `shown`."""

    def __init__(self, shop: Workshop, sources: dict[str, str]) -> None:
        self.shop, self.sources = shop, sources
        with gr.Accordion("Redo a region", open=False, visible=False, elem_id="redo") as panel:
            gr.Markdown(HINT)
            # nobody listens to its changes: gradio would upload each of them, past the folder of uploads
            self.editor = gr.ImageEditor(
                label="Paint the region", sources=(), transforms=(), layers=False, format="png", height=560,
                brush=gr.Brush(colors=[BRUSH], default_color=BRUSH, color_mode="fixed"), elem_id="editor", buttons=[])
            self.editor.data_model = Given
            self.key, self.layer = gr.Textbox(visible=False), gr.Textbox(visible=False)
            with gr.Row():
                self.draw = gr.Button("Four variants", elem_id="variants")
                self.cancel = gr.Button("Cancel", variant="stop", elem_id="cancel_variants")
            self.status = gr.Markdown(elem_id="redo_status", latex_delimiters=[])
            self.gallery = gr.Gallery(show_label=False, visible=False, columns=VARIANTS + 1, height=190, format="png",
                                      object_fit="contain", allow_preview=False, interactive=False, elem_id="choices",
                                      buttons=[])
        self.parts = [panel, self.editor, self.key, self.gallery, self.status]

    def hidden(self) -> tuple:
        """The parts while there is no result."""
        return gr.update(visible=False), None, "", gr.update(value=None, visible=False), ""

    def unchanged(self) -> tuple:
        """The same again: what is hidden needs not be said, and an update takes gradio longer than a value."""
        return gr.skip(), None, "", None, ""

    def shown(self, update: Update) -> tuple:
        """The parts for a finished picture: another one is to be painted over, what was chosen from stays."""
        if update.result is None:
            return gr.update(visible=False), *(gr.skip(),) * 4
        canvas = to_pillow(update.pictures[1])
        return gr.update(visible=True), {"background": canvas, "layers": [], "composite": None}, update.result.key, \
            gr.update(visible=bool(update.result.choices)), ""

    def connect(self, outputs: Sequence[gr.components.Component], show: Callable[[Update], tuple]) -> None:
        """Let the panel work. outputs, show: of a choice."""
        places = list(self.sources.values())
        own = [self.status, self.gallery, self.key]
        draw = self.shop.follower(self._drawing, _shown_variants, len(own), places)
        # two steps, and news for the line alone: the editor uploads all that it holds whenever it hears any
        self.draw.click(None, self.editor, self.layer, js=PAINTED, api_visibility="private").then(
            draw, [self.layer, self.key], own, api_name="variants", show_progress_on=self.status, **AT_ONCE)
        self.cancel.click(self.shop.cancel, None, None, queue=False, show_progress="hidden", api_visibility="private")
        take = self.shop.follower(self._choosing, lambda update, _: show(update), len(outputs), places,
                                  self.shop.looks)

        async def choose(event: gr.SelectData, request: gr.Request, key: object) -> AsyncIterator[tuple]:
            async for shown in take(request, event.index, key):
                yield shown
        self.gallery.select(choose, self.key, outputs, api_visibility="private", show_progress_on=outputs[0], **AT_ONCE)

    def _drawing(self, session: str, layer: object, key: object) -> Work:
        result = self.shop.kept.get(session, key)
        if not layer:
            raise UserError(NOTHING)
        path = self.shop.uploaded({"path": layer})

        def work(job: Job, _: Path, tell: Tell) -> None:
            region = region_of(self.shop.decoder.read(path, job.check), result.variant.state.making.size)
            model, _ = self.shop.models.get(result.model)
            self.shop.kept.keep(job, draw_variants(model, result, region, tell), instead_of=result)
        return work

    def _choosing(self, session: str, index: object, key: object) -> Work:
        result, place = self.shop.kept.get(session, key), whole("variant", index, 0, VARIANTS)

        def work(job: Job, folder: Path, tell: Tell) -> None:
            taken = chosen(result, place)
            path = write_result(taken, folder)
            self.shop.kept.keep(job, taken, instead_of=result)
            before = laid_over_white(enlarged(result.source, taken.variant.state.making.size), result.source)
            pair = before, read_image(path)
            tell(Update(f"{taken.name}: variant {place}" if place else f"{taken.name}: as it was", 1.0, pair,
                        file=path, result=taken))
        return work


def _shown_variants(update: Update, first: bool) -> tuple:
    pictures = [(to_pillow(fitted(picture, SHOWN_SIDE)), f"variant {place}" if place else "as it was")
                for place, picture in enumerate(update.pictures)]
    shown = gr.update(value=pictures, visible=True, selected_index=None) if pictures else gr.skip()
    return status_line(update), shown, gr.skip()
