"""Learn hard prompts from images or texts."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pez.engine import Engine
from pez.errors import UserError
from pez.fluency import Bigrams, Texts, bigrams_of
from pez.image_inputs import ImageInputs, rgb_images
from pez.methods.phase import OnStep, round_up_to_16
from pez.models.clip import Clip
from pez.models.joint import AnyClip, JointClip, joined, models_of
from pez.models.text_encoder import CausalEncoder
from pez.modes import own_modes
from pez.objectives.clip import ClipObjective, Target
from pez.prompt import Mixture, Prompt
from pez.settings import PezSettings, lanes_for
from pez.tasks import Learned, Task
from pez.template import Template, template_of


def learn_prompts(
    clip: AnyClip | Sequence[Clip],
    images: ImageInputs,
    settings: PezSettings | None = None,
    keys: Sequence[str] | None = None,
    on_step: OnStep | None = None,
    lanes: int | None = None,
) -> list[Prompt]:
    """Learn one prompt for each image.

    Args:
        clip: the guide, or several with one vocabulary, which learn one prompt together.
        images: one image or many: files, PIL images of any mode, or arrays; see pez.image_inputs.
        keys: one per image; key and seed determine the random start. Default = a hash of the pixels, so that a prompt
            depends on its own image only.
        on_step: called with every step of the optimizer.
        lanes: prompts learned side by side, a multiple of 16; default = by device.

    Returns:
        prompts in the order of the images.

    Raises:
        UserError: an input is not an image; the message names its index.
    """
    clip, settings = joined(clip), settings or PezSettings()
    pixels = _pixels_of(clip, images)
    if not len(pixels):
        return []
    keys = [hash_of(p) for p in pixels] if keys is None else list(keys)
    if len(keys) != len(pixels):
        raise UserError(f"{len(keys)} keys for {len(pixels)} images; expected one each")
    with own_modes():
        targets = [Target(feature[None]) for feature in clip.pixel_features(pixels)]
    return learn_for_targets(clip, targets, keys, settings, on_step, lanes)


def learn_prompt(
    clip: AnyClip | Sequence[Clip],
    images: ImageInputs,
    settings: PezSettings | None = None,
    weights: Sequence[float] | None = None,
    on_step: OnStep | None = None,
    texts: Sequence[str] = (),
    key: str | None = None,
) -> Prompt:
    """Learn one prompt shared by all images, and texts.

    Args:
        clip: the guide, or several.
        images: one image or many: files, PIL images of any mode, or arrays; see pez.image_inputs.
        weights: one per image, then one per text; 1 = attract, negative = repel. Default = all 1.
        texts: texts that the prompt should also be close to.
        key: determines the random start, together with the seed; default = a hash of the pixels and texts.

    Returns:
        the prompt; `target_similarities` has its cosine with each image and text.

    Raises:
        UserError: an input is not an image, there is none and no text, or the weights are invalid.
    """
    clip, texts = joined(clip), [texts] if isinstance(texts, str) else list(texts)
    pixels = _pixels_of(clip, images)
    if not len(pixels) and not texts:
        raise UserError("no images; expected one or more")
    chosen = None if weights is None else weights_for(len(pixels), len(texts), weights)
    with own_modes():
        features = [clip.pixel_features(pixels)] if len(pixels) else []
        features += [clip.text_features(texts)] if texts else []
        target = Target(torch.cat(features), chosen, None if len(pixels) else own_tokens_of(clip, texts))
    if key is None:
        key = "|".join([hash_of(pixels), *texts] if len(pixels) else texts)
    return learn_for_targets(clip, [target], [key], settings or PezSettings(), on_step)[0]


def mix(
    clip: AnyClip | Sequence[Clip],
    images: ImageInputs,
    settings: PezSettings | None = None,
    on_step: OnStep | None = None,
) -> Mixture:
    """Mix images: a prompt for each, these prompts joined, and one prompt for all.

    Raises:
        UserError: fewer than two images, an input is not one, or the joined prompt does not fit the model.

    Source: Wen et al. 2023, section 4.2, prompt concatenation.
    """
    clip, settings = joined(clip), settings or PezSettings()
    pixels = _pixels_of(clip, images)
    if len(pixels) < 2:
        raise UserError(f"{len(pixels)} images to mix; expected two or more")
    clip.encoder(settings.tokens * len(pixels), template_of(settings))
    with own_modes():
        features = clip.pixel_features(pixels)  # (images, dim)
    targets = [*(Target(feature[None]) for feature in features), Target(features)]
    keys = [*map(hash_of, pixels), hash_of(pixels)]
    *alone, shared = learn_for_targets(clip, targets, keys, settings, on_step)
    ids = torch.tensor([[i for prompt in alone for i in prompt.token_ids]])
    task = Task("joined", Target(features).direction())
    [both] = prompts_of(clip, [Learned(task, ids[0], 0.0, alone[0].steps)], settings)
    with own_modes():
        of_texts = clip.text_features([prompt.text for prompt in (*alone, both, shared)]) @ features.T
    each = [
        dataclasses.replace(prompt, target_similarities=tuple(similarities))
        for prompt, similarities in zip((*alone, both, shared), of_texts.tolist(), strict=True)
    ]
    return Mixture(tuple(each[:-2]), each[-2], each[-1])


def distill(
    clip: AnyClip | Sequence[Clip],
    text: str,
    settings: PezSettings | None = None,
    on_step: OnStep | None = None,
    keep: float | None = None,
) -> Prompt:
    """Shorten a prompt: find a few tokens whose text feature is close to that of the whole text.

    In rounds of swaps, the tokens of the text itself are tried as well, as far as the vocabulary allows them.

    Args:
        clip: the guide, or several.
        keep: find the fewest tokens with at least this similarity, up to the tokens of the settings; if there are none, the
            result has as many tokens as the settings.

    Source: Wen et al. 2023, section 4.3.
    """
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"text is {text!r}; expected a prompt to shorten")
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"keep is {keep}; expected more than 0, up to 1")
    clip, settings = joined(clip), settings or PezSettings()
    with own_modes():
        target = Target(clip.text_features([text]), own_tokens=own_tokens_of(clip, [text]))
    if keep is not None:
        for tokens in range(1, settings.tokens):
            shorter = dataclasses.replace(settings, tokens=tokens)
            [prompt] = learn_for_targets(clip, [target], [text], shorter, on_step)
            if prompt.similarity >= keep:
                return prompt
    return learn_for_targets(clip, [target], [text], settings, on_step)[0]


def own_tokens_of(clip: AnyClip, texts: Sequence[str]) -> Tensor:
    """The first tokens (up to 62 of each) of texts to shorten, each token once, ascending: (n,) int64 on the CPU."""
    return torch.tensor(sorted({token for row in clip.tokens.read(texts) for token in row}), dtype=torch.long)


def _pixels_of(clip: AnyClip, images: ImageInputs) -> Tensor:
    """(n, 3, height, width) float, unaffected by the caller's torch modes."""
    with own_modes(gradients=False):
        pixels = [clip.preprocess(image) for image in rgb_images(images)]
        return torch.stack(pixels) if pixels else torch.empty(0)


