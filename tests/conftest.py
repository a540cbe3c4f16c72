"""Small real objects that tests share: the demo CLIP, drawn scenes, tars, a Ray of two cores."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin starve Ray's workers on few cores

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from samples_on_disk import MakeTar, encoded

import pez
from pez.demo import scenes

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # all servers of the tests are on loopback
torch.set_num_threads(2)


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
