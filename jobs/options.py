"""Options shared by several commands, and checks of their combinations."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import pez
from jobs.arguments import Group, flags_of, option_of
from pez.errors import UserError
from pez.fluency import Texts
from pez.methods.names import OF_ONE_METHOD, TRAITS, Method
from pez.models.names import all_carry_weights, guides_of, is_demo
from pez.settings import ModelSettings
from pipeline.settings import (
    CaptionSettings,
    ClusterSettings,
    GenerationSettings,
    ImageSettings,
    TarSettings,
    VerifySettings,
    cluster_address,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceOption:
    """Where models run."""

    device: Annotated[str | None, Group("model")] = None
    """cpu or cuda; default = cuda if available"""

    def local_device(self) -> str:
        """The device of this process.

        Raises:
            UserError: no such device.
        """
        return usable_device(self.device)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnOptions(DeviceOption):
    """How prompts are learned."""

    caption: Annotated[CaptionSettings, Group("model")] = CaptionSettings()
    method: Annotated[pez.PezSettings, Group("method")] = pez.PezSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """How they are verified."""

    verification: Annotated[VerifySettings, Group("verification")] = VerifySettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(DeviceOption):
    """Where the work runs."""

    local: Annotated[bool, Group("cluster")] = False
    """run without Ray: one shard after another, in this process"""
    cluster: Annotated[ClusterSettings, Group("cluster")] = ClusterSettings()


def usable_device(device: str | None) -> str:
    """A device of this machine; None = a GPU if available.

    Raises:
        UserError: no such device.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    expect_device(device)
    if device != "cpu":
        number = int(device.partition(":")[2] or 0)
        if not torch.cuda.is_available():
            raise UserError(f"--device is {device}, but PyTorch finds no GPU on this machine; expected cpu")
        if number >= (there := torch.cuda.device_count()):
            raise UserError(f"--device is {device}, but the last GPU of this machine is cuda:{there - 1}")
    return device


def expect_device(device: str | None, on_ray: bool = False) -> None:
    """Refuse an invalid device name; does not check that the device exists."""
    if on_ray and device not in (None, "cpu", "cuda"):
        raise UserError(f"--device is {device!r}; expected cpu or cuda: Ray gives each actor a GPU of its own")
    kind, colon, number = (device or "cpu").partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isascii() and number.isdecimal())):
        raise UserError(f"--device is {device!r}; expected cpu, cuda, or a specific GPU such as cuda:1")


def expect_device_here(device: str | None, cluster: ClusterSettings) -> None:
    """Refuse a missing GPU if Ray will be started on this machine, since no other machine can join that cluster.

    Raises:
        UserError: no such device.
    """
    if device not in (None, "cpu") and cluster_address(cluster) is None and cluster.gpus_per_actor != 0:
        usable_device(device)


def expect_one_generator(settings: GenerationSettings) -> None:
    """Refuse several generators where one is used."""
    if len(settings.generators) > 1:
        raise UserError(f"--verify names {len(settings.generators)} generators; expected one")


def expect_generator(settings: GenerationSettings) -> None:
    """Refuse a verification without a generator."""
    if settings.verify is None:
        raise UserError("no generator is named; expected --verify demo, ORG/MODEL, a folder or a .safetensors file")


def of_demo(settings: CaptionSettings) -> CaptionSettings:
    """The settings with a demo model."""
    return settings if is_demo(settings) else dataclasses.replace(settings, model="demo")


def resolved_method(method: pez.PezSettings, model: ModelSettings) -> pez.PezSettings:
    """The settings with what the models decide: defaults of several, and captions of drawn scenes for the fluency of a demo."""
    method = method.for_models(len(model.models))
    if not method.fluency or method.fluency_text or not is_demo(model):
        return method
    from pez.demo import scenes

    return dataclasses.replace(method, fluency_text=Texts(scenes.captions(_CAPTIONS)))


_CAPTIONS = 20_000  # of drawn scenes, for fluency


