"""What a model's name alone implies, importable without torch; see `load.py` for the rest."""

from pez.demo import CLIPS
from pez.errors import UserError
from pez.settings import ModelSettings


def carries_weights(model: str) -> bool:
    """Whether a name includes its weights: demo names, hf-hub:... and local-dir:...; others need a tag or a file."""
    return model in CLIPS or ":" in model


def is_demo(settings: ModelSettings) -> bool:
    """Whether all models are demo models."""
    return all(model in CLIPS for model in settings.models)


def all_carry_weights(settings: ModelSettings) -> bool:
    """Whether no model needs a tag or a file."""
    return all(map(carries_weights, settings.models))


def guides_of(settings: ModelSettings) -> list[tuple[str, str]]:
    """The name and the weights of each model; names that include their weights have "none".

    Raises:
        UserError: not one tag or file for each of the other names.
    """
    weights = (settings.pretrained,) if isinstance(settings.pretrained, str) else settings.pretrained
    needed = [model for model in settings.models if not carries_weights(model)]
    if len(weights) != len(needed) and (needed or len(weights) > 1):
        found = f"{len(weights)} {'value' if len(weights) == 1 else 'values'} for {', '.join(needed) or settings.name}"
        raise UserError(f"pretrained has {found}; expected one tag or file for each open_clip name")
    left = iter(weights)
    return [(model, "none" if carries_weights(model) else next(left)) for model in settings.models]
