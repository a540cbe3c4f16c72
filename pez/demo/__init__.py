"""The built-in demo: drawn scenes and small models trained on them, so that everything runs without a download."""

from pathlib import Path
from typing import TYPE_CHECKING

from pez.settings import Precision

if TYPE_CHECKING:
    import torch

    from pez.models.clip import Clip

GUIDE = Path(__file__).parent / "guide"
"""the CLIP that prompts are learned with"""
JUDGE = Path(__file__).parent / "judge"
"""a CLIP trained with another seed, which only scores"""
GENERATOR = Path(__file__).parent / "generator"
"""a text-to-image model, as a diffusers folder"""
CLIPS = {"demo": GUIDE, "demo-judge": JUDGE}
"""by the names that select them"""
LANGUAGE_MODEL = Path(__file__).parent / "reviewer"
"""a language model of short reviews, as a transformers folder"""
LANGUAGE_MODELS = {"demo-lm": LANGUAGE_MODEL}
"""by the names that select them"""


def load_demo_clip(
    device: "str | torch.device" = "cpu", precision: Precision = "fp32", compiled: bool = False
) -> "Clip":
    """Load the demo guide, a CLIP for 64x64 scenes. Its recommended vocabulary is the words of its captions."""
    from pez.models.load import load_clip

    return load_clip("demo", None, device, precision, compiled)
