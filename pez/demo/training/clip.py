"""Train the demo CLIP: a 64x64 image tower and a small text tower on the scenes of `pez/demo/scenes.py`.

1. Draw training scenes in groups of four that differ in one attribute: hard negatives of one another. Without them,
   retrieval is good, but the model does not see shapes (figures in EXPERIMENTS.md).
2. Train the image tower on the attributes as labels for a few hundred steps.
3. Train both towers with CLIP's symmetric contrastive loss and a small label loss.

Sources: CLIP, arXiv:2103.00020; hard negatives by attribute, NegCLIP, arXiv:2210.01936.
"""

import dataclasses
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from pez.demo import scenes
from pez.demo.evaluation import normalise
from pez.demo.scenes import Scene
from pez.demo.training.contrastive import activate_residual_blocks, contrastive_loss, optimize, training_precision

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": scenes.SIZE, "layers": [1, 2, 2, 1], "width": 16, "head_width": 64},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 3},
}
PREPROCESS_CONFIG = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

GROUP = 4
_GROUP_ATTRIBUTES = {
    "shape": 0.30, "color": 0.28, "background_color": 0.20, "position": 0.08,
    "background": 0.05, "texture": 0.05, "size": 0.04,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    seed: int = 0
    images: int = 200_000
    """training images, drawn before training starts"""
    batch: int = 256
    label_steps: int = 400
    steps: int = 1800
    learning_rate: float = 1.5e-3
    label_weight: float = 0.15
    """weight of the label loss beside the contrastive loss"""
    noise: float = 0.25
    """share of captions with one to four random tokens of the whole vocabulary inserted"""
    workers: int = 2


def train_demo_clip(settings: TrainingSettings, log: Callable[[str], None] = print) -> nn.Module:
    """Train a demo CLIP from scratch.

    Returns:
        open_clip.CLIP in float32 and eval mode, with the architecture of MODEL_CONFIG.
    """
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng([settings.seed, 7])
    data, differing, drawn = training_images(settings, log)
    labels = torch.tensor([_labels(scene) for scene in data])
    captions = CaptionEncoder()

    model = open_clip.CLIP(**MODEL_CONFIG).to(memory_format=torch.channels_last)
    activate_residual_blocks(model.visual)
    heads = nn.Linear(MODEL_CONFIG["embed_dim"], sum(len(v) for v in scenes.VALUES.values()))

    def batches(count: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        groups = len(data) // GROUP
        order = np.concatenate([rng.permutation(groups) for _ in range(count * settings.batch // len(data) + 1)])
        for step in range(count):
            chosen = order[step * settings.batch // GROUP :][: settings.batch // GROUP]
            index = (chosen[:, None] * GROUP + np.arange(GROUP)).ravel()
            yield index, normalise(drawn[index])

    def image_features(images: Tensor) -> Tensor:
        with training_precision():
            features: Tensor = model.encode_image(images)
        return features.float()

    def run(
        name: str, count: int, parameters: list[nn.Parameter], loss_of: Callable[[np.ndarray, Tensor], Tensor]
    ) -> None:
        losses = (loss_of(index, images) for index, images in batches(count))

        def report(step: int, loss: float, rate: float) -> None:
            log(f"{name} {step}/{count}  loss {loss:.3f}  {rate * settings.batch:.0f} images/s")

        optimize(losses, parameters, count, settings.learning_rate, 0.02, report)

    def label_loss(features: Tensor, index: np.ndarray) -> Tensor:
        parts = heads(features).split([len(v) for v in scenes.VALUES.values()], dim=-1)
        return torch.stack([F.cross_entropy(p, labels[index, i]) for i, p in enumerate(parts)]).mean()

    def both_losses(index: np.ndarray, images: Tensor) -> Tensor:
        features = image_features(images)
        texts = [captions(data[i], rng, differing[i // GROUP], settings.noise) for i in index]
        text_features = model.encode_text(torch.from_numpy(np.stack(texts)), normalize=True)
        loss = contrastive_loss(features, text_features, model.logit_scale)
        return loss + settings.label_weight * label_loss(features, index)

    model.train()
    visual = [*model.visual.parameters(), *heads.parameters()]
    run("labels", settings.label_steps, visual, lambda index, images: label_loss(image_features(images), index))
    run("contrastive", settings.steps, [*model.parameters(), *heads.parameters()], both_losses)
    trained: nn.Module = model.eval()
    return trained


class CaptionEncoder:
    """Scenes to token ids; every caption word is one token, so a lookup replaces the tokenizer's search."""

    def __init__(self) -> None:
        self.tokenizer = SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
        self.token_of = {}
        for word in scenes.caption_words():
            ids = self.tokenizer.encode(word)
            assert len(ids) == 1, f"{word!r} is {len(ids)} tokens"
            self.token_of[word] = ids[0]

    def __call__(self, scene: Scene, rng: np.random.Generator, say: str, noise: float) -> np.ndarray:
        """(32,) int64 ids of a random caption, with start and end tokens and padding as in open_clip."""
        ids = [self.token_of[w] for w in scenes.caption(scene, rng, say).split()]
        if rng.random() < noise:
            for token in rng.integers(0, self.tokenizer.sot_token_id, rng.integers(1, 5)):
                ids.insert(rng.integers(len(ids) + 1), int(token))
        row = np.zeros(self.tokenizer.context_length, np.int64)
        ids = ids[: len(row) - 2]
        row[: len(ids) + 2] = [self.tokenizer.sot_token_id, *ids, self.tokenizer.eot_token_id]
        return row


def training_images(
    settings: TrainingSettings, log: Callable[[str], None]
) -> tuple[list[Scene], list[str], np.ndarray]:
    """Scenes in groups of GROUP, the attribute in which each group differs, and the images, (images, 64, 64, 3) uint8."""
    rng = np.random.default_rng([settings.seed, 3])
    data: list[Scene] = []
    differing: list[str] = []
    names, shares = list(_GROUP_ATTRIBUTES), list(_GROUP_ATTRIBUTES.values())
    while len(data) < settings.images:
        anchor = scenes.sample_scene(rng, held_out=False)
        differing.append(str(rng.choice(names, p=shares)))
        group = [anchor, *scenes.variants(anchor, differing[-1], GROUP - 1, rng)]
        group += [scenes.sample_scene(rng, held_out=False) for _ in range(GROUP - len(group))]
        data += group
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(settings.workers) as pool:
        drawn = np.stack(pool.map(scenes.render, data, chunksize=1000))
    log(f"drew {len(data)} images in {time.monotonic() - start:.0f} s")
    return data, differing, drawn


def _labels(scene: Scene) -> list[int]:
    return [values.index(getattr(scene, name)) for name, values in scenes.VALUES.items()]
