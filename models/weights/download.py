"""Fetch and verify published weights: `python -m models.weights.download`.

All weight files of the repository go into checkpoints/, each with a progress bar; an interrupted download goes on
where it stopped. Every file is verified by the size and hash that the hub states.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from utils.errors import guarded
from utils.flags import OneLineParser

from .hub_files import HubError, HubFile, fault, fetch, list_files, remember, remembered
from .load import CHECKPOINTS, PUBLISHED_REPO, hub_is_reachable

WEIGHTS = ("*.pth", "*.safetensors")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m models.weights.download", description=__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--repo", default=PUBLISHED_REPO, help="repository on the hub (default: %(default)s)")
    add("--files", nargs="+", default=WEIGHTS, metavar="PATTERN",
        help=f"names or patterns (default: {' '.join(WEIGHTS)})")
    add("--output", type=Path, default=CHECKPOINTS, metavar="DIR", help="(default: checkpoints)")
    add("--revision", help="branch, tag or commit")
    add("--list", action="store_true", help="say what there is, with sizes and hashes, and download nothing")
    add("--offline", action="store_true", help="verify what is here against the list of the last download")
    add("--endpoint", help="address of another hub (default: the environment's HF_ENDPOINT, or huggingface.co)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        files = _files(args)
    except HubError as error:
        print(f"download: {error}", file=sys.stderr)
        return 1
    if args.list:
        for file in files:
            print(f"{file.path}  {file.size:,} bytes  {file.digest}")
        return 0
    faults = [line for file in files if (line := _process(args, file))]
    for line in faults:
        print(f"download: {line}", file=sys.stderr)
    total = sum(file.size for file in files) / 1e9
    print(f"{len(files) - len(faults)} of {len(files)} files are whole in {args.output} ({total:.2f} GB in all)")
    return 1 if faults else 0


def _files(args: argparse.Namespace) -> list[HubFile]:
    """What to fetch or verify."""
    if args.offline:
        files = remembered(args.output, args.repo, args.files)
    elif not hub_is_reachable(args.endpoint):
        raise HubError(f"{args.repo}: the hub is out of reach (or HF_HUB_OFFLINE is set): check the network, or "
                       "verify what is here with --offline")
    else:
        files = list_files(args.repo, args.files, args.revision, args.endpoint)
    if not files:
        raise HubError(f"{args.repo} has no file that matches {' '.join(args.files)}")
    if not args.offline and not args.list:
        remember(args.output, args.repo, files)
    return files


def _process(args: argparse.Namespace, file: HubFile) -> str | None:
    """Bring one file here if need be; what is wrong in the end, or None."""
    path = args.output / file.path
    wrong = "is missing"
    if path.is_file():
        with _verify_bar(file) as bar:
            wrong = fault(path, file, bar.update)
    if wrong and args.offline:
        return f"{path} {wrong}: run without --offline"
    if wrong:
        try:
            with _verify_bar(file) as bar:
                fetch(args.repo, file, args.output, args.revision, args.endpoint, bar.update)
        except HubError as error:
            return str(error)
    print(f"{path}: whole, {file.digest}")
    return None


def _verify_bar(file: HubFile) -> tqdm:
    return tqdm(total=file.size, unit="B", unit_scale=True, desc=f"verify {file.path}", leave=False)


if __name__ == "__main__":
    sys.exit(guarded("download", main))
