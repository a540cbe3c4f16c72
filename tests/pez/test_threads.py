"""Parts of the lanes in threads of their own: a prompt does not depend on the number of threads."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from torch import Tensor

import pez
from pez.learn import engine_for
from pez.methods.names import Method
from pez.models.text_encoder import CausalEncoder
from pez.tasks import Learned, Task
from pez.threads import begin_thread, in_threads, parts_of

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

    def watch(name: str) -> None:
        compute = getattr(CausalEncoder, name)

        def watched(self: CausalEncoder, *arguments: object) -> object:
            used.add(f"{name} in {threading.current_thread().name.partition('_')[0]}")
            return compute(self, *arguments)

        monkeypatch.setattr(CausalEncoder, name, watched)

    watch("with_past")
    watch("continued")
    targets = torch.nn.functional.normalize(torch.randn(20, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    settings = dataclasses.replace(SETTINGS, method=method)
    alone = learned(wide, targets, 1, settings)
    assert not any("lanes" in one for one in used)
    together = learned(wide, targets, 2, settings)
    assert "with_past in lanes" in used
    assert ("continued in lanes" in used) == (method == "default")
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.token_ids, other.token_ids)
        assert one.score == pytest.approx(other.score, abs=1e-6)


def test_several_models_are_divided_as_well(
    demo_clip: pez.Clip, images: list[Image.Image], threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [demo_clip, pez.load_clip("demo-judge")]
    settings = dataclasses.replace(SETTINGS, template="a picture of {}")
    torch.set_num_threads(1)
    alone = pez.learn_prompts(models, images[:20], settings)
    torch.set_num_threads(2)
    monkeypatch.setattr("pez.threads._WIDTH", 1)
    assert [prompt.text for prompt in pez.learn_prompts(models, images[:20], settings)] == [
        prompt.text for prompt in alone
    ]


def test_a_thread_of_ours_that_begins_meanwhile_has_all_threads(threads: None) -> None:
    torch.set_num_threads(2)
    found: list[int] = []

    def begin() -> None:
        begin_thread()
        found.append(torch.get_num_threads())

    def compute(part: slice) -> None:
        if not part.start:
            thread = threading.Thread(target=begin)
            thread.start()
            thread.join()

    in_threads(compute, [slice(0, 16), slice(16, 32)])
    assert found == [2]


def test_callers_in_several_threads_take_turns(threads: None) -> None:
    torch.set_num_threads(2)
    inside, changing = set[int](), threading.Lock()

    def compute(part: slice) -> int:
        with changing:
            inside.add(part.stop)
            assert inside <= ({16, 32} if part.stop <= 32 else {48, 64})
        time.sleep(0.01)
        with changing:
            inside.remove(part.stop)
        return part.stop

    def call(first: int) -> list[int]:
        return in_threads(compute, [slice(first, first + 16), slice(first + 16, first + 32)])

    with ThreadPoolExecutor(2) as callers:
        assert list(callers.map(call, [0, 32] * 5)) == [[16, 32], [48, 64]] * 5
    assert torch.get_num_threads() == 2


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
