"""Soft prompts to text features, computing only what matters.

A CLIP text tower sees the prompt in a frame: a start token before it, an end token after it, padding up to the context
length. A template adds fixed words on both sides. The tower is causal and its feature is taken at the end token, so

- positions after the end token have no effect and are skipped;
- positions before the prompt do not see it, so their keys and values are computed once;
- in the last layer only the end token's output is used, so the other queries and MLPs are skipped;
- prompts that begin alike have the same keys and values there, so these are computed once.

All of this is exact. Towers for which it does not hold (bidirectional, pooled elsewhere) run in full in `FullContextEncoder`.
`text_encoder` chooses, and checks the choice against the model's own `encode_text`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, text_global_pool
from torch import Tensor, nn

from pez.errors import UserError
from pez.models.text_blocks import compiled_block, continued_block, heads_of, residual_block, weights_of


class TextEncoder(Protocol):
    """Soft prompts to features."""

    def __call__(self, soft: Tensor) -> Tensor:
        """(n, tokens, width) float embeddings to (n, dim) features, not normalized, differentiable."""
        ...

    def with_past(self, soft: Tensor) -> "tuple[Tensor, Past]":
        """The same features, and what prompts with the same first tokens share."""
        ...

    def continued(self, past: "Past", start: int, soft: Tensor) -> Tensor:
        """Features of prompts that differ from those of the past only from position `start` on.

        Args:
            past: of n prompts.
            soft: (n, count, tokens - start, width) float, the embeddings from there on of `count` prompts for each.

        Returns:
            (n, count, dim) features, not normalized. No gradient flows to the past.
        """
        ...


class Past(NamedTuple):
    """What the positions of n prompts hand to later ones: in each layer, two tensors with n rows."""

    layers: list[tuple[Tensor, Tensor]]
    depths: Sequence[int] = ()
    """how many of the layers belong to each encoder, if there are several"""

    def rows(self, part: slice) -> "Past":
        """The past of some of the prompts."""
        return Past([(key[part], value[part]) for key, value in self.layers], self.depths)


@dataclasses.dataclass(frozen=True)
class Frame:
    """The token ids around a prompt."""

    before: list[int]
    after: list[int]
    words_after: int = 0
    """how many ids of `after` are fixed words; the rest is the end token and padding"""


def text_encoder(model: Any, frame: Frame, tokens: int, dtype: torch.dtype, compiled: bool = False) -> TextEncoder:
    """The fastest encoder that reproduces the model's own `encode_text`.

    Args:
        model: an open_clip model, frozen, in float32 or float64.
        frame: the ids around a prompt.
        tokens: learned tokens per prompt.
        dtype: precision of the computation; float32, float64 or bfloat16.
        compiled: compile where possible; see CausalEncoder.

    Raises:
        UserError: no room for that many tokens, or neither encoder reproduces the text tower.
    """
    tower = text_tower(model)
    length = tower.context_length
    expect_room(tokens, frame, length, "this model")
    checked: TextEncoder
    wanted: TextEncoder
    own = tower.token_embedding.weight.dtype
    if _is_causal_with_end_pooling(model, tower):
        end = frame.after[: 1 + _pooled_position(tower, torch.tensor([frame.after]))]
        framed_by = Frame(frame.before, end)
        checked, wanted = CausalEncoder(tower, framed_by, own), CausalEncoder(tower, framed_by, dtype, compiled)
    else:
        after = frame.after[: length - tokens - len(frame.before)]
        checked, wanted = (FullContextEncoder(tower, Frame(frame.before, after), tokens, d) for d in (own, dtype))
    _check(checked, model, tower, frame, tokens)
    return wanted


def expect_room(tokens: int, frame: Frame, length: int, model: str) -> None:
    """Refuse prompts that do not fit a context beside the ids around them.

    Args:
        length: of the context.
        model: its name in the message.
    """
    room = length - len(frame.before) - frame.words_after - 1
    if room < 1:
        raise UserError(f"the template leaves no room for a prompt in {model}, whose context is {length}; shorten it")
    if not 1 <= tokens <= room:
        raise UserError(f"{tokens} tokens do not fit {model}; its context of {length} has room for 1 to {room}")


class CausalEncoder:
    """A causal tower, computed at the positions that matter; see the module docstring.

    Args:
        compiled: compile the residual block, once for all layers; worthwhile for long runs on a GPU.
    """

    def __init__(self, tower: Any, frame: Frame, dtype: torch.dtype, compiled: bool = False) -> None:
        blocks = list(tower.transformer.resblocks)
        self.dtype = dtype
        self.heads = blocks[0].attn.num_heads
        self.activation = blocks[0].mlp.gelu
        self.layers = [weights_of(block, dtype) for block in blocks]
        self.block = compiled_block() if compiled else residual_block
        self.final = tower.ln_final
        projection = tower.text_projection
        self.projection = projection.weight.T if isinstance(projection, nn.Linear) else projection
        self.projection_bias = projection.bias if isinstance(projection, nn.Linear) else None
        device = tower.positional_embedding.device
        self.positions = tower.positional_embedding.detach()
        self.before = len(frame.before)
        before, after = (
            torch.tensor(part, dtype=torch.long, device=device) for part in (frame.before, frame.after)
        )  # before may be empty: not every tokenizer has a start token
        self.embedding_before, self.embedding_after = (tower.token_embedding(ids).detach() for ids in (before, after))
        with torch.no_grad():
            self.prefix = self._prefix()

    def _prefix(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of the positions before the prompt, (1, heads, before, head width) per layer."""
        x = (self.embedding_before + self.positions[: self.before]).to(self.dtype).unsqueeze(0)
        none = x.new_empty(1, self.heads, 0, x.shape[-1] // self.heads)
        kept = []
        for weights in self.layers:
            _, key, value = heads_of(F.layer_norm(x, x.shape[-1:], *weights.norm1), weights, self.heads, False)
            kept.append((key, value))
            x, _, _ = residual_block(x, none, none, weights, self.activation, self.heads, False)
        return kept

    def __call__(self, soft: Tensor) -> Tensor:
        return self.with_past(soft)[0]

    def with_past(self, soft: Tensor) -> tuple[Tensor, Past]:
        n, tokens, _ = soft.shape
        after = self.embedding_after
        positions = self.positions[self.before : self.before + tokens + len(after)]
        x = torch.cat([soft, after.expand(n, -1, -1).to(soft.dtype)], 1) + positions.to(soft.dtype)
        x = x.to(self.dtype)  # (n, tokens + after, width)
        past = []
        for i, (weights, (key0, value0)) in enumerate(zip(self.layers, self.prefix, strict=True)):
            x, key, value = self.block(x, key0, value0, weights, self.activation, self.heads, i == len(self.layers) - 1)
            past.append((key.detach(), value.detach()))
        return self._feature(x[:, 0]), Past(past)

    def continued(self, past: Past, start: int, soft: Tensor) -> Tensor:
        n, count, tail, _ = soft.shape
        after = self.embedding_after
        known = self.before + start
        positions = self.positions[known : known + tail + len(after)]
        x = torch.cat([soft, after.expand(n, count, -1, -1).to(soft.dtype)], 2) + positions.to(soft.dtype)
        x = x.to(self.dtype)  # (n, count, tail + after, width)
        for i, (weights, (key, value)) in enumerate(zip(self.layers, past.layers, strict=True)):
            last = i == len(self.layers) - 1
            x = continued_block(x, key[:, :, :known], value[:, :, :known], weights, self.activation, self.heads, last)
        return self._feature(x[:, :, 0])

    def _feature(self, pooled: Tensor) -> Tensor:
        """The tower's last steps: (..., width) of the end token to (..., dim), in full precision."""
        pooled = self.final(pooled.to(self.final.weight.dtype))
        if self.projection is None:
            return pooled
        features = pooled @ self.projection
        return features if self.projection_bias is None else features + self.projection_bias


class FullContextEncoder:
    """Any open_clip text tower, computed over its whole context by its own modules."""

    def __init__(self, tower: Any, frame: Frame, tokens: int, dtype: torch.dtype) -> None:
        self.tower, self.dtype = tower, dtype
        device = tower.positional_embedding.device
        self.ids = torch.tensor([*frame.before, *[frame.before[0] if frame.before else 0] * tokens, *frame.after])
        self.before, self.tokens = len(frame.before), tokens
        self.embedding = tower.token_embedding(self.ids.to(device)).detach()
        self.own_dtype = self.embedding.dtype

    def __call__(self, soft: Tensor) -> Tensor:
        n, tokens, _ = soft.shape
        before, after = self.embedding[: self.before], self.embedding[self.before + tokens :]
        x = torch.cat([before.expand(n, -1, -1).to(soft), soft, after.expand(n, -1, -1).to(soft)], 1)
        x = x + self.tower.positional_embedding[: x.shape[1]].to(soft)
        # The tower's weights keep their precision; autocast handles a lower one.
        with torch.autocast(soft.device.type, self.dtype, enabled=self.dtype != self.own_dtype):
            x = self.tower.transformer(x.to(self.own_dtype), attn_mask=self.tower.attn_mask)
            x = self.tower.ln_final(x)
            pooled: Tensor = text_global_pool(
                x, self.ids.expand(n, -1).to(x.device), _pool_type(self.tower), _eos(self.tower)
            )
            projection: nn.Linear | Tensor | None = self.tower.text_projection
            if projection is None:
                return pooled
            features: Tensor = projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
            return features

    def with_past(self, soft: Tensor) -> tuple[Tensor, Past]:
        kept = soft.detach()
        return self(soft), Past([(kept, kept)])  # the tokens themselves: nothing is saved

    def continued(self, past: Past, start: int, soft: Tensor) -> Tensor:
        n, count = soft.shape[:2]
        ((begun, _),) = past.layers
        whole = torch.cat([begun[:, None, :start].expand(-1, count, -1, -1), soft], 2)
        return self(whole.flatten(0, 1)).view(n, count, -1)


def text_tower(model: Any) -> Any:
    """The module of an open_clip model that holds the text tower's parts.

    Raises:
        UserError: a text tower of another library (Hugging Face encoders in open_clip models).
    """
    tower = getattr(model, "text", model)
    if tower is not model and not isinstance(tower, TextTransformer):
        raise UserError(
            f"the text tower is a {type(tower).__name__}; expected one of open_clip's own (choose a CLIP or SigLIP model)"
        )
    if getattr(tower, "cls_emb", None) is not None or getattr(tower, "use_pad_mask", False):
        raise UserError(
            "this text tower has a class token or a padding mask (CoCa-like); choose a CLIP or SigLIP model"
        )
    return tower


def frame_of(tokenizer: Any, context_length: int) -> Frame:
    """What the tokenizer puts around a text, found by encoding an empty text and a single letter."""
    empty, letter = (tokenizer([text], context_length=context_length)[0].tolist() for text in ("", "a"))
    before = next(i for i, (a, b) in enumerate(zip(empty, letter, strict=True)) if a != b)
    return Frame(empty[:before], empty[before:])


def _pool_type(tower: Any) -> str:
    pool_type: str = getattr(tower, "text_pool_type", None) or tower.pool_type
    return pool_type


def _eos(tower: Any) -> int | None:
    return getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))


