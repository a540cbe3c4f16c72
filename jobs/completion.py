"""Print a script that completes commands and options in a shell.

    eval "$(pez completion bash)"                          # in ~/.bashrc
    pez completion zsh > "${fpath[1]}/_pez"                # for zsh

Exit status: 0 printed, 2 bad usage.
"""

import dataclasses
import importlib
from typing import Annotated, Any, Literal

from jobs import command
from jobs.arguments import POSITIONAL, Parser, flags_of

OPTIONS = {
    "caption": "CaptionJob",
    "invert": "InvertJob",
    "distill": "DistillJob",
    "verify": "VerifyJob",
    "gallery": "GalleryJob",
    "export": "ExportJob",
    "app": "AppJob",
    "evaluate": "EvaluateJob",
    "classify": "ClassifyJob",
    "plan": "PlanJob",
    "train_demo": "TrainDemoJob",
    "completion": "CompletionJob",
}
"""the dataclass of options of each command; `benchmark` reads its options itself"""


@dataclasses.dataclass(frozen=True)
class CompletionJob:
    """Options of `pez completion`."""

    shell: Annotated[Literal["bash", "zsh", "tcsh"], POSITIONAL]
    """shell that reads the script"""


def completion(job: CompletionJob) -> int:
    """Run the job; returns its exit status."""
    import shtab

    print(shtab.complete(parser(), job.shell))
    return 0


def parser() -> Any:
    """The parser of all commands, as shtab reads it."""
    import argparse

    root = argparse.ArgumentParser(prog="pez")
    root.add_argument("--version", action="store_true", help="show the version")
    commands = root.add_subparsers(parser_class=Parser)
    from jobs.main import COMMANDS

    for name, purpose in COMMANDS.items():
        added = commands.add_parser(name, description=purpose, help=purpose)
        if name in OPTIONS:
            options = getattr(importlib.import_module(f"jobs.{name}"), OPTIONS[name])
            added.add(list(flags_of(options)), documented=True)
    return root


def main(prog: str | None = None) -> None:
    command.run(CompletionJob, __doc__, completion, prog)


if __name__ == "__main__":
    main()
