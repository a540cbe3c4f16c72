"""Soft prompts to text features, computing only what matters.

A CLIP text tower sees the prompt in a frame: a start token before it, an end token after it, padding up to the context
length. A template adds fixed words on both sides. The tower is causal and its feature is taken at the end token, so

- positions after the end token have no effect and are skipped;
- positions before the prompt do not see it, so their keys and values are computed once;
- in the last layer only the end token's output is used, so the other queries and MLPs are skipped.

All of this is exact. Towers for which it does not hold (bidirectional, pooled elsewhere) run in full in `FullContextEncoder`.
`text_encoder` chooses, and checks the choice against the model's own `encode_text`.
"""

import dataclasses
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer, text_global_pool
from torch import Tensor, nn

from pez.errors import UserError


class TextEncoder(Protocol):
    """Soft prompts to features."""

    def __call__(self, soft: Tensor) -> Tensor:
        """(n, tokens, width) float embeddings to (n, dim) features, not normalized, differentiable."""
        ...


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
    room = length - len(frame.before) - frame.words_after - 1
    if not 1 <= tokens <= room:
        raise UserError(f"{tokens} tokens do not fit this model; its context of {length} has room for 1 to {room}")

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
        self.layers = [_weights_of(block, dtype) for block in blocks]
        self.block = _compiled_block() if compiled else _block
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
            _, key, value = _heads_of(F.layer_norm(x, x.shape[-1:], *weights.norm1), weights, self.heads, False)
            kept.append((key, value))
            x = _block(x, none, none, weights, self.activation, self.heads, False)
        return kept

    def __call__(self, soft: Tensor) -> Tensor:
        n, tokens, _ = soft.shape
        after = self.embedding_after
        positions = self.positions[self.before : self.before + tokens + len(after)]
        x = torch.cat([soft, after.expand(n, -1, -1).to(soft.dtype)], 1) + positions.to(soft.dtype)
        x = x.to(self.dtype)  # (n, tokens + after, width)
        for i, (weights, (key0, value0)) in enumerate(zip(self.layers, self.prefix, strict=True)):
            x = self.block(x, key0, value0, weights, self.activation, self.heads, i == len(self.layers) - 1)
        pooled: Tensor = self.final(x[:, 0].to(self.final.weight.dtype))  # (n, width), full precision from here on
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


class _Weights(NamedTuple):
    """Weights and biases of one residual attention block, in the dtype of the computation."""

    norm1: tuple[Tensor, Tensor, float]
    norm2: tuple[Tensor, Tensor, float]
    into: tuple[Tensor, Tensor]  # queries, keys and values: (3 width, width), (3 width,)
    out: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]


def _weights_of(block: ResidualAttentionBlock, dtype: torch.dtype) -> _Weights:
    def cast(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight.detach().to(dtype), bias.detach().to(dtype)

    norm1, norm2 = ((*cast(norm.weight, norm.bias), norm.eps) for norm in (block.ln_1, block.ln_2))
    return _Weights(
        norm1,
        norm2,
        cast(block.attn.in_proj_weight, block.attn.in_proj_bias),
        cast(block.attn.out_proj.weight, block.attn.out_proj.bias),
        cast(block.mlp.c_fc.weight, block.mlp.c_fc.bias),
        cast(block.mlp.c_proj.weight, block.mlp.c_proj.bias),
    )


def _block(
    x: Tensor, key0: Tensor, value0: Tensor, weights: _Weights, activation: nn.Module, heads: int, last: bool
) -> Tensor:
    """One residual attention block.

    Args:
        x: (n, positions, width).
        key0, value0: (1, heads, before, head width) of earlier positions, which x may attend to.
        last: return the last position only, (n, 1, width).
    """
    n, width = len(x), x.shape[-1:]
    query, key, value = _heads_of(F.layer_norm(x, width, *weights.norm1), weights, heads, last)
    key = torch.cat([key0.expand(n, -1, -1, -1), key], 2)
    value = torch.cat([value0.expand(n, -1, -1, -1), value], 2)
    mixed = _attend(query, key, value, None if last else key0.shape[2])
    x = (x[:, -1:] if last else x) + F.linear(mixed.transpose(1, 2).flatten(2), *weights.out)
    hidden = activation(F.linear(F.layer_norm(x, width, *weights.norm2), *weights.up))
    return x + F.linear(hidden, *weights.down)


def _compiled_block() -> Any:
    from torch import _dynamo as dynamo  # slow to import

    # One compilation per number of rows and precision. Beyond the limit (8 by default), torch silently stops compiling.
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 64)
    return torch.compile(_block, dynamic=False)


def _heads_of(x: Tensor, weights: _Weights, heads: int, last: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(n, positions, width) to query, key and value, (n, heads, positions, head width) each; last: the last query only."""
    n, positions, width = x.shape
    weight, bias = weights.into
    if not last:
        query, key, value = (
            F.linear(x, weight, bias).view(n, positions, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        )
        return query, key, value
    query = F.linear(x[:, -1:], weight[:width], bias[:width]).view(n, 1, heads, width // heads).transpose(1, 2)
    rest = F.linear(x, weight[width:], bias[width:]).view(n, positions, 2, heads, width // heads)
    key, value = rest.permute(2, 0, 3, 1, 4)
    return query, key, value


def _attend(query: Tensor, key: Tensor, value: Tensor, causal_from: int | None) -> Tensor:
    """Softmax attention; query i sees keys up to causal_from + i, or all keys if that is None."""
    mask = None
    if causal_from is not None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(causal_from)
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # On a CPU the fused kernel's backward pass is 12 times slower than these products in bfloat16, 2 times in float32.
    weight: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        weight = weight.masked_fill(~mask, -torch.inf)
    return weight.softmax(-1) @ value


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
