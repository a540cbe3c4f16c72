"""Verification of one shard: generate images from its prompts, and compare them with the originals.

The prompts are read from the shard's Parquet file and the originals from its unit; the results are added as columns.
"""

import dataclasses
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from pez.demo import CLIPS
from pez.errors import UserError
from pez.generators.files import check_generator, find_generator
from pez.images import decode_image
from pez.models.load import check_model, load_clip
from pez.models.names import carries_weights, guides_of
from pez.regeneration import Generator, image_similarities, load_generator, seed_for
from pez.settings import GeneratorPrecision, ModelSettings, Names
from pipeline.description import chosen, model_of
from pipeline.errors import one_line
from pipeline.run import warning_log
from pipeline.settings import GeneratorSettings, VerifySettings
from pipeline.sources.ahead import ahead, batches
from pipeline.sources.base import Item, LateCaption, Source, Unit, UnitError
from pipeline.sources.choice import image_source_of
from pipeline.stages.verified_table import Keep, Regenerated, VerifiedTable, VerifyReport
from pipeline.table import PromptTable

Chosen = TypeVar("Chosen", bound=GeneratorSettings)

_IMAGES_AT_ONCE = 16  # the image tower's batch, see pez.models.clip


@dataclasses.dataclass
class VerifyProgress:
    """Progress of the current shard, for display."""

    images: int = 0
    """rows done"""
    scored: int = 0
    """rows with a similarity"""
    similarity: float = 0.0
    """sum over these rows"""
    of: int = 0
    """rows of the shard"""


def verify_unit(shard: Unit, verifier: "Verifier", table: VerifiedTable) -> VerifyReport:
    """Generate images from a shard's prompts, compare them with the originals, and add the columns with the results.

    Raises:
        UnitError: the shard has no prompts yet, it cannot be read to its end, or the generator fails for every prompt.
    """
    if report := table.finished(shard):  # by an earlier run, or by an actor that was lost after publishing
        return report
    if table.prompts.finished(shard) is None:
        raise UnitError(f"{shard.url} has no prompts in {table.prompts.url}; run pez caption first")
    start = time.monotonic()
    rows = table.prompts.read(shard)
    columns = (rows[name].to_pylist() for name in ("key", "prompt", "status"))
    prompts = {key: prompt for key, prompt, status in zip(*columns, strict=True) if status == "ok"}
    source = image_source_of(table.prompts.settings)
    try:
        # published only on a clean exit
        with table.images(shard) as keep, warning_log.recording() as warnings:
            found = dict(verifier.verify(shard, prompts, source, keep))
    except UnreadError as error:
        if "://" not in shard.url or shard.source != shard.url:
            raise
        raise UnitError(f"{error}; if it needs a signature, run pez verify with --input and the signed URL") from None
    except torch.OutOfMemoryError as error:
        raise UnitError(f"out of memory with one image at a time ({one_line(error)}); use a larger GPU") from error
    return table.publish(shard, rows, found, verifier.about, time.monotonic() - start, [*verifier.opening, *warnings])


