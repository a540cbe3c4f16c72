"""Every method as the chain of its phases."""

from collections.abc import Callable
from functools import partial

from pez.methods.autoprompt import AutoPrompt
from pez.methods.bank import chain_phrases
from pez.methods.fluentprompt import FluentPrompt
from pez.methods.gaslite import gaslite
from pez.methods.gcg import gcg
from pez.methods.names import Method
from pez.methods.pez import Walk
from pez.methods.phase import Batch, Phase
from pez.methods.random_search import RandomSearch
from pez.methods.shortlist import ShortlistWalk
from pez.methods.soft import SoftPrompt
from pez.methods.swaps import improve
from pez.objectives.objective import Objective
from pez.settings import PezSettings
from pez.vocabulary import Vocabulary

MakePhase = Callable[[Objective, Vocabulary, PezSettings, int], Phase]

METHODS: dict[Method, tuple[MakePhase, ...]] = {
    "default": (ShortlistWalk, partial(Batch, improve, "swaps")),
    "pez": (Walk,),
    "autoprompt": (AutoPrompt,),
    "fluentprompt": (FluentPrompt,),
    "gcg": (partial(Batch, gcg, "swaps"),),
    "gaslite": (partial(Batch, gaslite, "swaps"),),
    "soft": (SoftPrompt,),
    "bank": (partial(Batch, chain_phrases, "phrases"),),
    "random": (RandomSearch,),
}


def phases_of(objective: Objective, vocabulary: Vocabulary, settings: PezSettings, lanes: int) -> list[Phase]:
    """The phases of the settings' method, idle. Where few searches go on after the first, the others have fewer lanes."""
    phases = METHODS[settings.method]
    if settings.method == "default" and not settings.rounds:
        phases = phases[:1]
    of_each = [lanes] + [settings.swap_lanes(lanes)] * (len(phases) - 1)
    return [phase(objective, vocabulary, settings, count) for phase, count in zip(phases, of_each, strict=True)]
