"""What the elements of the page have in common."""
from __future__ import annotations

from typing import Any

from gradio.data_classes import FileData, GradioRootModel

# Whose turn it is decides `Sessions`: what waits there has been looked at, and can be cancelled
AT_ONCE = {"concurrency_limit": None, "trigger_mode": "multiple", "show_progress": "hidden", "preprocess": False}


class Given(GradioRootModel):
    """A file, or whatever else was sent in its place: gradio hands out both as they are."""

    root: FileData | Any