class Verifier:
    """A generator and a judge; one per actor.

    Args:
        guide: name of the model that the prompts were learned with, or names.
        threads: number of threads that decode images.
    """

    def __init__(
        self, settings: VerifySettings, guide: Names, device: str | torch.device = "cpu", threads: int = 2
    ) -> None:
        assert settings.verify is not None, "verification is requested"
        self.settings, self.threads = settings, threads
        name, pretrained = score_model(settings, guide)
        with warning_log.recording() as self.opening:
            self.generator = generator_of(settings, device)
            self.judge = load_clip(name, pretrained, device)
        self.about = {
            "model": settings.verify,
            "score_model": self.judge.name,
            "scheduler": settings.verify_scheduler,
            "steps": settings.verify_steps,
            "guidance": settings.guidance,
        }
        self.progress = VerifyProgress()

    def verify(
        self, shard: Unit, prompts: Mapping[str, str], source: Source, keep: Keep
    ) -> Iterator[tuple[str, Regenerated]]:
        """Generate images from each prompt and compare them with the original.

        Args:
            prompts: by key.
            source: how the shard was read when its prompts were learned.
            keep: called with the generated images of each key.

        Yields:
            (key, result) for every key of the prompts.
        """
        self.progress = VerifyProgress(of=len(prompts))
        originals = self._originals(shard, prompts, source)
        count = self.settings.verify_images
        seeds = {key: [seed_for(self.settings.verify_seed, key, n) for n in range(count)] for key in prompts}
        wanted = []
        for key in prompts:
            original = originals.get(key, "its image is no longer in the shard")
            if isinstance(original, str):
                yield key, self._failed(seeds[key], original)
            else:
                wanted += [(key, seed, original) for seed in seeds[key]]

        waiting: list[tuple[Image.Image | str | None, float | None]] = []
        for batch in batches(wanted, -(-_IMAGES_AT_ONCE // self.settings.verify_batch) * self.settings.verify_batch):
            generated = self._generate([prompts[key] for key, _, _ in batch], [seed for _, seed, _ in batch])
            images = [None if isinstance(image, str) else image for image in generated]
            cosines = image_similarities(self.judge, torch.stack([original for _, _, original in batch]), images)
            for (key, _, _), image, cosine in zip(batch, generated, cosines, strict=True):
                waiting.append((image, cosine))
                if len(waiting) == count:
                    yield key, self._result(key, prompts[key], seeds[key], waiting, keep)
                    waiting = []

    def _originals(self, shard: Unit, keys: Mapping[str, str], source: Source) -> dict[str, Tensor | str]:
        """Features of the originals, (dim,) each, or the reason why there are none. The images are not kept in memory."""
        items = (item for item in _read(shard, source) if item.key in keys)
        found: dict[str, Tensor | str] = {}
        for batch in batches(ahead(items, self._decode, self.threads, 2 * _IMAGES_AT_ONCE), _IMAGES_AT_ONCE):
            found.update({key: reason for key, reason in batch if isinstance(reason, str)})
            good = [(key, pixels) for key, pixels in batch if isinstance(pixels, Tensor)]
            if good:
                features = self.judge.pixel_features(torch.stack([pixels for _, pixels in good]))
                found.update(zip((key for key, _ in good), features, strict=True))
        return found

    def _decode(self, item: Item) -> tuple[str, Tensor | str]:
        if item.image is None:
            return item.key, item.reason or item.status
        try:
            return item.key, self.judge.preprocess(decode_image(item.image))
        except ValueError as error:
            return item.key, str(error)

    def _generate(self, prompts: list[str], seeds: list[int]) -> list[Image.Image | str | None]:
        """Images; None for blanked ones, or the reason why there is none."""
        try:
            return list(self.generator.images(prompts, seeds))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a prompt makes a model raise
            return self._generate_singly(prompts, seeds)

    def _generate_singly(self, prompts: list[str], seeds: list[int]) -> list[Image.Image | str | None]:
        """Generate one image at a time, to find the prompts for which this fails."""
        generated: list[Image.Image | str | None] = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            try:
                generated += self.generator.images([prompt], [seed])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                generated.append(one_line(error))
        reason = next((image for image in generated if isinstance(image, str)), None)
        if reason is not None:
            try:
                self.generator.images(["a photo"], [0])
            except Exception as error:  # no prompt is to blame
                raise UnitError(f"the generator {self.settings.verify} fails: {reason}") from error
        return generated

    def _result(
        self,
        key: str,
        prompt: str,
        seeds: list[int],
        made: list[tuple[Image.Image | str | None, float | None]],
        keep: Keep,
    ) -> Regenerated:
        error = next((image for image, _ in made if isinstance(image, str)), None)
        if error is not None:
            return self._failed(seeds, error)
        keep(key, prompt, [image for image, _ in made if not isinstance(image, str)])
        result = Regenerated([cosine for _, cosine in made], seeds)
        self.progress.images += 1
        if result.mean is not None:
            self.progress.scored += 1
            self.progress.similarity += result.mean
        return result

    def _failed(self, seeds: list[int], reason: str) -> Regenerated:
        self.progress.images += 1
        return Regenerated(None, seeds, reason)


class UnreadError(UnitError):
    """The originals of a shard cannot be read."""


def _read(shard: Unit, source: Source) -> Iterator[Item]:
    try:
        yield from (item for item in source.read(shard, Counter()) if not isinstance(item, LateCaption))
    except UnitError as error:
        raise UnreadError(str(error)) from error


def generator_of(settings: GeneratorSettings, device: str | torch.device) -> Generator:
    """The text-to-image model named by the settings.

    Raises:
        UserError: it does not load, or the device does not support its precision.
    """
    assert settings.verify is not None, "verification is requested"
    return load_generator(
        settings.verify,
        device,
        _precision(settings, device),
        settings.verify_scheduler,
        settings.verify_steps,
        settings.guidance,
        settings.verify_batch,
        settings.verify_variant,
        settings.verify_negative_prompt,
    )


def resolved(settings: Chosen) -> Chosen:
    """The settings with absolute paths, because actors have another working directory."""
    changes: dict[str, Any] = {}
    if settings.verify and settings.verify != "demo" and (path := Path(settings.verify).expanduser()).exists():
        changes["verify"] = str(path.absolute())
    schema, colon, folder = (settings.score_model or "").partition(":")
    if schema == "local-dir" and colon:
        changes["score_model"] = f"local-dir:{Path(folder).expanduser().absolute()}"
    if settings.score_pretrained and (path := Path(settings.score_pretrained).expanduser()).is_file():
        changes["score_pretrained"] = str(path.absolute())
    return dataclasses.replace(settings, **changes)


def check_verification(
    settings: GeneratorSettings, guide: Names, guide_pretrained: Names, device: str | torch.device | None = None
) -> None:
    """Find problems with the settings before any work, and warn if the guide judges its own prompts.

    Args:
        guide: name of the model that the prompts are learned with, or names.
        device: that generates the images, if it is known yet.

    Raises:
        UserError: no generator is named, it is incomplete or not a text-to-image model, the device does not support the
            precision, or there is no such CLIP.
    """
    if settings.verify is None:
        raise UserError("no generator is named; expected --verify demo, ORG/MODEL, a folder or a .safetensors file")
    name, pretrained = score_model(settings, guide)
    check_model(name, pretrained)
    if device is not None:
        _precision(settings, device)
    check_generator(settings.verify, settings.verify_scheduler, settings.verify_variant, settings.guidance)
    if (name, "none" if carries_weights(name) else pretrained) in guides_of(ModelSettings(guide, guide_pretrained)):
        warnings.warn(f"{name} is both guide and judge, so it favors its own prompts", stacklevel=2)


def score_model(settings: GeneratorSettings, guide: Names) -> tuple[str, str]:
    """Name and weights of the judge.

    Args:
        guide: name of the model that the prompts are learned with, or names.

    Raises:
        UserError: an open_clip name without weights.
    """
    name, guides = settings.score_model, (guide,) if isinstance(guide, str) else guide
    if name is None:
        if all(each in CLIPS for each in guides):
            return ("demo" if "demo" not in guides else "demo-judge"), "none"
        if any("bigG" in each or "-g-" in each for each in guides):
            return "ViT-H-14", "laion2b_s32b_b79k"
        return "ViT-bigG-14", "laion2b_s39b_b160k"  # as in the paper
    if settings.score_pretrained is None and not carries_weights(name):
        raise UserError(f"no weights are named for the score model {name}; expected --score-pretrained TAG")
    return name, settings.score_pretrained or "none"


def describe_verification(settings: VerifySettings, guide: Names, device: str) -> dict[str, object]:
    """What determines the added columns, as JSON values, for the fingerprint.

    Raises:
        UserError: the device does not support the precision.
    """
    names = {field.name for field in dataclasses.fields(GeneratorSettings)} - _NOT_OF_THE_GENERATOR
    if not _variant_matters(settings):
        names.remove("verify_variant")
    name, pretrained = score_model(settings, guide)
    return {
        "generator": chosen(settings, sorted(names)) | {"verify_precision": _precision(settings, device)},
        "judge": {"model": name, "pretrained": pretrained},
        "device": torch.device(device).type,
    }


_NOT_OF_THE_GENERATOR = {"score_model", "score_pretrained", "verify_batch", "verify_precision"}


def _variant_matters(settings: GeneratorSettings) -> bool:
    """Whether the named variant differs from the weights that are loaded by default."""
    if settings.verify is None or settings.verify_variant is None:
        return False
    try:
        return find_generator(settings.verify).variant != settings.verify_variant
    except UserError:  # there are several, and one must be named
        return True


def verified_table(table: PromptTable, settings: VerifySettings, device: str) -> VerifiedTable:
    """The verification of a table, checked against that of an earlier run.

    Raises:
        UserError: the earlier run had other settings, or the device does not support the precision.
    """
    about = describe_verification(settings, model_of(table.settings).model, device)
    verified = VerifiedTable(table, about, settings.keep_images)
    verified.check()
    return verified


def _precision(settings: GeneratorSettings, device: str | torch.device) -> GeneratorPrecision:
    cpu = torch.device(device).type == "cpu"
    if cpu and settings.verify_precision == "fp16":
        raise UserError("verify_precision is fp16, which a CPU does not support; expected fp32 or bf16")
    return settings.verify_precision or ("fp32" if cpu else "fp16")
