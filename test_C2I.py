"""Draw pictures of classes: `python test_C2I.py --classes 13 92 190 --n 4`.

Takes the published class-to-image weights if checkpoints/VARSR_C2I.pth is there, else the embedded model, whose
classes are textures. Writes C2I/class_{c}_img_{i}.png and C2I/contact_sheet.png.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from inference.script import add_compile_flag, add_model_flags, add_sampling_flags
from utils.errors import guarded
from utils.files import require_folder
from utils.flags import OneLineParser, bounded, set_up_logging

DEFAULT_CLASSES = 8


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--classes", nargs="+", metavar="CLASS",
        help=f"numbers, names, text files of them, or all (default: the first {DEFAULT_CLASSES})")
    add("--n", type=bounded(int, 1), default=4, help="pictures of each class (4)")
    add("--output", type=Path, default=Path("C2I"), help="result folder (C2I)")
    add_model_flags(parser)
    add_compile_flag(parser)
    add_sampling_flags(parser)
    add("--more_smooth", action="store_true", help="mix codes (Gumbel softmax) instead of choosing one a token")
    add("--batch_size", type=bounded(int, 1), default=4, help="pictures drawn at a time (4)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, draw, report."""
    args = build_parser().parse_args(argv)
    set_up_logging()
    return guarded(Path(__file__).name, lambda: _run(args))


def _run(args) -> int:
    """Load, draw, report."""
    from inference.classes import parse_classes
    from inference.settings import generation_options, load_model
    require_folder("--output", args.output)
    model, description = load_model(args, super_resolution=False)
    words = args.classes or [str(c) for c in range(min(DEFAULT_CLASSES, model.config.num_classes))]
    labels = parse_classes(words, model.config)
    options = generation_options(args, model)
    print(f"{description}; {model.config.num_classes} classes, cfg {options.cfg:g}, top_k {options.top_k}, "
          f"top_p {options.top_p:g}")
    count = _draw_all(args, model, labels, options)
    print(f"{count} pictures and contact_sheet.png written to {args.output}")
    return 0


def _draw_all(args, model, labels, options) -> int:
    """Draw, write each picture when it is done, then the contact sheet; the number of pictures."""
    from tqdm import tqdm

    from inference.classes import ClassPicture, class_title, draw
    from pictures.rgb import save_picture, write_image
    from pictures.sheets import ContactSheet
    written = 0
    requested = [ClassPicture(label, index) for label in labels for index in range(args.n)]
    sheet = ContactSheet()
    drawn = draw(model, requested, options, args.seed, args.batch_size)
    try:
        for item, picture in tqdm(drawn, total=len(requested), unit="picture", dynamic_ncols=True):
            write_image(args.output / item.file_name, picture)
            sheet.add(class_title(model.config, item.label), picture)
            written += 1
    except KeyboardInterrupt:
        print(f"{written} of {len(requested)} pictures written to {args.output}, no contact sheet")
        raise
    save_picture(sheet.render(), args.output / "contact_sheet.png")
    return written


if __name__ == "__main__":
    sys.exit(main())
