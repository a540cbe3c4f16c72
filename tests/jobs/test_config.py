"""Options from a file, and completion in a shell."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import ROOT

from jobs import arguments, completion
from jobs.arguments import flags_of
from jobs.caption import CaptionJob
from jobs.export import ExportJob
from jobs.main import COMMANDS
from pez.errors import UserError


def read(options: type[Any], *words: str) -> Any:
    return arguments.read(options, "", "pez x", words)


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        (tmp_path / "job.yaml").write_text(text)
        return str(tmp_path / "job.yaml")

    return write


def test_a_file_has_options_under_their_names(config: Any) -> None:
    path = config("output: prompts\ninput: [a.tar, b.tar]\ntokens: 7\nlearning_rate: 0.2\nlocal: true\ndemo: false\n")
    job = read(CaptionJob, "--config", path)
    assert job == read(
        CaptionJob,
        *["--output", "prompts", "--input", "a.tar", "b.tar", "--tokens", "7", "--learning-rate", "0.2", "--local"],
    )


def test_the_command_line_replaces_what_the_file_says(config: Any) -> None:
    path = config("output: prompts\ninput: [a.tar]\ntokens: 7\n")
    job = read(CaptionJob, "--input", "c.tar", f"--config={path}", "--tokens", "9")
    assert (job.output, job.input, job.method.tokens) == ("prompts", ("c.tar",), 9)


def test_a_file_may_name_what_has_no_dashes(config: Any) -> None:
    path = config("output: out\nformat: csv\nmix: ['caption:0.5']\n")
    assert read(ExportJob, "--config", path).output == "out"
    assert read(ExportJob, "--format", "jsonl", "--config", path, "other").output == "other"
    assert read(ExportJob, "--mix", "caption:0.1", "--config", path).output == "out"


def test_what_is_printed_can_be_read(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--output", "prompts", "--input", "a.tar", "--tokens", "7", "--blocklist", "red", "-x y"]
    with pytest.raises(SystemExit) as ended:
        read(CaptionJob, *words, "--print-config")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["tokens"] == 7
    assert read(CaptionJob, "--config", config(printed)) == read(CaptionJob, *words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokns: 7", "job.yaml: unknown option 'tokns'; did you mean tokens?"),
        ("tokens: many", "--tokens: 'many' is not a whole number"),
        ("tokens: [1, 2]", "tokens is [1, 2]; expected one value"),
        ("demo: 1", "demo is 1; expected true or false"),
        ("- a", "holds a list; expected lines like `tokens: 16`"),
        ("a: [", "is not YAML"),
        ("method: {steps: 1}", "expected one value"),
        ("verify_images: 2", "--verify-images has no effect without --verify MODEL"),
    ],
)
def test_a_wrong_file_is_one_line(config: Any, text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read(CaptionJob, "--output", "o", "--config", config(text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line() -> None:
    with pytest.raises(UserError, match="--config nowhere.yaml cannot be read: No such file or directory"):
        read(CaptionJob, "--config", "nowhere.yaml")


def test_the_short_help_has_the_first_group_and_names_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(CaptionJob, "-h")
    short = capsys.readouterr().out
    with pytest.raises(SystemExit):
        read(CaptionJob, "--help")
    long = capsys.readouterr().out
    assert "--input" in short
    assert "--tokens" not in short
    assert "--help also shows the options of: model, method, verification, cluster" in " ".join(short.split())
    assert "--tokens" in long


def test_every_command_can_be_completed() -> None:
    assert set(COMMANDS) == set(completion.OPTIONS) | {"benchmark"}


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "jobs.completion", "bash"], cwd=ROOT, capture_output=True, check=True
    )
    (tmp_path / "pez.sh").write_bytes(script.stdout)

    def completed(*words: str) -> set[str]:
        line = f"source {tmp_path}/pez.sh; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_pez"
        line += '; echo "${COMPREPLY[@]}"'
        return set(subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout.split())

    assert completed("pez", "ca") == {"caption"}
    exporting = {flag.name for flag in flags_of(ExportJob) if flag.name.startswith("--m")}
    assert completed("pez", "export", "--m") == exporting
