"""Verification of one shard: generate images from its prompts, and compare them with the originals.

The prompts are read from the shard's Parquet file and the originals from its unit; the results are added as columns.
"""

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from pez.images import decode_image
from pez.models.joint import AnyClip
from pez.models.load import load_clip, load_model
from pez.regeneration import Generator, image_similarities, seed_for
from pez.settings import ModelSettings, Names
from pipeline.errors import one_line
from pipeline.run import warning_log
from pipeline.settings import VerifySettings
from pipeline.sources.ahead import ahead, batches
from pipeline.sources.base import Item, LateCaption, Source, Unit, UnitError
from pipeline.sources.choice import image_source_of
from pipeline.stages.learned_columns import ALTERNATIVES
from pipeline.stages.verification import generator_of, score_model
from pipeline.stages.verified_table import Keep, Regenerated, VerifiedTable, VerifyReport

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
    prompts = _texts_of(rows, every=verifier.settings.choose_by == "regeneration")
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


def _texts_of(rows: pa.Table, every: bool) -> dict[str, list[str]]:
    """The texts to generate from, by key: the learned prompt, or every alternative."""
    columns = [rows[name].to_pylist() for name in ("key", "prompt", "status")]
    found = {key: [prompt] for key, prompt, status in zip(*columns, strict=True) if status == "ok"}
    if ALTERNATIVES in rows.column_names:  # the column prompt may hold what an earlier verification chose
        for key, several in zip(columns[0], rows[ALTERNATIVES].to_pylist(), strict=True):
            if key in found and several:
                found[key] = [each["prompt"] for each in (several if every else several[:1])]
    return found


