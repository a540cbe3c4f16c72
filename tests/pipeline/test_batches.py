"""The class that a data pipeline of the user's own takes in `map_batches`."""

import dataclasses
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

import numpy as np
import pytest
from PIL import Image
from samples_on_disk import encoded

import pez
from pez.errors import UserError
from pipeline.batches import LearnPrompts

ROOT = Path(__file__).parents[2]
Before = TypeVar("Before")
After = TypeVar("After")
FEW = pez.PezSettings(tokens=3, steps=10, swaps=1)


class Stage(Generic[Before, After]):
    """In the place of NeMo Curator's ProcessingStage."""


def column(values: list[Any]) -> np.ndarray:
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def test_a_batch_gets_the_prompts_that_its_images_have_alone(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    learn = LearnPrompts("demo", settings=FEW, device="cpu")
    found = learn({"image": np.stack([np.asarray(image) for image in images[:2]]), "id": np.arange(2)})
    expected = pez.learn_prompts(demo_clip, images[:2], FEW)
    assert found["prompt"].tolist() == [prompt.text for prompt in expected]
    assert found["similarity"].tolist() == pytest.approx([prompt.similarity for prompt in expected])
    assert found["token_ids"] == [list(prompt.token_ids) for prompt in expected]
    assert found["id"].tolist() == [0, 1]


def test_an_image_that_cannot_be_decoded_keeps_its_row(images: list[Image.Image]) -> None:
    learn = LearnPrompts("demo", settings=FEW, image_column="bytes", device="cpu")
    found = learn({"bytes": column([b"not an image", encoded(images[0])])})
    assert found["prompt"][0] == ""
    assert math.isnan(found["similarity"][0])
    assert "cannot decode the image" in found["prompt_error"][0]
    assert (bool(found["prompt"][1]), found["prompt_error"][1]) == (True, "")


def test_a_missing_column_is_named() -> None:
    learn = LearnPrompts("demo", settings=FEW, device="cpu")
    with pytest.raises(UserError, match="the batch has no column 'image'; it has bytes"):
        learn({"bytes": column([b""])})


def test_alternatives_and_perplexity_are_those_of_the_tables(
    demo_clip: pez.Clip, images: list[Image.Image], tmp_path: Path
) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a small red circle\na large blue square\n")
    settings = dataclasses.replace(FEW, candidates_kept=3, fluency_text=(str(captions),))
    learn = LearnPrompts("demo", settings=settings, image_column="bytes", device="cpu")
    found = learn({"bytes": column([encoded(images[0]), b"not an image"])})
    [expected] = pez.learn_prompts(demo_clip, images[:1], settings)
    assert found["perplexity"].tolist() == [pytest.approx(expected.perplexity), pytest.approx(math.nan, nan_ok=True)]
    several, none = found["alternatives"]
    assert [each["prompt"] for each in several] == [each.text for each in expected.alternatives]
    assert [each["perplexity"] for each in several] == pytest.approx(
        [each.perplexity for each in expected.alternatives]
    )
    assert (len(several), none) == (3, [])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_maps_a_folder_to_prompts(tmp_path: Path, images: list[Image.Image]) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for index, image in enumerate(images[:6]):
        (tmp_path / f"{index}.png").write_bytes(encoded(image))
    settings = dataclasses.replace(FEW, candidates_kept=2)
    dataset = ray.data.read_images(str(tmp_path), include_paths=True).map_batches(
        LearnPrompts,
        fn_constructor_kwargs={"model": "demo", "settings": settings, "key_column": "path", "device": "cpu"},
        batch_size=4,
        concurrency=1,
    )
    rows = dataset.take_all()
    assert len(rows) == 6
    assert all(row["prompt"] and row["similarity"] > 0 for row in rows)
    assert all(row["alternatives"][0]["prompt"] == row["prompt"] and len(row["alternatives"]) == 2 for row in rows)


def test_the_documented_stage_of_nemo_curator_fills_in_prompts(
    demo_clip: pez.Clip, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NeMo Curator itself is not installed: its classes have the few members here that the documentation uses."""
    members: dict[str, dict[str, Any]] = {
        "stages.base": {"ProcessingStage": Stage},
        "stages.resources": {"Resources": dict},
        "tasks": {"ImageBatch": Any},
    }
    for name, values in members.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, f"nemo_curator.{name}", module)
    text = (ROOT / "docs/cluster.md").read_text()
    [snippet] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "nemo_curator" in block]
    defined: dict[str, Any] = {}
    exec(snippet, defined)
    stage = defined["PromptStage"]("demo", settings=FEW)
    stage.setup()
    batch = [SimpleNamespace(image_id=f"{i}", image_data=np.asarray(images[i]), metadata={}) for i in range(2)]
    assert stage.process(SimpleNamespace(data=batch)).data == batch
    expected = pez.learn_prompts(demo_clip, images[:2], FEW, ["0", "1"])
    assert [image.metadata["prompt"] for image in batch] == [prompt.text for prompt in expected]
