"""Command lines: what adds up, what is refused in one line before any work, and what the help says."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import ROOT

import pez
from jobs import arguments, command, main
from jobs.caption import CaptionJob
from jobs.distill import DistillJob
from jobs.evaluate import EvaluateJob
from jobs.invert import InvertJob
from jobs.options import expect_device_here
from jobs.plan import PlanJob
from jobs.train_demo import TrainDemoJob
from jobs.verify import VerifyJob
from pez.errors import UserError
from pipeline.settings import ClusterSettings

JOBS = {
    CaptionJob: ["--output", "out"],
    DistillJob: ["--demo"],
    InvertJob: ["a.png"],
    VerifyJob: ["out", "--verify", "demo"],
    EvaluateJob: ["--demo"],
    PlanJob: ["--images", "5", "--gpus", "1", "--images-per-second", "1"],
    TrainDemoJob: ["--output", "out"],
}
"""the options of each command, with words that are accepted"""


NUMBERS = [(job, flag) for job in JOBS for flag in arguments.flags_of(job) if flag.hint in (int, float)]
TEXTS = [(job, flag) for job in JOBS for flag in arguments.flags_of(job) if flag.hint in (str, Path)]
LISTS = [
    (job, flag)
    for job in JOBS
    for flag in arguments.flags_of(job)
    if flag.repeats and flag.hint is str and not flag.positional
]


def read(job: type, *words: str) -> Any:
    return arguments.read(job, "", "pez x", [*JOBS[job], *words])


def name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else getattr(value, "name", "")


def value_of(chosen: object, flag: arguments.Flag) -> object:
    for field in flag.path:
        chosen = getattr(chosen, field)
    return chosen


def test_there_are_list_options_to_try() -> None:
    assert {(job, flag.name) for job, flag in LISTS} >= {
        (CaptionJob, "--input"),
        (CaptionJob, "--blocklist"),
        (InvertJob, "--blocklist"),
        (EvaluateJob, "--input"),
        (EvaluateJob, "--allowlist"),
        (VerifyJob, "--input"),
    }


@pytest.mark.parametrize(("job", "flag"), LISTS, ids=name)
def test_a_list_option_that_is_given_again_adds_up(
    job: type, flag: arguments.Flag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in "abc" if flag.name == "--fluency-text" else "":  # whose lines are the values
        Path(file).write_text(file)
    words = [word for word in JOBS[job] if word != "--demo"]
    more = ["--input", "x"] if job is EvaluateJob and flag.name != "--input" else []
    if job is EvaluateJob and flag.name.startswith("--score"):  # which compares methods under these judges
        judges = ["--score-model", "ViT-B-32", "ViT-L-14", "ViT-B-16"] if flag.name == "--score-pretrained" else []
        more += ["--methods", "pez", *judges]
    if job is InvertJob and flag.name == "--text":
        more = ["--together"]
    if job is DistillJob and flag.name != "--text":
        more = ["--output", "x"] if flag.name == "--input" else ["--text", "x"]
    seed = "--verify-seed" if job is VerifyJob else "--seed"
    a, b, c = ("pez", "gcg", "random") if flag.name == "--methods" else ("a", "b", "c")
    spellings = [
        [flag.name, a, b, c],
        [flag.name, a, flag.name, b, flag.name, c],
        [flag.name, a, b, seed, "3", flag.name, c],
        [f"{flag.name}={a}", flag.name, b, f"{flag.name}={c}"],
    ]
    for spelling in spellings:
        chosen: object = arguments.read(job, "", "pez x", [*words, *more, *spelling])
        assert value_of(chosen, flag) == (a, b, c), spelling


def test_images_may_stand_before_and_behind_options() -> None:
    assert read(InvertJob, "--steps", "3", "b.png", "--together").images == ("a.png", "b.png")
    assert read(InvertJob, "--blocklist", "red", "--steps", "3", "--", "-b.png").images == ("a.png", "-b.png")


def test_other_options_keep_the_last_of_their_values() -> None:
    assert read(CaptionJob, "--steps", "3", "--steps", "4").method.steps == 4


@pytest.mark.parametrize(("job", "flag"), NUMBERS, ids=name)
@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-inf", "", "x", "1e400", "9" * 40, "9" * 5000, "-" + "9" * 40])
def test_a_number_that_makes_no_sense_is_one_line_before_any_work(job: type, flag: arguments.Flag, value: str) -> None:
    """Every number of every command. Seeds may be negative."""
    if value == "-1" and flag.path[-1] in ("seed", "verify_seed") and job is not TrainDemoJob:
        assert value_of(read(job, flag.name, value, *needed(flag)), flag) == -1
        return
    named = flag.path[-1].replace("_", "[-_]")
    # After an option of several values, a word like -inf is another option.
    with pytest.raises(ValueError, match=f"{named}|unknown option: -inf" if flag.several else named) as refused:
        read(job, flag.name, value, *needed(flag))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("job", "words", "message"),
    [
        (CaptionJob, ["--demo", "--outptu", "x"], "unknown option: --outptu; did you mean --output?"),
        (CaptionJob, ["--hlep"], "unknown option: --hlep; did you mean --help?"),
        (VerifyJob, ["--verfy=demo"], "unknown option: --verfy=demo; did you mean --verify?"),
        (VerifyJob, ["", "--verify", "demo"], "OUTPUT is empty"),
        (VerifyJob, ["--verify", "demo"], "no output given; expected the folder of an earlier job"),
    ],
)
def test_a_misspelled_option_is_told_before_one_that_is_missing(job: type, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        arguments.read(job, "", "pez x", words)


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        ("caption", ["--output", "x"], "no input given; expected --input with a folder of images, tars or tables"),
        ("verify", ["x"], "no generator is named; expected --verify demo"),
        ("evaluate", ["--input", "x.tar"], "no generator is named; expected --verify demo"),
    ],
)
def test_a_command_that_lacks_its_input_or_model_says_so_before_it_loads_anything(
    module: str, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pez", *words])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"jobs.{module}").main(f"pez {module}")
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (2, "")
    assert told.err.startswith(f"error: {message}")


def test_help_is_shown_beside_a_misspelled_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments.read(CaptionJob, "", "pez x", ["--outptu", "x", "--help"])
    assert "--output" in capsys.readouterr().out


def test_a_gpu_that_this_machine_lacks_is_told_before_ray_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--device is cuda, but PyTorch finds no GPU on this machine; expected cpu"):
        expect_device_here("cuda", ClusterSettings())
    expect_device_here("cuda", ClusterSettings(address="head:6379"))  # its nodes may have one
    for device in (None, "cpu"):
        expect_device_here(device, ClusterSettings())


def needed(flag: arguments.Flag) -> list[str]:
    """What an option has no effect without."""
    if flag.path[-1] == "actors_per_gpu":
        return ["--report", "r"]
    return ["--verify", "demo"] if flag.path[0] == "verification" and flag.path[-1] != "verify" else []


@pytest.mark.parametrize(("job", "flag"), TEXTS, ids=name)
def test_an_empty_text_is_one_line_before_any_work(job: type, flag: arguments.Flag) -> None:
    words = JOBS[job] if not flag.positional else []
    with pytest.raises(UserError, match="empty") as refused:
        arguments.read(job, "", "pez x", [*words, *([] if flag.positional else [flag.name]), "", *needed(flag)])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("job", "words", "message"),
    [
        (CaptionJob, ["--stepz", "3"], "unknown option: --stepz; did you mean --steps?"),
        (CaptionJob, ["--retry_failed"], "unknown option: --retry_failed; did you mean --retry-failed?"),
        (CaptionJob, ["a.tar"], "unknown argument: a.tar; pez x --help lists the options"),
        (CaptionJob, ["--demo=False"], "--demo: ignored explicit argument 'False'"),
        (CaptionJob, ["--steps", "many"], "--steps: 'many' is not a whole number"),
        (CaptionJob, ["--steps", "5.5"], "--steps: '5.5' is not a whole number"),
        (CaptionJob, ["--guidance", "high"], "--guidance: 'high' is not a number"),
        (CaptionJob, ["--steps"], "--steps: expected one argument"),
        (CaptionJob, ["--precision", "fp8"], "--precision: invalid choice: 'fp8'"),
        (CaptionJob, ["--verify-precision", "fp8"], "--verify-precision: invalid choice: 'fp8'"),
        (
            CaptionJob,
            ["--demo", "--input", "x.tar"],
            "--demo and --input are both given; expected one source of images",
        ),
        (CaptionJob, ["--demo", "--model", "nonsense"], "--demo uses a demo model, but --model is nonsense"),
        (CaptionJob, ["--demo", "--model", "ViT-H-14"], "--demo uses a demo model, but --model is ViT-H-14"),
        (EvaluateJob, ["--demo", "--input", "x.tar"], "--demo and --input are both given"),
        (EvaluateJob, ["--demo", "--model", "ViT-B-32"], "--demo uses a demo model"),
        (EvaluateJob, ["--images", "0"], "--images is 0; expected 1 to"),
        (InvertJob, ["--demo", "--model", "ViT-B-32"], "--demo uses a demo model"),
        (CaptionJob, ["--verify-images", "4"], "--verify-images has no effect without --verify"),
        (
            CaptionJob,
            ["--keep-images", "--score-model", "demo"],
            "--keep-images, --score-model have no effect without",
        ),
        (CaptionJob, ["--verify", "demo", "--score-pretrained", "openai"], "no effect without --score-model"),
        (CaptionJob, ["--exact", "--swaps", "4"], "--swaps has no effect with --exact"),
        (
            CaptionJob,
            ["--demo", "--pretrained", "x"],
            "--pretrained has no effect with --demo, which includes its weights",
        ),
        (CaptionJob, ["--model", "hf-hub:a/b", "--pretrained", "x"], "--pretrained has no effect with --model hf"),
        (EvaluateJob, ["--demo", "--image-key", "jpg"], "--image-key has no effect with --demo, which reads no tar"),
        (CaptionJob, ["--method", "pez", "--swaps", "4"], "--swaps has no effect with --method pez"),
        (CaptionJob, ["--method", "default", "--exact"], "--exact and --method are both given; expected one of them"),
        (CaptionJob, ["--local", "--actors", "4"], "--actors has no effect with --local"),
        (CaptionJob, ["--device", "tpu"], "--device is 'tpu'; expected cpu or cuda"),
        (
            CaptionJob,
            ["--local", "--device", "tpu"],
            "--device is 'tpu'; expected cpu, cuda, or a specific GPU such as cuda:1",
        ),
        (
            CaptionJob,
            ["--local", "--device", "cuda:-1"],
            "--device is 'cuda:-1'; expected cpu, cuda, or a specific GPU such as cuda:1",
        ),
        (CaptionJob, ["--device", "cuda:1"], "--device is 'cuda:1'; expected cpu or cuda: Ray gives each actor a GPU"),
        (CaptionJob, ["--gpus-per-actor", "-0.5"], "--gpus-per-actor is -0.5; expected 0 to 1000"),
        (
            DistillJob,
            ["--text", "a", "--input", "b.parquet"],
            "--text and --input are both given; expected one of them",
        ),
        (DistillJob, ["--input", "b.parquet"], "no output given; expected --output with a folder for the tables"),
        (DistillJob, ["--text", "a", "--output", "out"], "--output has no effect without --input TABLE"),
        (DistillJob, ["--column", "text", "--local"], "--column, --local have no effect without --input TABLE"),
        (DistillJob, ["--model", "ViT-B-32"], "--demo uses a demo model"),
        (PlanJob, ["--gpus", "0"], "--gpus is 0; expected more than 0"),
        (PlanJob, ["--images", "0"], "--images is 0; expected more than 0"),
        (PlanJob, ["--parts", "20000", "--shard-size", "5"], "parts is 20000; expected 1 to 10,000"),
        (PlanJob, ["--parts", "6", "--shard-size", "5"], "parts is 6; expected no more than the 5 images of a shard"),
        (PlanJob, ["--actors-per-gpu", "2"], "--actors-per-gpu has no effect without --report"),
        (TrainDemoJob, ["--evaluate", "--steps", "4"], "--steps has no effect with --evaluate"),
    ],
)
def test_what_cannot_be_meant_is_one_line(job: type, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        read(job, *words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("words", [["--demo", "--model", "demo"], ["--demo", "--model", "demo-judge"], ["--demo"]])
def test_the_demo_takes_its_own_models(words: list[str]) -> None:
    assert read(CaptionJob, *words).demo


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("/", "--output is /, the root of the file system"),
        ("//", "the root of the file system"),
        ("/tmp/..", "the root of the file system"),
        ("file:///", "the root of the file system"),
        ("{tmp}/file", "--output is {tmp}/file, but {tmp}/file is a file; expected a folder"),
        ("{tmp}/file/out", "--output is {tmp}/file/out, but {tmp}/file is a file; expected a folder"),
        ("s3://", "--output is s3://; expected a bucket and a folder in it"),
    ],
)
def test_an_output_that_is_no_folder_is_refused(output: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=re.escape(message.format(tmp=tmp_path))):
        arguments.read(CaptionJob, "", "pez caption", ["--demo", "--output", output.format(tmp=tmp_path)])


@pytest.mark.parametrize("option", ["--json", "--picture"])
def test_a_file_that_could_not_be_written_in_the_end_is_found_out_first(option: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no folder {tmp_path}/gone; create it first"):
        read(EvaluateJob, option, f"{tmp_path}/gone/x")
    with pytest.raises(UserError, match=f"{option} is {tmp_path}, a folder; expected the name of a file"):
        read(EvaluateJob, option, str(tmp_path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "{tmp}/gone/b.json"], "there is no folder {tmp}/gone"),
        (["--curve", "--plot", "{tmp}/gone/c.png"], "there is no folder {tmp}/gone"),
        (["--plot", "c.png"], "--plot has no effect without --curve"),
        (["--images", "9"], "--images has no effect without --curve or --equal-score or --pipeline"),
        (["--curve", "--shard-size", "9"], "--shard-size has no effect without --pipeline"),
        (["--pipeline", "--equal-score"], "--equal-score and --pipeline are both given; expected one of them"),
        (["--pipeline", "--lanes", "16", "32"], "--lanes has 2 numbers; expected one with --pipeline"),
        (["--pipeline", "--images", "1024"], "--images is 1024; expected more than the 1024 lanes"),
        (["--pipeline", "--images-per-second", "0"], "--images-per-second is 0.0; expected 0.001 to"),
        (["--equal-score", "--checkpoint", "{tmp}/gone/c.pt"], "there is no folder {tmp}/gone"),
        (["--lanes", "16", "--lanes", "0"], "--lanes is 0; expected 1 to"),
        (["--tokens", "-1"], "tokens is -1; expected 1 to"),
        (["--steps", "0"], "--steps is 0; expected 1 to"),
        (["--threads", "0"], "--threads is 0; expected 1 to"),
        (["--seconds", "nan"], "--seconds is nan; expected a finite number"),
        (["--model", ""], "--model is empty"),
        (["--device", "tpu"], "--device is 'tpu'"),
        (["--curve", "--overhead"], "--curve and --overhead are both given; expected one of them"),
        (["--curve", "--images", "1"], "--images is 1; expected 2 to"),
    ],
)
def test_a_benchmark_that_cannot_be_run_is_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pez", "benchmark", *(word.format(tmp=tmp_path) for word in words)])
    with pytest.raises(SystemExit) as ended:
        main.main()
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert message.format(tmp=tmp_path) in line


def test_lanes_of_the_benchmark_add_up() -> None:
    from jobs.benchmark.options import parser

    assert parser("pez benchmark", None).parse_args(["--lanes", "1", "2", "--lanes", "3"]).lanes == [1, 2, 3]


def pez_says(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int | None, str, str]:
    monkeypatch.setattr(sys, "argv", ["pez", *words])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return (ended.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]


def test_pez_lists_its_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = pez_says(["--help"], monkeypatch, capsys)
    assert status == 0
    for name in main.COMMANDS:
        [line] = [line for line in out.splitlines() if line.startswith(f"  {name} ")]
        assert len(line) < 100
        assert importlib.import_module(f"jobs.{name}").main


def test_every_command_is_listed() -> None:
    """A module of jobs that can be run is a command of pez, but for tools of the developers."""
    runs = {file.stem for file in (ROOT / "jobs").glob("*.py") if "def main(prog" in file.read_text()} | {"benchmark"}
    assert runs == set(main.COMMANDS)


def test_pez_tells_its_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert pez_says(["--version"], monkeypatch, capsys) == (0, f"pez {pez.__version__}\n", "")


def test_an_unknown_command_is_one_line_with_those_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = pez_says(["capton", "--demo"], monkeypatch, capsys)
    assert (status, out) == (2, "")
    assert err.startswith(
        "error: unknown command 'capton'; did you mean caption? expected one of caption, invert, distill, verify"
    )
    assert pez_says(["--demo"], monkeypatch, capsys)[0] == 2
    assert pez_says([], monkeypatch, capsys)[0] == 2


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_names_the_command_and_has_groups(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = pez_says([name, "--help"], monkeypatch, capsys)
    assert status == 0
    assert out.startswith(f"usage: pez {name} ")
    assert "jobs/" not in out.split("\n")[0]
    if name == "caption":
        titles = ["input and output:", "model:", "method:", "verification:", "cluster:"]
        assert [line for line in out.splitlines() if line in titles] == titles
        assert "--local" in out.split("cluster:")[1]
        assert "--output TEXT" in out.split("input and output:")[1].split("model:")[0]
        assert "pez caption --demo --output out" in out


def test_a_module_is_named_as_it_was_called() -> None:
    assert command.prog_of("/somewhere/jobs/caption.py") == "python -m jobs.caption"


def test_every_option_says_what_it_is() -> None:
    for job in JOBS:
        for flag in arguments.flags_of(job):
            docs = arguments.field_docs(flag.owner)
            assert flag.path[-1] in docs
            if flag.path[-1] not in ("gpus", "seed", "learning_rate", "blocklist"):
                assert docs[flag.path[-1]], flag.name


@pytest.mark.parametrize("module", ["jobs", *(f"jobs.{name}" for name in main.COMMANDS)])
def test_help_imports_nothing_large(module: str) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "large = {'torch', 'ray', 'pyarrow', 'open_clip', 'numpy', 'PIL', 'diffusers', 'fsspec'} & set(sys.modules)\n"
        "sys.exit(f'imported: {large}' if large else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_option_is_a_folder_of_the_users_own(tmp_path: Path) -> None:
    """Somebody's own pipeline.py and jobs/ in the working folder are not what `pez` runs."""
    (tmp_path / "pipeline.py").write_text("raise SystemExit('the wrong pipeline')")
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise SystemExit('the wrong jobs')")
    script = tmp_path / "bin" / "pez"  # as pip writes it: its own folder comes first, not the working one
    script.parent.mkdir()
    script.write_text("import sys\nfrom jobs.main import main\nsys.exit(main())\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(script), "plan", "--images", "100", "--gpus", "1", "--images-per-second", "1"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("100 images on 1 GPU")


def test_the_output_may_follow_the_generators() -> None:
    for words in (["out", "--verify", "demo", "other"], ["--verify", "demo", "other", "out"]):
        job = arguments.read(VerifyJob, "", "pez verify", words)
        assert (job.output, job.verification.verify) == ("out", ("demo", "other"))
