"""The command line of `train.py`: the published flags, ours, a YAML file in their place, and what is refused.

Light enough for `--help`. A flag that is not given is None where it matters whether it was given; its default is then
that of the settings it belongs to.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.flags import OneLineParser, boolean, bounded, numbers

from .schedule import CURVES

STAGES = ("sr", "decoder", "faithful", "detail", "c2i", "c2i_detail")
SR, DECODER, FAITHFUL, DETAIL, CLASSES, CLASS_DETAIL = STAGES
GENERATING = (DECODER, FAITHFUL, DETAIL, CLASS_DETAIL)  # stages that train a part of a trained model, from a pool
OF_CLASSES = (CLASSES, CLASS_DETAIL)
FP16 = 1
PRECISIONS = {0: "fp32", FP16: "fp16", 2: "bf16"}
COMPILE_MODES = {0: None, 1: "reduce-overhead", 2: "max-autotune", 3: "default"}
SIDE_LISTS = {"256": "1_2_3_4_5_6_8_10_13_16", "512": "1_2_3_4_6_9_12_16_20_24_28_32",
              "1024": "1_2_3_4_5_7_9_12_16_21_27_36_48_64"}  # names that the published --pn knows
CROPS = ("random", "centre")
LENGTHS = ("ep", "max_iters", "minutes")

# Flags of the published command line that have nothing to act on here.
REFUSED = {
    "pg": "progressive training is no part of VARSR's recipe",
    "pg0": "it belongs to --pg", "pgwp": "it belongs to --pg",
    "tlr": "the peak learning rate is --tblr times --ac", "glb_batch_size": "the global batch is --bs",
    "patch_nums": "the sides are --pn", "resos": "they follow from --pn", "data_load_reso": "it follows from --pn",
    "same_seed_for_all_ranks": "samples follow from --seed and their number alone",
    "local_debug": "use --preset varsr-debug", "dbg_nan": "broken steps are skipped and counted",
    "var_test_path": "test_varsr.py --model takes it",
}

MUON = "muon"
PATCH, PROJECTED, BOTH = ADVERSARIES = ("patch", "projected", "both")  # kinds of discriminators (adversary.py)


def sides(text: str) -> tuple[int, ...]:
    """`--pn`: sides of the token maps, or a published name of them."""
    return numbers(SIDE_LISTS.get(text, text))


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """All flags, in groups."""
    parser = OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
                           allow_abbrev=False)
    parser.add_argument("--config", metavar="YAML", help="flags from a file of `flag: value`; the command line wins")
    parser.add_argument("--stage", choices=STAGES, default=SR,
                        help="super-resolution, its decoder, its faithful branch, its detail branch, class-to-image, "
                             "its detail branch")
    _add_model(parser.add_argument_group("model").add_argument)
    _add_data(parser.add_argument_group("data").add_argument)
    _add_course(parser.add_argument_group("course").add_argument)
    _add_optimisation(parser.add_argument_group("optimisation").add_argument)
    _add_machine(parser.add_argument_group("machine").add_argument)
    return parser


def _add_model(add: Callable[..., Any]) -> None:
    add("--preset", help="models/config.py (default: varsr-tiny, or varsr-tiny-c2i for --stage c2i)")
    add("--depth", type=bounded(int, 1), help="in place of --preset: a size of the published family; 24 is VARSR's")
    add("--pn", type=sides, help="sides of the token maps, as 1_2_3_5_8, or 256, 512, 1024")
    add("--patch_size", type=bounded(int, 1), help="the tokenizer's down-sampling factor; refused if it has another")
    add("--saln", type=boolean, help="one class modulation for all blocks")
    add("--vqvae", "--vae_model_path", help="tokenizer: vqvae.safetensors, VQVAE.pth or a model folder (with --depth: "
                                            "checkpoints/VQVAE.pth)")
    add("--init", "--var_pretrain_path", help="start from: a model of this stage, which goes on, or another, of which "
                                              "all is taken that fits (with --depth: checkpoints/VARSR_C2I.pth)")
    add("--ini", type=float, help="std of fresh weights (-1: by the width)")
    add("--hd", type=bounded(float, 0), help="factor of the fresh head (0.02)")
    add("--aln", type=bounded(float, 0), help="factor of the fresh class modulations (0.5)")
    add("--alng", type=bounded(float, 0), help="factor of their gates (1e-5)")
    add("--fidelity_width", type=bounded(int, 1), help="decoder stage: channels of its LR features (those of --init)")
    add("--fidelity_blocks", type=bounded(int, 1), help="decoder stage: their residual blocks per level, likewise")
    add("--fidelity_pixels", type=bounded(int, 1), help="decoder stage: channels of its correction at full resolution, "
                                                        "likewise")
    add("--faithful_width", type=bounded(int, 4), help="faithful stage: channels of its branch (--init's, or 64)")
    add("--faithful_blocks", type=bounded(int, 1), help="faithful stage: residual blocks of it (--init's, or 14)")
    add("--detail_width", type=bounded(int, 4), help="detail stages: channels of their branch (--init's, or 64)")
    add("--detail_blocks", type=bounded(int, 1), help="detail stages: residual blocks of it (--init's, or 10)")


def _add_data(add: Callable[..., Any]) -> None:
    add("--data", default="trainset", help="pictures: a folder, searched recursively (c2i: a folder a class), a text "
                                           "file of `path[, weight]` lines, or a .tar shard")
    add("--data_neg", help="low-quality pictures for guidance, likewise (trainset_neg if it holds any); without them "
                           "degraded pictures serve")
    add("--crops", choices=CROPS, help="random: at several scales from a cache of the decoded pictures. centre: the "
                                       "paper's, the middle of each (default with --depth)")
    add("--mid_reso", type=bounded(float, 1), help="centre crops: short side before the cut, in windows (1.25)")
    add("--hflip", type=boolean, help="mirror at times, and nothing else (centre: True; random: also turned)")
    add_loading_flags(add)
    add("--group", type=bounded(int, 1), help="samples whose degradation shares its sizes (4)")
    add("--negative_share", type=bounded(float, 0, 1, open_high=True),
        help="share of pairs that teach the low-quality class (0.1)")
    add("--light", type=bounded(float, 0, 1), help="share of light degradations among the heavy ones (0)")
    add("--upsample", help="how LR pictures are resized back, drawn uniformly (area,bilinear,bicubic)")
    add("--val_data", "--valid_data_path", help="held-out pictures: a folder with LR and HR, or of pictures that are "
                                                "degraded for it; c2i: a folder a class, as in --data; without it, "
                                                "seeded crops of --data")


def _add_course(add: Callable[..., Any]) -> None:
    add("--output", help="states, logs, sheets and the model (default: runs/EXP_NAME)")
    add("--exp_name", default="train", help="name of the run, also at wandb (default: %(default)s)")
    add("--ep", type=bounded(float, 0, open_low=True), help="length in epochs of --data")
    add("--max_iters", type=bounded(int, 1), help="length in iterations (20000)")
    add_run_flags(add)


def length_fault(args: argparse.Namespace, ways: Sequence[str]) -> str | None:
    """What is wrong where more than one of the flags that set a run's length was given."""
    used = list(given(args, *ways))
    return f"--{used[0]} and --{used[1]} both set the length: give one of them" if len(used) > 1 else None


