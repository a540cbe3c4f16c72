"""Verification of one shard: prompts, pictures of them, and how near those are to the originals.

The prompts are read from the shard's Parquet, the originals from its tar; the same Parquet gets the columns of the result.
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
from pez.models.names import carries_weights
from pez.regeneration import Generator, load_generator, picture_similarities, seed_for
from pez.settings import GeneratorPrecision
from pipeline.description import chosen, model_of
from pipeline.errors import one_line
from pipeline.run import warning_log
from pipeline.settings import PaintSettings, VerifySettings
from pipeline.sources.ahead import ahead, batches
from pipeline.sources.base import Item, LateCaption, Source, Unit, UnitError
from pipeline.sources.choice import image_source_of
from pipeline.stages.verified_table import Keep, Regenerated, VerifiedTable, VerifyReport
from pipeline.table import PromptTable

Painting = TypeVar("Painting", bound=PaintSettings)

_IMAGES_AT_ONCE = 16  # the image tower's batch, see pez.models.clip


@dataclasses.dataclass
class VerifyProgress:
    """Counts of the shard in work, for people."""

    images: int = 0
    """rows done"""
    scored: int = 0
    """rows with a similarity"""
    similarity: float = 0.0
    """sum over the rows with one"""
    of: int = 0
    """rows of the shard"""


def verify_unit(shard: Unit, verifier: "Verifier", table: VerifiedTable) -> VerifyReport:
    """Paint a shard's prompts, compare the pictures with the originals, and add the columns that tell.

    Raises:
        UnitError: the shard has no prompts yet, its tar cannot be read to its end, or the generator fails for any prompt.
    """
    if report := table.finished(shard):  # an earlier run, or an actor that was lost after its last act
        return report
    if table.prompts.finished(shard) is None:
        raise UnitError(f"{shard.url} has no prompts in {table.prompts.url}; run jobs.caption first")
    start = time.monotonic()
    rows = table.prompts.read(shard)
    columns = (rows[name].to_pylist() for name in ("key", "prompt", "status"))
    prompts = {key: prompt for key, prompt, status in zip(*columns, strict=True) if status == "ok"}
    source = image_source_of(table.prompts.settings)
    try:
        # published only on a clean exit
        with table.pictures(shard) as keep, warning_log.recording() as warnings:
            found = dict(verifier.verify(shard, prompts, source, keep))
    except UnreadError as error:
        if "://" not in shard.url or shard.source != shard.url:
            raise
        raise UnitError(
            f"{error}; if it needs a signature, run jobs.verify with --input and the signed address"
        ) from None
    except torch.OutOfMemoryError as error:
        raise UnitError(f"out of memory with one picture at a time ({one_line(error)}); take a larger GPU") from error
    return table.publish(shard, rows, found, verifier.about, time.monotonic() - start, [*verifier.opening, *warnings])


class Verifier:
    """A generator and the CLIP that compares; one in each actor.

    Args:
        guide: name of the model that the prompts were learned with.
        threads: that decode images.
    """

    def __init__(
        self, settings: VerifySettings, guide: str, device: str | torch.device = "cpu", threads: int = 2
    ) -> None:
        assert settings.verify is not None, "verification is asked for"
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
        """Paint each prompt and compare the pictures with the original.

        Args:
            prompts: by key.
            source: how the shard was read when its prompts were learned.
            keep: is given each key's pictures.

        Yields:
            (key, result) for every key of the prompts.
        """
        self.progress = VerifyProgress(of=len(prompts))
        originals = self._originals(shard, prompts, source)
        count = self.settings.verify_images
        seeds = {key: [seed_for(self.settings.verify_seed, key, n) for n in range(count)] for key in prompts}
        wanted = []
        for key in prompts:
            original = originals.get(key, "its picture is not in the shard any more")
            if isinstance(original, str):
                yield key, self._failed(seeds[key], original)
            else:
                wanted += [(key, seed, original) for seed in seeds[key]]

        waiting: list[tuple[Image.Image | str | None, float | None]] = []
        for batch in batches(wanted, -(-_IMAGES_AT_ONCE // self.settings.verify_batch) * self.settings.verify_batch):
            painted = self._paint([prompts[key] for key, _, _ in batch], [seed for _, seed, _ in batch])
            pictures = [None if isinstance(picture, str) else picture for picture in painted]
            cosines = picture_similarities(self.judge, torch.stack([original for _, _, original in batch]), pictures)
            for (key, _, _), picture, cosine in zip(batch, painted, cosines, strict=True):
                waiting.append((picture, cosine))
                if len(waiting) == count:
                    yield key, self._result(key, prompts[key], seeds[key], waiting, keep)
                    waiting = []

    def _originals(self, shard: Unit, keys: Mapping[str, str], source: Source) -> dict[str, Tensor | str]:
        """Features of the shard's pictures, (dim,) each, or why there is none; the pictures themselves are not held."""
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

    def _paint(self, prompts: list[str], seeds: list[int]) -> list[Image.Image | str | None]:
        """Pictures, None for those that were blanked, or the reason why there is none."""
        try:
            return list(self.generator.images(prompts, seeds))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a prompt makes some model raise
            return self._paint_alone(prompts, seeds)

    def _paint_alone(self, prompts: list[str], seeds: list[int]) -> list[Image.Image | str | None]:
        """Find the prompts that cannot be painted."""
        painted: list[Image.Image | str | None] = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            try:
                painted += self.generator.images([prompt], [seed])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                painted.append(one_line(error))
        reason = next((picture for picture in painted if isinstance(picture, str)), None)
        if reason is not None:
            try:
                self.generator.images(["a photo"], [0])
            except Exception as error:  # no prompt is to blame
                raise UnitError(f"the generator {self.settings.verify} fails: {reason}") from error
        return painted

    def _result(
        self,
        key: str,
        prompt: str,
        seeds: list[int],
        made: list[tuple[Image.Image | str | None, float | None]],
        keep: Keep,
    ) -> Regenerated:
        error = next((picture for picture, _ in made if isinstance(picture, str)), None)
        if error is not None:
            return self._failed(seeds, error)
        keep(key, prompt, [picture for picture, _ in made if not isinstance(picture, str)])
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
    """A shard's pictures cannot be read again."""


