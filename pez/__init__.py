"""Hard prompts by gradient: PEZ (Wen et al. 2023, arXiv:2302.03668) on open_clip models.

import pez
clip = pez.load_demo_clip()
prompts = pez.learn_prompts(clip, images, pez.PezSettings(tokens=8, steps=500))
"""

from pez.clip import Clip, load_clip
from pez.demo import load_demo_clip
from pez.learn import distill, learn_prompt, learn_prompts
from pez.prompt import Prompt
from pez.settings import PezSettings

__all__ = [
    "Clip", "PezSettings", "Prompt", "distill", "learn_prompt", "learn_prompts", "load_clip", "load_demo_clip",
]  # fmt: skip