def add_loading_flags(add: Callable[..., Any]) -> None:
    """Who draws the crops."""
    add("--workers", type=bounded(int, -1), default=0, help="processes that draw crops ahead (0: none)")
    add("--data_on_device", type=boolean, nargs="?", const=True, default=False,
        help="hold the photographs in the GPU's memory and cut random crops there: 4 bytes a pixel")


def loading_fault(args: argparse.Namespace) -> str | None:
    """What is wrong with them together."""
    idle = args.data_on_device and args.workers > 0
    return "--workers cannot act with --data_on_device, whose crops no process draws: leave it out" if idle else None


def add_run_flags(add: Callable[..., Any]) -> None:
    """What every training script lets one say of a run, whatever it trains."""
    add("--minutes", type=bounded(float, 0, open_low=True),
        help="length by the clock, set-up and export included: schedules follow it, on whatever machine")
    add("--wandb_flag", type=boolean, nargs="?", const=True, default=False,
        help="log to Weights & Biases too; WANDB_MODE=offline is honoured")
    add("--log_every", type=bounded(int, 1), default=20, help="iterations between lines of the log")
    add("--val_every", "--report_every", dest="val_every", type=bounded(int, 1),
        help="iterations between validations and sheets (500; with --minutes: eight in all)")
    add("--save_every", type=bounded(int, 1),
        help="iterations between saved states (500; with --minutes: one a minute)")
    add("--keep", type=bounded(int, 1), default=2, help="states that are kept, beside the best one")
    add("--resume", choices=("auto", "no"), default="auto", help="go on from the last state in --output, or start over")
    add("--no_resume", dest="resume", action="store_const", const="no", help=argparse.SUPPRESS)
    add("--device", default="auto", help="auto: the GPU of the process if there is one")
    add("--seed", type=int, default=0)


