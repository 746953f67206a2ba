"""What the page says: one line of plain text, whatever it names, without a word of where the server keeps things."""
from __future__ import annotations

import re
import string
from collections.abc import Iterable
from pathlib import Path

from utils.errors import describe, escaped, visible

# The folders of an absolute path, up to its last part; not those of an address, a fraction or a relative path.
FOLDERS = re.compile(r"""(?<![\w./\\~-])(?:~?/(?=[^\s/])(?:[^\s/'"]+/)*|[A-Za-z]:[\\/](?:[^\s\\/'"]+[\\/])*)""")
INSIDE = r"""[\\/](?:[^\s\\/'"]+[\\/])*"""
PUNCTUATION = str.maketrans({mark: f"\\{mark}" for mark in string.punctuation})


def one_line(error: BaseException, places: Iterable[str | Path] = ()) -> str:
    """What to tell a visitor of a failure. places: paths of the server that the message may hold, spaces and all; they
    and every other absolute path become their last part."""
    text = describe(error)
    for place in sorted(filter(None, map(str, places)), key=len, reverse=True):
        if name := Path(place).name:
            text = re.sub(re.escape(place) + INSIDE, "", text).replace(place, name)
    return visible(escaped(FOLDERS.sub("", text)))


def as_markdown(text: str) -> str:
    """Markdown that shows the text as it is: a file may be called like a heading or a link."""
    return text.translate(PUNCTUATION)
