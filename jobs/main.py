"""`pez`: all commands under one name.

    pez COMMAND [options]
    pez COMMAND --help

Each is a module too: `python -m jobs.caption` is `pez caption`.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

import pez
from jobs import command
from pez.errors import UserError

COMMANDS = {
    "caption": "learn a prompt for every image of folders, tars or tables, into Parquet",
    "invert": "learn prompts for a few images and show them as they improve",
    "distill": "shorten texts to prompts of a few tokens",
    "verify": "paint the prompts of an output and compare the pictures with the originals",
    "gallery": "an output as a page: images, prompts and scores, to be sorted and filtered",
    "evaluate": "learned prompts beside captions and random ones, on your data",
    "plan": "hours and cost of a job, from a throughput that was measured",
    "benchmark": "how fast this machine learns prompts, and how good they are for the time",
    "train_demo": "train the shipped demo models again",
}
"""what each is for; the names are those of the modules"""


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
        advice = f"do you mean {close[0]}? " if close else ""
        kind = "option" if words[0].startswith("-") else "command"
        raise UserError(f"there is no {kind} {words[0]!r}; {advice}pez has {', '.join(COMMANDS)}")
    width = max(map(len, COMMANDS)) + 2
    print("usage: pez COMMAND [options]\n\nLearn hard prompts from images, by gradient.\n\ncommands:")
    for name, purpose in COMMANDS.items():
        print(f"  {name:{width}}{purpose}")
    print("\npez COMMAND --help lists the options of a command; pez --version tells the version.")
    return 0 if words else 2


if __name__ == "__main__":
    main()
