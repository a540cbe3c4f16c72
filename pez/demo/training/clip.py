"""Train the demo CLIP: a 64x64 image tower and a small text tower on the scenes of `pez/demo/scenes.py`.

1. Draw training scenes in groups of four that differ in one attribute; each group is the other three's hard negatives.
   Without them retrieval is good and the model is blind to shape (EXPERIMENTS.md has the figures).
2. Teach the image tower the attributes as labels for some hundred steps.
3. Train both towers with CLIP's symmetric contrastive loss, a small label loss kept.

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
    """share of captions with one to four random tokens of the whole vocabulary strewn in"""
    workers: int = 2


def train_demo_clip(settings: TrainingSettings, log: Callable[[str], None] = print) -> nn.Module:
    """Train a demo CLIP from scratch.

    Returns:
        open_clip.CLIP in float32 and eval mode, with the architecture of MODEL_CONFIG.
    """
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng([settings.seed, 7])
    data, differing, pictures = training_pictures(settings, log)
    labels = torch.tensor([_labels(scene) for scene in data])
    captions = CaptionEncoder()

    model = open_clip.CLIP(**MODEL_CONFIG).to(memory_format=torch.channels_last)
    for name, parameter in model.visual.named_parameters():
        if name.endswith("bn3.weight"):  # zero at first: with so few steps the blocks would stay asleep
            nn.init.constant_(parameter, 0.5)
    heads = nn.Linear(MODEL_CONFIG["embed_dim"], sum(len(v) for v in scenes.VALUES.values()))

    def batches(count: int) -> Iterator[tuple[np.ndarray, Tensor]]:
        groups = len(data) // GROUP
        order = np.concatenate([rng.permutation(groups) for _ in range(count * settings.batch // len(data) + 1)])
        for step in range(count):
            chosen = order[step * settings.batch // GROUP :][: settings.batch // GROUP]
            index = (chosen[:, None] * GROUP + np.arange(GROUP)).ravel()
            yield index, normalise(pictures[index])

    def image_features(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            features: Tensor = model.encode_image(images)
        return features.float()

    def run(
        name: str, count: int, parameters: list[nn.Parameter], loss_of: Callable[[np.ndarray, Tensor], Tensor]
    ) -> None:
        optimizer = torch.optim.AdamW(parameters, settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, total_steps=count, pct_start=0.08, div_factor=20
        )
        start, total = time.monotonic(), 0.0
        for step, (index, images) in enumerate(batches(count), 1):
            loss = loss_of(index, images)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            if step % 50 == 0:
                rate = step * settings.batch / (time.monotonic() - start)
                log(f"{name} {step}/{count}  loss {total / 50:.3f}  {rate:.0f} images/s")
                total = 0.0

    def label_loss(features: Tensor, index: np.ndarray) -> Tensor:
        parts = heads(features).split([len(v) for v in scenes.VALUES.values()], dim=-1)
        return torch.stack([F.cross_entropy(p, labels[index, i]) for i, p in enumerate(parts)]).mean()

    def contrastive_loss(index: np.ndarray, images: Tensor) -> Tensor:
        features = image_features(images)
        texts = [captions(data[i], rng, differing[i // GROUP], settings.noise) for i in index]
        text_features = model.encode_text(torch.from_numpy(np.stack(texts)), normalize=True)
        logits = model.logit_scale.exp().clamp(max=100) * F.normalize(features, dim=-1) @ text_features.T
        target = torch.arange(len(index))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return loss + settings.label_weight * label_loss(features, index)

    model.train()
    visual = [*model.visual.parameters(), *heads.parameters()]
    run("labels", settings.label_steps, visual, lambda index, images: label_loss(image_features(images), index))
    run("contrastive", settings.steps, [*model.parameters(), *heads.parameters()], contrastive_loss)
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
        """(32,) int64 ids of a freshly worded caption, framed and padded as open_clip does."""
        ids = [self.token_of[w] for w in scenes.caption(scene, rng, say).split()]
        if rng.random() < noise:
            for token in rng.integers(0, self.tokenizer.sot_token_id, rng.integers(1, 5)):
                ids.insert(rng.integers(len(ids) + 1), int(token))
        row = np.zeros(self.tokenizer.context_length, np.int64)
        ids = ids[: len(row) - 2]
        row[: len(ids) + 2] = [self.tokenizer.sot_token_id, *ids, self.tokenizer.eot_token_id]
        return row


def training_pictures(
    settings: TrainingSettings, log: Callable[[str], None]
) -> tuple[list[Scene], list[str], np.ndarray]:
    """Scenes in groups of GROUP, what each group differs in, and the pictures, (images, 64, 64, 3) uint8."""
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
        pictures = np.stack(pool.map(scenes.render, data, chunksize=1000))
    log(f"drew {len(data)} pictures in {time.monotonic() - start:.0f} s")
    return data, differing, pictures


def _labels(scene: Scene) -> list[int]:
    return [values.index(getattr(scene, name)) for name, values in scenes.VALUES.items()]
