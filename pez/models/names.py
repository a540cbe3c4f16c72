"""What a model's name says, importable without torch; `load.py` knows the rest."""

from pez.demo import CLIPS


def carries_weights(model: str) -> bool:
    """Whether a name stands for its weights too: the demo's, hf-hub:... and local-dir:...; others need a tag or a file."""
    return model in CLIPS or ":" in model
