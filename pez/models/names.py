"""What a model's name alone implies, importable without torch; see `load.py` for the rest."""

from pez.demo import CLIPS


def carries_weights(model: str) -> bool:
    """Whether a name includes its weights: demo names, hf-hub:... and local-dir:...; others need a tag or a file."""
    return model in CLIPS or ":" in model
