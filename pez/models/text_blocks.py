"""Residual attention blocks of a causal text tower, with keys and values of earlier positions."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn


class BlockWeights(NamedTuple):
    """Weights and biases of one residual attention block, in the dtype of the computation."""

    norm1: tuple[Tensor, Tensor, float]
    norm2: tuple[Tensor, Tensor, float]
    into: tuple[Tensor, Tensor]  # queries, keys and values: (3 width, width), (3 width,)
    out: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]


def weights_of(block: ResidualAttentionBlock, dtype: torch.dtype) -> BlockWeights:
    """The weights of a block, detached and cast."""

    def cast(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return weight.detach().to(dtype), bias.detach().to(dtype)

    norm1, norm2 = ((*cast(norm.weight, norm.bias), norm.eps) for norm in (block.ln_1, block.ln_2))
    return BlockWeights(
        norm1,
        norm2,
        cast(block.attn.in_proj_weight, block.attn.in_proj_bias),
        cast(block.attn.out_proj.weight, block.attn.out_proj.bias),
        cast(block.mlp.c_fc.weight, block.mlp.c_fc.bias),
        cast(block.mlp.c_proj.weight, block.mlp.c_proj.bias),
    )


def residual_block(
    x: Tensor, key0: Tensor, value0: Tensor, weights: BlockWeights, activation: nn.Module, heads: int, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One residual attention block.

    Args:
        x: (n, positions, width).
        key0, value0: (1, heads, before, head width) of earlier positions, which x may attend to.
        last: return the last position only, (n, 1, width).

    Returns:
        x, and the keys and values of all positions, (n, heads, before + positions, head width).
    """
    n, width = len(x), x.shape[-1:]
    query, key, value = heads_of(F.layer_norm(x, width, *weights.norm1), weights, heads, last)
    key = torch.cat([key0.expand(n, -1, -1, -1), key], 2)
    value = torch.cat([value0.expand(n, -1, -1, -1), value], 2)
    mixed = _attend(query, key, value, None if last else key0.shape[2])
    return _mixed_in(x[:, -1:] if last else x, mixed.transpose(1, 2).flatten(2), weights, activation), key, value


def continued_block(
    x: Tensor, key0: Tensor, value0: Tensor, weights: BlockWeights, activation: nn.Module, heads: int, last: bool
) -> Tensor:
    """One residual attention block over the ends of prompts, of which each `count` share a beginning.

    Args:
        x: (n, count, positions, width).
        key0, value0: (n, heads, before, head width) of the beginnings, which are not copied for each prompt.
        last: return the last position only, (n, count, 1, width).
    """
    n, count, width = *x.shape[:2], x.shape[-1:]
    normal = F.layer_norm(x, width, *weights.norm1).flatten(0, 1)
    query, key, value = heads_of(normal, weights, heads, last)  # (n count, heads, positions, head width)
    query = query * query.shape[-1] ** -0.5
    shape = query.shape[1:]

    def of_beginnings(rows: Tensor) -> Tensor:  # (n count, heads, positions, any) to (n, heads, count positions, any)
        turned: Tensor = rows.unflatten(0, (n, count)).transpose(1, 2)
        return turned.flatten(2, 3)

    def of_prompts(rows: Tensor) -> Tensor:
        turned: Tensor = rows.unflatten(2, (count, shape[1])).transpose(1, 2)
        return turned.flatten(0, 1)

    earlier = of_prompts(of_beginnings(query) @ key0.transpose(-1, -2))
    own = query @ key.transpose(-1, -2)
    if not last:
        seen = torch.ones(shape[1], shape[1], dtype=torch.bool, device=x.device).tril()
        own = own.masked_fill(~seen, -torch.inf)
    weight = torch.cat([earlier, own], -1).softmax(-1)
    to_earlier, to_own = weight.split([earlier.shape[-1], own.shape[-1]], -1)
    mixed = of_prompts(of_beginnings(to_earlier) @ value0) + to_own @ value
    mixed = mixed.transpose(1, 2).flatten(2).unflatten(0, (n, count))
    return _mixed_in(x[:, :, -1:] if last else x, mixed, weights, activation)


def _mixed_in(x: Tensor, mixed: Tensor, weights: BlockWeights, activation: nn.Module) -> Tensor:
    """The rest of a block after its attention; both tensors are (..., width)."""
    x = x + F.linear(mixed, *weights.out)
    hidden = activation(F.linear(F.layer_norm(x, x.shape[-1:], *weights.norm2), *weights.up))
    return x + F.linear(hidden, *weights.down)


def compiled_block() -> Any:
    """`residual_block`, compiled for a fixed shape."""
    from torch import _dynamo as dynamo  # slow to import

    # One compilation per number of rows and precision. Beyond the limit (8 by default), torch silently stops compiling.
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, 64)
    return torch.compile(residual_block, dynamic=False)


def heads_of(x: Tensor, weights: BlockWeights, heads: int, last: bool) -> tuple[Tensor, Tensor, Tensor]:
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
