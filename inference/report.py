"""What a run did and how good it was: metrics, failures, the summary, the tables, the log of files."""
from __future__ import annotations

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from evaluation.metrics.full_reference import SSIM_SIDE, psnr_y, ssim_y
from evaluation.metrics.learned import LearnedMetrics
from evaluation.protocols import FID
from pictures.file_writer import SETTINGS
from pictures.picture import Picture, read_header, read_picture
from pictures.result_file import TOP_16, ResultFile, ResultOptions
from pictures.rgb import MAX_SCALE, enlarged, laid_over_white, read_image
from pictures.sheets import SheetEntry, error_picture, sheet_entry
from utils.errors import UserError, describe, exit_code
from utils.files import cell, replacing, text_of_cell

from .consistency import broken_promise, note_residual
from .jobs import Job, left_out_lines
from .products import STEPS, ErrorProduct
from .settings import LRConsistency
from .tokens import TokenState
from .windows import LatentStore, TiledPicture

log = logging.getLogger(__name__)

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
    lr_residual: float | None = None  # largest and mean, in levels, where --lr_consistency has it measured
    lr_residual_mean: float | None = None


@dataclass
class Report:
    """Metrics by result file, the same of the bicubic enlargements, failures and a record of every picture."""

    rows: dict[Path, dict[str, float]] = field(default_factory=dict)
    baselines: dict[Path, dict[str, float]] = field(default_factory=dict)
    references: dict[Path, Path] = field(default_factory=dict)  # by result file
    failures: dict[Path, str] = field(default_factory=dict)
    not_measured: dict[Path, str] = field(default_factory=dict)  # restored, but without metrics or a row of the sheet
    problems: list[str] = field(default_factory=list)  # with what is written beside the pictures
    left_out: Counter[str] = field(default_factory=Counter)  # files that nobody tried, by kind
    too_large: int = 0  # results, for the sheet
    records: list[FileRecord] = field(default_factory=list)
    seconds: float = 0.0
    stop: KeyboardInterrupt | None = None  # what ended the run before its end

    @property
    def exit_code(self) -> int:
        """1 if any picture failed or a table, a sheet or the log could not be written; of a stopped run its own."""
        if self.stop is not None:
            return exit_code(self.stop)
        return 1 if self.failures or self.problems else 0

    def count(self, status: str) -> int:
        """How many pictures ended so."""
        return sum(record.status == status for record in self.records)

    def merge(self, other: Report) -> None:
        """Add what another rank did."""
        for name in ("rows", "baselines", "references", "failures", "not_measured"):
            getattr(self, name).update(getattr(other, name))
        self.problems += [problem for problem in other.problems if problem not in self.problems]
        self.left_out += other.left_out
        self.too_large += other.too_large
        self.records += other.records
        self.stop = self.stop or other.stop
        self.seconds = max(self.seconds, other.seconds)

    def summary(self) -> str:
        """One line for the end of a run, and one each for files left out, what could not be written, what is not on
        the sheet, and mean metrics where there were references."""
        parts = [f"{self.count('restored')} restored in {self.seconds:.1f} s"]
        if self.count("skipped"):
            parts.append(f"{self.count('skipped')} skipped (already there)")
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        if self.not_measured:
            parts.append(f"{len(self.not_measured)} not measured")
        if self.stop is not None:
            parts.append("stopped: the same command with --skip_existing does the rest")
        lines = [", ".join(parts), *left_out_lines(self.left_out), *self.problems]
        if self.too_large:
            lines.append(f"not on the sheet: {self.too_large} of more than {SHEET_PIXELS:,} pixels")
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


def write_table(path: Path, rows: Mapping[str, Mapping[str, float]], mean: Mapping[str, float]) -> None:
    """A CSV with a row per picture and a mean row."""
    names = list(dict.fromkeys(name for row in (*rows.values(), mean) for name in row))
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8",
                                            errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", *names])
        for picture, row in [*rows.items(), ("mean", mean)]:
            writer.writerow([cell(picture), *(f"{row[name]:.6g}" if name in row else "" for name in names)])