def _add_optimisation(add: Callable[..., Any]) -> None:
    add("--batch_size", type=bounded(int, 1), help="of each process and part of a step (4)")
    add("--bs", type=bounded(int, 1), help="in its place, the batch of a whole step on all processes")
    add("--ac", type=bounded(int, 1), help="gradient accumulation: parts of a step; multiplies --tblr as published (1)")
    add("--tblr", type=bounded(float, 0, open_low=True), help="peak learning rate (the stage's own)")
    add("--opt", choices=("adamw", "adam", MUON), help="the first two are AdamW, as published; muon: Muon for the "
                                                       "matrices of the blocks")
    add("--afuse", type=boolean, help="AdamW in one kernel (True)")
    add("--twd", type=bounded(float, 0), help="weight decay (0.05; decoder 1e-4)")
    add("--twde", type=bounded(float, 0), help="weight decay at the end (0: that of the start)")
    add("--tclip", type=float, help="gradient clip (2; decoder 1); 0 or less: none")
    add("--ls", type=bounded(float, 0, 1, open_high=True), help="label smoothing (0)")
    add("--wp", type=bounded(float, 0, 1, open_high=True), help="warm-up, share of the run, not epochs as published "
                                                                "(0.1; 0 means 0.02)")
    add("--wp0", type=bounded(float, 0, 1), help="first learning rate, share of the peak (0.005)")
    add("--wpe", type=bounded(float, 0, 1), help="last learning rate, share of the peak (0.01)")
    add("--sche", choices=tuple(CURVES), help="schedule of the learning rate (lin0)")
    add("--error_rate", type=bounded(float, 0, 1), help="share of codes replaced by wrong ones in the inputs, at most")
    add("--scale_balance", type=bounded(float, 0, 1), help="share of the cross-entropy that weighs all scales alike")
    add("--ssim_weight", type=bounded(float, 0), help="decoder and faithful stage: weight of 1 - SSIM beside the pixel "
                                                      "loss (0; faithful 0.5)")
    add("--pixel_weight", type=bounded(float, 0), help="detail stages: weight of L1 (1; classes 0.5)")
    add("--chroma_weight", type=bounded(float, 0), help="decoder, faithful and detail stages: weight of the "
                                                             "colours' L1 (0; faithful and detail 4; classes 1)")
    add("--perceptual_weight", type=bounded(float, 0), help="detail stages: weight of the judge (0.1; classes 0)")
    add("--map_weight", type=bounded(float, 0), help="detail stages: weight of feature maps (0.3; classes 1)")
    add("--adversary", choices=ADVERSARIES, help="detail stages: what judges: patches of pixels, feature maps, both")
    add("--adversarial_weight", type=bounded(float, 0),
        help="detail stages: weight of discriminators (0.018; classes 0.02)")
    add("--rim_weight", type=bounded(float, 0), help="detail stage: weight of what goes beyond the photograph's range "
                                                     "beside edges (4)")
    add("--lattice_weight", type=bounded(float, 0), help="detail stage: weight of what repeats from cell to cell of "
                                                         "the latent (4)")
    add("--coarse_weight", type=bounded(float, 0), help="detail stage: weight of L1 at a half and a quarter "
                                                        "of the size (2)")
    add("--contrast_weight", type=bounded(float, 0), help="detail stage: weight of how much weaker or stronger "
                                                          "contrasts are than the photograph's (12)")
    add("--shift_weight", type=bounded(float, 0), help="detail stage: weight of what changes where the grid of cells "
                                                       "lies elsewhere (4)")
    add("--right_share", type=bounded(float, 0, 1), help="detail stage: share of samples of the right codes (0.5)")
    add("--fresh", type=bounded(int, 1), help="stages with a pool: new samples at a time (4; faithful 8)")
    add("--pool_size", type=bounded(int, 1),
        help="stages with a pool: samples that are drawn from (decoder 512; faithful 1024; detail 2400; classes 400)")
    add("--renew_every", type=bounded(int, 1),
        help="stages with a pool: iterations between --fresh new samples of it (4; faithful 1)")
    add("--ema", type=bounded(float, 0, 1), help="decay of the moving average, the result (0.999; decoder, faithful, "
                                                 "c2i_detail 0.998; detail 0.99)")


def _add_machine(add: Callable[..., Any]) -> None:
    add("--fp16", type=int, choices=tuple(PRECISIONS),
        help="0: fp32, 1: fp16, 2: bf16; without: bf16 where the device computes in it, else fp32")
    add("--fsdp", type=boolean, nargs="?", const=True, default=False,
        help="share the transformer's weights, gradients and optimiser between the processes of torchrun")
    add("--checkpointing", type=boolean, nargs="?", const=True, default=False,
        help="recompute activations of blocks in the backward pass: less memory, a third more work")
    add("--tfast", type=int, choices=tuple(COMPILE_MODES), default=0, help="compile the transformer's blocks: 1 "
                                                                         "reduce-overhead, 2 max-autotune, 3 default")
    add("--vfast", type=int, choices=tuple(COMPILE_MODES), default=0, help="compile the tokenizer's encoder, likewise")
    add("--tf32", type=boolean, help="GPUs: products of fp32 in TensorFloat-32 (True)")
    add("--anorm", type=boolean, default=True, help="normalised queries and keys; VARSR has no other attention")
    add("--fuse", type=boolean, default=False, help="attention of other libraries; PyTorch's own is always fused here")


