"""What a run did and how good it was: metrics, failures, the summary, the tables, the log of files."""
from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from evaluation.metrics.full_reference import SSIM_SIDE, psnr_y, ssim_y
from evaluation.metrics.learned import LearnedMetrics
from pictures.picture import Picture
from pictures.result_file import ResultFile, ResultOptions
from pictures.rgb import read_image
from utils.files import replacing

from .jobs import Job
from .windows import LatentStore, TiledPicture

METRICS_FILE = "metrics.csv"
SHEET_PIXELS = 4_000_000  # larger results are left out of comparison sheets


@dataclass
class FileRecord:
    """One picture in the log: what became of it and how long each step took (seconds)."""

    source: str
    output: str
    status: str = "restored"  # or "skipped", "failed"
    error: str | None = None
    width: int = 0
    height: int = 0
    windows: int = 0
    read_seconds: float = 0.0
    generate_seconds: float = 0.0
    render_seconds: float = 0.0
    write_seconds: float = 0.0


@dataclass
class Report:
    """Metrics by result file, the same of the bicubic enlargements, failures and a record of every picture."""

    rows: dict[Path, dict[str, float]] = field(default_factory=dict)
    baselines: dict[Path, dict[str, float]] = field(default_factory=dict)
    references: dict[Path, Path] = field(default_factory=dict)  # by result file
    failures: dict[Path, str] = field(default_factory=dict)
    records: list[FileRecord] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """1 if any picture failed."""
        return 1 if self.failures else 0

    def count(self, status: str) -> int:
        """How many pictures ended so."""
        return sum(record.status == status for record in self.records)

    def merge(self, other: Report) -> None:
        """Add what another rank did."""
        for name in ("rows", "baselines", "references", "failures"):
            getattr(self, name).update(getattr(other, name))
        self.records += other.records
        self.seconds = max(self.seconds, other.seconds)

    def summary(self) -> str:
        """One line for the end of a run, a second one with mean metrics where there were references."""
        parts = [f"{self.count('restored')} restored in {self.seconds:.1f} s"]
        if self.count("skipped"):
            parts.append(f"{self.count('skipped')} skipped (already there)")
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        lines = [", ".join(parts)]
        if self.baselines:
            ours, bicubic = mean_row(list(self.rows.values())), mean_row(list(self.baselines.values()))
            lines.append("mean " + ", ".join(
                f"{name} {value:.4g}" + (f" (bicubic {bicubic[name]:.4g})" if name in bicubic else "")
                for name, value in ours.items()))
        return "\n".join(lines)


Extra = Callable[["Started"], dict[str, Tensor]]  # more pictures for the sheet, by label, of a finished picture


def mean_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every column over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(row[name] for row in rows if name in row) / sum(name in row for row in rows) for name in names}


def write_table(path: Path, rows: dict[str, dict[str, float]], mean: dict[str, float]) -> None:
    """A CSV with a row per picture and a mean row."""
    names = list(dict.fromkeys(name for row in (*rows.values(), mean) for name in row))
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", *names])
        for picture, row in [*rows.items(), ("mean", mean)]:
            writer.writerow([picture, *(f"{row[name]:.6g}" if name in row else "" for name in names)])


def append_log(path: Path, record: FileRecord) -> None:
    """One JSON line; several ranks may append to one log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(asdict(record), ensure_ascii=False) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


@dataclass
class Started:
    """What belongs to one picture while it is worked on."""

    job: Job
    picture: Picture
    tiled: TiledPicture
    result: ResultFile
    record: FileRecord


class Judge:
    """Looks at finished pictures: the picture after each scale, metrics against the reference, the row of the sheet."""

    def __init__(self, device: torch.device, report: Report, render: Callable[[Started, LatentStore, ResultFile], None],
                 result: ResultOptions, on_sheet: bool = False, exports: bool = False, label: str = "VARSR",
                 extra: Extra | None = None) -> None:
        """report: where metrics go. render: fills a result from latents. result: how exported pictures are written.
        on_sheet: keep pictures for a comparison sheet, ours under a label, with extra ones."""
        self.device, self.report, self.render, self.result = device, report, render, result
        self.on_sheet, self.exports, self.label, self.extra = on_sheet, exports, label, extra
        self.learned: LearnedMetrics | None = None
        self.sheet_rows: dict[str, dict[str, Tensor]] = {}

    def __call__(self, started: Started) -> None:
        job, tiled = started.job, started.tiled
        if self.exports:
            self._export(started)
        extra = self.extra(started) if self.extra else {}
        on_sheet = self.on_sheet and tiled.height * tiled.width <= SHEET_PIXELS
        if job.reference is None and not on_sheet:
            return
        # what the written file shows counts, not what was meant to be written
        restored, bicubic = read_image(job.output), tiled.guide(0, 0, tiled.height, tiled.width)
        reference = read_image(job.reference) if job.reference else None
        if on_sheet:
            pictures = {"bicubic": bicubic, self.label: restored, **extra}
            if reference is not None and reference.shape == restored.shape:
                pictures["HR"] = reference
            self.sheet_rows[job.output.stem] = pictures
        if reference is not None:
            self.learned = self.learned or LearnedMetrics(self.device)
            self.report.rows[job.output] = {**psnr_ssim(restored, reference),
                                            **self.learned.measure(restored, reference)}
            self.report.baselines[job.output] = {**psnr_ssim(bicubic, reference),
                                                 **self.learned.distance(bicubic, reference)}
            self.report.references[job.output] = job.reference

    def _export(self, started: Started) -> None:
        """The picture after each exported scale, as NAME_scales/side{n}.png."""
        folder = started.job.output.with_name(f"{started.job.output.stem}_scales")
        for side, latents in started.tiled.latents.items():
            result = ResultFile(folder / f"side{side}.png", started.picture, started.tiled.height,
                                started.tiled.width, self.result)
            try:
                self.render(started, latents, result)
                result.finish()
            finally:
                result.discard()

    def write_tables(self, report: Report) -> None:
        """`metrics.csv` into every folder of results that were measured."""
        for folder in dict.fromkeys(path.parent for path in report.rows):
            rows = {path.name: row for path, row in report.rows.items() if path.parent == folder}
            mean = mean_row(list(rows.values()))
            references = {path.parent for output, path in report.references.items() if output.parent == folder}
            fid = self.learned.fid(folder, references.pop()) if self.learned and len(references) == 1 else None
            if fid is not None:
                mean["fid"] = fid
            write_table(folder / METRICS_FILE, dict(sorted(rows.items())), mean)


def psnr_ssim(image: Tensor, reference: Tensor) -> dict[str, float]:
    """The metrics that need no learned weights. Raises ValueError where the sizes differ."""
    values = {"psnr_y": psnr_y(image, reference)}
    if min(image.shape[-2:]) >= SSIM_SIDE:
        values["ssim_y"] = ssim_y(image, reference)
    return values
