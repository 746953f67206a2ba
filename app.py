"""Restore pictures and draw classes in a web page: `python app.py`, then open http://127.0.0.1:7860.

Needs `pip install -r requirements-app.txt`. Reached from this computer alone unless --host says otherwise; docs/app.md
tells more.
"""
from __future__ import annotations

import argparse
import os
import sys

from inference.script import add_model_flags
from utils.errors import UserError, guarded
from utils.flags import OneLineParser, bounded, set_up_logging

MEGAPIXELS = 16.0
MEGABYTES, DISK_MEGABYTES = 50, 2000
WAITING, MOST_WAITING, SECONDS = 20, 1000, 600.0
PORT = 7860
UPLOADS = "GRADIO_TEMP_DIR"  # environment variable: where gradio puts what is uploaded and given out


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
    add("--max_disk", type=bounded(int, 1), default=DISK_MEGABYTES,
        help="megabytes that uploads and results may take together; the oldest go first (default: %(default)s)")
    add("--max_waiting", type=bounded(int, 1, MOST_WAITING), default=WAITING,
        help="jobs that may wait for their turn (default: %(default)s)")
    add("--max_seconds", type=bounded(float, 0, open_low=True), default=SECONDS,
        help="longest that a job may take from its turn on (default: %(default)g)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, check, serve until Ctrl-C."""
    args = build_parser().parse_args(argv)
    set_up_logging()

    def run() -> int:
        if args.max_disk < args.max_megabytes:
            raise UserError(f"--max_disk {args.max_disk} has no room for a file of --max_megabytes "
                            f"{args.max_megabytes}")
        try:
            from web.page import build_page
            from web.server import serve, wait_for_end
            from web.uploads import page_folder
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise UserError("gradio is missing: pip install -r requirements-app.txt") from error
        with page_folder(os.environ.get(UPLOADS)) as (served, work):
            os.environ[UPLOADS] = str(served)
            page = build_page(args, work)
            serve(page, args)
            wait_for_end(page)
        return 0
    return guarded("app.py", run)


if __name__ == "__main__":
    sys.exit(main())
