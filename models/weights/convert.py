"""Convert weights: `python -m models.weights.convert SOURCE OUTPUT`.

SOURCE is what `--model` takes elsewhere: a published `.pth`, a folder, or a hub id. OUTPUT becomes a folder with
`config.json` and `model.safetensors`, or with `--published` one with `VARSR.pth` and `VQVAE.pth`. `--inference` leaves
out what only training needs: smaller, and loaded faster.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from utils.errors import guarded
from utils.flags import DTYPES


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of the converter."""
    parser = argparse.ArgumentParser(prog="python -m models.weights.convert", description="Convert model weights.")
    parser.add_argument("source", help="published .pth file, model folder, or hub id such as qyp2000/VARSR")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="type of the written weights (default fp32)")
    parser.add_argument("--published", action="store_true",
                        help="write VARSR.pth and VQVAE.pth for the original code (always fp32)")
    parser.add_argument("--inference", action="store_true",
                        help="leave out what only training needs: class modulations as tables, no tokenizer encoder")
    parser.add_argument("--revision", help="hub revision (branch, tag or commit)")
    parser.add_argument("--local_files_only", action="store_true", help="use the hub's cache, never the network")
    options = parser.parse_args(arguments)
    if options.published and options.dtype != "fp32":
        parser.error("--published writes fp32: leave --dtype out")
    if options.published and options.inference:
        parser.error("--published files hold everything: leave --inference out")
    return options


def convert(options: argparse.Namespace) -> str:
    """Do what the options say; returns one line about what was written."""
    import torch

    from ..varsr import VARSR
    from .load import load_pretrained
    from .save import write_folder, write_published
    dtype = getattr(torch, DTYPES[options.dtype])
    # An export's tables are computed in its own type, so that it gives what the full folder of this type gives.
    config, tensors = load_pretrained(options.source, dtype=dtype if options.inference else None,
                                      revision=options.revision, local_files_only=options.local_files_only)
    if options.inference:
        model = VARSR.from_tensors(config, tensors, dtype, "cpu").for_inference()
        config, tensors = model.config, model.state_dict()
    if options.published:
        write_published(config, tensors, options.output)
    else:
        write_folder(config, tensors, options.output, dtype)
    count = sum(tensor.numel() for tensor in tensors.values())
    return f"{options.output}: {config.name}, {count / 1e6:.1f} M values in {len(tensors)} tensors, {options.dtype}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse_args(arguments)

    def run() -> int:
        print(convert(options))
        return 0
    return guarded("convert", run)


if __name__ == "__main__":
    sys.exit(main())