class Verifier:
    """Generators and a judge; one per actor.

    Args:
        guide: the model that the prompts were learned with, or models: a name, names, or the settings to load it with, which
            are needed to choose by regeneration.
        threads: number of threads that decode images.
    """

    def __init__(
        self,
        settings: VerifySettings,
        guide: Names | ModelSettings,
        device: str | torch.device = "cpu",
        threads: int = 2,
    ) -> None:
        assert settings.verify is not None, "verification is requested"
        self.settings, self.threads = settings, threads
        name, pretrained = score_model(settings, guide.model if isinstance(guide, ModelSettings) else guide)
        with warning_log.recording() as self.opening:
            self.generators = [generator_of(settings, device, generator) for generator in settings.generators]
            self.judge = load_clip(name, pretrained, device)
            self.models: list[AnyClip] = [self.judge]  # that compare images with originals
            if settings.choose_by == "regeneration":
                assert isinstance(guide, ModelSettings), "the guide chooses"
                self.models.append(load_model(guide.on(str(device)), device))
        self.about = {
            "model": settings.generator_name,
            "score_model": self.judge.name,
            "scheduler": settings.verify_scheduler,
            "steps": settings.verify_steps,
            "guidance": settings.guidance,
        }
        self.progress = VerifyProgress()

    def verify(
        self, shard: Unit, prompts: Mapping[str, Sequence[str]], source: Source, keep: Keep
    ) -> Iterator[tuple[str, Regenerated]]:
        """Generate images from each prompt and compare them with the original.

        Args:
            prompts: by key; of several, the guide chooses.
            source: how the shard was read when its prompts were learned.
            keep: called with the generated images of each key.

        Yields:
            (key, result) for every key of the prompts.
        """
        self.progress = VerifyProgress(of=len(prompts))
        originals = self._originals(shard, prompts, source)
        seeds = {key: self._seeds(key) for key in prompts}
        wanted = []
        for key, texts in prompts.items():
            original = originals.get(key, "its image is no longer in the shard")
            if isinstance(original, str):
                yield key, self._failed(key, original)
            else:
                wanted += [(key, text, seed, original) for text in texts for seed in seeds[key]]

        waiting: list[_Made] = []
        for batch in batches(wanted, -(-_IMAGES_AT_ONCE // self.settings.verify_batch) * self.settings.verify_batch):
            texts, numbers = [text for _, text, _, _ in batch], [seed for _, _, seed, _ in batch]
            made = [
                self._compared(generator, texts, numbers, [each[3] for each in batch]) for generator in self.generators
            ]
            for (key, *_), *images in zip(batch, *made, strict=True):
                waiting.append(images)
                if len(waiting) == len(prompts[key]) * self.settings.verify_images:
                    yield key, self._result(key, prompts[key], waiting, keep)
                    waiting = []

    def _seeds(self, key: str) -> list[int]:
        """One for each image that a generator makes from a prompt."""
        return [seed_for(self.settings.verify_seed, key, n) for n in range(self.settings.verify_images)]

    def _originals(
        self, shard: Unit, keys: Mapping[str, Sequence[str]], source: Source
    ) -> dict[str, tuple[Tensor, ...] | str]:
        """Features of the originals under each model, (dim,), or the reason why there are none; no image stays in memory."""
        items = (item for item in _read(shard, source) if item.key in keys)
        found: dict[str, tuple[Tensor, ...] | str] = {}
        for batch in batches(ahead(items, self._decode, self.threads, 2 * _IMAGES_AT_ONCE), _IMAGES_AT_ONCE):
            found.update({key: views for key, views in batch if isinstance(views, str)})
            good = [(key, views) for key, views in batch if not isinstance(views, str)]
            if good:
                of_models = zip(self.models, zip(*(views for _, views in good), strict=True), strict=True)
                features = [model.pixel_features(torch.stack(pixels)) for model, pixels in of_models]
                found.update(zip((key for key, _ in good), zip(*features, strict=True), strict=True))
        return found

    def _decode(self, item: Item) -> tuple[str, tuple[Tensor, ...] | str]:
        if item.image is None:
            return item.key, item.reason or item.status
        try:
            image = decode_image(item.image)
        except ValueError as error:
            return item.key, str(error)
        return item.key, tuple(model.preprocess(image) for model in self.models)

    def _compared(
        self, generator: Generator, texts: list[str], seeds: list[int], originals: Sequence[tuple[Tensor, ...]]
    ) -> "list[_Image]":
        """Generate an image from each text and compare it with the original under each model."""
        made = self._generate(generator, texts, seeds)
        images = [None if isinstance(image, str) else image for image in made]
        cosines = [
            image_similarities(model, torch.stack(features), images)
            for model, features in zip(self.models, zip(*originals, strict=True), strict=True)
        ]
        return [_Image(image, *of_models) for image, *of_models in zip(made, *cosines, strict=True)]

    def _generate(self, generator: Generator, prompts: list[str], seeds: list[int]) -> list[Image.Image | str | None]:
        """Images; None for blanked ones, or the reason why there is none."""
        try:
            return list(generator.images(prompts, seeds))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever a prompt makes a model raise
            return self._generate_singly(generator, prompts, seeds)

    def _generate_singly(
        self, generator: Generator, prompts: list[str], seeds: list[int]
    ) -> list[Image.Image | str | None]:
        """Generate one image at a time, to find the prompts for which this fails."""
        generated: list[Image.Image | str | None] = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            try:
                generated += generator.images([prompt], [seed])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                generated.append(one_line(error))
        reason = next((image for image in generated if isinstance(image, str)), None)
        if reason is not None:
            try:
                generator.images(["a photo"], [0])
            except Exception as error:  # no prompt is to blame
                raise UnitError(f"the generator {generator.name} fails: {reason}") from error
        return generated

    def _result(self, key: str, texts: Sequence[str], made: "Sequence[_Made]", keep: Keep) -> Regenerated:
        """The result of a key.

        Args:
            made: the images of each text and seed, one of each generator.
        """
        count = self.settings.verify_images
        parts = [made[i * count : (i + 1) * count] for i in range(len(texts))]
        of_texts = [[images[g] for g in range(len(self.generators)) for images in part] for part in parts]
        scores = [self._means(images) for images in of_texts]
        of_guide = [-math.inf if guide is None else guide for guide, _ in scores]
        chosen = of_guide.index(max(of_guide))  # the first, if none has an image
        images = of_texts[chosen]
        alternatives = tuple(scores) if self.settings.choose_by == "regeneration" else ()
        error = next((each.image for each in images if isinstance(each.image, str)), None)
        if error is not None:
            return dataclasses.replace(self._failed(key, error), alternatives=alternatives)
        keep(key, texts[chosen], [each.image for each in images if not isinstance(each.image, str)])
        seeds, generators = self._seeds(key) * len(self.generators), len(self.generators)
        result = Regenerated([each.judge for each in images], seeds, None, generators, chosen, alternatives)
        self.progress.images += 1
        if result.mean is not None:
            self.progress.scored += 1
            self.progress.similarity += result.mean
        return result

    def _means(self, images: "Sequence[_Image]") -> tuple[float | None, float | None]:
        """Means of an alternative's images under the guide and the judge, over the generators; None if one has failed."""
        if any(isinstance(each.image, str) for each in images):
            return None, None
        means = (
            Regenerated([getattr(each, model) for each in images], [], generators=len(self.generators)).mean
            for model in ("guide", "judge")
        )
        guide, judge = means
        return guide, judge

    def _failed(self, key: str, reason: str) -> Regenerated:
        self.progress.images += 1
        return Regenerated(None, self._seeds(key) * len(self.generators), reason, len(self.generators))


@dataclasses.dataclass(frozen=True)
class _Image:
    """A generated image, and its similarity to the original."""

    image: Image.Image | str | None
    """None = blanked; a text = why there is none"""
    judge: float | None
    guide: float | None = None
    """None also if nothing is chosen"""


_Made = list[_Image]
"""of one text and seed, one of each generator"""


class UnreadError(UnitError):
    """The originals of a shard cannot be read."""


def _read(shard: Unit, source: Source) -> Iterator[Item]:
    try:
        yield from (item for item in source.read(shard, Counter()) if not isinstance(item, LateCaption))
    except UnitError as error:
        raise UnreadError(str(error)) from error
