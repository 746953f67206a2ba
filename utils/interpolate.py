"""Mix two models: `python -m utils.interpolate A B OUTPUT --share 0.5`.

Weights between those of a model and of its adversarial fine-tuning trade fidelity for sharpness without training again
(network interpolation: ESRGAN, section 3.4). Both must have one configuration.
"""
from __future__ import annotations

import argparse
import sys

from .flags import DTYPES, OneLineParser, bounded


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog="python -m utils.interpolate", description="Mix two models of one configuration.")
    parser.add_argument("first", help="model folder")
    parser.add_argument("second", help="model folder")
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--share", type=bounded(float, 0, 1), default=0.5, help="share of the second model (0.5)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="type of the written weights (bf16)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, mix, write."""
    args = build_parser().parse_args(argv)
    import torch

    from models.varsr import VARSR
    try:
        first, second = VARSR.from_pretrained(args.first), VARSR.from_pretrained(args.second)
        if first.config != second.config:
            raise ValueError(f"{args.first} and {args.second} differ in their config.json: only models of one "
                             "configuration can be mixed")
        with torch.no_grad():
            for mine, theirs in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
                mine.lerp_(theirs, args.share)
        first.save_pretrained(args.output, getattr(torch, DTYPES[args.dtype]))
    except (ValueError, OSError) as error:
        print(f"interpolate: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {1 - args.share:g} of {args.first} and {args.share:g} of {args.second}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
