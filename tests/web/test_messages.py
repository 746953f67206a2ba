"""Lines that the page shows: one line each, no path of the server, nothing that acts in a page."""
from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.errors import UserError
from web.messages import as_markdown, one_line


@pytest.mark.parametrize("text, shown", [
    ("/tmp/gradio/ab12/cat.png: not a picture", "cat.png: not a picture"),
    ("[Errno 2] No such file or directory: '/home/me/model/config.json'",
     "[Errno 2] No such file or directory: 'config.json'"),
    ("neither /srv/a/b nor (/srv/c/d) is there", "neither b nor (d) is there"),
    ("source:/var/x/y.png", "source:y.png"), ("~/models/x", "x"), (r"C:\Users\me\x.png: broken", "x.png: broken"),
    ("1/2 of http://example.org/a/b, image/png, checkpoints/tiny", "1/2 of http://example.org/a/b, image/png, "
                                                                   "checkpoints/tiny"),
    ("/my models/tiny/config.json, /my models/tiny: nothing", "config.json, tiny: nothing"),
    ("../relative/tiny has no weights", "tiny has no weights")])
def test_paths_become_their_last_part(text: str, shown: str) -> None:
    assert one_line(OSError(text), ["/my models/tiny", "../relative/tiny", ".", ""]) == shown


@given(st.lists(st.text(st.characters(blacklist_categories=("Z", "C"), blacklist_characters="/\\'\":~"), min_size=1),
                min_size=2, max_size=5))
def test_no_absolute_path_is_told(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    line = one_line(UserError(f"reading {path} failed, '{path}'"))
    assert "/" not in line and parts[-1] in line


@given(st.text())
def test_a_message_is_one_line_that_can_be_sent(text: str) -> None:
    line = one_line(UserError(text + "\nand more"))
    assert len(line.splitlines()) <= 1 and line.encode()
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u202e]", line)


@pytest.mark.parametrize("name", ["# title", "**x**", "[a](http://b)", "<img src=x onerror=alert(1)>", "`x`", "1. x",
                                  "- x", "![x](http://b/c.png)", "www.example.org", "a_b_c", "$$x$$", "&lt;", "\\x"])
def test_markdown_shows_names_as_they_are(name: str) -> None:
    """Punctuation behind a backslash is itself (CommonMark, 2.4), and Markdown has nothing else to go by."""
    escaped = as_markdown(name)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", escaped) == name
    assert re.fullmatch(r"(?:\\[!-/:-@\[-`{-~]|[^!-/:-@\[-`{-~])*", escaped)
