"""The command line of `jobs.benchmark`."""

import argparse
from pathlib import Path

import pez
from jobs.arguments import Parser

_METHOD = pez.PezSettings()


def parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """The command line.

    Args:
        prog: the command, as users call it.
        description: of the command, for its help.
    """
    options = Parser(prog, description, default=None)
    options.add_argument("--model", default="ViT-B-32", help="demo, an open_clip name, hf-hub:..., local-dir:...")
    options.add_argument("--pretrained", default="none", help="tag or checkpoint file; none = random weights")
    options.add_argument("--tokens", type=int, default=8)
    options.add_argument(
        "--steps",
        type=int,
        help="gradient steps of one search for each image; default = all those of the default method",
    )
    options.add_argument("--device", help="cpu or cuda; default = cuda if available")
    options.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="of the engine; default = bf16 if the hardware supports it, fp32 for --curve",
    )
    options.add_argument(
        "--lanes",
        type=int,
        nargs="+",
        action="extend",
        metavar="N",
        help="one or more; default = 64 on a CPU, 1024 on a GPU",
    )
    options.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction, help="compile the text tower; default = on a GPU"
    )
    options.add_argument("--threads", type=int, help="CPU threads")
    options.add_argument("--seconds", type=float, default=8.0, help="measuring time per variant")
    options.add_argument(
        "--vocabulary", choices=("model", "words", "full"), default="model", help="allowed tokens of the engine"
    )
    options.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures; `ratio` is the engine over the baseline"
    )
    options.add_argument("--curve", action="store_true", help="score against steps and seconds, on drawn scenes")
    options.add_argument(
        "--equal-score",
        action="store_true",
        help="images per hour at the score of the published algorithm; --json has them as `equal_score_ratio`",
    )
    options.add_argument("--overhead", action="store_true", help="the pipeline against the bare method, demo CLIP")
    options.add_argument(
        "--costs",
        action="store_true",
        help="operations of an image for several models and 4 to 64 tokens; only counted",
    )
    options.add_argument(
        "--pipeline", action="store_true", help="the pipeline with a stand-in that takes the time of a GPU"
    )
    options.add_argument(
        "--images", type=int, help="default = 256 for --curve, 32 for --equal-score, 3 per lane for --pipeline"
    )
    options.add_argument(
        "--baseline-steps",
        type=int,
        help="steps of --curve's baseline, which learns one prompt after another; default = 300",
    )
    options.add_argument("--swaps", type=int, help=f"rounds of --curve's default method; default = {_METHOD.rounds}")
    options.add_argument(
        "--exact-steps",
        type=int,
        help="steps of the exact mode, and of the published algorithm for --equal-score; default = 3000",
    )
    options.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="keeps the state of --equal-score's exact mode, to continue it"
    )
    options.add_argument("--images-per-second", type=float, help="speed of --pipeline's GPU; default = 40")
    options.add_argument("--image-size", type=int, help="width and height of --pipeline's photos; default = 512")
    options.add_argument("--shard-size", type=int, help="images per shard of --pipeline; default = 1000")
    options.add_argument("--plot", type=Path, metavar="PNG", help="figure of --curve (needs matplotlib)")
    return options
