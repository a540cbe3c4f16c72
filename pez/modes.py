"""Shields results from the torch modes of a caller."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def own_modes(gradients: bool = True) -> Iterator[None]:
    """Leave the caller's `no_grad`, `inference_mode` (ComfyUI wraps every node in it) and `autocast`."""
    with contextlib.ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.set_grad_enabled(gradients))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield
