"""Working through a list of pictures: waves of small ones, large ones alone, failures, metrics, the report."""
from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from models.varsr import VARSR
from pictures.formats import ImageError
from pictures.picture import MAX_PIXELS, SETTINGS, Header, Picture, read_header, read_picture
from pictures.result_file import ResultFile, ResultOptions
from pictures.rgb import save_picture
from pictures.sheets import SheetEntry, evenly, labels_of, sheet_of
from utils.errors import describe, unstopped, visible
from utils.ranks import Ranks

from .generate import Progress, batch_size_for, generate_windows
from .jobs import Job, SizeRequest, is_done, is_there
from .large import WorkFolder, restore_large
from .products import ErrorProduct, keep_evidence, rendered, write_rows
from .redo import Redo
from .report import Extra, FileRecord, Judge, Report, Started, append_log
from .settings import RestoreSettings
from .tokens import Making, TokenState, code_type, digest, token_count
from .windows import LatentStore, TiledPicture

CANDIDATES = 4  # for each place on a sheet, so that some may fail
LARGE_WINDOWS = 256  # from here on a picture is worked on alone, by all ranks, and can be continued after a stop


@dataclass(frozen=True)
class RunOptions:
    """What a run does beside restoring."""

    size: SizeRequest
    result: ResultOptions = field(default_factory=ResultOptions)
    skip_existing: bool = False
    max_pixels: int = MAX_PIXELS
    sheet: Path | None = None
    sheet_pictures: int | None = None  # on the sheet, evenly chosen; None: all
    log: Path | None = None
    export_max: int = 0  # write the picture after each scale up to this side, and after the last one; 0: none
    label: str = "VARSR"
    save_tokens: bool = False  # write what each picture was drawn as beside it
    redo: Redo | None = None  # draw a part of an earlier result of the one picture anew
    extra: Extra | None = None  # pictures are then worked on one by one, so that their times are their own


