"""The page to try it on, as a visitor's browser has it."""

import importlib.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from gallery_outputs import browser
from own_cluster import free_port
from PIL import Image
from samples_on_disk import encoded

import pez
from jobs import app, command
from jobs.trial import learn_live
from pez.errors import UserError
from pez.settings import ModelSettings

FEW = pez.PezSettings(tokens=3, steps=30, swaps=2)
NEEDS_GRADIO = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="pip install -e '.[app]'")


def test_a_prompt_is_seen_improving_and_ends_as_the_one_that_is_learned(
    demo_clip: pez.Clip, images: list[Image.Image]
) -> None:
    updates = list(learn_live(demo_clip, images[:2], ["a", "b"], FEW, together=False))
    assert [update.step for update in updates] == [1, 11, 21, 31, 32]
    assert [update.done for update in updates] == [False] * 4 + [True]
    assert updates[0].rows[0][2] <= updates[-2].rows[0][2]
    expected = pez.learn_prompts(demo_clip, images[:2], FEW)
    assert updates[-1].rows == [(n, p.text, p.similarity) for n, p in zip("ab", expected, strict=True)]


def test_several_images_share_a_prompt(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    *_, last = learn_live(demo_clip, images[:2], ["a", "b"], FEW, together=True)
    assert [row[:2] for row in last.rows] == [("a + b", pez.learn_prompt(demo_clip, images[:2], FEW).text)]


def test_the_steps_of_several_models_are_counted(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    joint = pez.JointClip([demo_clip, pez.load_clip("demo-judge")])
    *_, before, last = learn_live(joint, images[:1], ["a"], pez.PezSettings(tokens=3, steps=30), together=False)
    assert before.step <= last.step == last.of == 30 + 32


def test_a_visitor_who_leaves_ends_the_search(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    endless = pez.PezSettings(tokens=3, steps=1_000_000)
    search = learn_live(demo_clip, images[:1], ["a"], endless, together=False)
    assert next(search).step == 1
    start = time.monotonic()
    search.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 10


def test_a_setting_that_cannot_be_met_is_one_line(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    with pytest.raises(UserError, match="tokens"):
        list(learn_live(demo_clip, images[:1], ["a"], pez.PezSettings(tokens=300), together=False))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--demo", "--model", "ViT-L-14"), "--demo uses a demo model, but --model is ViT-L-14"),
        (("--port", "70000"), "--port is 70000; expected 1 to 65535"),
        (("--guidance", "3"), "--guidance has no effect without --verify MODEL"),
        pytest.param(
            ("--demo", "--also", "ViT-L-14"),
            "--also has 'ViT-L-14'; expected NAME/WEIGHTS, as in ViT-L-14/openai, or local",
            marks=NEEDS_GRADIO,
        ),
        pytest.param(
            ("--demo", "--also", "ViT-L-14/none-such"), "no weights 'none-such' for ViT-L-14", marks=NEEDS_GRADIO
        ),
    ],
)
def test_bad_usage_is_one_line(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pez", *words])
    with pytest.raises(SystemExit) as ended:
        command.run(app.AppJob, app.__doc__, app.app, "pez app")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_the_operator_names_the_models_of_the_page(tmp_path: Path) -> None:
    from jobs.page_models import Models, choices_of

    weights = tmp_path / "weights.pt"
    weights.touch()
    first = ModelSettings("ViT-L-14", "openai", precision="fp32")
    choices = choices_of(first, ("demo", f"ViT-B-32/{weights}", "ViT-L-14/openai + ViT-bigG-14/laion2b_s39b_b160k"))
    assert list(choices) == [
        "ViT-L-14/openai",
        "demo",
        f"ViT-B-32/{weights}",
        "ViT-L-14/openai + ViT-bigG-14/laion2b_s39b_b160k",
    ]
    *_, both = choices.values()
    assert (both.models, both.pretrained, both.precision) == (
        ("ViT-L-14", "ViT-bigG-14"),
        ("openai", "laion2b_s39b_b160k"),
        "fp32",
    )
    models = Models(choices, "cpu")
    assert [models.searches(name) for name in models.names] == [12, 2, 12, 1]
    assert models.clip("demo") is models.clip("demo"), "it is loaded once"
    with pytest.raises(UserError, match="no model 'demo-judge'; expected ViT-L-14/openai or demo or"):
        models.clip("demo-judge")


def test_local_stands_for_the_models_that_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs import page_models
    from pez.models import local

    there = {("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "open_clip_pytorch_model.bin")}
    monkeypatch.setattr(local, "try_to_load_from_cache", lambda *file: "/cached" if file in there else None)
    choices = page_models.choices_of(ModelSettings("demo"), ("local",))
    assert list(choices) == ["demo", "demo-judge", "ViT-B-32/laion2b_s34b_b79k"]


@pytest.mark.parametrize("words", ["@/etc/passwd", "red, @words.txt"])
def test_a_visitor_reads_no_file_of_the_server(words: str) -> None:
    pytest.importorskip("gradio", reason="pip install -e '.[app]'")
    from jobs.page import blocked_words

    with pytest.raises(UserError, match="words to avoid has @.*; expected words, or @offensive"):
        blocked_words(words)
    assert blocked_words(" red, blue* ,") == ("red", "blue*")


@pytest.fixture
def address() -> Iterator[str]:
    """The page on a free port of this machine."""
    pytest.importorskip("gradio", reason="pip install -e '.[app]'")
    from jobs.page import build_page
    from jobs.page_models import Models, choices_of
    from pez.regeneration import load_generator

    choices = choices_of(ModelSettings("demo"), ("demo-judge",))
    page = build_page(Models(choices, "cpu", load_generator("demo", steps=2)))
    port = free_port()
    page.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.mark.slow
def test_a_visitor_learns_copies_compares_and_is_told_what_is_wrong(
    address: str, images: list[Image.Image], tmp_path: Path
) -> None:
    paths = [tmp_path / "<b>one.png", tmp_path / "two.png", tmp_path / "text.png"]
    for path, data in zip(paths, [encoded(images[0]), encoded(images[1]), b"no image"], strict=True):
        path.write_bytes(data)
    requested: set[Any] = set()
    with browser() as chromium:
        page = chromium.new_page()
        page.on("request", lambda request: requested.add(urlsplit(request.url).netloc))
        page.goto(address)
        page.fill("#tokens input[type=number]", "3")
        page.fill("#steps input[type=number]", "20")
        page.set_input_files("#images input[type=file]", [str(path) for path in paths[:2]])
        page.wait_for_selector("#preview img")
        page.click("#learn")
        page.wait_for_function("document.querySelector('#state').innerText.includes('done')", timeout=60_000)
        learned = page.input_value("#copy textarea").splitlines()
        assert len(learned) == 2
        assert learned[1] in page.inner_text("#prompts")
        page.click("#again")
        page.wait_for_function("document.querySelectorAll('#compared img').length >= 4", timeout=60_000)
        page.click("#model input")
        page.click("[role=option]:has-text('demo-judge')")
        page.fill("#template textarea", "a drawing of {}")
        page.fill("#blocklist textarea", "red, blue")
        page.check("#together input[type=checkbox]")
        page.click("#learn")
        page.wait_for_function(
            "document.querySelector('#copy textarea').value.startsWith('a drawing of ')", timeout=60_000
        )
        page.wait_for_function("document.querySelector('#state').innerText.includes('done')", timeout=60_000)
        [shared] = page.input_value("#copy textarea").splitlines()
        assert not {"red", "blue"} & set(shared.split())
        page.click("text=History")
        history = page.inner_text("#history")
        assert "demo-judge" in history
        assert shared in history
        assert learned[1] in history
        page.fill("#template textarea", "no place")
        page.click("#learn")
        page.wait_for_selector("text=expected it once, as in", timeout=20_000)
        page.fill("#template textarea", "")
        page.click("#images button[aria-label*='lear']")
        page.set_input_files("#images input[type=file]", str(paths[2]))
        page.wait_for_timeout(500)
        page.click("#learn")
        page.wait_for_selector("text=text.png: cannot decode the image", timeout=20_000)
    assert requested - {""} == {urlsplit(address).netloc}, "nothing is asked of other servers"