def rows_of_table(path: Path) -> dict[str, dict[str, float]]:
    """What an earlier run measured, by result: of those that are still in the table's folder and have not changed
    since. Nothing where there is no such table."""
    try:
        written = path.stat().st_mtime_ns
        with open(path, newline="", encoding="utf-8") as file:
            table = [row for row in csv.DictReader(file) if row["picture"] != "mean"]
        rows = {text_of_cell(row.pop("picture")): row for row in table}
        return {picture: {name: float(value) for name, value in row.items() if value}
                for picture, row in rows.items() if _unchanged(path.with_name(picture), written)}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # none, or no table of ours
        return {}


def _unchanged(result: Path, since: int) -> bool:
    return result.is_file() and result.stat().st_mtime_ns <= since


def append_log(path: Path, record: FileRecord) -> None:
    """One JSON line; several ranks may append to one log. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # names that are no text have escapes that JSON has too
    line = (json.dumps(asdict(record), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
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
    tokens: TokenState | None = None  # are written beside the result
    error: ErrorProduct | None = None  # the same

    def finish(self, consistency: LRConsistency | None = None) -> None:
        """Write what belongs to the picture: its file and, whole or not at all, its tokens. Raises ImageError,
        OSError. consistency: what the settings promise, which is measured and told."""
        found = note_residual(self.result, self.tiled.source, consistency)
        if found is not None:
            self.record.lr_residual, self.record.lr_residual_mean = found.largest, found.mean
        if (broken := broken_promise(found, consistency)) is not None:
            log.warning("%s: %s", self.result.path, broken)
        if self.tokens is not None:  # the same words as in the result's file, by which they know each other
            line = dict(self.result.options.text).get(SETTINGS, "")
            self.tokens = replace(self.tokens, making=replace(self.tokens.making, line=line))
        with nullcontext() if self.tokens is None else self.tokens.written_to(self.job.tokens, self.tiled.config):
            self.result.finish()
        if self.error is not None:
            self.error.finish()

    def close(self) -> None:
        """Let go of the files for another process to finish (`ResultFile.close`)."""
        for file in self._files():
            file.close()

    def discard(self) -> None:
        """Remove what was temporary."""
        for file in self._files():
            file.discard()

    def _files(self) -> list[ResultFile]:
        return [self.result, *([self.error.file] if self.error is not None else [])]


class Judge:
    """Looks at finished pictures: the picture after each scale, metrics against the reference, the row of the sheet."""

    def __init__(self, device: torch.device, render: Callable[[Started, LatentStore, ResultFile], None],
                 result: ResultOptions, on_sheet: bool = False, exports: bool = False, label: str = "VARSR",
                 extra: Extra | None = None) -> None:
        """render: fills a result from latents. result: how exported pictures are written. on_sheet: make entries of a
        comparison sheet, our pictures under a label, with extra ones."""
        self.device, self.render, self.result = device, render, result
        self.on_sheet, self.exports, self.label, self.extra = on_sheet, exports, label, extra
        self.learned: LearnedMetrics | None = None  # once loaded, for all runs

    def begin(self, report: Report, wanted: Container[Path] | None) -> None:
        """Of each run. report: where metrics go. wanted: results that may be on the sheet; None: all."""
        self.report, self.wanted = report, wanted
        self.entries: dict[Path, SheetEntry] = {}  # by result

    def __call__(self, started: Started) -> None:
        """Of a picture whose file is written. What cannot be measured is told and counted; the file stays."""
        job, tiled = started.job, started.tiled
        with self._told(job):
            if self.exports:
                self._export(started)
            extra = self.extra(started) if self.extra else {}
            on_sheet = self._is_on_sheet(job, tiled.height, tiled.width)
            if on_sheet and started.error is not None:
                extra = {**extra, "expected error": error_picture(read_image(job.error_map)[0] * (TOP_16 / STEPS))}
            if job.reference is not None or on_sheet:
                bicubic = tiled.guide(0, 0, tiled.height, tiled.width)
                self._look(job, laid_over_white(bicubic, started.picture), on_sheet, extra)

    def again(self, job: Job, max_pixels: int) -> None:
        """Of a picture that an earlier run restored: tables and sheets are of all of them."""
        if job.reference is None and not self.on_sheet:
            return
        with self._told(job):
            result = read_header(job.output, max_pixels=max_pixels * int(MAX_SCALE) ** 2)
            on_sheet = self._is_on_sheet(job, result.height, result.width)
            if job.reference is not None or on_sheet:
                source = read_picture(job.source, max_pixels, job.frame or 0)
                bicubic = enlarged(source, (result.height, result.width))
                self._look(job, laid_over_white(bicubic, source), on_sheet, {})

    def _is_on_sheet(self, job: Job, height: int, width: int) -> bool:
        """Asked once for each result: those that are too large are counted."""
        wanted = self.on_sheet and (self.wanted is None or job.output in self.wanted)
        too_large = wanted and height * width > SHEET_PIXELS
        self.report.too_large += too_large
        return wanted and not too_large

    def _look(self, job: Job, bicubic: Tensor, on_sheet: bool, extra: Mapping[str, Tensor]) -> None:
        """Measure the result, make its entry of the sheet."""
        # what the written file shows counts, not what was meant to be written
        restored = read_image(job.output)
        columns, reference = {"bicubic": bicubic, self.label: restored, **extra}, None
        try:
            if job.reference is not None:
                columns["HR"] = reference = _reference(job.reference, restored)
        finally:
            if on_sheet:
                self.entries[job.output] = sheet_entry(columns)
        if reference is None:
            return
        self.learned = self.learned or LearnedMetrics(self.device)
        row = {**psnr_ssim(restored, reference), **self.learned.measure(restored, reference)}
        self.report.baselines[job.output] = {**psnr_ssim(bicubic, reference),
                                             **self.learned.distance(bicubic, reference)}
        self.report.rows[job.output], self.report.references[job.output] = row, job.reference

    @contextmanager
    def _told(self, job: Job) -> Iterator[None]:
        """Whatever goes wrong in measuring costs the metrics of one picture."""
        try:
            yield
        except Exception as error:
            self.report.not_measured[job.output] = line = describe(error)
            log.warning("not measured: %s", line if str(job.reference) in line else f"{job.output}: {line}")

    def _export(self, started: Started) -> None:
        """The picture after each exported scale, as NAME_scales/side{n}.png."""
        folder = started.job.scales_folder
        for side, latents in started.tiled.latents.items():
            result = ResultFile(folder / f"side{side}.png", started.picture, started.tiled.height,
                                started.tiled.width, self.result)
            try:
                self.render(started, latents, result)
                result.finish()
            finally:
                result.discard()

    def write_tables(self, report: Report) -> None:
        """`metrics.csv` into every folder of results that were measured: these, and what earlier runs measured there.
        Raises OSError."""
        for folder in dict.fromkeys(path.parent for path in report.rows):
            earlier = rows_of_table(folder / METRICS_FILE)
            rows = {**earlier, **{path.name: row for path, row in report.rows.items() if path.parent == folder}}
            mean = mean_row(list(rows.values()))
            fid = self._fid(folder, report, len(rows))
            if fid is not None:
                mean[FID.column] = fid
            write_table(folder / METRICS_FILE, dict(sorted(rows.items())), mean)

    def _fid(self, folder: Path, report: Report, count: int) -> float | None:
        """FID of a table of `count` results in a folder. None where it cannot be had, and where it would be that of
        some of them alone: which originals earlier runs measured theirs against is not known."""
        if self.learned is None or FID.column in self.learned.missing:
            return None
        pairs = [pair for pair in report.references.items() if pair[0].parent == folder]
        if len(pairs) < count:
            log.info("%s: no FID, earlier runs measured %d of its %d results", folder, count - len(pairs), count)
            return None
        return self.learned.fid(pairs)


def _reference(path: Path, restored: Tensor) -> Tensor:
    """The HR picture. Raises UserError for one of another size, ImageError."""
    reference = read_image(path)
    if reference.shape != restored.shape:
        sizes = (f"{picture.shape[2]}x{picture.shape[1]}" for picture in (reference, restored))
        raise UserError("{}: {} pixels, the result has {}".format(path, *sizes))
    return reference


def psnr_ssim(image: Tensor, reference: Tensor) -> dict[str, float]:
    """The metrics that need no learned weights. Raises ValueError where the sizes differ."""
    values = {"psnr_y": psnr_y(image, reference)}
    if min(image.shape[-2:]) >= SSIM_SIDE:
        values["ssim_y"] = ssim_y(image, reference)
    return values
