"""What people see: tables that can be read at any width, output that decides over no job, progress inside the work."""

import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pyarrow as pa
import pytest
from rich.cells import cell_len
from rich.console import Console
from running import ROOT
from samples_on_disk import MakeTar, encoded

import pez
from jobs import caption, command, invert
from pez.errors import UserError
from pipeline.progress import JobProgress
from pipeline.rows import ShardReport
from pipeline.settings import CaptionSettings
from pipeline.sources.demo_shards import demo_shards
from pipeline.stages.learn import Learner, Progress
from pipeline.stages.verify import VerifyProgress
from pipeline.terminal import Output, count, prompt_table

PROMPTS = [
    "orange wavy triangle solid large yellow right bottom",
    "silhouettes boardwalk seaside evening shimmering harbour fishermen reflections dusk violet skyline ferry lanterns",
    "短い 提示 日本語 漢字 かな",
    "smile 😀 🎉 family done",
]
KEYS = {
    "short": [f"{i:05d}" for i in range(4)],
    "32 characters": [f"{i:032x}" for i in range(4)],
    "200 characters": ["photos/2020/" * 16 + f"summer_{i}" for i in range(4)],
    "wide characters": [f"写真/夏の海岸/とても長い名前の画像ファイル番号{i}" for i in range(4)],
}
CAPTION = "an image showing a huge green moon near the top on wavy black, and 日本語の説明文"


def shown(keys: list[str], width: int, verified: bool, captioned: bool, encoding: str = "utf-8") -> list[str]:
    columns = {
        "key": keys,
        "status": ["ok"] * 4,
        "error_message": [None] * 4,
        "prompt": PROMPTS,
        "similarity": [0.938] * 4,
        "caption": [CAPTION if captioned else None] * 4,
        "caption_similarity": [0.111] * 4,
        "regenerated_similarity": [0.707 if verified else None] * 4,
        "regeneration": [{"model": "demo"} if verified else None] * 4,
    }
    raw = io.BytesIO()
    screen = io.TextIOWrapper(raw, encoding, errors="strict")
    Console(file=screen, width=width, color_system=None).print(prompt_table(pa.table(columns)))
    screen.flush()
    return raw.getvalue().decode(encoding).splitlines()


CASES = list(itertools.product(KEYS, (80, 100, 160), (False, True), (False, True)))


@pytest.mark.parametrize(("kind", "width", "verified", "captioned"), CASES)
def test_prompt_and_similarity_can_be_read_at_every_width(
    kind: str, width: int, verified: bool, captioned: bool
) -> None:
    lines = shown(KEYS[kind], width, verified, captioned)
    assert max(map(cell_len, lines)) <= width
    head, *body = lines
    start, end = head.index("prompt"), head.index("similarity")
    assert cell_len(head[start:end]) >= 30
    assert ("regenerated" in head) == verified
    if width == 160:
        assert ("caption" in head) == captioned
    words = " ".join(" ".join(_cells(line, start, end) for line in body).split())
    for prompt in PROMPTS:  # whole, and no word of it broken
        assert prompt in words
    assert sum("0.938" in line for line in body) == 4
    assert sum("0.707" in line for line in body) == 4 * verified
    assert len(body) <= 4 + 12  # wrapped, but not letter by letter


def _cells(line: str, start: int, end: int) -> str:
    """What stands in these columns of the screen."""
    at, found = 0, ""
    for character in line:
        if start <= at < end:
            found += character
        at += cell_len(character)
    return found


@pytest.mark.parametrize("width", [80, 100, 160])
def test_of_a_long_key_beginning_and_end_are_left(width: int) -> None:
    lines = shown(KEYS["200 characters"], width, True, True)
    assert all(re.search(rf"^phot.*….*_{i} ", "\n".join(lines), re.MULTILINE) for i in range(4))


def test_a_terminal_of_ascii_has_the_same_columns() -> None:
    lines = shown(KEYS["wide characters"], 80, False, True, "ascii")
    assert max(map(len, lines)) <= 80
    assert any("\\u" in line and "..." in line for line in lines)
    assert len({line.index("0.938") for line in lines if "0.938" in line}) == 1


def test_one_of_a_thing_is_not_many() -> None:
    assert [count(n, "shard") for n in (0, 1, 2, 1000)] == ["0 shards", "1 shard", "2 shards", "1,000 shards"]


ODD = "キー-é-\N{SNOWMAN}"


