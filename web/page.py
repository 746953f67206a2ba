"""The web page: its parts, and how they follow the jobs of `app_jobs`."""
from __future__ import annotations

import argparse
import os
import tempfile
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gradio as gr

from inference.classes import class_title
from inference.render import COLOR_FIXES
from models.config import PRESETS, VARSRConfig
from models.weights.load import CHECKPOINTS
from pictures.formats import SUFFIXES
from pictures.rgb import read_image, to_pillow
from utils.errors import UserError

from .jobs import (
    MAX_CLASS_PICTURES,
    MAX_OVERLAP,
    Cancelled,
    ClassRequest,
    Models,
    RestoreRequest,
    Tell,
    Update,
    checked_picture,
    draw_classes,
    model_sources,
    one_line,
    restore_file,
    stream,
)
from .preview import fitted

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read once, when gradio is imported

EXAMPLES = CHECKPOINTS.parent / "testset" / "sample" / "LR"
PUBLISHED_CLASSES = "varsr-d24-c2i"  # preset of the published class-to-image file
KINDS = ("auto", "png", "jpg", "webp", "tif")
FASTVAR_RATIOS = (0.4, 0.3)  # drop ratios of the last two scales
# Both tabs share the memory, so they share the queue; what waits there does not keep its session from asking again.
ONE_JOB = {"concurrency_limit": 1, "concurrency_id": "model", "trigger_mode": "multiple"}
CACHE_SECONDS = (600, 3600)  # how often the page's files are looked over, and how old they get
TITLE = "VARSR"
HEADER = "# VARSR\nImage super-resolution by next-scale visual autoregression: drop a picture, watch the scales emerge."
READY = "Drop a picture or take an example."
WAITING = "waiting for the model"
CANCELLED = "cancelled"
BAR_CELLS = 20


class Sessions:
    """Which jobs belong to whom, so that everyone stops only their own. A session's jobs run in the order they came."""

    def __init__(self) -> None:
        self.waiting: defaultdict[str, deque[threading.Event]] = defaultdict(deque)
        self.running: dict[str, threading.Event] = {}

    def start(self, request: gr.Request) -> str:
        """Before a job waits in the queue: from now on it can be cancelled. Older ones of the session end."""
        self.cancel(request)
        self.waiting[request.session_hash].append(threading.Event())
        return WAITING

    def begin(self, request: gr.Request) -> threading.Event:
        """The flag of the session's next job, whose turn it is."""
        waiting = self.waiting[request.session_hash]
        self.running[request.session_hash] = waiting.popleft() if waiting else threading.Event()
        return self.running[request.session_hash]

    def end(self, request: gr.Request) -> None:
        """The running job of the session is over."""
        self.running.pop(request.session_hash, None)
        if not self.waiting[request.session_hash]:
            del self.waiting[request.session_hash]

    def cancel(self, request: gr.Request) -> str | dict:
        """Stop this session's jobs. A running one tells its own end; of waiting ones the page is told here."""
        running, waiting = self.running.get(request.session_hash), self.waiting.get(request.session_hash, ())
        for stop in (*waiting, *([] if running is None else [running])):
            stop.set()
        return CANCELLED if waiting and running is None else gr.skip()

    def leave(self, request: gr.Request) -> None:
        """The page was closed: what still waits ends at its turn."""
        self.cancel(request)


def build_page(args: argparse.Namespace) -> gr.Blocks:
    """The page for parsed flags of app.py. Raises ValueError or OSError where the chosen model cannot be used."""
    models, sessions = Models(args.device, args.dtype), Sessions()
    sources = model_sources(args, super_resolution=True)
    first, _ = models.get(next(iter(sources.values())))  # a wrong flag is noticed now and not by the first visitor
    with gr.Blocks(title=TITLE, delete_cache=CACHE_SECONDS) as page:
        gr.Markdown(HEADER)
        with gr.Tab("Super-resolution"):
            _restore_tab(models, sessions, sources, round(args.max_pixels * 1e6), first.config.generation.fidelity)
        with gr.Tab("Class to image"):
            _class_tab(models, sessions, model_sources(args, super_resolution=False))
        page.unload(sessions.leave)
    return page.queue(default_concurrency_limit=1)


def serve(page: gr.Blocks, args: argparse.Namespace, **options: object) -> None:
    """Serve the page, by default until the program is stopped. Raises OSError where the port is taken."""
    page.launch(server_name=args.host, server_port=args.port, share=False, max_file_size=f"{args.max_megabytes}mb",
                footer_links=[], ssr_mode=False, **options)


