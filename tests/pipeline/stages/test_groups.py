"""One prompt for each group of images: `pez caption --group-by`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from caption_jobs import FAST, Run, rows_of, run_caption
from PIL import Image
from samples_on_disk import MakeTar, encoded

import pez
from jobs import gallery, verify
from pez.demo import scenes
from pez.demo.evaluation import attribute_accuracy
from pez.errors import UserError
from pez.learn import learn_for_targets
from pez.objectives.clip import Target
from pipeline.settings import VerifySettings
from pipeline.stages.embed import Embedder

METHOD = pez.PezSettings(tokens=3, steps=10, swaps=1)  # as FAST
assert FAST[2:8] == ("--tokens", 3, "--steps", 10, "--swaps", 1)

run = pytest.fixture(run_caption)


@pytest.fixture
def tars(make_tar: MakeTar, images: list[Image.Image]) -> list[str]:
    """Two groups over three tars, a group of broken images, and images without a group."""
    made = []
    for t in range(3):
        members = [(f"{'ab'[i % 2]}/{t}{i}.png", encoded(images[4 * t + i])) for i in range(4)]
        members += [(f"broken/{t}.png", b"\x89PNG broken"), (f"alone-{t}.png", encoded(images[20 + t]))]
        made.append(make_tar(f"in/{t}.tar", members))
    return made


def members_of(output: Path) -> dict[str, dict[str, Any]]:
    found = pq.read_table(output / "_members").to_pylist()
    assert len({row["key"] for row in found}) == len(found)
    return {row["key"]: row for row in found}


def test_a_group_over_several_shards_has_the_prompt_that_python_learns_for_its_images(
    run: Run, tars: list[str], tmp_path: Path, images: list[Image.Image], demo_clip: pez.Clip
) -> None:
    output = tmp_path / "out"
    status, printed, errors = run("--input", *tars, "--output", output, "--group-by", "folder")
    assert status == 0, errors
    rows = rows_of(output)
    assert list(rows) == ["a", "b", "broken"]
    for group, first in (("a", 0), ("b", 1)):
        row, of_group = rows[group], images[first:12:2]
        prompt = pez.learn_prompt(demo_clip, of_group, METHOD, key=group)
        assert (row["prompt"], row["token_ids"]) == (prompt.text, list(prompt.token_ids))
        assert row["similarity"] == pytest.approx(prompt.similarity, abs=1e-6)
        assert (row["group"], row["images"], row["status"]) == (group, 6, "ok")
    assert (output / "_SUCCESS").exists()
    assert not (output / "_sums").exists()
    assert "12 of 18 images are in groups; not in a group: bad_image 3, no_group 3" in printed


def test_every_key_has_a_group_or_a_reason_and_a_group_of_broken_images_is_a_row(
    run: Run, tars: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert run("--input", *tars, "--output", output, "--group-by", "folder")[0] == 0
    members = members_of(output)
    assert len(members) == 18
    assert members["a/00"] | {"shard": ""} == {
        "key": "a/00", "shard": "", "group": "a", "status": "ok", "error_message": None
    }  # fmt: skip
    assert (members["broken/1"]["group"], members["broken/1"]["status"]) == ("broken", "bad_image")
    assert members["alone-2"]["status"] == "no_group"
    assert members["alone-2"]["error_message"] == "no group: its key has no folder"
    row = rows_of(output)["broken"]
    assert (row["status"], row["images"], row["prompt"]) == ("bad_image", 0, None)
    assert row["error_message"].startswith("all its 3 images failed; the first: broken/0: cannot decode the image")


def test_rows_do_not_depend_on_the_order_of_the_input_or_on_a_resume(
    run: Run, tars: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--group-by", "key:^[ab]", "--groups-per-unit", 1)
    assert run("--input", *tars, "--output", tmp_path / "out", *words)[0] == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")}
    assert sorted(files) == ["groups-00000.parquet", "groups-00001.parquet"]

    again = tmp_path / "again"
    learning = "pipeline.stages.learn_stage.LearnWorker.run"
    with monkeypatch.context() as patch:
        patch.setattr(learning, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run("--input", *tars[::-1], "--output", again, *words)[0] == 130
    assert not (again / "_SUCCESS").exists()
    with monkeypatch.context() as patch:  # the images are not embedded again
        patch.setattr(Embedder, "embed", lambda *_: pytest.fail("embedded"))
        assert run("--input", *tars, "--output", again, *words)[0] == 0
        status, printed, _ = run("--input", *tars, "--output", again, *words)
    assert (status, "nothing to do" in printed) == (0, True)
    assert {path.name: path.read_bytes() for path in again.glob("*.parquet")} == files


def test_no_group_is_learned_while_a_shard_fails_unless_that_is_asked_for(
    run: Run, tars: list[str], tmp_path: Path
) -> None:
    whole = Path(tars[1]).read_bytes()
    Path(tars[1]).write_bytes(whole[:700])
    words = ("--input", *tars, "--output", tmp_path / "out", "--group-by", "folder", "--attempts", 1)
    status, printed, _ = run(*words)
    assert status == 1
    assert "1 of 3 shards failed, so groups may lack images and none was learned" in printed
    assert list((tmp_path / "out").glob("*.parquet")) == []

    status, printed, _ = run(*words, "--incomplete-groups")
    assert status == 1  # the shard is still missing
    assert "its images are in no group" in printed
    assert rows_of(tmp_path / "out")["a"]["images"] == 4
    assert not (tmp_path / "out" / "_SUCCESS").exists()

    Path(tars[1]).write_bytes(whole)  # groups that were learned without it stay as they are
    assert run(*words)[0] == 1
    assert rows_of(tmp_path / "out")["a"]["images"] == 4


def test_a_failed_shard_is_embedded_by_the_next_run(run: Run, tars: list[str], tmp_path: Path) -> None:
    whole = Path(tars[1]).read_bytes()
    Path(tars[1]).write_bytes(b"")
    words = ("--input", *tars, "--output", tmp_path / "out", "--group-by", "folder", "--attempts", 1)
    assert run(*words)[0] == 1
    Path(tars[1]).write_bytes(whole)
    assert run(*words)[0] == 0
    assert rows_of(tmp_path / "out")["a"]["images"] == 6


def test_groups_of_other_input_are_refused(run: Run, tars: list[str], tmp_path: Path) -> None:
    words = ("--output", tmp_path / "out", "--group-by", "folder")
    assert run("--input", *tars[:2], *words)[0] == 0
    status, _, errors = run("--input", *tars, *words)
    assert status == 2
    assert "was not in the input then; choose another --output" in errors
    assert run("--input", tars[0], *words)[0] == 2
    status, _, errors = run("--input", *tars[:2], "--output", tmp_path / "out", "--group-by", "key:^a")
    assert status == 2
    assert "group_by was 'folder' and is 'key:^a'" in errors


def test_late_json_and_late_failures_are_counted_in_their_group(
    run: Run, make_tar: MakeTar, images: list[Image.Image], tmp_path: Path
) -> None:
    late = [(f"{i}.json", json.dumps({"by": "monet"}).encode()) for i in range(3)]
    tar = make_tar(
        "in/late.tar", [("0.png", encoded(images[0])), ("1.png", encoded(images[1])), ("2.png", b"x"), *late]
    )
    output = tmp_path / "out"
    assert run("--input", tar, "--output", output, "--group-by", "json:by")[0] == 0
    assert rows_of(output)["monet"]["images"] == 2
    assert {key: (row["group"], row["status"]) for key, row in members_of(output).items()} == {
        "0": ("monet", "ok"),
        "1": ("monet", "ok"),
        "2": ("monet", "bad_image"),
    }


def test_a_field_that_no_image_has_ends_the_job_with_a_reason(run: Run, tars: list[str], tmp_path: Path) -> None:
    status, printed, _ = run("--input", *tars, "--output", tmp_path / "out", "--group-by", "json:artist")
    assert status == 1
    assert "no image has a group (--group-by json:artist)" in printed
    assert "its field 'artist' is missing or null" in printed
    assert members_of(tmp_path / "out")["a/00"]["group"] is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--group-by", "artist"), "expected folder, key:REGEX, json:FIELD or column:NAME"),
        (("--group-by", "key:["), "expected a regular expression"),
        (("--group-by", "column:x"), "the input is not a table"),
        (("--group-by", "folder", "--verify", "demo"), "--verify has no effect with --group-by"),
        (("--group-by", "folder", "--retry-failed"), "--retry-failed has no effect with --group-by"),
        (("--group-by", "folder", "--caption-weight", "0.3"), "--caption-weight has no effect with --group-by"),
        (("--groups-per-unit", 5), "--groups-per-unit has no effect without --group-by"),
        (("--group-by", "folder", "--groups-per-unit", 0), "--groups-per-unit is 0; expected 1 to 100000"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_any_work(
    run: Run, tars: list[str], tmp_path: Path, words: tuple[object, ...], expected: str
) -> None:
    status, _, errors = run("--input", *tars, "--output", tmp_path / "out", *words)
    assert status == 2
    assert expected in errors
    assert not (tmp_path / "out").exists()


def test_a_column_that_the_table_lacks_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,artist\nx.jpg,monet\n")
    status, _, errors = run("--input", tmp_path / "t.csv", "--output", tmp_path / "out", "--group-by", "column:painter")
    assert status == 2
    assert "has no such column; it has 'path', 'artist'" in errors
    assert not (tmp_path / "out").exists()


def test_groups_have_a_page_without_pictures_and_cannot_be_verified(run: Run, tars: list[str], tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert run("--input", *tars, "--output", output, "--group-by", "folder")[0] == 0
    assert gallery.gallery(gallery.GalleryJob(str(output))) == 0
    assert (output / "_gallery" / "index.html").exists()
    with pytest.raises(UserError, match=r"of groups of images \(--group-by folder\), so there is no single original"):
        verify.verify(verify.VerifyJob(str(output), verification=VerifySettings(verify="demo"), local=True))


def test_a_style_prompt_implies_the_shared_background_and_is_nearer_to_other_images_of_the_group(
    demo_clip: pez.Clip,
) -> None:
    """Twenty groups of four images to learn from, and four others with the same background."""
    rng = np.random.default_rng(0)
    groups: list[list[scenes.Scene]] = []
    for i in range(20):
        color, pattern = scenes.VALUES["background_color"][i % 10], scenes.VALUES["background"][i % 3]
        group: list[scenes.Scene] = []
        while len(group) < 8:
            scene = scenes.sample_scene(rng)
            if scene.color != color:
                group.append(scenes.changed(scenes.changed(scene, "background", pattern), "background_color", color))
        groups.append(group)
    features = demo_clip.image_features([Image.fromarray(scenes.render(s)) for group in groups for s in group])
    seen, unseen = features.view(20, 8, -1).split(4, dim=1)
    method = pez.PezSettings(steps=60, swaps=4)
    targets = [Target(group) for group in seen] + [Target(one[None]) for group in seen for one in group]
    prompts = learn_for_targets(demo_clip, targets, [str(i) for i in range(100)], method)
    texts = demo_clip.text_features([prompt.text for prompt in prompts])
    style, single = texts[:20], texts[20:].view(20, 4, -1)
    nearness = (unseen @ style[:, :, None]).mean().item()
    nearness_of_single = (unseen @ single.transpose(1, 2)).mean().item()
    implied = attribute_accuracy(demo_clip.model, style, [group[-1] for group in groups], "background_color")
    print(f"\nstyle {nearness:.3f}, single images {nearness_of_single:.3f}, background implied {implied:.0%}")
    assert nearness > nearness_of_single + 0.05
    assert implied >= 0.8
