"""`pez`: all commands under one name.

    pez COMMAND [options]
    pez COMMAND --help

Each command is also a module: `python -m jobs.caption` is `pez caption`.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

import pez
from jobs import command
from pez.errors import UserError

COMMANDS = {
    "caption": "learn a prompt for every image of folders, tars or tables; write Parquet tables",
    "invert": "learn prompts for a few images and show them as they improve",
    "distill": "shorten texts to prompts of a few tokens",
    "verify": "generate images from the prompts of an output and compare them with the originals",
    "gallery": "write the rows of an output as a web page to sort and filter",
    "export": "write prompts and images in the formats of trainers",
    "app": "open a web page to try it on: drop images and watch their prompts improve",
    "evaluate": "compare learned prompts with captions and random prompts, on your data",
    "classify": "learn prompts that make a language model a better text classifier",
    "plan": "estimate hours and cost of a job from a measured throughput",
    "benchmark": "measure speed, and quality against time, on this machine",
    "completion": "print a script that completes commands and options in a shell",
    "train_demo": "retrain the demo models",
}
"""the purpose of each command, by module name"""


def main(words: Sequence[str] | None = None) -> None:
    """Run a command and exit with its status."""
    words = sys.argv[1:] if words is None else words
    name = words[0].replace("-", "_") if words and not words[0].startswith("-") else ""
    if name not in COMMANDS:
        command.end(lambda: _without_command(words))
    sys.argv[1:] = words[1:]
    importlib.import_module(f"jobs.{name}").main(f"pez {words[0]}")


def _without_command(words: Sequence[str]) -> int:
    if words and words[0] in ("--version", "-V"):
        print(f"pez {pez.__version__}")
        return 0
    if words and words[0] not in ("-h", "--help"):
        close = difflib.get_close_matches(words[0], COMMANDS, 1)
        advice = f"did you mean {close[0]}? " if close else ""
        kind = "option" if words[0].startswith("-") else "command"
        raise UserError(f"unknown {kind} {words[0]!r}; {advice}expected one of {', '.join(COMMANDS)}")
    width = max(map(len, COMMANDS)) + 2
    print("usage: pez COMMAND [options]\n\nLearn hard prompts from images, by gradient.\n\ncommands:")
    for name, purpose in COMMANDS.items():
        print(f"  {name:{width}}{purpose}")
    print("\npez COMMAND --help lists the options of a command; pez --version shows the version.")
    return 0 if words else 2


if __name__ == "__main__":
    main()
