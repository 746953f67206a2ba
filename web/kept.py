"""What parts can be redone of: the last result of each session, with what it was drawn as, in bounded memory."""
from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from torch import Tensor

from inference.settings import RestoreSettings
from inference.tokens import TokenState
from pictures.picture import Picture
from utils.errors import UserError

from .sessions import Job

MAX_REDO_PIXELS = 2 ** 20  # of results that are kept
GONE = "there is no result here to redo a part of (any more): restore the picture first"
CHANGED = "the picture has changed meanwhile: paint the region again"


@dataclass(frozen=True)
class Variant:
    """A picture (3, H, W) in [0, 1] and what it was drawn as. making: what its file says of its making, by keyword."""

    restored: Tensor
    state: TokenState
    making: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Result:
    """A restored picture. model: as chosen on the page; source: its LR picture; name: of its file; choices: what may be
    taken in place of `variant`; drawn: how many variants there have been; key: what the page names it by."""

    model: str
    source: Picture
    settings: RestoreSettings
    name: str
    variant: Variant
    choices: tuple[Variant, ...] = ()
    drawn: int = 0
    key: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def bytes(self) -> int:
        """That it takes in memory, at most."""
        own = self.source.color.nbytes + (0 if self.source.alpha is None else self.source.alpha.nbytes)
        return own + sum(_bytes(variant) for variant in (self.variant, *self.choices))


def can_redo(size: tuple[int, int], settings: RestoreSettings) -> bool:
    """Whether parts of a result (height, width) can be redone. What --lr_consistency promises would not hold of a
    redone part."""
    return size[0] * size[1] <= MAX_REDO_PIXELS and not settings.generation.more_smooth \
        and settings.lr_consistency is None


def _bytes(variant: Variant) -> int:
    state = variant.state
    parts = [store[index] for index in range(state.windows) for store in (state.codes, state.latents)]
    return variant.restored.nbytes + sum(part.nbytes for part in parts)


class Results:
    """The results of all sessions, each for its session alone; the oldest go where they take more than max_bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Result] = OrderedDict()

    def keep(self, job: Job, result: Result, instead_of: Result | None = None) -> None:
        """Let a job's result be its session's. instead_of: which it was made from.

        Raises Cancelled where the job is over, UserError where the session has another result meanwhile.
        """
        with self._lock:
            job.check()  # in here: a session that ends is cancelled first, then dropped
            if instead_of is not None and self._kept.get(job.session) is not instead_of:
                raise UserError(CHANGED)
            self._kept[job.session] = result
            self._kept.move_to_end(job.session)
            while sum(each.bytes for each in self._kept.values()) > self.max_bytes:
                self._kept.popitem(last=False)

    def get(self, session: str, key: object) -> Result:
        """The result that a page shows. Raises UserError where it is not there any more."""
        with self._lock:
            result = self._kept.get(session)
        if result is None:
            raise UserError(GONE)
        if key != result.key:
            raise UserError(CHANGED)
        return result

    def drop(self, session: str | None) -> None:
        """Forget a session's result."""
        with self._lock:
            self._kept.pop(session, None)
