"""One HTML page of an evaluation that opens from disk: no file beside it, nothing from the network."""
from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from PIL import Image
from torch import Tensor

from pictures.formats import ImageError
from pictures.rgb import read_image, to_pillow

from ..compare import BICUBIC, CONFIDENCE, RESAMPLES, SEED, Estimate, Evaluation, Partners, enlarged
from ..protocols import Metric
from ..tables import number
from .plots import colour, distribution

ASSETS = Path(__file__).parent / "assets"
SHOWN_SIDE, SHOWN_QUALITY = 1024, 90  # longest side and JPEG quality of embedded pictures
STRIP_SIDE, STRIP_QUALITY = 256, 82  # of the pictures after each scale
THUMBNAIL_SIDE, THUMBNAIL_QUALITY = 96, 75


def render_report(evaluation: Evaluation, command: Sequence[str], versions: dict[str, str], pictures: int) -> str:
    """The page's HTML, with at most `pictures` pictures in it."""
    page = {"metrics": [{"column": metric.column, "label": metric.label} for metric in evaluation.protocol.metrics],
            "pictures": _pictures(evaluation, pictures)}
    left_out = len(evaluation.pictures) - len(page["pictures"])
    sections = [_header(evaluation), _notes(evaluation), _table(evaluation), _plots(evaluation),
                _viewer(left_out) if page["pictures"] else "", _settings(evaluation, command, versions)]
    return "\n".join([
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(evaluation.protocol.name)}: {escape(', '.join(evaluation.folders.results))}</title>",
        f"<style>{_asset('style.css')}</style></head><body><main>", *sections, "</main>",
        f'<script type="application/json" id="data">{_json(page)}</script>',
        f"<script>{_asset('page.js')}</script></body></html>", ""])


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _json(data: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def _pictures(evaluation: Evaluation, limit: int) -> list[dict[str, object]]:
    shown = []
    for name, partners in evaluation.pictures.items():
        if len(shown) == limit:
            break
        layers = _layers(name, partners, evaluation)
        if layers:
            shown.append({"name": name, "layers": layers, "strip": _strip(partners),
                          "thumbnail": _embedded(_layer_picture(partners, layers), THUMBNAIL_SIDE, THUMBNAIL_QUALITY)})
    return shown


def _layer_picture(partners: Partners, layers: list[dict[str, object]]) -> Image.Image:
    method = next(layer["label"] for layer in layers if layer["label"] in partners.results)
    return to_pillow(read_image(partners.results[method]))


def _layers(name: str, partners: Partners, evaluation: Evaluation) -> list[dict[str, object]]:
    """What can be laid over each other, from the LR picture to the original; broken files are left out."""
    results = {method: image for method, path in partners.results.items() if (image := _readable(path)) is not None}
    if not results:
        return []
    size = next(iter(results.values())).shape[-2:]
    layers: dict[str, Tensor] = {}
    if partners.lr is not None and (lr := _readable(partners.lr)) is not None:
        layers[BICUBIC] = enlarged(lr, size)
    layers.update({method: image for method, image in results.items() if image.shape[-2:] == size})
    if partners.hr is not None and (hr := _readable(partners.hr)) is not None and hr.shape[-2:] == size:
        layers["HR"] = hr
    return [{"label": label, "kind": _kind(label, partners), "width": size[1], "height": size[0],
             "values": {column: number(value)
                        for column, value in evaluation.values.get(label, {}).get(name, {}).items()},
             "uri": _embedded(to_pillow(image), SHOWN_SIDE, SHOWN_QUALITY)} for label, image in layers.items()]


def _kind(label: str, partners: Partners) -> str:
    if label in partners.results:
        return "result"
    return "lr" if label == BICUBIC else "hr"


def _readable(path: Path) -> Tensor | None:
    try:
        return read_image(path)
    except ImageError:
        return None  # named among the failures already


def _strip(partners: Partners) -> list[dict[str, object]]:
    """The pictures after each scale that lie beside a result as NAME_scales/side{n}.png, by method."""
    strip = []
    for method, path in partners.results.items():
        found = {int(match[1]): file for file in path.with_name(f"{path.stem}_scales").glob("side*.png")
                 if (match := re.fullmatch(r"side(\d+)", file.stem))}
        for side, file in sorted(found.items()):
            image = _readable(file)
            if image is not None:
                strip.append({"method": method, "side": side,
                              "uri": _embedded(to_pillow(image), STRIP_SIDE, STRIP_QUALITY)})
    return strip


def _embedded(picture: Image.Image, longest: int, quality: int) -> str:
    """A JPEG data URI, made smaller where the picture is larger than `longest`."""
    if max(picture.size) > longest:
        factor = longest / max(picture.size)
        size = tuple(max(round(side * factor), 1) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _header(evaluation: Evaluation) -> str:
    methods = "".join(f'<span class="chip"><i style="background:{colour(i)}"></i>{escape(method)}</span>'
                      for i, method in enumerate(evaluation.values))
    against = "against originals" if evaluation.folders.hr else "without originals"
    return (f"<header><h1>Evaluation</h1><p>{len(evaluation.pictures)} pictures {against}, protocol "
            f"<b>{escape(evaluation.protocol.name)}</b> ({escape(evaluation.protocol.source)})</p>{methods}</header>")


def _notes(evaluation: Evaluation) -> str:
    """What was left out, said before any number."""
    parts = []
    if evaluation.failures:
        parts.append(_list("failed", f"{len(evaluation.failures)} left out", evaluation.failures))
    if evaluation.missing:
        parts.append(_list("missing", "Not measured here",
                           [f"{column}: {reason}" for column, reason in evaluation.missing.items()]))
    return "".join(parts)


def _list(kind: str, title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<details class="note {kind}"><summary>{escape(title)}</summary><ul>{items}</ul></details>'


def _table(evaluation: Evaluation) -> str:
    means = evaluation.means()
    head = "".join(f'<th><i style="background:{colour(i)}"></i>{escape(method)}</th>' for i, method in enumerate(means))
    rows = []
    for metric in evaluation.protocol.metrics:
        cells = [means[method].get(metric.column) for method in means]
        if any(cells):
            rows.append(_table_row(metric, cells))
    return (f'<section><h2>Means</h2><table class="means"><thead><tr><th>metric</th>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table>"
            f'<p class="small">{CONFIDENCE:.0%} confidence intervals by bootstrap over pictures '
            f"({RESAMPLES} resamples, seed {SEED}). The best mean is bold; methods whose intervals overlap may "
            "not differ.</p></section>")


def _table_row(metric: Metric, cells: Sequence[Estimate | None]) -> str:
    present = [cell.mean for cell in cells if cell]
    best = (max if metric.higher_is_better else min)(present)
    arrow = "↑" if metric.higher_is_better else "↓"
    row = "".join(_table_cell(cell, len(present) > 1 and cell is not None and cell.mean == best) for cell in cells)
    return (f'<tr><th title="{escape(metric.variant)}">{escape(metric.label)} <span class="arrow">{arrow}</span>'
            f"</th>{row}</tr>")


def _table_cell(cell: Estimate | None, is_best: bool) -> str:
    if cell is None:
        return "<td>–</td>"
    interval = f'<span class="interval">{_short(cell.low)} – {_short(cell.high)}</span>' \
        if cell.low is not None and cell.high is not None else ""
    return f'<td{" class=best" if is_best else ""}><b>{_short(cell.mean)}</b>{interval}</td>'


def _short(value: float) -> str:
    """Four significant digits."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def _plots(evaluation: Evaluation) -> str:
    figures = []
    for metric in evaluation.protocol.metrics:
        values = {method: [row[metric.column] for row in rows.values() if metric.column in row]
                  for method, rows in evaluation.values.items()}
        drawn = distribution(values)
        if drawn:
            arrow = "↑" if metric.higher_is_better else "↓"
            figures.append(f"<figure><figcaption>{escape(metric.label)} <span class=\"arrow\">{arrow}</span>"
                           f"</figcaption>{drawn}</figure>")
    return (f'<section><h2>Distributions</h2><div class="plots">{"".join(figures)}</div><p class="small">A dot is a '
            "picture, the pale box holds the middle half of them, the bar is the mean with its confidence interval."
            "</p></section>") if figures else ""


def _viewer(left_out: int) -> str:
    more = f'<p class="small">{left_out} more pictures were measured but are not shown.</p>' if left_out else ""
    return _asset("viewer.html") + more


def _settings(evaluation: Evaluation, command: Sequence[str], versions: dict[str, str]) -> str:
    folders = evaluation.folders
    rows = {"command": " ".join(command),
            **{f"results, {method}": str(path) for method, path in folders.results.items()},
            "originals": str(folders.hr or "none"), "LR pictures": str(folders.lr or "none"),
            "versions": ", ".join(f"{name} {version}" for name, version in versions.items())}
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    metrics = "".join(f"<tr><th>{escape(metric.label)}</th><td>{escape(metric.variant)}</td></tr>"
                      for metric in evaluation.protocol.metrics)
    return (f'<section><h2>Settings</h2><table class="facts">{lines}</table><h3>Metric variants</h3>'
            f'<table class="facts">{metrics}</table></section>')