def _restore_tab(models: Models, sessions: Sessions, sources: dict[str, str], max_pixels: int,
                 own_fidelity: float) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            file = gr.File(label="Picture", file_types=list(SUFFIXES), height=120, elem_id="source")
            examples = sorted(str(path) for path in EXAMPLES.glob("*.png"))
            if examples:
                gallery = gr.Gallery(examples, label="Examples", columns=5, height=170, allow_preview=False,
                                     elem_id="examples", buttons=[], interactive=False)
                gallery.select(_chosen_from(examples), None, file, show_progress="hidden")
            model = gr.Dropdown(list(sources), value=next(iter(sources)), label="Model")
            with gr.Row():
                scale = gr.Slider(1, 16, value=4, step=0.5, label="Scale")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            fidelity = gr.Slider(0, 1, value=own_fidelity, step=0.05, elem_id="fidelity",
                                 label="Fidelity: 0 the sharpest, 1 the most faithful")
            fast = gr.Checkbox(False, label="Fast: about half the time, a little less detail", elem_id="fast")
            with gr.Accordion("More settings", open=False):
                cfg = gr.Textbox("", label="Guidance (cfg)", placeholder="the model's own")
                color_fix = gr.Radio(list(COLOR_FIXES), value="wavelet", label="Colour fix")
                overlap = gr.Slider(0, MAX_OVERLAP, value=0.25, step=0.05, label="Overlap of windows")
                fastvar = gr.Checkbox(False, label="FastVAR: prune tokens of the last two scales")
                ratios = [gr.Slider(0, 0.9, value=value, step=0.05, label=label) for value, label in
                          zip(FASTVAR_RATIOS, ("Dropped at the last scale but one", "Dropped at the last scale"))]
                kind = gr.Dropdown(list(KINDS), value="auto", label="Result file, auto: the picture's kind")
            with gr.Row():
                run = gr.Button("Restore", variant="primary", elem_id="run")
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel")
        with gr.Column(scale=2, min_width=480):
            status = gr.Markdown(READY, elem_id="status")
            preview = gr.Image(label="Picture", interactive=False, height=620, format="png", elem_id="preview",
                               buttons=[])
            slider = gr.ImageSlider(label="Bicubic | restored", interactive=False, visible=False, format="png",
                                    height=620, max_height=620, elem_id="slider", buttons=["fullscreen"])
            download = gr.DownloadButton("Download", visible=False, elem_id="download")

    def restore(path, name, scale, seed, fidelity, cfg, color_fix, overlap, fast, fastvar, second_last, last, kind,
                request: gr.Request) -> Iterator[tuple]:
        source = Path(path) if path else None

        def work(folder: Path, tell: Tell) -> None:
            if source is None:
                raise UserError("there is no picture yet: drop one or take an example")
            requested = RestoreRequest(source, scale, _guidance(cfg), int(seed or 0), color_fix, overlap,
                                    (second_last, last) if fastvar else (), fast, kind, fidelity)
            loaded, description = models.get(sources[name])
            restore_file(loaded, description, requested, folder, max_pixels, tell)

        def show(update: Update) -> tuple:
            if update.file is None:
                shown = to_pillow(update.pictures[0]) if update.pictures else gr.skip()
                return _status(update), gr.update(value=shown, visible=True) if update.pictures else shown, \
                    gr.update(visible=False), gr.update(visible=False)
            pair = tuple(to_pillow(fitted(picture)) for picture in update.pictures)
            return _status(update), gr.update(visible=False), gr.update(value=pair, visible=True), \
                gr.update(value=update.file, visible=True, label=f"Download {update.file.name}")
        yield from _follow(work, show, 4, sessions, request, source)

    def look(path: str | None) -> tuple:
        hidden = gr.update(visible=False)
        if path is None:
            return READY, gr.update(value=None, visible=True), hidden, hidden
        try:
            picture, _ = checked_picture(RestoreRequest(Path(path), scale=1), max_pixels)
            shown = to_pillow(fitted(read_image(path)))
        except Exception as error:
            return _warning(one_line(error, Path(path))), gr.update(value=None, visible=True), hidden, hidden
        line = f"{Path(path).name}: {picture.width}x{picture.height} pixels, {picture.color.dtype.itemsize * 8} bits"
        return line, gr.update(value=shown, visible=True), hidden, hidden
    outputs = [status, preview, slider, download]
    file.change(look, file, outputs, show_progress="hidden")
    settings = [file, model, scale, seed, fidelity, cfg, color_fix, overlap, fast, fastvar, *ratios, kind]
    run.click(sessions.start, None, status, queue=False).then(restore, settings, outputs, show_progress="hidden",
                                                              **ONE_JOB)
    cancel.click(sessions.cancel, None, status, queue=False, show_progress="hidden")


