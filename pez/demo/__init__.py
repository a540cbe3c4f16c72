"""The shipped demo: drawn scenes, and small models trained on them, so that everything runs without a download."""

from pathlib import Path
from typing import TYPE_CHECKING

from pez.settings import Precision

if TYPE_CHECKING:
    import torch

    from pez.models.clip import Clip

GUIDE = Path(__file__).parent / "guide"
"""the CLIP that prompts are learned with"""
JUDGE = Path(__file__).parent / "judge"
"""a CLIP trained from another seed, which only scores"""
GENERATOR = Path(__file__).parent / "generator"
"""a text-to-image model, as a diffusers folder"""
CLIPS = {"demo": GUIDE, "demo-judge": JUDGE}
"""by the names that people choose them with"""


def load_demo_clip(
    device: "str | torch.device" = "cpu", precision: Precision = "fp32", compiled: bool = False, folder: Path = GUIDE
) -> "Clip":
    """Load a shipped demo CLIP for 64x64 scenes; its recommended vocabulary is the words of its captions.

    Args:
        folder: GUIDE or JUDGE.
    """
    import torch

    from pez.demo.scenes import caption_words
    from pez.models.clip import load_clip

    clip = load_clip(f"local-dir:{folder}", None, device, precision, compiled)
    clip.name = "demo" if folder == GUIDE else f"demo-{folder.name}"
    clip.recommended = torch.zeros(clip.tower.token_embedding.num_embeddings, dtype=torch.bool)
    clip.recommended[[clip.tokenizer.encode(word)[0] for word in caption_words()]] = True
    return clip
