"""Parts of the lanes in threads of their own: a prompt does not depend on the number of threads."""

import dataclasses
import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import pez
from pez.learn import engine_for
from pez.methods.names import Method
from pez.models.text_encoder import CausalEncoder
from pez.tasks import Learned, Task
from pez.threads import in_threads, parts_of

SETTINGS = pez.PezSettings(tokens=4, steps=6, swaps=5, vocabulary="full")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def wide() -> pez.Clip:
    """A CLIP of random weights that is wide enough for parts."""
    with pytest.warns(UserWarning, match="RANDOM weights"):
        return pez.load_clip("ViT-B-32", "none", "cpu")


def learned(clip: pez.Clip, targets: Tensor, threads: int, settings: pez.PezSettings = SETTINGS) -> list[Learned]:
    torch.set_num_threads(threads)
    engine = engine_for(clip, settings, 32)
    tasks = [Task(f"{i}", target, handle=i) for i, target in enumerate(targets)]
    found = {one.task.handle: one for finished in engine.run(tasks) for one in finished}
    assert torch.get_num_threads() == threads
    return [found[i] for i in range(len(targets))]


@pytest.mark.parametrize("method", ["default", "pez"])
def test_the_number_of_threads_changes_nothing(
    wide: pez.Clip, threads: None, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    used: set[str] = set()
    encode = CausalEncoder.with_past

    def watched(self: CausalEncoder, soft: Tensor) -> object:
        used.add(threading.current_thread().name.partition("_")[0])
        return encode(self, soft)

    monkeypatch.setattr(CausalEncoder, "with_past", watched)
    targets = torch.nn.functional.normalize(torch.randn(20, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    settings = dataclasses.replace(SETTINGS, method=method)
    alone = learned(wide, targets, 1, settings)
    assert "lanes" not in used
    together = learned(wide, targets, 2, settings)
    assert "lanes" in used
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.token_ids, other.token_ids)
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_parts_are_multiples_of_sixteen_lanes_and_only_of_wide_models(threads: None) -> None:
    torch.set_num_threads(3)
    assert parts_of(torch.zeros(64, 1, 256)) == [slice(0, 32), slice(32, 64)]
    assert parts_of(torch.zeros(40, 1, 256)) == [slice(0, 16), slice(16, 32), slice(32, 40)]
    assert parts_of(torch.zeros(16, 1, 256)) == [slice(0, 16)]
    assert parts_of(torch.zeros(64, 1, 64)) == [slice(0, 64)]
    torch.set_num_threads(1)
    assert parts_of(torch.zeros(64, 1, 256)) == [slice(0, 64)]


def test_an_error_in_a_part_is_raised_and_the_threads_are_restored(threads: None) -> None:
    torch.set_num_threads(2)

    def fail(part: slice) -> None:
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled(), "as in the calling thread"
        if part.start:
            raise torch.OutOfMemoryError("no memory")

    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError):
        in_threads(fail, [slice(0, 16), slice(16, 32)])
    assert torch.get_num_threads() == 2
