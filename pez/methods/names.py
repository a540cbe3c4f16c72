"""The methods by name, and what the settings need to know of each; importable without torch."""

import dataclasses
from typing import Literal

Method = Literal["default", "pez", "autoprompt", "fluentprompt", "gcg", "gaslite", "soft", "bank", "random"]


@dataclasses.dataclass(frozen=True)
class Traits:
    """What the settings need to know of a method."""

    label: str
    """its name in tables"""
    uses: frozenset[str]
    """the settings of the search that have an effect; the others would be ignored"""
    rate: float = 0.1
    """default learning rate"""
    decay: float = 0.0
    """default weight decay"""


_WALK = frozenset({"steps", "restarts", "learning_rate", "weight_decay"})
_SEEN = frozenset({"candidates_kept"})
_SWAPS = frozenset({"project_every", "finalists", "swaps", "candidates", "swap_among", "token_weight", "fluency"})

TRAITS: dict[Method, Traits] = {
    "default": Traits("PEZ, then swaps", _WALK | _SWAPS | _SEEN, decay=0.5),
    "pez": Traits("PEZ as published", _WALK | _SEEN, decay=0.1),
    "autoprompt": Traits("AutoPrompt-SGD", _WALK - {"weight_decay"} | _SEEN, rate=300.0),
    "fluentprompt": Traits("FluentPrompt", _WALK - {"weight_decay"} | _SEEN, rate=1.0),
    "gcg": Traits("GCG-like swaps", frozenset({"steps", "candidates"})),
    "gaslite": Traits("GASLITE-like swaps", frozenset({"steps", "candidates"})),
    "soft": Traits("soft prompt, projected", _WALK, decay=0.1),
    "bank": Traits("phrase bank", frozenset({"bank"})),
    "random": Traits("random search", _SEEN | {"steps"}),
}
"""Rates are those of a sweep on other images than the evaluated ones (EXPERIMENTS.md, "Every method at equal cost"), except
for PEZ and the soft prompt, which have the published one."""

OF_ONE_METHOD = _WALK | _SWAPS | _SEEN
"""settings that only some methods use"""
