"""Hard prompts by gradient: PEZ (Wen et al. 2023, arXiv:2302.03668) on open_clip models.

import pez
clip = pez.load_demo_clip()
prompts = pez.learn_prompts(clip, images, pez.PezSettings(tokens=8, steps=500))
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# By default OpenMP threads spin while they wait, which is many times slower on a busy machine. OpenMP reads this once, when
# torch is imported, so it has no effect if torch was imported earlier.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from pez.demo import load_demo_clip
    from pez.errors import UserError
    from pez.learn import distill, learn_prompt, learn_prompts, mix
    from pez.models.clip import Clip
    from pez.models.joint import JointClip
    from pez.models.load import load_clip
    from pez.prompt import Prompt
    from pez.settings import PezSettings

__version__ = "0.1.0"
__all__ = [
    "Clip", "JointClip", "PezSettings", "Prompt", "UserError", "distill", "learn_prompt", "learn_prompts", "load_clip",
    "load_demo_clip", "mix",
]  # fmt: skip

_MODULES = {
    "Clip": "models.clip",
    "JointClip": "models.joint",
    "PezSettings": "settings",
    "Prompt": "prompt",
    "UserError": "errors",
    "distill": "learn",
    "learn_prompt": "learn",
    "learn_prompts": "learn",
    "load_clip": "models.load",
    "load_demo_clip": "demo",
    "mix": "learn",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch takes seconds, and a command that only prints its help does not need it."""
    if name not in _MODULES:
        raise AttributeError(f"module 'pez' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pez.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
