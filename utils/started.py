"""A picture that has been read and is on its way to its result."""
from __future__ import annotations

from dataclasses import dataclass

from pictures.picture import Picture
from pictures.result_file import ResultFile

from .inputs import Job
from .report import FileRecord
from .tiles import TiledPicture


@dataclass
class Started:
    """What belongs to one picture while it is worked on."""

    job: Job
    picture: Picture
    tiled: TiledPicture
    result: ResultFile
    record: FileRecord
