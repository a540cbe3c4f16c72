"""The models that visitors of the page of `jobs.app` may choose: those that the operator named, and no others."""

import dataclasses
import functools
from collections.abc import Sequence

from pez.demo import CLIPS
from pez.errors import UserError
from pez.models.joint import AnyClip
from pez.models.load import check_models, load_model
from pez.models.local import local_models
from pez.models.names import carries_weights, guides_of, is_demo
from pez.regeneration import Generator
from pez.settings import LARGE_VOCABULARY, ModelSettings, PezSettings

LOCAL = "local"
"""stands for every model whose weights are on this machine"""
_KEPT = 2  # models in memory
_BETWEEN = " + "  # models that learn one prompt together


class Models:
    """What the page runs on. One search runs at a time; visitors wait in a queue.

    Args:
        choices: the models by the names that visitors see, the first one preselected. They are loaded when they are first
            chosen, and the last two stay in memory.
        device: where to put them.
        generator: makes images from prompts; None = the page cannot.
        examples: paths of images to try.
    """

    def __init__(
        self,
        choices: dict[str, ModelSettings],
        device: str,
        generator: Generator | None = None,
        examples: Sequence[str] = (),
    ) -> None:
        self.choices, self.generator, self.examples = choices, generator, list(examples)
        self._load = functools.lru_cache(_KEPT)(lambda name: load_model(choices[name].on(device), device))

    @property
    def names(self) -> list[str]:
        return list(self.choices)

    def clip(self, name: str) -> AnyClip:
        """The model that a visitor chose; loads it if needed.

        Raises:
            UserError: there is no such choice, or it cannot be loaded.
        """
        if name not in self.choices:
            raise UserError(f"no model {name!r}; expected {' or '.join(self.choices)}")
        return self._load(name)

    def searches(self, name: str) -> int:
        """How often the default searches an image with a model: a demo has few words, others have many. Loads nothing."""
        model = self.choices[name]
        settings = PezSettings().for_models(len(model.models))
        return (settings if is_demo(model) else settings.for_vocabulary(LARGE_VOCABULARY)).searches


def choices_of(model: ModelSettings, also: Sequence[str]) -> dict[str, ModelSettings]:
    """The models of a command line by their names, checked without loading them.

    Args:
        model: the one to begin with.
        also: others, written as in the column `model` of a table: NAME/WEIGHTS, joined by ` + ` if they learn one prompt
            together; or `local`.

    Raises:
        UserError: no such model or checkpoint.
    """
    found = [model]
    for text in also:
        if text == LOCAL:
            others = [*((name, "none") for name in CLIPS), *local_models()]
            found += [dataclasses.replace(_alone(model), model=name, pretrained=tag) for name, tag in others]
        else:
            found.append(_parsed(text, model))
    for one in found:
        check_models(one)
    return {_name_of(one): one for one in found}


def _parsed(text: str, model: ModelSettings) -> ModelSettings:
    """The settings of a model that is written NAME/WEIGHTS, with the precision of another."""
    names, weights = [], []
    for part in (part.strip() for part in text.split(_BETWEEN)):
        name, slash, tag = (part, "", "") if carries_weights(part) else part.partition("/")
        if not carries_weights(name):
            if not slash:
                raise UserError(f"--also has {text!r}; expected NAME/WEIGHTS, as in ViT-L-14/openai, or {LOCAL}")
            weights.append(tag)
        names.append(name)
    return dataclasses.replace(_alone(model), model=tuple(names), pretrained=tuple(weights) or "none")


def _alone(model: ModelSettings) -> ModelSettings:
    """The settings without what belongs to its own models."""
    return dataclasses.replace(model, model="demo", pretrained="none", model_weights=())


def _name_of(model: ModelSettings) -> str:
    """`ViT-L-14/openai + ViT-bigG-14/laion2b_s39b_b160k`."""
    guides = guides_of(model)
    return _BETWEEN.join(name if carries_weights(name) else f"{name}/{weights}" for name, weights in guides)