@pytest.fixture
def odd_tar(make_tar: MakeTar, images: list) -> str:
    members = [(f"{ODD}{i}.png", encoded(images[i])) for i in range(2)]
    return make_tar("in/odd.tar", [*members, ("._hidden.png", b"x"), ("noending", b"x")])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_cannot_show_a_key_does_not_decide_over_the_job(
    encoding: str, odd_tar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    monkeypatch.setattr(sys, "argv", ["x", *words(odd_tar, tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        command.run(caption.CaptionJob, caption.__doc__, caption.caption)
    sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert ended.value.code == 0
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert "\\u2603" in text
    assert "left out: 2 members (" in text


def words(tar: str, out: Path) -> list[str]:
    method = ["--steps", "2", "--swaps", "0", "--tokens", "3", "--lanes", "16"]
    return ["--input", tar, "--output", str(out), "--model", "demo", "--local", *method]


def test_a_reader_that_has_gone_does_not_decide_over_the_job(odd_tar: str, tmp_path: Path) -> None:
    """As with `| head -1`, at once: all that is printed meets a closed pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    command_line = [sys.executable, "-m", "jobs.caption", *words(odd_tar, tmp_path / "out")]
    done = subprocess.run(command_line, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_a_full_disk_behind_the_output_does_not_decide_over_the_job() -> None:
    with open("/dev/full", "w") as full:
        output = Output(full)
        for _ in range(10_000):
            output.write("lines and lines\n")
            output.flush()
        full.buffer.raw.close()  # type: ignore[attr-defined]


def test_a_command_whose_output_is_closed_ends_as_it_would_with_one() -> None:
    def status(*words: str) -> int:
        closed = [*("sh", "-c", 'exec "$@" >&- 2>&-', "sh"), sys.executable, "-m", "jobs.plan", *words]
        return subprocess.run(closed, timeout=120).returncode

    assert status("--images", "1000", "--gpus", "2", "--images-per-second", "5") == 0
    assert status("--images", "0", "--gpus", "2", "--images-per-second", "5") == 2


def test_the_help_goes_into_a_closed_pipe_in_silence() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    line = [sys.executable, "-m", "jobs.caption", "--help"]
    done = subprocess.run(line, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_warning_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        warnings.warn("out of memory with 64 lanes;\n  going on with 32", stacklevel=2)
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(SystemExit):
            command.end(work)
    assert capsys.readouterr().err == "warning: out of memory with 64 lanes; going on with 32\n"


def test_the_demo_model_on_other_pictures_says_what_it_knows(
    odd_tar: str, images: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images[0].save(tmp_path / "a.png")
    few = ["--steps", "2", "--swaps", "0", "--tokens", "3"]
    for job, line, told in (
        ((caption.CaptionJob, None, caption.caption), words(odd_tar, tmp_path / "out"), True),
        ((invert.InvertJob, None, invert.invert), [str(tmp_path / "a.png"), "--model", "demo", *few], True),
        ((invert.InvertJob, None, invert.invert), [str(tmp_path / "a.png"), "--demo", *few], True),
        ((invert.InvertJob, None, invert.invert), ["--demo", *few], False),
    ):
        monkeypatch.setattr(sys, "argv", ["x", *line])
        with pytest.raises(SystemExit) as ended:
            command.run(*job)
        assert ended.value.code == 0
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
        assert len(notes) == told
        assert all("knows only drawn 64x64 scenes" in n and "ViT-L-14 --pretrained openai" in n for n in notes)


def test_all_done_is_nothing_to_do(
    odd_tar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["x", *words(odd_tar, tmp_path / "out")])
        with pytest.raises(SystemExit) as ended:
            command.run(caption.CaptionJob, None, caption.caption)
        assert ended.value.code == 0
        told.append(capsys.readouterr().out)
    assert "loading demo\n" in told[0]
    assert "nothing to do" not in told[0]
    assert "nothing to do: the one shard is done\n" in told[1]
    assert "loading demo\n" not in told[1]
    for text in told:
        assert "left out: 2 members (" in text
        assert f"1 Parquet file in {tmp_path}/out\n" in text


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_line_tells_what_is_loaded_the_step_and_the_time_left() -> None:
    clock, told = Clock(), io.StringIO()
    progress = JobProgress(4, 0, Console(file=told, width=200), clock=clock)
    progress.doing("loading ViT-H-14")
    assert told.getvalue() == "loading ViT-H-14\n"
    clock.now = 40.0
    assert progress.line().endswith("loading ViT-H-14, 40 s")
    progress.look([Progress(of=524)])
    assert progress.line().endswith("reading images")
    progress.look([Progress(learning=64, steps=0, of=524)])
    clock.now = 140.0
    half = Progress(learning=64, steps=64 * 262, of=524, shards_done=0.5)
    progress.look([half])
    assert "0/4 shards  0 images  0.0 images/s  step 262 of 524  11 min 40 s left" in progress.line()
    progress.report(ShardReport("a", "a", 10, 7, {"bad_image": 2, "no_image": 1}, 9.0, 1.0, 0.9, [], "f"))
    assert "1/4 shards  7 images" in progress.line()
    assert "3 without a prompt (bad_image 2, no_image 1)" in progress.line()


def test_the_line_tells_the_time_that_verification_takes() -> None:
    clock = Clock()
    progress = JobProgress(2, None, Console(file=io.StringIO(), width=200), clock=clock, verified=0)
    progress.look([VerifyProgress(images=0, of=100)])
    clock.now = 50.0
    progress.look([VerifyProgress(images=25, scored=25, similarity=20.0, of=100)])
    assert progress.line().startswith("verified 0/2 shards  25 prompts  mean regenerated similarity 0.800")
    assert progress.line().endswith("25 of 100 in progress  5 min 50 s left")


def test_a_learner_counts_the_steps_of_what_it_has_in_work(scene_tars: list[str]) -> None:
    """Looked at from the side, as the line of a job does; and nothing is left when all is done."""
    from pipeline.sources.base import Unit
    from pipeline.stages.lanes import SharedLanes
    from pipeline.stages.learn import describe, learn_unit
    from pipeline.table import PromptTable

    settings, method = CaptionSettings(model="demo", lanes=16), pez.PezSettings(tokens=3, steps=6, swaps=2)
    learner = Learner(settings, method)
    seen: list[Progress] = []
    assert isinstance(learner.lanes, SharedLanes)
    learner.lanes._engine._on_step = lambda _: seen.append(learner.progress)
    table = PromptTable(f"{Path(scene_tars[0]).parent}/../out", describe(settings, method, "cpu"))
    learn_unit(Unit(scene_tars[0], "a"), learner, table)
    had = [0, 1, 2, 3, 4, 5, 7, 8]  # seen within each gradient step, before it counts, and after each round of swaps
    assert [(p.learning, p.steps // 4, p.of) for p in seen] == [(4, n, 8) for n in had]
    assert [round(p.shards_done * 8) for p in seen] == had
    assert learner.progress == Progress(of=8)


def test_what_is_done_in_this_process_is_looked_at_while_it_works() -> None:
    told = io.StringIO()

    class Worker:
        progress = Progress(learning=4, steps=40, of=20)

    with JobProgress(2, 0, Console(file=told, width=200), every=0.01) as progress:
        progress.watch(Worker())
        deadline = time.monotonic() + 30
        while "step 10 of 20" not in told.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def interrupted(words: list[str], when: str) -> tuple[int, str, str]:
    """A command that gets Ctrl-C when it has printed something."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    told = ""
    while when not in told:
        line = process.stdout.readline()
        assert line, f"it ended without {when!r}: {told}"
        told += line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return process.returncode, told + out, err


@pytest.mark.parametrize("wait", [0.0, 0.7, 2.0])
def test_ctrl_c_while_modules_are_imported_is_one_line(wait: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "jobs.invert", "--demo", "--steps", "100000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "loading PyTorch\n"
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_ctrl_c_in_invert_keeps_the_best_prompts() -> None:
    status, out, err = interrupted(["jobs.invert", "--demo", "--steps", "100000", "--restarts", "9"], "step 1 of ")
    assert status == 130
    assert re.fullmatch(r"interrupted: after \d+ of 100016 steps\n", err)
    table = out[out.index("best so far") :].splitlines()[1:]
    assert len(table) == 4
    assert all(re.search(r"\w+ \w+ .*0\.\d{3}$", line) for line in table)


def test_the_demo_finds_a_place_where_the_home_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    found = demo_shards()
    assert found == [f"{tmp_path}/pez-captions-{os.getuid()}/demo-v1/scenes-{i:05d}.tar" for i in range(4)]
    assert all(Path(path).stat().st_size for path in found)


def test_a_demo_without_a_place_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    other = tmp_path / f"pez-captions-{os.getuid()}"
    other.mkdir(mode=0o777)
    other.chmod(0o777)  # others could put their tars there
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="no place for the demo's images .* set XDG_CACHE_HOME to a writable folder"):
        demo_shards()
