"""What an evaluation leaves behind: tables, and a manifest from which every number can be traced to its files."""
from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import io
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from pictures.formats import pictures_in
from utils.files import cell, replacing

from .compare import CONFIDENCE, RESAMPLES, SEED, Estimate, Evaluation

VALUES_FILE, SUMMARY_FILE, MANIFEST_FILE = "metrics.csv", "summary.csv", "manifest.json"
VERSIONS_OF = ("torch", "torchvision", "numpy", "pillow", "pyiqa", "mmagic", "basicsr")
BLOCK = 1 << 20


def number(value: float | None) -> str:
    """A value as tables show it, six digits as in the metrics.csv of the restoring scripts."""
    return "" if value is None else f"{value:.6g}"


def values_table(evaluation: Evaluation) -> str:
    """CSV with a row a method and picture."""
    columns = _columns(evaluation)
    rows = [[cell(method), cell(name), *(number(row.get(column)) for column in columns)]
            for method, pictures in evaluation.values.items() for name, row in pictures.items()]
    return _csv([["method", "picture", *columns], *rows])


def summary_table(evaluation: Evaluation) -> str:
    """CSV with a row a method and metric: mean, confidence interval, number of pictures."""
    rows = [[cell(method), column, number(e.mean), number(e.low), number(e.high), str(e.count)]
            for method, means in evaluation.means().items() for column, e in means.items()]
    return _csv([["method", "metric", "mean", "low", "high", "pictures"], *rows])


def _columns(evaluation: Evaluation) -> list[str]:
    present = {column for rows in evaluation.values.values() for row in rows.values() for column in row}
    return [metric.column for metric in evaluation.protocol.metrics if metric.column in present]


def _csv(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def console_table(evaluation: Evaluation) -> str:
    """Methods side by side: mean and half-width of the confidence interval."""
    means = evaluation.means()
    methods = list(means)
    lines = [["", *methods]]
    for metric in evaluation.protocol.metrics:
        cells = [_cell(means[method].get(metric.column)) for method in methods]
        if any(cells):
            lines.append([f"{metric.label} {'↑' if metric.higher_is_better else '↓'}", *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)


def _cell(value: Estimate | None) -> str:
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return f"{value.mean:.4f}"
    return f"{value.mean:.4f} [{value.low:.4f}, {value.high:.4f}]"


def manifest(evaluation: Evaluation, command: Sequence[str], outputs: Sequence[Path]) -> dict[str, object]:
    """Protocol, inputs and outputs with their SHA-256, versions, and what was left out."""
    folders = evaluation.folders
    inputs = {**{f"results: {name}": path for name, path in folders.results.items()},
              **{label: path for label, path in (("hr", folders.hr), ("lr", folders.lr)) if path}}
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(command),
        "protocol": asdict(evaluation.protocol),
        "confidence_intervals": {"method": "bootstrap, percentile", "confidence": CONFIDENCE,
                                 "resamples": RESAMPLES, "seed": SEED},
        "versions": versions(),
        "metrics_missing": evaluation.missing,
        "failures": evaluation.failures,
        "inputs": {label: {"folder": str(folder), "sha256": {path.name: sha256(path) for path in pictures_in(folder)}}
                   for label, folder in inputs.items()},
        "outputs": {path.name: sha256(path) for path in outputs},
    }


def versions() -> dict[str, str]:
    """Python's version and those of the packages that metrics depend on."""
    found = {"python": platform.python_version()}
    for package in VERSIONS_OF:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> Path:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def write_tables(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write both tables; returns their paths."""
    return [write_text(folder / VALUES_FILE, values_table(evaluation)),
            write_text(folder / SUMMARY_FILE, summary_table(evaluation))]


def write_manifest(evaluation: Evaluation, command: Sequence[str], folder: Path, outputs: Sequence[Path]) -> Path:
    """Write the manifest, after everything else that it lists."""
    text = json.dumps(manifest(evaluation, command, outputs), indent=1, ensure_ascii=False)
    return write_text(folder / MANIFEST_FILE, text + "\n")
