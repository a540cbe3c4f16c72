"""The class that a data pipeline of the user's own takes in `map_batches`."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples_on_disk import encoded

import pez
from pez.errors import UserError
from pipeline.batches import LearnPrompts

FEW = pez.PezSettings(tokens=3, steps=10, swaps=1)


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


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_maps_a_folder_to_prompts(tmp_path: Path, images: list[Image.Image]) -> None:
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    for index, image in enumerate(images[:6]):
        (tmp_path / f"{index}.png").write_bytes(encoded(image))
    dataset = ray.data.read_images(str(tmp_path), include_paths=True).map_batches(
        LearnPrompts,
        fn_constructor_kwargs={"model": "demo", "settings": FEW, "key_column": "path", "device": "cpu"},
        batch_size=4,
        concurrency=1,
    )
    rows = dataset.take_all()
    assert len(rows) == 6
    assert all(row["prompt"] and row["similarity"] > 0 for row in rows)
