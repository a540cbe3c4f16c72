"""The walk that searches the whole vocabulary in few of its steps."""

import torch
from PIL import Image

import pez
from pez.methods.pez import RecordingWalk
from pez.methods.phase import started
from pez.methods.shortlist import ShortlistWalk
from pez.objectives.clip import ClipObjective
from pez.tasks import Task

WIDE = pez.PezSettings(vocabulary="full", untrained_tokens=True, steps=60, swaps=0)


def test_the_nearest_of_some_tokens_is_theirs(demo_clip: pez.Clip) -> None:
    vocabulary = demo_clip.vocabulary(WIDE)
    soft = torch.randn(16, 8, demo_clip.width, generator=torch.Generator().manual_seed(0))
    places = vocabulary.nearest_few(soft, 64)
    assert places.shape == (16, 8, 64)
    assert torch.equal(vocabulary.nearest_among(soft, places), vocabulary.nearest(soft))
    others = places[..., torch.arange(64) != 5]
    products = vocabulary.units[others] @ soft.unsqueeze(-1)
    expected = others.gather(-1, products.squeeze(-1).argmax(-1, keepdim=True)).squeeze(-1)
    assert torch.equal(vocabulary.nearest_among(soft, others), vocabulary.rows[expected])


def test_the_token_that_is_taken_is_almost_always_the_nearest_of_all(
    demo_clip: pez.Clip, images: list[Image.Image]
) -> None:
    vocabulary = demo_clip.vocabulary(WIDE)
    walk = ShortlistWalk(ClipObjective(demo_clip.encoder(8)), vocabulary, WIDE, 16)
    for i, target in enumerate(demo_clip.image_features(images[:16])):
        walk.admit(started(Task(f"{i}", target), vocabulary, WIDE))
    same = []
    for _ in range(59):
        walk.step()
        same.append((walk.project(slice(16)) == vocabulary.nearest(walk.soft)).float().mean().item())
    assert sum(same[9::10]) == 5, "every tenth step searches all tokens"
    assert sum(same[20:]) / len(same[20:]) > 0.97


def test_a_search_in_every_step_is_the_walk_without_a_shortlist(demo_clip: pez.Clip, images: list[Image.Image]) -> None:
    settings = pez.PezSettings(vocabulary="full", steps=20, swaps=0, project_every=1)
    vocabulary, objective = demo_clip.vocabulary(settings), ClipObjective(demo_clip.encoder(8))
    found = []
    for kind in (RecordingWalk, ShortlistWalk):
        walk = kind(objective, vocabulary, settings, 16)
        for i, target in enumerate(demo_clip.image_features(images[:3])):
            walk.admit(started(Task(f"{i}", target), vocabulary, settings))
        found.append([learned.token_ids.tolist() for _ in range(20) for learned in walk.step()])
    assert len(found[0]) == 3
    assert found[0] == found[1]


def test_a_prompt_of_a_wide_vocabulary_does_not_depend_on_its_neighbors(
    demo_clip: pez.Clip, images: list[Image.Image]
) -> None:
    settings = pez.PezSettings(vocabulary="full", steps=25, swaps=8, candidates=8)
    keys = [f"{i}" for i in range(20)]
    together = pez.learn_prompts(demo_clip, images[:20], settings, keys=keys, lanes=16)  # the last four start later
    for i in (3, 18):
        [alone] = pez.learn_prompts(demo_clip, images[i : i + 1], settings, keys=keys[i : i + 1])
        assert alone == together[i]
