"""Restore pictures and draw classes in a web page: `python app.py`, then open http://127.0.0.1:7860.

Needs `pip install -r requirements-app.txt`. Reached from this computer alone unless --host says otherwise; docs/app.md
tells more.
"""
from __future__ import annotations

import argparse
import sys

from inference.script import add_model_flags
from utils.errors import guarded
from utils.flags import OneLineParser, bounded, set_up_logging

MEGAPIXELS = 16.0
MEGABYTES = 50
PORT = 7860


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_flags(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: the whole network (default: %(default)s)")
    add("--port", type=bounded(int, 1, 65535), default=PORT, help="port to listen on (default: %(default)s)")
    add("--max_pixels", type=bounded(float, 0, open_low=True), default=MEGAPIXELS,
        help="largest result in million pixels (default: %(default)g)")
    add("--max_megabytes", type=bounded(int, 1), default=MEGABYTES,
        help="largest file that is taken (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, check, serve until Ctrl-C."""
    args = build_parser().parse_args(argv)
    set_up_logging()
    try:
        from web.page import build_page, serve
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        print("app.py: gradio is missing: pip install -r requirements-app.txt", file=sys.stderr)
        return 1

    def run() -> int:
        serve(build_page(args), args)
        return 0
    return guarded("app.py", run)


if __name__ == "__main__":
    sys.exit(main())