def _pooled_position(tower: Any, ids: Tensor) -> int:
    """The position in a row of ids, (1, length), where the tower takes its feature."""
    where = torch.arange(ids.shape[1]).view(1, -1, 1)
    return int(text_global_pool(where, ids, _pool_type(tower), _eos(tower)))


def _is_causal_with_end_pooling(model: Any, tower: Any) -> bool:
    mask = tower.attn_mask
    causal = mask is not None and mask.ndim == 2 and bool(torch.isinf(mask).triu(1).sum() == torch.isinf(mask).sum())
    causal = causal and int(torch.isinf(mask).sum()) == len(mask) * (len(mask) - 1) // 2
    plain = all(
        isinstance(b, ResidualAttentionBlock) and isinstance(b.ls_1, nn.Identity) and isinstance(b.ls_2, nn.Identity)
        for b in tower.transformer.resblocks
    )
    return bool(causal and plain) and _pool_type(tower) in ("argmax", "eos")


@torch.no_grad()
def _check(encoder: TextEncoder, model: Any, tower: Any, frame: Frame, tokens: int) -> None:
    """Compare an encoder with the model's `encode_text` on two arbitrary prompts.

    Raises:
        UserError: they differ.
    """
    vocab = tower.token_embedding.num_embeddings
    special = {*frame.before, *frame.after}
    ordinary = [i for i in range(min(vocab, 4096)) if i not in special]
    ids = torch.tensor([[ordinary[(7 + 31 * i + 97 * lane) % len(ordinary)] for i in range(tokens)] for lane in (0, 1)])
    own = model.encode_text(framed(ids, frame, tower.context_length).to(tower.positional_embedding.device))
    ours = encoder(tower.token_embedding(ids.to(own.device)))
    gap = float((F.normalize(own, dim=-1) - F.normalize(ours.to(own), dim=-1)).norm(dim=-1).max())
    if not gap < 1e-3:
        raise UserError(f"this text tower is not supported: features differ from those of encode_text by {gap:.1e}")


def framed(ids: Tensor, frame: Frame, length: int) -> Tensor:
    """(n, tokens) int64 prompts to (n, length) rows as the tokenizer makes them."""
    n = len(ids)
    before, after = (
        torch.tensor(part, dtype=ids.dtype, device=ids.device).expand(n, -1) for part in (frame.before, frame.after)
    )
    return torch.cat([before, ids, after], 1)[:, :length]
