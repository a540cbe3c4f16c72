"""Runs of `jobs.evaluate` in this process."""

import sys
from collections.abc import Callable

import pytest

from jobs import command
from jobs.evaluate import EvaluateJob, evaluate

Finished = tuple[int, str, str]
"""exit status, output, errors"""
Run = Callable[..., Finished]


def run_evaluate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            command.run(EvaluateJob, None, evaluate)
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run
