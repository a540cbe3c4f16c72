"""The modes of torch that a caller may be in, and that must not reach the results."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def own_modes(gradients: bool = True) -> Iterator[None]:
    """Compute as outside of a caller's `no_grad`, `inference_mode` (around every node of ComfyUI) and `autocast`."""
    with contextlib.ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.set_grad_enabled(gradients))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        yield
