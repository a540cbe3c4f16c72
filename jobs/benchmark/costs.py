"""Counted operations of an image, for `jobs.benchmark --costs`: by model and number of tokens. Nothing is computed.

Models are created without weights, on PyTorch's meta device, so the largest takes a second and no memory. Operations do not
depend on the number of lanes; all lanes together take lanes times as many.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch

import pez
from pez import cost
from pez.errors import UserError
from pez.models.text_encoder import text_tower

MODELS = ("ViT-B-32", "ViT-L-14", "ViT-H-14", "ViT-bigG-14")
TOKENS = (4, 8, 16, 32, 64)
WORDS = 24_131
"""tokens of the default vocabulary of OpenAI's tokenizer, which these models share"""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Operations of one image."""

    model: str
    tokens: int
    published: float
    """GFLOP of the published algorithm in its 3,000 steps"""
    walk: float
    """GFLOP of the default's gradient steps"""
    swaps: float
    """GFLOP of its rounds of swaps"""

    @property
    def default(self) -> float:
        return self.walk + self.swaps


def count_costs(
    models: Sequence[str], tokens: Sequence[int], settings: pez.PezSettings, allowed: int, say: Callable[[str], None]
) -> list[Cost]:
    """Count the operations of each model with each number of tokens.

    Args:
        settings: of the default method.
        allowed: tokens of its vocabulary.
    """
    say(
        f"{'model':14s}{'tokens':>7s}{'published':>12s}{'default':>10s}{'walk':>9s}{'swaps':>9s}{'ratio':>7s}   GFLOP per image"
    )
    found = []
    for model in models:
        clip = shape_of(model)
        vocabulary: Any = _Words(clip.tower.token_embedding.num_embeddings, allowed)
        for count in tokens:
            if count + 2 > clip.context_length:
                continue
            chosen = dataclasses.replace(settings, tokens=count).for_vocabulary(allowed)
            published = 3000 * cost.baseline_step_flop(clip, count)
            swaps = chosen.improved * cost.swaps_flop(clip, count, chosen.rounds, chosen.tried, vocabulary.allowed)
            walk = cost.method_flop(clip, chosen, vocabulary) - swaps
            one = Cost(model, count, published / 1e9, walk / 1e9, swaps / 1e9)
            found.append(one)
            say(
                f"{model:14s}{count:7d}{one.published:12,.0f}{one.default:10,.0f}{one.walk:9,.0f}{one.swaps:9,.0f}"
                f"{one.published / one.default:7.0f}"
            )
    return found


class _Words:
    """A vocabulary of that many tokens."""

    def __init__(self, size: int, allowed: int) -> None:
        self.allowed = torch.arange(size) < allowed
        self.ids = torch.arange(allowed)


class _Shape:
    """What `pez.cost` reads of a CLIP."""

    def __init__(self, tower: Any) -> None:
        self.tower, self.context_length = tower, int(tower.context_length)

    def ordinary_tokens(self) -> torch.Tensor:
        size: int = self.tower.token_embedding.num_embeddings
        return torch.arange(size) < size - 2


def shape_of(model: str) -> Any:
    """A CLIP without weights.

    Raises:
        UserError: open_clip does not know the name.
    """
    if model not in open_clip.list_models():
        raise UserError(f"no model {model!r} in open_clip; expected a name such as ViT-H-14")
    with torch.device("meta"):
        return _Shape(text_tower(open_clip.create_model(model, device="meta", precision="fp32")))
