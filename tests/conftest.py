"""Small real objects that tests share: the demo CLIP, drawn scenes, tars, a Ray of two cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin starve Ray's workers on few cores

import functools
import io
import logging
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from samples_on_disk import MakeTar, encoded

import pez
from pez import lists
from pez.demo import CLIPS, scenes
from pez.models import clip, load
from pez.tokens import Tokens
from pez.words import word_tokens

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # all servers of the tests are on loopback
# Two threads, or one for each worker of pytest-xdist: two processes of two threads each wait for one another on two cores.
torch.set_num_threads(2 if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) == 1 else 1)


@pytest.fixture(scope="session", autouse=True)
def computed_once() -> Iterator[None]:
    """What is the same in hundreds of jobs in this process: CLIP's 49,408 tokens as texts and words, and the demo's captions.

    Jobs in processes of their own, and Ray's actors, compute it themselves.
    """
    read, known = load._load_tokenizer, dict[object, Tokens]()
    demo = {f"local-dir:{folder}" for folder in CLIPS.values()}

    def tokens_of(tokenizer: Any, count: int) -> Tokens:
        if type(tokenizer) is not SimpleTokenizer:
            return Tokens(tokenizer, count)
        parts = (tokenizer.encoder, tokenizer.decoder, tokenizer.bpe_ranks)
        alike = (count, tokenizer.clean_fn, *tokenizer.all_special_ids, *(hash(tuple(part.items())) for part in parts))
        return known.setdefault(alike, Tokens(tokenizer, count))

    once = functools.cache(read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_load_tokenizer", lambda name: (once if name in demo else read)(name))
        patch.setattr(clip, "Tokens", tokens_of)
        patch.setattr(clip, "word_tokens", functools.lru_cache(4)(word_tokens))
        patch.setattr(lists, "_Index", functools.lru_cache(4)(lists._Index))
        patch.setattr(scenes, "captions", functools.lru_cache(4)(scenes.captions))
        yield


@pytest.fixture(autouse=True)
def logging_is_left_as_found() -> Iterator[None]:
    """What a test changes in the logging of the process would fail another one, which runs later in this process."""
    root = logging.getLogger()
    before = root.level, root.manager.disable, list(root.handlers)
    yield
    assert (root.level, root.manager.disable, list(root.handlers)) == before


@pytest.fixture(scope="session")
def demo_clip() -> pez.Clip:
    return pez.load_demo_clip()


@pytest.fixture(scope="session")
def held_out() -> list[scenes.Scene]:
    return scenes.held_out_scenes(64)


@pytest.fixture(scope="session")
def images(held_out: list[scenes.Scene]) -> list[Image.Image]:
    return [Image.fromarray(scenes.render(scene)) for scene in held_out]


@pytest.fixture
def make_tar(tmp_path: Path) -> MakeTar:
    """make_tar(name, [(member, bytes), ...]) writes a tar and returns its path."""

    def make(name: str, members: list[tuple[str, bytes]]) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for member, data in members:
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return str(path)

    return make


@pytest.fixture
def scene_tars(make_tar: MakeTar, images: list[Image.Image]) -> list[str]:
    """Three tars of four pictures each, with captions."""
    tars = []
    for t in range(3):
        members = []
        for i in range(4 * t, 4 * t + 4):
            members += [(f"{i:03d}.png", encoded(images[i])), (f"{i:03d}.txt", f"caption {i}".encode())]
        tars.append(make_tar(f"in/scenes-{t}.tar", members))
    return tars


@pytest.fixture
def ray_cluster() -> None:
    """A Ray of two cores in this process, started by the first test that needs it."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )


@pytest.fixture
def no_ray_cluster() -> Iterator[None]:
    """This process has no Ray before and after the test."""
    import ray

    ray.shutdown()
    yield
    ray.shutdown()