def weights_for(images: int, texts: int, weights: Sequence[float]) -> Tensor:
    """(images + texts,) float, checked.

    Raises:
        UserError: not one finite number for each, or all are 0.
    """
    try:
        found = torch.tensor([float(weight) for weight in weights], dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"weights are {weights!r}; expected one number per image") from error
    if len(found) != images + texts:
        there = f"{images} images" + (f" and {texts} texts" if texts else "")
        raise UserError(f"{len(found)} weights for {there}; expected one each")
    if not found.isfinite().all():
        raise UserError(f"weights are {found.tolist()}; expected finite numbers")
    if not found.any():
        raise UserError("all weights are 0; expected at least one other value (negative = repel)")
    return found


def learn_for_targets(
    clip: AnyClip,
    targets: Sequence[Target],
    keys: Sequence[str],
    settings: PezSettings,
    on_step: OnStep | None = None,
    lanes: int | None = None,
) -> list[Prompt]:
    """Learn one prompt for each target, in order."""
    if lanes is None:
        lanes = lanes_for(clip.device.type)
        if clip.device.type != "cpu":
            settings = settings_for(clip, settings)
            lanes = min(lanes, round_up_to_16(len(targets) * settings.searches))
    engine = engine_for(clip, settings, lanes, on_step)
    with own_modes():
        tasks = [
            Task(key, target.direction(), handle=i, own_tokens=target.own_tokens)
            for i, (key, target) in enumerate(zip(keys, targets, strict=True))
        ]
    prompts: dict[int, Prompt] = {}
    for finished in engine.run(tasks):
        handles = (learned.task.handle for learned in finished)
        parts = [targets[learned.task.handle].features for learned in finished]
        prompts.update(zip(handles, prompts_of(clip, finished, settings, parts), strict=True))
    return [prompts[i] for i in range(len(targets))]


def settings_for(clip: AnyClip, settings: PezSettings) -> PezSettings:
    """The settings with those defaults that the number of models and of allowed tokens decides."""
    settings = settings.for_models(models_of(clip))
    if settings.method != "default" or None not in (settings.restarts, settings.finalists, settings.token_weight):
        return settings
    return settings.for_vocabulary(int(clip.allowed_tokens(settings).sum()))


