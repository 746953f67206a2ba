"""Distribution plots as inline SVG: a row a method with every picture's value, quartiles, mean and its interval."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from ..compare import estimate

# Okabe and Ito's palette, told apart with any colour vision
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#555555")
TICKS = 4
GOLDEN = 0.618034  # spreads the points of a row without randomness


@dataclass(frozen=True)
class PlotLayout:
    """Sizes in pixels."""

    width: int = 420
    label: int = 96  # room for method names
    row: int = 34
    axis: int = 24
    margin: int = 14
    letter: int = 7  # mean width of a label's letter


def colour(index: int) -> str:
    """A method's colour."""
    return COLOURS[index % len(COLOURS)]


def nice_ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About `count` round numbers within [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    magnitude = 10 ** math.floor(math.log10(span / count))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if span / (factor * magnitude) <= count + 1)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def distribution(values: Mapping[str, Sequence[float]], layout: PlotLayout | None = None) -> str:
    """An SVG of the values of each method (none of them empty; infinite ones are left out)."""
    layout = layout or PlotLayout()
    finite = {method: [value for value in row if math.isfinite(value)] for method, row in values.items()}
    every = [value for row in finite.values() for value in row]
    if not every:
        return ""
    low, high = min(every), max(every)
    pad = (high - low) * 0.04 or max(abs(high) * 0.02, 1e-3)
    low, high = low - pad, high + pad
    room = layout.width - layout.label - layout.margin

    def x(value: float) -> float:
        return layout.label + (value - low) / (high - low) * room
    bottom = layout.row * len(finite)
    parts = [f'<svg viewBox="0 0 {layout.width} {bottom + layout.axis}" role="img">']
    for tick in nice_ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="0" y2="{bottom}"/>'
                     f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}">{tick:g}</text>')
    for i, (method, row) in enumerate(finite.items()):
        parts.append(_row(method, row, [x(value) for value in row], colour(i), layout.row * (i + 0.5), layout, x))
    return "".join(parts) + "</svg>"


def _row(method: str, values: Sequence[float], places: Sequence[float], fill: str, middle: float, layout: PlotLayout,
         x) -> str:
    """One method: label, points, quartile box, mean with its confidence interval."""
    fitting = layout.label // layout.letter - 1
    shown = method if len(method) <= fitting else method[:fitting - 1] + "…"
    parts = [f'<text class="method" x="{layout.label - 8}" y="{middle + 4:.1f}">{escape(shown)}'
             f'<title>{escape(method)}</title></text>']
    if not values:
        return parts[0]
    quarter, three = np.percentile(places, [25, 75])
    parts.append(f'<rect x="{quarter:.1f}" y="{middle - 10:.1f}" width="{max(three - quarter, 1):.1f}" height="20" '
                 f'fill="{fill}" opacity="0.13"/>')
    for i, place in enumerate(places):
        offset = ((i * GOLDEN) % 1 - 0.5) * 16
        parts.append(f'<circle cx="{place:.1f}" cy="{middle + offset:.1f}" r="2.6" fill="{fill}" opacity="0.55"/>')
    mean = estimate(values)
    if mean.low is not None and mean.high is not None:
        parts.append(f'<line x1="{x(mean.low):.1f}" x2="{x(mean.high):.1f}" y1="{middle:.1f}" y2="{middle:.1f}" '
                     f'stroke="{fill}" stroke-width="2.5"/>')
    parts.append(f'<rect x="{x(mean.mean) - 1.5:.1f}" y="{middle - 11:.1f}" width="3" height="22" fill="{fill}"/>')
    return "".join(parts)