def _class_tab(models: Models, sessions: Sessions, sources: dict[str, str]) -> None:
    first = next(iter(sources))
    titles = _class_titles(sources[first])
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            model = gr.Dropdown(list(sources), value=first, label="Model")
            classes = gr.Dropdown(titles, value=[value for _, value in titles[:4]], multiselect=True, label="Classes",
                                  elem_id="classes")
            count = gr.Slider(1, MAX_CLASS_PICTURES, value=2, step=1, label="Pictures of each")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0)
            cfg = gr.Textbox("", label="Guidance (cfg)", placeholder="the model's own")
            with gr.Row():
                run = gr.Button("Draw", variant="primary", elem_id="draw")
                cancel = gr.Button("Cancel", variant="stop", elem_id="cancel_draw")
        with gr.Column(scale=2, min_width=480):
            status = gr.Markdown("Choose classes.", elem_id="class_status")
            gallery = gr.Gallery(label="Pictures", columns=4, height=620, object_fit="contain", format="png",
                                 interactive=False, elem_id="gallery", buttons=["download", "fullscreen"])
            download = gr.DownloadButton("Download the sheet", visible=False, elem_id="download_sheet")

    def paint(name, labels, count, seed, cfg, request: gr.Request) -> Iterator[tuple]:
        def work(folder: Path, tell: Tell) -> None:
            requested = ClassRequest(tuple(labels), int(count), _guidance(cfg), int(seed or 0))
            draw_classes(models.get(sources[name], super_resolution=False)[0], requested, folder, tell)

        def show(update: Update) -> tuple:
            pictures = [(to_pillow(picture), title) for picture, title in zip(update.pictures, update.titles)]
            sheet = gr.update(visible=False) if update.file is None else gr.update(value=update.file, visible=True)
            return _status(update), pictures, sheet
        yield from _follow(work, show, 3, sessions, request)
    model.change(lambda name: gr.update(choices=_class_titles(sources[name]), value=[]), model, classes)
    run.click(sessions.start, None, status, queue=False).then(
        paint, [model, classes, count, seed, cfg], [status, gallery, download], show_progress="hidden", **ONE_JOB)
    cancel.click(sessions.cancel, None, status, queue=False, show_progress="hidden")


def _follow(work: Callable[[Path, Tell], None], show: Callable[[Update], tuple], outputs: int, sessions: Sessions,
            request: gr.Request, source: Path | None = None) -> Iterator[tuple]:
    """The page's outputs while a job runs; its end, good or bad, is one line in the first of them."""
    rest, stop = (gr.skip(),) * (outputs - 1), sessions.begin(request)
    with tempfile.TemporaryDirectory(prefix="varsr_") as folder:  # gradio has its own copy of what it was shown
        try:
            if stop.is_set():  # its end was told when it was cancelled; the page may show something newer
                yield gr.skip(), *rest
                return
            for update in stream(partial(work, Path(folder)), stop):
                yield show(update)
        except Cancelled:
            yield CANCELLED, *rest
        except Exception as error:
            yield _warning(one_line(error, source)), *rest
        finally:
            sessions.end(request)


def _status(update: Update) -> str:
    if update.file is not None:
        return f"✔ {update.message}"
    full = round(update.share * BAR_CELLS)
    return f"`{'█' * full}{'░' * (BAR_CELLS - full)}` {update.message}"


def _guidance(text: str) -> float | None:
    """The number in a field, None for an empty one: gradio's own field for numbers takes empty for 0."""
    try:
        return float(text) if text.strip() else None
    except ValueError as error:
        raise UserError(f"guidance {text!r} is no number: give one, or nothing for the model's own") from error


def _warning(text: str) -> str:
    return f"⚠ {text}"


def _chosen_from(examples: list[str]) -> Callable[[gr.SelectData], str]:
    def choose(event: gr.SelectData) -> str:
        return examples[event.index]
    return choose


def _class_titles(source: str) -> list[tuple[str, int]]:
    """Titles and numbers of a model's classes, from its configuration alone where it is a folder."""
    path = Path(source) / "config.json"
    config = VARSRConfig.from_json(path.read_text(encoding="utf-8")) if path.is_file() else PRESETS[PUBLISHED_CLASSES]
    return [(class_title(config, label), label) for label in range(config.num_classes)]
