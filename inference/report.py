"""What a run did: metrics, failures, the summary, the tables and the log of files."""
from __future__ import annotations

import csv
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pictures.picture import Picture
from pictures.result_file import ResultFile

from .jobs import Job
from .windows import TiledPicture

METRICS_FILE = "metrics.csv"


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


def mean_row(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every column over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(row[name] for row in rows if name in row) / sum(name in row for row in rows) for name in names}


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
