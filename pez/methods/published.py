"""The baseline of the benchmark: PEZ computed the way the authors' published code computes it.

One prompt at a time, the whole context, two forward passes per step, the vocabulary normalized again in every step, indices
via Python lists. Written from the description of that code and checked against its trajectories
(`tests/pez/methods/test_authors_trajectories.py`). It is slow on purpose; use `pez.learn_prompts` instead.
"""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pez.models.clip import Clip
from pez.settings import PezSettings
from pez.vocabulary import Vocabulary


def learn_as_published(
    clip: Clip,
    target: Tensor,
    initial_ids: Tensor,
    settings: PezSettings,
    on_step: Callable[[Tensor, float], None] | None = None,
    vocabulary: Vocabulary | None = None,
) -> tuple[Tensor, float]:
    """Learn one prompt.

    Args:
        target: (dim,) unit feature.
        initial_ids: (tokens,) int64.
        on_step: called with each step's (tokens,) ids and similarity.
        vocabulary: the allowed tokens; None = all, as published.

    Returns:
        (tokens,) int64 best ids visited, and their similarity.
    """
    tower, device = clip.tower, clip.device
    embedding = tower.token_embedding
    tokens, before = len(initial_ids), len(clip.frame.before)
    row = torch.tensor([*clip.frame.before, *[0] * tokens, *clip.frame.after])[: clip.context_length].to(device)
    frame = embedding(row).detach()  # (context, width)
    pooled_at = int(row.argmax())

    def similarity_of(prompt: Tensor) -> Tensor:
        whole = torch.cat([frame[:before], prompt, frame[before + tokens :]]).unsqueeze(0)
        x = tower.transformer(whole + tower.positional_embedding, attn_mask=tower.attn_mask)
        feature = tower.ln_final(x)[:, pooled_at] @ tower.text_projection
        return (F.normalize(feature, dim=-1) @ target).squeeze(0)

    rows = torch.arange(embedding.num_embeddings, device=device) if vocabulary is None else vocabulary.ids

    prompt = embedding(initial_ids.to(device)).detach().clone().requires_grad_()
    published = dataclasses.replace(settings, method="pez")
    optimizer = torch.optim.AdamW([prompt], lr=published.rate, weight_decay=published.decay)
    best_ids, best = initial_ids, -torch.inf
    for _ in range(settings.gradient_steps):
        with torch.no_grad():
            units = F.normalize(embedding.weight if vocabulary is None else embedding.weight[rows], dim=-1)
            found = (F.normalize(prompt, dim=-1) @ units.T).topk(1, dim=-1).indices.cpu().tolist()
            ids = rows[torch.tensor(found, device=device).squeeze(-1)]
            projected = embedding(ids)
            similarity = similarity_of(projected).item()
        leaf = projected.detach().clone().requires_grad_()
        (prompt.grad,) = torch.autograd.grad(1 - similarity_of(leaf), [leaf])
        optimizer.step()
        optimizer.zero_grad()
        if similarity > best:
            best_ids, best = ids, similarity
        if on_step is not None:
            on_step(ids, similarity)
    return best_ids, best