# Flags that act in some stages only.
_FRESH = ("preset", "depth", "pn", "patch_size", "saln", "vqvae", "ini", "hd", "aln", "alng")
_CODES = ("ac", "twde", "ls", "wp", "wp0", "wpe", "sche", "opt", "afuse", "error_rate", "scale_balance")
ONLY_IN: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("fidelity_width", "fidelity_blocks", "fidelity_pixels"), (DECODER,)),
    (("ssim_weight",), (DECODER, FAITHFUL)),
    (("faithful_width", "faithful_blocks"), (FAITHFUL,)),
    (("chroma_weight",), (DECODER, FAITHFUL, DETAIL, CLASS_DETAIL)),
    (("detail_width", "detail_blocks"), (DETAIL, CLASS_DETAIL)),
    (("pixel_weight", "perceptual_weight", "map_weight", "adversary", "adversarial_weight"),
     (DETAIL, CLASS_DETAIL)),
    (("rim_weight", "lattice_weight", "coarse_weight", "contrast_weight", "shift_weight", "right_share"), (DETAIL,)),
    ((*_FRESH, *_CODES), (SR, CLASSES)),
    (("data_neg", "negative_share"), (SR,)),
    (("fresh", "pool_size", "renew_every"), GENERATING),
    (("crops", "mid_reso", "light", "upsample", "group"), (SR, DECODER, FAITHFUL, DETAIL)),
)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Flags of the file (--config) and the command line. Ends the program with one line where one cannot act."""
    arguments = list(argv)
    known, _ = _config_parser().parse_known_args(arguments)
    if known.config:
        arguments = [*_from_yaml(parser, known.config), *arguments]
    args, unknown = parser.parse_known_args(arguments)
    for flag in unknown:
        name = flag.removeprefix("--").split("=")[0]
        if flag.startswith("--") and name in REFUSED:
            parser.error(f"--{name} cannot act: {REFUSED[name]}")
    if unknown:
        parser.error(f"unknown flag {unknown[0]}: see --help")
    reason = idle_flag(args)
    if reason:
        parser.error(reason)
    return args


def _config_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    return parser


def _from_yaml(parser: argparse.ArgumentParser, path: str) -> list[str]:
    """A file's entries as arguments, so that both are checked alike."""
    import yaml
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f"--config {path} cannot be read ({' '.join(str(error).split())})")
    if not isinstance(values, dict):
        parser.error(f"--config {path} is no list of `flag: value` lines")
    return [f"--{name}={_text(value)}" for name, value in values.items() if value is not None]


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the flags that were given, by name."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def idle_flag(args: argparse.Namespace) -> str | None:
    """What is wrong with a flag that was given and cannot act; None if all can."""
    for names, stages in ONLY_IN:
        if args.stage not in stages and (idle := given(args, *names)):
            return f"--{next(iter(idle))} cannot act with --stage {args.stage}: leave it out"
    checks = (
        (args.preset and args.depth, "--depth stands in place of --preset: give one of them"),
        (args.batch_size and args.bs, "--bs stands in place of --batch_size: give one of them"),
        (args.mid_reso and crops_of(args) != "centre", "--mid_reso cannot act without --crops centre: leave it out"),
        (args.data_on_device and crops_of(args) == "centre",
         "--data_on_device cannot act with --crops centre, whose pictures are read as they are drawn: leave it out"),
        (args.data_on_device and args.stage in OF_CLASSES, f"--data_on_device cannot act with --stage {args.stage}"),
        (not args.anorm, "--anorm=False cannot act: VARSR always normalises queries and keys"),
        (args.fuse, "--fuse=1 cannot act: attention is always PyTorch's fused kernel, no other library is used"),
        (args.fsdp and args.fp16 == FP16, "--fsdp has no loss scaler: give --fp16=2 (bf16) or 0"),
        (args.fsdp and args.opt == MUON, "--fsdp cannot act with --opt muon, which needs whole matrices"),
        (args.fsdp and args.stage in GENERATING,
         f"--fsdp cannot act with --stage {args.stage}, which trains on one device"),
        (args.checkpointing and args.stage in GENERATING,
         f"--checkpointing cannot act with --stage {args.stage}: leave it out"),
    )
    faults = (length_fault(args, LENGTHS), loading_fault(args), *(message for fault, message in checks if fault))
    return next(filter(None, faults), None)


def crops_of(args: argparse.Namespace) -> str:
    """--crops, or what stands for it."""
    return args.crops or ("centre" if args.depth else "random")
