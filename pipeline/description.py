"""The settings that determine the rows of an output: nested by owner, versioned, without defaults.

    {"version": 2, "model": {"model": "demo"}, "method": {"steps": 20}, "source": {}, "engine": {"device": "cpu", ...}}

A run may add to an output only if the descriptions are equal. Defaults are omitted, so a new option does not invalidate earlier
outputs. Whoever changes a default must increment `ALGORITHM`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pez
from pez.models.names import all_carry_weights
from pez.settings import ALGORITHM, ModelSettings
from pipeline.settings import (
    CaptionSettings,
    DistillSettings,
    ImageSettings,
    LearnSettings,
    TarSettings,
    TextSettings,
    VerifySettings,
)
from pipeline.sources.base import Source
from pipeline.sources.choice import source_of

_TARGET = ("caption_weight", "keep")
"""what prompts are learned for, beyond the image or the text"""
_MODEL = ("model", "pretrained", "model_weights")


def describe(
    settings: LearnSettings, method: pez.PezSettings, device: str, source: Source | None = None
) -> dict[str, Any]:
    """Describe a run as JSON values.

    Args:
        source: default = the source that the settings describe.

    On a CPU in full precision, the number of lanes changes no bit, so another machine may finish a job with a different number.
    Elsewhere, kernels may take different code paths for different shapes.
    """
    settings, method, kind = settings.on(device), method.for_models(len(settings.models)), device.partition(":")[0]
    names = [name for name in _MODEL if name != "pretrained" or not all_carry_weights(settings)]
    engine: dict[str, Any] = {"device": kind, "precision": settings.precision}
    if settings.compiled:
        engine["compiled"] = True
    if kind != "cpu" or settings.precision == "bf16":
        engine["lanes"] = settings.lanes
    described = {
        "version": ALGORITHM,
        "model": chosen(settings, names),
        "method": _of_method(method)
        | ({"plain_text": True} if method.plain else {}),  # earlier versions allowed more tokens
        "source": (source or source_of(settings)).describe(),
        "engine": engine,
    }
    target = chosen(settings, [name for name in _TARGET if hasattr(settings, name)])
    if isinstance(settings, TextSettings):  # outputs of earlier versions have other columns
        target["columns"] = "text, tokens_before, tokens_after"
    return described | ({"target": target} if target else {})


def in_full(
    settings: LearnSettings, method: pez.PezSettings, device: str, source: Source | None = None
) -> dict[str, Any]:
    """All settings of a run, including defaults, for people who read `_run.json`."""
    values = dataclasses.asdict(settings.on(device))
    model = {name: values.pop(name) for name in _MODEL}
    kinds = (TextSettings,) if isinstance(settings, TextSettings) else (TarSettings, ImageSettings)
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    of_source = {name: values.pop(name) for name in names if name in values}
    of_source |= source.describe() if source else {}
    target = {name: values.pop(name) for name in _TARGET if name in values}
    engine = {"device": device, **values}
    method_values = _brief(dataclasses.asdict(method.for_models(len(settings.models)).with_defaults()))
    return {"model": model, "method": method_values, "target": target, "source": of_source, "engine": engine}


def _of_method(method: pez.PezSettings) -> dict[str, Any]:
    """The chosen settings of the method; what is the default anyway was not chosen."""
    return _brief(chosen(method.without_defaults()))


def _brief(values: dict[str, Any]) -> dict[str, Any]:
    """The values with a digest in place of long lists of texts, such as a bank's 100,000 phrases."""
    for name, noun in (("bank", "phrases"), ("fluency_text", "texts")):
        if texts := values.get(name):
            digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
            values = {**values, name: f"{len(texts)} {noun}, sha256 {digest}"}
    return values


def model_of(description: dict[str, Any]) -> ModelSettings:
    """The guide: the CLIP that prompts were learned with."""
    return ModelSettings(**description["model"])


def chosen(settings: Any, names: Iterable[str] | None = None) -> dict[str, Any]:
    """The settings that differ from their defaults, as JSON values.

    Args:
        settings: a dataclass.
        names: the fields to include; None = all.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    values = {name: getattr(settings, name) for name in (fields if names is None else names)}
    changed = {name: value for name, value in values.items() if value != fields[name].default}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def upgraded(description: dict[str, Any]) -> dict[str, Any]:
    """Convert a description from an earlier format, in which all settings were at one level."""
    if not isinstance(description.get("model"), str):
        return description
    flat = {name: tuple(value) if isinstance(value, list) else value for name, value in description.items()}
    if flat.get("pretrained") is None:  # a name that includes its weights
        flat.pop("pretrained", None)
    settings = CaptionSettings(**_known(CaptionSettings, flat))
    method = pez.PezSettings(**_known(pez.PezSettings, flat), exact=bool(flat.get("exact")))
    described = describe(settings, method, str(flat.get("device", "cpu")))
    return described | {"version": flat.get("version", 1)}


def fingerprint(description: dict[str, Any]) -> str:
    """A short hash of a description."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The differences of two descriptions, for people: `steps was 20 and is 30`."""
    before, now = _flat(theirs), _flat(ours)
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return (
        ", ".join(f"{_last(name)} was {_value(before, name)} and is {_value(now, name)}" for name in names)
        or "the settings"
    )


def _known(kind: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}


def _value(values: dict[str, Any], name: str) -> str:
    if name in values:
        return repr(values[name])
    default = _DEFAULTS.get(_last(name), dataclasses.MISSING)
    return "not set" if default is dataclasses.MISSING or default is None else repr(default)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value})
    return flat


_DEFAULTS = {
    field.name: field.default
    for kind in (CaptionSettings, DistillSettings, pez.PezSettings, VerifySettings)
    for field in dataclasses.fields(kind)
}
