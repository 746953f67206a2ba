"""Working through a list of pictures: progress, failures, metrics, the summary and the exit code."""
from __future__ import annotations

import csv
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .images import ImageError, read_image, save_picture, write_image
from .inputs import Job
from .metrics import SSIM_SIDE, LearnedMetrics, psnr_y, ssim_y
from .restore import Progress, upsample
from .sheet import comparison_sheet

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.csv"
# Job, its LR picture (3, h, w) and a progress callback to pictures by sheet label, the result first.
Restorer = Callable[[Job, Tensor, Progress], dict[str, Tensor]]


@dataclass
class Report:
    """What a run did: rows of metrics by result file, failures, skipped files."""

    rows: dict[Path, dict[str, float]] = field(default_factory=dict)
    baselines: list[dict[str, float]] = field(default_factory=list)
    failures: dict[Path, str] = field(default_factory=dict)
    written: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """1 if any picture failed."""
        return 1 if self.failures else 0

    def summary(self) -> str:
        """One line for the end of a run, a second one with mean metrics where there were references."""
        parts = [f"{self.written} restored in {self.seconds:.1f} s"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped (already there)")
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        lines = [", ".join(parts)]
        if self.baselines:
            ours, bicubic = mean_row(list(self.rows.values())), mean_row(self.baselines)
            lines.append("mean " + ", ".join(
                f"{name} {value:.4g}" + (f" (bicubic {bicubic[name]:.4g})" if name in bicubic else "")
                for name, value in ours.items()))
        return "\n".join(lines)


def mean_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every column over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(row[name] for row in rows if name in row) / sum(name in row for row in rows) for name in names}


class Runner:
    """Restores jobs one after the other; a picture that fails is reported and never stops the others."""

    def __init__(self, restorer: Restorer, scale: float, device: torch.device, skip_existing: bool = False,
                 sheet: Path | None = None) -> None:
        self.restorer, self.scale, self.skip_existing, self.sheet = restorer, scale, skip_existing, sheet
        self.device = device
        self.learned: LearnedMetrics | None = None
        self.sheet_rows: dict[str, dict[str, Tensor]] = {}

    def run(self, jobs: list[Job]) -> Report:
        """Work through the jobs, write `metrics.csv` into every result folder that has references."""
        report, start = Report(), time.monotonic()
        with tqdm(total=len(jobs), unit="picture", dynamic_ncols=True) as bar:
            for job in jobs:
                bar.set_postfix_str(job.source.name)
                if self.skip_existing and job.output.exists():
                    report.skipped += 1
                else:
                    self._attempt(job, report, bar)
                bar.update()
        report.seconds = time.monotonic() - start
        self._write_tables(report, jobs)
        if self.sheet is not None and self.sheet_rows:
            save_picture(comparison_sheet(self.sheet_rows), self.sheet)
        return report

    def _attempt(self, job: Job, report: Report, bar: tqdm) -> None:
        try:
            self._process(job, report, bar)
            report.written += 1
        except (ImageError, ValueError, OSError) as error:
            report.failures[job.source] = str(error)
        except RuntimeError as error:  # out of memory, or a device that failed: this picture's problem alone
            report.failures[job.source] = f"{job.source}: {str(error).splitlines()[0]}"
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if job.source in report.failures:
            tqdm.write(f"failed: {report.failures[job.source]}")

    def _process(self, job: Job, report: Report, bar: tqdm) -> None:
        lr = read_image(job.source)
        done = 0

        def advance(windows: int) -> None:
            nonlocal done
            done += windows
            bar.set_postfix_str(f"{job.source.name}, window {done}")

        results = self.restorer(job, lr, advance)
        restored = next(iter(results.values()))
        write_image(job.output, restored)
        bicubic = upsample(lr, self.scale)
        reference = read_image(job.reference) if job.reference else None
        if self.sheet is not None:
            pictures = {"bicubic": bicubic, **results}
            if reference is not None and reference.shape == restored.shape:
                pictures["HR"] = reference
            self.sheet_rows[job.source.stem] = pictures
        if reference is not None:
            report.rows[job.output] = self._measure(restored, reference)
            report.baselines.append(fidelity(bicubic, reference))

    def _measure(self, restored: Tensor, reference: Tensor) -> dict[str, float]:
        if self.learned is None:
            self.learned = LearnedMetrics(self.device)
        return {**fidelity(restored, reference), **self.learned.measure(restored, reference)}

    def _write_tables(self, report: Report, jobs: list[Job]) -> None:
        for folder in dict.fromkeys(path.parent for path in report.rows):
            rows = {path.name: row for path, row in report.rows.items() if path.parent == folder}
            mean = mean_row(list(rows.values()))
            references = {job.reference.parent for job in jobs if job.reference and job.output.parent == folder}
            fid = self.learned.fid(folder, references.pop()) if self.learned and len(references) == 1 else None
            if fid is not None:
                mean["fid"] = fid
            write_table(folder / METRICS_FILE, rows, mean)


def fidelity(image: Tensor, reference: Tensor) -> dict[str, float]:
    """The metrics that need no learned weights. Raises ValueError where the sizes differ."""
    values = {"psnr_y": psnr_y(image, reference)}
    if min(image.shape[-2:]) >= SSIM_SIDE:
        values["ssim_y"] = ssim_y(image, reference)
    return values


def write_table(path: Path, rows: dict[str, dict[str, float]], mean: dict[str, float]) -> None:
    """A CSV with a row per picture and a mean row, under a temporary name first."""
    names = list(dict.fromkeys(name for row in (*rows.values(), mean) for name in row))
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["picture", *names])
            for picture, row in [*rows.items(), ("mean", mean)]:
                writer.writerow([picture, *(f"{row[name]:.6g}" if name in row else "" for name in names)])
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
