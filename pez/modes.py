"""The torch modes of a caller, from which results are shielded, and what the hardware supports."""

import contextlib
from collections.abc import Callable, Iterator

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


def fast_bfloat16(device: torch.device) -> bool:
    """True if the hardware multiplies bfloat16."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    checks: list[Callable[[], bool]] = [
        getattr(torch.cpu, name)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if hasattr(torch.cpu, name)
    ]
    return any(check() for check in checks)
