"""Half-done state of one large picture, kept beside its result until that is whole, so that work can go on."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from .latents import FileLatents, Flags


class WorkFolder:
    """`.NAME.part` beside a result: window latents, raw pixels, and what is done of both.

    A folder that another run of the same picture, model and settings (`plan`, plain JSON values) left behind is
    continued; any other is cleared. Several ranks may use one folder: rank 0 calls `prepare` before the rest open it.
    """

    PLAN = "plan.json"

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f".{output.name}.part")
        self.open_files: list[FileLatents | Flags] = []

    def prepare(self, plan: dict[str, Any]) -> bool:
        """Make the folder, empty unless it holds the same plan. Returns whether there is something to continue."""
        text = json.dumps(plan, sort_keys=True)
        plan_file = self.path / self.PLAN
        if plan_file.is_file() and plan_file.read_text(encoding="utf-8") == text:
            return True
        self.remove()
        self.path.mkdir(parents=True)
        temporary = plan_file.with_name(f"{self.PLAN}.new")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, plan_file)
        return False

    def latents(self, side: int, windows: int, shape: tuple[int, int, int]) -> FileLatents:
        """Store of the windows' latents after the scale of a side."""
        store = FileLatents(self.path / f"side{side}", windows, shape)
        self.open_files.append(store)
        return store

    def finished_rows(self, rows: int) -> Flags:
        """Which rows of windows have all their pixels in the raw file."""
        flags = Flags(self.path / "rows.done", rows)
        self.open_files.append(flags)
        return flags

    @property
    def pixels(self) -> Path:
        """The raw pixels of the result."""
        return self.path / "pixels.raw"

    def close(self) -> None:
        """Release the files; the folder stays."""
        for file in self.open_files:
            file.close()
        self.open_files.clear()

    def remove(self) -> None:
        """Close and delete it all."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