def refuse_beside_demo(settings: ModelSettings, given: frozenset[str], sources: Iterable[str] = ()) -> None:
    """Refuse options that --demo would ignore.

    Args:
        given: names of the given options.
        sources: names of options that select images.
    """
    for name in given.intersection(sources):
        raise UserError(f"--demo and {option_of(name)} are both given; expected one source of images")
    if "model" in given and not is_demo(settings):
        raise UserError(f"--demo uses a demo model, but --model is {settings.name}; omit one of them")


def refuse_without(needed: str, given: frozenset[str], options: Iterable[str], why: str) -> None:
    """Refuse options that would be ignored because another is not given."""
    ignored = sorted(option_of(name) for name in given.intersection(options))
    if needed not in given and ignored:
        raise UserError(f"{', '.join(ignored)} {'has' if len(ignored) == 1 else 'have'} no effect {why}")


_WITHOUT: dict[Method, str] = {
    "default": "",
    **dict.fromkeys(("pez", "autoprompt", "fluentprompt", "soft"), ", which does no swaps"),
    **dict.fromkeys(("gcg", "gaslite"), ", which does swaps alone"),
    "bank": ", which chains phrases",
    "random": ", which draws prompts at random",
}
"""why some options have no effect with a method"""
TAR_OPTIONS = frozenset(field.name for kind in (TarSettings, ImageSettings) for field in dataclasses.fields(kind))
"""options for reading tars, folders and tables of images"""


def refuse_ignored(
    given: frozenset[str], method: pez.PezSettings | None = None, model: ModelSettings | None = None
) -> None:
    """Refuse options that would be ignored in this combination."""
    if model is not None and ("demo" in given or all_carry_weights(model)):
        name = f"--model {' '.join(model.models)}" if "model" in given else "--demo"
        refuse_without("", given, {"pretrained"}, f"with {name}, which includes its weights")
    elif model is not None:
        guides_of(model)
    of_verification = {flag.path[-1] for flag in flags_of(VerifySettings)} - {"verify"}
    refuse_without("verify", given, of_verification, "without --verify MODEL")
    refuse_without("score_model", given, {"score_pretrained"}, "without --score-model NAME")
    if {"exact", "method"} <= given:
        raise UserError("--exact and --method are both given; expected one of them (--exact means --method pez)")
    if method is not None:
        name = "--exact" if "exact" in given else f"--method {method.method}"
        refuse_without("", given, OF_ONE_METHOD - TRAITS[method.method].uses, f"with {name}{_WITHOUT[method.method]}")
        if method.fluency and not (method.fluency_text or "demo" in given or (model is not None and is_demo(model))):
            raise UserError("--fluency needs texts such as captions; expected --fluency-text FILE with one per line")
    if "local" in given:
        of_ray = {flag.path[-1] for flag in flags_of(ClusterSettings)} - {"attempts", "parts"}
        refuse_without("", given, of_ray, "with --local, which does not use Ray")


def expect_writable(path: Path | None, option: str) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        UserError: its folder is missing or not writable, or the path is a folder.
    """
    if path is None:
        return
    folder = path.parent
    if path.is_dir():
        raise UserError(f"{option} is {path}, a folder; expected the name of a file")
    if not folder.is_dir():
        raise UserError(f"{option} is {path}, but there is no folder {folder}; create it first")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UserError(f"{option} is {path}, which is not writable")


def expect_output(url: str, option: str = "--output") -> None:
    """Refuse an invalid output folder, before any work.

    Raises:
        UserError: the root of a file system or store, a file, or a path below a file.
    """
    scheme, _, rest = url.partition("://") if "://" in url else ("file", "", url)
    if scheme not in ("file", "local"):
        if not (urlsplit(url).netloc or rest.strip("/")):
            raise UserError(f"{option} is {url}; expected a bucket and a folder in it")
        return
    path = Path(os.path.abspath(os.path.expanduser(rest)))
    if path == Path(path.anchor):
        raise UserError(f"{option} is {url}, the root of the file system; expected a separate folder")
    for folder in (path, *path.parents):
        if os.path.lexists(folder):
            if not folder.is_dir():
                raise UserError(f"{option} is {url}, but {folder} is a file; expected a folder")
            return