def _read(shard: Unit, source: Source) -> Iterator[Item]:
    try:
        yield from (item for item in source.read(shard, Counter()) if not isinstance(item, LateCaption))
    except UnitError as error:
        raise UnreadError(str(error)) from error


def generator_of(settings: PaintSettings, device: str | torch.device) -> Generator:
    """The text-to-image model that the settings name.

    Raises:
        UserError: it does not load, or has a precision that the device cannot compute.
    """
    assert settings.verify is not None, "verification is asked for"
    return load_generator(
        settings.verify,
        device,
        _precision(settings, device),
        settings.verify_scheduler,
        settings.verify_steps,
        settings.guidance,
        settings.verify_batch,
        settings.verify_variant,
    )


def resolved(settings: Painting) -> Painting:
    """The settings with files and folders as absolute paths: an actor's working directory is another one."""
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
    settings: PaintSettings, guide: str, guide_pretrained: str, device: str | torch.device | None = None
) -> None:
    """Find what is wrong with the settings before any work, and warn where the guide judges its own prompts.

    Args:
        guide: name of the model that the prompts are learned with.
        device: where the pictures are made, if it is known yet.

    Raises:
        UserError: no generator, one that is not text-to-image or not whole, a precision that the device cannot compute, or
            no such CLIP; one line.
    """
    if settings.verify is None:
        raise UserError("no generator is named; expected --verify demo, ORG/MODEL, a folder or a .safetensors file")
    name, pretrained = score_model(settings, guide)
    check_model(name, pretrained)
    if device is not None:
        _precision(settings, device)
    check_generator(settings.verify, settings.verify_scheduler, settings.verify_variant, settings.guidance)
    if name == guide and (carries_weights(name) or pretrained == guide_pretrained):
        warnings.warn(f"{name} guides the prompts and scores their pictures too: it favours its own", stacklevel=2)


def score_model(settings: PaintSettings, guide: str) -> tuple[str, str]:
    """Name and weights of the CLIP that compares.

    Raises:
        UserError: an open_clip name without weights.
    """
    name = settings.score_model
    if name is None:
        if guide in CLIPS:
            return ("demo" if guide == "demo-judge" else "demo-judge"), "none"
        if "bigG" in guide or "-g-" in guide:
            return "ViT-H-14", "laion2b_s32b_b79k"
        return "ViT-bigG-14", "laion2b_s39b_b160k"  # as in the paper
    if settings.score_pretrained is None and not carries_weights(name):
        raise UserError(f"no weights are named for the score model {name}; expected --score-pretrained TAG")
    return name, settings.score_pretrained or "none"


def describe_verification(settings: VerifySettings, guide: str, device: str) -> dict[str, object]:
    """What decides the added columns, as JSON values, for the fingerprint.

    Raises:
        UserError: a precision that the device cannot compute.
    """
    names = {field.name for field in dataclasses.fields(PaintSettings)} - _NOT_OF_THE_GENERATOR
    if not _variant_matters(settings):
        names.remove("verify_variant")
    name, pretrained = score_model(settings, guide)
    return {
        "generator": chosen(settings, sorted(names)) | {"verify_precision": _precision(settings, device)},
        "judge": {"model": name, "pretrained": pretrained},
        "device": torch.device(device).type,
    }


_NOT_OF_THE_GENERATOR = {"score_model", "score_pretrained", "verify_batch", "verify_precision"}


def _variant_matters(settings: PaintSettings) -> bool:
    """True where the variant that is named is other weights than those that are loaded without naming one."""
    if settings.verify is None or settings.verify_variant is None:
        return False
    try:
        return find_generator(settings.verify).variant != settings.verify_variant
    except UserError:  # several, of which one must be named
        return True


def verified_table(table: PromptTable, settings: VerifySettings, device: str) -> VerifiedTable:
    """The columns to add to a table, checked against those that an earlier run added.

    Raises:
        UserError: those were added with other settings.
        UserError: a precision that the device cannot compute.
    """
    about = describe_verification(settings, model_of(table.settings).model, device)
    verified = VerifiedTable(table, about, settings.keep_images)
    verified.check()
    return verified


def _precision(settings: PaintSettings, device: str | torch.device) -> GeneratorPrecision:
    cpu = torch.device(device).type == "cpu"
    if cpu and settings.verify_precision == "fp16":
        raise UserError("verify_precision is fp16, which a CPU cannot compute; expected fp32 or bf16")
    return settings.verify_precision or ("fp32" if cpu else "fp16")
