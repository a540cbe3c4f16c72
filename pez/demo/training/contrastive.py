"""What the training of every demo CLIP shares: the optimizer's loop and CLIP's loss.

Source: CLIP, arXiv:2103.00020.
"""

import time
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pez.modes import fast_bfloat16

_LOG_EVERY = 50  # steps


def optimize(
    losses: Iterable[Tensor],
    parameters: list[nn.Parameter],
    steps: int,
    learning_rate: float,
    weight_decay: float,
    report: Callable[[int, float, float], None],
) -> None:
    """Take a step of AdamW for each loss, with a learning rate that rises and falls once.

    Args:
        losses: `steps` scalars; the next one is computed after the step of the last.
        report: called every 50 steps with the step, the mean loss since the last call, and the steps per second.
    """
    optimizer = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps, pct_start=0.08, div_factor=20
    )
    start, total = time.monotonic(), 0.0
    for step, loss in enumerate(losses, 1):
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % _LOG_EVERY == 0:
            report(step, total / _LOG_EVERY, step / (time.monotonic() - start))
            total = 0.0


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's symmetric loss.

    Args:
        images: (n, dim) features; need not be unit vectors.
        texts: (n, dim) features; row i describes image i.
        logit_scale: scalar, the logarithm of the inverse temperature; at most 100 after exponentiation.
    """
    logits = logit_scale.exp().clamp(max=100) * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    target = torch.arange(len(images))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def activate_residual_blocks(image_tower: nn.Module) -> None:
    """Let the blocks of a ResNet contribute from the start. open_clip starts them at zero, and few steps do not change that."""
    for name, parameter in image_tower.named_parameters():
        if name.endswith("bn3.weight"):
            nn.init.constant_(parameter, 0.5)


def training_precision() -> torch.autocast:
    """bfloat16 where the CPU computes it; elsewhere float32, because emulation takes ten times as long."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16(torch.device("cpu")))