def engine_for(clip: AnyClip, settings: PezSettings, lanes: int, on_step: OnStep | None = None) -> Engine:
    """An engine for targets that are directions, (dim,) in the CLIP's full precision.

    Args:
        lanes: prompts learned side by side, a multiple of 16.

    Raises:
        UserError: too many tokens for the model, an empty vocabulary, or a model that the method does not support.
    """
    settings = settings.for_models(models_of(clip))
    vocabulary = clip.vocabulary(settings)
    settings = settings.for_vocabulary(len(vocabulary.ids))
    token_features = clip.single_tokens() if settings.rounds and settings.weight_of_tokens else None
    encoder = clip.encoder(settings.tokens, template_of(settings))
    if settings.method == "bank" and not isinstance(encoder, CausalEncoder):
        raise UserError(f"the method bank needs a causal text tower, which {clip.name} has not; expected a CLIP model")
    objective = ClipObjective(encoder, token_features)
    return Engine(objective, vocabulary, settings, lanes, on_step)


def prompts_of(
    clip: AnyClip, finished: Sequence[Learned], settings: PezSettings, parts: Sequence[Tensor] = ()
) -> list[Prompt]:
    """Decode the learned tokens to text and score the whole text, since that is what a user pastes.

    Args:
        settings: those that the prompts were learned with.
        parts: for each prompt, (n, dim) features of its targets; the text is scored against each if there are several.
    """
    candidates = [_candidates_of(learned) for learned in finished]
    of_each = [part for part, several in zip(parts, candidates, strict=False) for _ in several]
    found = iter(_scored(clip, [each for several in candidates for each in several], template_of(settings), of_each))
    bigrams = bigrams_of(clip.tokens, Texts(settings.fluency_text)) if settings.fluency_text else None
    prompts = []
    for several in candidates:
        best, *others = _with_perplexity(clip, bigrams, itertools.islice(found, len(several)))
        if settings.candidates_kept > 1:
            others.sort(key=lambda prompt: -prompt.similarity)
            kept = _distinct(clip, [best, *others])[: settings.candidates_kept]
            best = dataclasses.replace(best, alternatives=tuple(kept))
        prompts.append(best)
    return prompts


def _with_perplexity(clip: AnyClip, bigrams: Bigrams | None, prompts: Iterable[Prompt]) -> Iterable[Prompt]:
    if bigrams is None:
        return prompts
    read = ((prompt, clip.tokens.read([prompt.text])[0]) for prompt in prompts)
    return [dataclasses.replace(prompt, perplexity=bigrams.perplexity(ids)) for prompt, ids in read]


def _candidates_of(learned: Learned) -> list[Learned]:
    """The learned prompt, and the others of those that its search has kept."""
    if learned.seen is None:
        return [learned]
    others = (ids for ids in learned.seen[0] if not torch.equal(ids, learned.token_ids))
    return [learned, *(dataclasses.replace(learned, token_ids=ids) for ids in others)]


def _distinct(clip: AnyClip, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first of all prompts whose texts have the same tokens for the model."""
    found: dict[tuple[int, ...], Prompt] = {}
    for row, prompt in zip(clip.tokens.read([prompt.text for prompt in prompts]), prompts, strict=True):
        found.setdefault(tuple(row), prompt)
    return list(found.values())


def _scored(clip: AnyClip, finished: Sequence[Learned], template: Template, parts: Sequence[Tensor]) -> list[Prompt]:
    with own_modes():
        rows = [learned.token_ids for learned in finished]
        directions = torch.stack([learned.task.target for learned in finished])
        texts = [template.around(clip.text_of(row)) for row in map(Tensor.tolist, rows)]
        features = clip.text_features(texts)
        similarities = (features * directions).sum(-1).tolist()
        by_model = (
            clip.similarities(features, directions).tolist() if isinstance(clip, JointClip) else [()] * len(texts)
        )
        by_part: list[tuple[float, ...]] = [()] * len(texts)
        for i, part in enumerate(parts):
            if len(part) > 1:
                by_part[i] = tuple((F.normalize(part, dim=-1) @ features[i]).tolist())
        of_tokens = [0.0] * len(rows)
        for length in {len(row) for row in rows}:  # several with the method bank only
            places = [i for i, row in enumerate(rows) if len(row) == length]
            of_ids = clip.token_features(torch.stack([rows[i] for i in places]), template)
            for i, value in zip(places, (of_ids * directions[places]).sum(-1).tolist(), strict=True):
                of_tokens[i] = value
    return [
        Prompt(
            text,
            tuple(row.tolist()),
            similarity,
            token_similarity,
            learned.steps,
            soft_similarity=learned.soft_score,
            model_similarities=tuple(models),
            target_similarities=targets,
        )
        for learned, text, row, similarity, token_similarity, models, targets in zip(
            finished, texts, rows, similarities, of_tokens, by_model, by_part, strict=True
        )
    ]


def hash_of(pixels: Tensor) -> str:
    """A content hash of preprocessed pixels."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