class Runner:
    """Restores jobs; a picture that fails is reported and never stops the others."""

    def __init__(self, model: VARSR, settings: RestoreSettings, options: RunOptions,
                 ranks: Ranks | None = None) -> None:
        self.model, self.settings, self.options, self.ranks = model, settings, options, ranks or Ranks()
        self.batch = batch_size_for(model, settings)
        self.judge = Judge(model.device, self._render, options.result, options.sheet is not None,
                           options.export_max > 0, options.label, options.extra)

    def run(self, jobs: list[Job], failures: dict[Path, str] | None = None) -> Report:
        """Work through the jobs, write `metrics.csv` into every result folder that has references.

        failures: what went wrong before, by path. Returns the report of all ranks to the first of them. A runner may
        run again: report and sheet are those of the jobs of this run alone.
        """
        start, self.report, wanted = time.monotonic(), Report(), None
        if self.options.sheet_pictures is not None:
            wanted = evenly({job.output: job for job in jobs}, CANDIDATES * self.options.sheet_pictures)
        self.judge.begin(self.report, wanted)
        self.bar = tqdm(total=0, unit="picture", dynamic_ncols=True, disable=self.ranks.rank > 0)
        if self.ranks.rank == 0:
            for path, reason in (failures or {}).items():
                self._fail(FileRecord(str(path), ""), path, reason)
        try:
            large = [job for job in jobs if self._is_large(job)]
            alone = set(large)
            small = self.ranks.strided([job for job in jobs if job not in alone])
            self.bar.reset(total=len(small) + len(large))
            with self.bar:
                self._run_small(small)
                for job in large:
                    self._run_large(job)
        except KeyboardInterrupt as stop:
            self.report.stop = stop
        self.report.seconds = time.monotonic() - start
        return self._conclude()

    def _conclude(self) -> Report:
        """Tables and sheet, once every rank is done; of a stopped run, which waits for nobody, what this rank did.

        The first rank reports for all, the others report nothing: their exit code would end the first one's writing.
        """
        ranks = Ranks() if self.report.stop is not None else self.ranks
        parts, sheets = ranks.gather(self.report), ranks.gather(self.judge.entries)
        report = Report()
        if self.ranks.rank > 0:
            report.stop = self.report.stop
            return report
        for part in parts:
            report.merge(part)
        entries = {path: entry for part in sheets for path, entry in part.items()}
        self._write(report, lambda: self.judge.write_tables(report))
        if entries:
            self._write(report, lambda: self._write_sheet(entries))
        return report

    def _write_sheet(self, entries: dict[Path, SheetEntry]) -> None:
        labels = labels_of(entries)
        chosen = evenly({labels[path]: entry for path, entry in entries.items()}, self.options.sheet_pictures)
        save_picture(sheet_of(chosen), self.options.sheet)

    def _write(self, report: Report, write: Callable[[], None]) -> None:
        """What belongs to no picture: if it fails, the rest is written and told all the same."""
        try:
            write()
        except Exception as error:
            report.problems.append(f"not written: {describe(error)}")

    def _is_large(self, job: Job) -> bool:
        """Whether a picture has so many windows that it is worked on alone (by its header; unreadable ones are not)."""
        try:
            header = read_header(job.source, job.frame or 0, self.options.max_pixels)
            size = self.options.size.size(header)
        except Exception:
            return False  # what is wrong is told when the picture is read
        return len(self._tiled(header, size).grid) > LARGE_WINDOWS

    def _tiled(self, source: Picture | Header, size: tuple[int, int]) -> TiledPicture:
        sides = (side for side in self.model.config.vqvae.scales[:-1] if side <= self.options.export_max)
        latents = {side: {} for side in (*sides, self.model.config.vqvae.side)}
        return TiledPicture(source, size, self.model.config, self.settings.overlap, latents)

    def _run_small(self, jobs: list[Job]) -> None:
        """Pictures in waves that fill a batch of windows together."""
        wave: list[Started] = []
        try:
            for job in jobs:
                started = self._start(job)
                if started is not None:
                    wave.append(started)
                if wave and (self.options.extra or sum(s.record.windows for s in wave) >= self.batch.size):
                    self._finish_wave(wave)
                    wave = []
            if wave:
                self._finish_wave(wave)
        except BaseException:  # stopped: nothing half-written stays
            for started in wave:
                started.discard()
            raise

    def _start(self, job: Job) -> Started | None:
        """Read a picture and lay out its windows; None if there is nothing (more) to do for it."""
        record = FileRecord(str(job.source), str(job.output))
        try:
            if self._is_done(job):
                self.judge.again(job, self.options.max_pixels)
                self._close(record, "skipped")
                return None
            return self._lay_out(job, record, *self._read(job, record))
        except Exception as error:  # whatever happens to one picture, the others go on
            self._fail(record, job.source, error)
            return None

    def _is_done(self, job: Job) -> bool:
        return self.options.skip_existing and is_done(job, self.settings.uncertainty is not None,
                                                      self.options.save_tokens)

    def _read(self, job: Job, record: FileRecord) -> tuple[Picture, tuple[int, int]]:
        """The picture and the size of its result."""
        start = time.monotonic()
        if is_there(job.output) and is_there(job.source) and job.output.samefile(job.source):
            raise ImageError(f"{job.source}: its result would overwrite it: choose another --output, or a --suffix")
        if job.frame is None and (frames := read_header(job.source, 0, self.options.max_pixels).frames) > 1:
            raise ImageError(f"{job.source}: has {frames} frames: --frames restores each of them")
        picture = read_picture(job.source, self.options.max_pixels, job.frame or 0)
        try:
            size = self.options.size.size(picture)
        except ValueError as error:
            raise ImageError(f"{job.source}: {error}") from error
        record.read_seconds = time.monotonic() - start
        return picture, size

    def _lay_out(self, job: Job, record: FileRecord, picture: Picture, size: tuple[int, int],
                 folder: WorkFolder | None = None) -> Started:
        """Windows, their store and the result's file, in memory or in a work folder."""
        tiled = self._tiled(picture, size)
        if folder is not None:
            shape = (self.model.config.vqvae.latent_channels, tiled.grid.window, tiled.grid.window)
            tiled.latents = {side: folder.latents(side, len(tiled.grid), shape) for side in tiled.latents}
        if self.options.save_tokens:
            config = self.model.config
            tiled.codes = {} if folder is None else folder.codes(len(tiled.grid), token_count(config),
                                                                 code_type(config))
        side = tiled.grid.window
        keep_evidence(tiled, self.settings, lambda name, channels: {} if folder is None else folder.maps(
            name, len(tiled.grid), (channels, side, side)))
        result = ResultFile(job.output, picture, *size, self.options.result, folder and folder.pixels)
        (record.height, record.width), record.windows = size, len(tiled.grid)
        try:
            if self.options.redo is not None:
                self.options.redo.apply(self.model, tiled, result, self.settings, self.batch)
            error = ErrorProduct.beside(job.error_map, tiled, self.settings, self.options.result,
                                        folder and folder.errors)
            return Started(job, picture, tiled, result, record, self._tokens(tiled), error)
        except BaseException:
            result.discard()
            raise

    def _tokens(self, tiled: TiledPicture) -> TokenState | None:
        """What is to be kept of a picture's drawing; of a redone one it is the earlier result's, but for the tokens."""
        if not self.options.save_tokens:
            return None
        settings, line = self.settings, dict(self.options.result.text).get(SETTINGS, "")
        if self.options.redo is not None:
            making = dataclasses.replace(self.options.redo.making, line=line, weights=self.model.fingerprint())
        else:
            making = Making((tiled.height, tiled.width), digest(tiled.source), settings.overlap, settings.seed,
                            settings.generation, settings.color_fix, line, self.model.fingerprint())
        return TokenState(making, tiled.codes, tiled.finished, len(tiled.grid))

    def _finish_wave(self, wave: list[Started]) -> None:
        """Generate what windows are missing, then write the pictures; if that fails for several, one by one."""
        work = [(s.tiled, window) for s in wave for window in s.tiled.grid if window.index not in s.tiled.finished]
        start, progress, failed = time.monotonic(), self._progress(wave[0].job, len(work)), None
        try:
            generate_windows(self.model, work, self.settings, self.batch, progress)
        except Exception as error:  # whatever happens to one picture, the others go on
            failed = describe(error)
        if failed is not None:
            self._recover()
            if len(wave) > 1:
                for started in wave:
                    self._finish_wave([started])
                return
            wave[0].discard()
            self._fail(wave[0].record, wave[0].job.source, failed)
            return
        seconds = (time.monotonic() - start) / max(len(work), 1)
        for started in wave:
            started.record.generate_seconds = seconds * started.record.windows
            self._complete(started)

    def _complete(self, started: Started) -> None:
        """Render, write, measure."""
        failed = None
        try:
            start = time.monotonic()
            deque(write_rows(self.model, started.tiled, self.settings, self.batch, started.result, started.error,
                             started.result.first, started.result.last), maxlen=0)
            started.record.render_seconds = time.monotonic() - start
            self._place(started)
        except Exception as error:  # whatever happens to one picture, the others go on
            failed = describe(error)
        finally:
            started.discard()
        if failed is not None:
            self._recover()
            self._fail(started.record, started.job.source, failed)
            return
        self.judge(started)

    def _place(self, started: Started) -> None:
        """Write the files of a picture and count it: a stop comes before both or after them, so that the run's last
        line tells what is there."""
        start = time.monotonic()
        with unstopped():
            started.finish(self.settings.lr_consistency)
            started.record.write_seconds = time.monotonic() - start
            self._close(started.record, "restored")

    def _render(self, started: Started, latents: LatentStore, result: ResultFile) -> None:
        for top, rows in rendered(self.model, started.tiled, self.settings, self.batch, latents, result.first,
                                  result.last):
            result.write_rows(top, rows)

    def _run_large(self, job: Job) -> None:
        """One picture by all ranks, which come here for the same pictures in the same order."""
        record, folder, ranks = FileRecord(str(job.source), str(job.output)), WorkFolder(job.output), self.ranks
        if any(ranks.gather(self._is_done(job))):
            if ranks.rank == 0:
                self.judge.again(job, self.options.max_pixels)
            self._close(record, "skipped", once=True)
            return
        started = failed = None
        try:
            picture, size = ranks.together(lambda: self._read(job, record))
            ranks.together(lambda: ranks.rank or folder.prepare(self._plan(job, size)))
            started = ranks.together(lambda: self._lay_out(job, record, picture, size, folder))
            restore_large(self.model, started, folder, self.settings, self.batch, ranks,
                          self._progress(job, len(started.tiled.grid)))
            ranks.together(lambda: ranks.rank or self._place(started))
            ranks.together(lambda: ranks.rank or self.judge(started))
        except KeyboardInterrupt:
            if started is not None:
                started.close()
            if record in self.report.records:
                folder.remove()
            else:
                folder.leave()  # a later run goes on from there
            raise
        except Exception as error:  # whatever happens to one picture, the others go on
            failed = describe(error)
        if failed is not None:
            self._recover()
            if started is not None:
                started.discard()
            self._fail(record, job.source, failed, once=True)
        else:
            started.close()
        folder.close()
        ranks.gather(None)  # nobody uses the folder any more
        folder.remove()

    def _plan(self, job: Job, size: tuple[int, int]) -> dict[str, object]:
        """What a half-done picture must have in common with this run to be continued."""
        source = job.source.stat()
        settings = dataclasses.replace(self.settings, batch_size=None)
        calibration = settings.uncertainty and settings.uncertainty.calibration
        return {"source": [str(job.source.resolve()), source.st_size, source.st_mtime_ns, job.frame], "size": size,
                "model": self.model.config.to_json(), "weights": self.model.fingerprint(),
                "dtype": str(self.model.dtype), "eight_bit": self.model.eight_bit, "settings": repr(settings),
                "options": repr(self.options.result), "windows": LARGE_WINDOWS, "tokens": self.options.save_tokens,
                "scales": self.options.export_max,
                "calibration": calibration and calibration.digest,
                "redo": None if self.options.redo is None else self.options.redo.plan()}

    def _progress(self, job: Job, windows: int) -> Progress:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.bar.set_postfix_str(f"{visible(job.source.name)}, window {done} of {windows}")
        return advance

    def _recover(self) -> None:
        """After a failure the device's memory must be free for the next picture. Called once the exception is gone,
        whose frames hold what they computed with."""
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fail(self, record: FileRecord, source: Path, error: Exception | str, once: bool = False) -> None:
        """Report a failure, with the file's name in it; `once`: of a picture that every rank works on."""
        line, name = error if isinstance(error, str) else describe(error), visible(str(source))
        reason = line if name in line else f"{name}: {line}"
        record.error = reason
        if not once or self.ranks.rank == 0:
            self.report.failures[source] = reason
            tqdm.write(f"failed: {reason}")
        self._close(record, "failed", once)

    def _close(self, record: FileRecord, status: str, once: bool = False) -> None:
        """A picture is through: count it, log it."""
        record.status = status
        self.bar.update()
        if once and self.ranks.rank > 0:
            return
        self.report.records.append(record)
        if self.options.log is not None:
            try:
                append_log(self.options.log, record)
            except Exception as error:  # whatever happens to the log, the pictures go on
                problem = f"{self.options.log}: not written ({describe(error)})"
                if problem not in self.report.problems:
                    self.report.problems.append(problem)
