"""The web page: its parts.

Whatever its fields hold is looked at here and not by gradio, which would refuse it in words and ways of its own.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from inference.classes import class_title
from inference.render import COLOR_FIXES
from inference.settings import calibration_of
from models.config import PRESETS, VARSRConfig
from models.weights.load import CHECKPOINTS
from pictures.formats import SUFFIXES
from pictures.rgb import to_pillow

from .error_view import ErrorView
from .fields import guidance, one_of, optional_number, switch, whole_numbers
from .jobs import (
    KINDS,
    MAX_CLASS_PICTURES,
    MAX_DROP,
    MAX_OVERLAP,
    ClassRequest,
    RestoreRequest,
    Tell,
    Update,
    draw_classes,
    model_sources,
    restore_file,
)
from .kept import Result
from .messages import as_markdown
from .parts import AT_ONCE, Given
from .preview import fitted
from .redo_panel import RedoPanel
from .sessions import Job
from .workshop import READY, Work, Workshop, status_line

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# gradio would sum up its last 10,000 events whenever one ends; nobody asks for that
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")

EXAMPLES = CHECKPOINTS.parent / "testset" / "sample" / "LR"
PUBLISHED_CLASSES = "varsr-d24-c2i"  # preset of the published class-to-image file
FASTVAR_RATIOS = (0.4, 0.3)  # drop ratios of the last two scales
MAX_EVENTS = 100  # that gradio lets wait until it has time to begin with them
TITLE = "VARSR"
HEADER = "# VARSR\nImage super-resolution by next-scale visual autoregression: drop a picture, watch the scales emerge."


def build_page(args: argparse.Namespace, work: Path | None = None) -> gr.Blocks:
    """The page for parsed flags of app.py. work: a folder for what is not served, None for the system's place.

    Raises ValueError or OSError where the chosen model cannot be used.
    """
    with gr.Blocks(title=TITLE) as page:
        shop = Workshop.of_flags(args, Path(page.GRADIO_CACHE), work)
        sources = model_sources(args, super_resolution=True)
        first, _ = shop.models.get(next(iter(sources.values())))  # so a wrong flag is noticed now
        gr.Markdown(HEADER)
        with gr.Tab("Super-resolution"):
            _restore_tab(shop, sources, first.config.generation.fidelity)
        with gr.Tab("Class to image"):
            _class_tab(shop, model_sources(args, super_resolution=False))
        page.unload(shop.leave)
    return page.queue(default_concurrency_limit=1, max_size=MAX_EVENTS, api_open=False)


def _restore_tab(shop: Workshop, sources: dict[str, str], own_fidelity: float) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            file = gr.File(label="Picture", file_types=list(SUFFIXES), height=120, elem_id="source")
            file.data_model = Given
            examples = sorted(str(path) for path in EXAMPLES.glob("*.png"))
            if examples:
                gallery = gr.Gallery(examples, label="Examples", columns=5, height=170, allow_preview=False,
                                     elem_id="examples", buttons=[], interactive=False)
                gallery.select(_chosen_from(examples), None, file, show_progress="hidden", api_visibility="private")
            model = gr.Dropdown(list(sources), value=next(iter(sources)), label="Model")
            with gr.Row():
                scale = gr.Slider(1, 16, value=4, step=0.5, label="Scale")
                seed = gr.Number(0, label="Seed", precision=0)
            fidelity = gr.Slider(0, 1, value=own_fidelity, step=0.05, elem_id="fidelity",
                                 label="Fidelity: 0 the sharpest, 1 the most faithful")
            dial = gr.Textbox("", label="LR consistency: how many levels the reduced result may be off the picture",
                              placeholder="off", elem_id="dial")
            errors = gr.Checkbox(False, label="Expected error: a map of how far the result may be off",
                                 elem_id="errors")
            fast = gr.Checkbox(False, label="Fast: about half the time, a little less detail", elem_id="fast")
            with gr.Accordion("More settings", open=False):
                cfg = gr.Textbox("", label="Guidance (cfg)", placeholder="the model's own")
                color_fix = gr.Radio(list(COLOR_FIXES), value="wavelet", label="Colour fix")
                overlap = gr.Slider(0, MAX_OVERLAP, value=0.25, step=0.05, label="Overlap of windows")
                fastvar = gr.Checkbox(False, label="FastVAR: prune tokens of the last two scales")
                ratios = [gr.Slider(0, MAX_DROP, value=value, step=0.05, label=label) for value, label in
                          zip(FASTVAR_RATIOS, ("Dropped at the last scale but one", "Dropped at the last scale"))]
                kind = gr.Dropdown(list(KINDS), value="auto", label="Result file, auto: the picture's kind")
            with gr.Row():
                run = gr.Button("Restore", variant="primary", elem_id="run")
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
        with gr.Column(scale=2, min_width=480):
            status = gr.Markdown(READY, elem_id="status", latex_delimiters=[])
            preview = gr.Image(label="Picture", interactive=False, height=620, format="png", elem_id="preview",
                               buttons=[])
            slider = gr.ImageSlider(label="Bicubic | restored", interactive=False, visible=False, format="png",
                                    height=620, max_height=620, elem_id="slider", buttons=["fullscreen"])
            download = gr.DownloadButton("Download", visible=False, elem_id="download")
            error_map = gr.Image(label="Expected error", interactive=False, visible=False, height=400, format="png",
                                 elem_id="error_map", buttons=["fullscreen"])
            error_note = gr.Markdown(visible=False, elem_id="error_note", latex_delimiters=[])
            panel = RedoPanel(shop, sources)

    def prepared(session, file, name, scale, seed, fidelity, cfg, color_fix, overlap, fast, fastvar, second_last, last,
                 kind, errors, dial) -> Work:
        ratios = (second_last, last) if switch("FastVAR", fastvar) else ()
        requested = RestoreRequest(shop.uploaded(file), scale, guidance(cfg), 0 if seed is None else seed, color_fix,
                                   overlap, ratios, switch("fast", fast), kind, fidelity,
                                   switch("expected error", errors), optional_number("LR consistency", dial, "off"))
        chosen = sources[one_of("model", name, sources)]

        def work(job: Job, folder: Path, tell: Tell) -> None:
            shop.kept.drop(job.session)
            loaded, description = shop.models.get(chosen)
            calibration = calibration_of(chosen, loaded.config) if requested.errors else None

            def keep(*parts: Any) -> Result:
                result = Result(chosen, *parts)
                shop.kept.keep(job, result)
                return result
            restore_file(loaded, description, requested, folder, shop.decoder.max_pixels, tell,
                         lambda path, _: shop.decoder.read(path, job.check), keep, calibration)
        return work

    def show(update: Update, first: bool) -> tuple:
        if update.file is None:
            shown = [to_pillow(picture) for picture in update.pictures]
            if first:  # what is to be seen at all must be said once: it costs gradio 10 ms a part
                return status_line(update), gr.update(visible=True, **({"value": shown[0]} if shown else {})), *hidden
            return status_line(update), shown[0] if shown else gr.skip(), None, None, None, None, *panel.unchanged()
        return *shown_result(update), *shown_error(update.error), *panel.shown(update)
    outputs = [status, preview, slider, download, error_map, error_note, *panel.parts]
    settings = [file, model, scale, seed, fidelity, cfg, color_fix, overlap, fast, fastvar, *ratios, kind, errors, dial]
    hidden = (*(gr.update(visible=False),) * 4, *panel.hidden())
    restore = shop.follower(prepared, show, len(outputs), list(sources.values()))
    file.change(shop.looker(hidden), file, outputs, api_visibility="private", show_progress_on=status, **AT_ONCE)
    run.click(restore, settings, outputs, api_name="restore", show_progress_on=status, **AT_ONCE)
    cancel.click(shop.cancel, None, None, queue=False, show_progress="hidden", api_name="cancel")
    panel.connect(outputs, lambda update: (*shown_result(update), *shown_error(None), *panel.shown(update)))


def shown_result(update: Update) -> tuple:
    """A finished picture: line, preview, slider, download."""
    pair = tuple(to_pillow(fitted(picture)) for picture in update.pictures)
    return status_line(update), gr.update(visible=False), gr.update(value=pair, visible=True), \
        gr.update(value=update.file, visible=True, label=f"Download {update.file.name}")


def shown_error(error: ErrorView | None) -> tuple:
    """The map of expected errors and what is said of it."""
    if error is None:
        return gr.update(visible=False), gr.update(visible=False)
    return gr.update(value=to_pillow(error.picture), label=error.label, visible=True), \
        gr.update(value=as_markdown(error.note), visible=True)


def _class_tab(shop: Workshop, sources: dict[str, str]) -> None:
    first = next(iter(sources))
    titles = _class_titles(sources[first])
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            model = gr.Dropdown(list(sources), value=first, label="Model")
            classes = gr.Dropdown(titles, value=[value for _, value in titles[:4]], multiselect=True, label="Classes",
                                  elem_id="classes")
            count = gr.Slider(1, MAX_CLASS_PICTURES, value=2, step=1, label="Pictures of each")
            seed = gr.Number(0, label="Seed", precision=0)
            cfg = gr.Textbox("", label="Guidance (cfg)", placeholder="the model's own")
            with gr.Row():
                run = gr.Button("Draw", variant="primary", elem_id="draw")
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel_draw")
        with gr.Column(scale=2, min_width=480):
            status = gr.Markdown("Choose classes.", elem_id="class_status", latex_delimiters=[])
            gallery = gr.Gallery(label="Pictures", columns=4, height=620, object_fit="contain", format="png",
                                 interactive=False, elem_id="gallery", buttons=["download", "fullscreen"])
            download = gr.DownloadButton("Download the sheet", visible=False, elem_id="download_sheet")

    def prepared(_, name, labels, count, seed, cfg) -> Work:
        requested = ClassRequest(whole_numbers("classes", labels, MAX_CLASS_PICTURES), count, guidance(cfg),
                                 0 if seed is None else seed)
        chosen = sources[one_of("model", name, sources)]

        def work(_: Job, folder: Path, tell: Tell) -> None:
            draw_classes(shop.models.get(chosen, super_resolution=False)[0], requested, folder, tell)
        return work

    def show(update: Update, first: bool) -> tuple:
        pictures = [(to_pillow(picture), title) for picture, title in zip(update.pictures, update.titles)]
        if update.file is not None:
            return status_line(update), pictures, gr.update(value=update.file, visible=True)
        return status_line(update), pictures, gr.update(visible=False) if first else None

    def choices(name: object) -> dict:
        return gr.update(choices=_class_titles(sources[name]), value=[]) if name in list(sources) else gr.skip()
    outputs = [status, gallery, download]
    draw = shop.follower(prepared, show, len(outputs), list(sources.values()))
    model.change(choices, model, classes, preprocess=False, api_visibility="private")
    run.click(draw, [model, classes, count, seed, cfg], outputs, api_name="draw", **AT_ONCE)
    cancel.click(shop.cancel, None, None, queue=False, show_progress="hidden", api_visibility="private")


def _chosen_from(examples: list[str]) -> Callable[[gr.SelectData], str | dict]:
    def choose(event: gr.SelectData) -> str | dict:
        known = type(event.index) is int and 0 <= event.index < len(examples)
        return examples[event.index] if known else gr.skip()
    return choose


def _class_titles(source: str) -> list[tuple[str, int]]:
    """Titles and numbers of a model's classes, from its configuration alone where it is a folder."""
    path = Path(source) / "config.json"
    config = VARSRConfig.from_json(path.read_text(encoding="utf-8")) if path.is_file() else PRESETS[PUBLISHED_CLASSES]
    return [(class_title(config, label), label) for label in range(config.num_classes)]
