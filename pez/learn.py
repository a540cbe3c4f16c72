"""Learn hard prompts from images or texts."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from pez.engine import Engine
from pez.errors import UserError
from pez.image_inputs import ImageInputs, rgb_images
from pez.methods.phase import OnStep, round_up_to_16
from pez.models.clip import Clip
from pez.models.text_encoder import CausalEncoder
from pez.modes import own_modes
from pez.objectives.clip import ClipObjective, Target
from pez.prompt import Prompt
from pez.settings import PezSettings, lanes_for
from pez.tasks import Learned, Task


def learn_prompts(
    clip: Clip,
    images: ImageInputs,
    settings: PezSettings | None = None,
    keys: Sequence[str] | None = None,
    on_step: OnStep | None = None,
    lanes: int | None = None,
) -> list[Prompt]:
    """Learn one prompt for each image.

    Args:
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
    settings = settings or PezSettings()
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
    clip: Clip,
    images: ImageInputs,
    settings: PezSettings | None = None,
    weights: Sequence[float] | None = None,
    on_step: OnStep | None = None,
    key: str | None = None,
) -> Prompt:
    """Learn one prompt shared by all images.

    Args:
        images: one image or many: files, PIL images of any mode, or arrays; see pez.image_inputs.
        weights: one per image; 1 = attract, negative = repel. Default = all 1.
        key: determines the random start, together with the seed; default = a hash of the pixels.

    Raises:
        UserError: an input is not an image, or the weights are invalid.
    """
    pixels = _pixels_of(clip, images)
    if not len(pixels):
        raise UserError("no images; expected one or more")
    with own_modes():
        target = Target(clip.pixel_features(pixels), None if weights is None else _weights_for(pixels, weights))
    key = hash_of(pixels) if key is None else key
    return learn_for_targets(clip, [target], [key], settings or PezSettings(), on_step)[0]


def distill(clip: Clip, text: str, settings: PezSettings | None = None, on_step: OnStep | None = None) -> Prompt:
    """Shorten a prompt: find a few tokens whose text feature is close to that of the whole text.

    Source: Wen et al. 2023, section 4.3.
    """
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"text is {text!r}; expected a prompt to shorten")
    with own_modes():
        target = Target(clip.text_features([text]))
    return learn_for_targets(clip, [target], [text], settings or PezSettings(), on_step)[0]


def _pixels_of(clip: Clip, images: ImageInputs) -> Tensor:
    """(n, 3, height, width) float, unaffected by the caller's torch modes."""
    with own_modes(gradients=False):
        pixels = [clip.preprocess(image) for image in rgb_images(images)]
        return torch.stack(pixels) if pixels else torch.empty(0)


def _weights_for(pixels: Tensor, weights: Sequence[float]) -> Tensor:
    try:
        found = torch.tensor([float(weight) for weight in weights], dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"weights are {weights!r}; expected one number per image") from error
    if len(found) != len(pixels):
        raise UserError(f"{len(found)} weights for {len(pixels)} images; expected one each")
    if not found.isfinite().all():
        raise UserError(f"weights are {found.tolist()}; expected finite numbers")
    if not found.any():
        raise UserError("all weights are 0; expected at least one other value (negative = repel)")
    return found


def learn_for_targets(
    clip: Clip,
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
            lanes = min(lanes, round_up_to_16(len(targets)))
    engine = engine_for(clip, settings, lanes, on_step)
    with own_modes():
        tasks = [Task(k, t.direction(), handle=i) for i, (k, t) in enumerate(zip(keys, targets, strict=True))]
    prompts: dict[int, Prompt] = {}
    for finished in engine.run(tasks):
        handles = (learned.task.handle for learned in finished)
        prompts.update(zip(handles, prompts_of(clip, finished), strict=True))
    return [prompts[i] for i in range(len(targets))]


def engine_for(clip: Clip, settings: PezSettings, lanes: int, on_step: OnStep | None = None) -> Engine:
    """An engine for targets that are directions, (dim,) in the CLIP's full precision.

    Args:
        lanes: prompts learned side by side, a multiple of 16.

    Raises:
        UserError: too many tokens for the model, an empty vocabulary, or a model that the method does not support.
    """
    token_features = clip.single_tokens() if settings.rounds and settings.token_weight else None
    encoder = clip.encoder(settings.tokens)
    if settings.method == "bank" and not isinstance(encoder, CausalEncoder):
        raise UserError(f"the method bank needs a causal text tower, which {clip.name} has not; expected a CLIP model")
    objective = ClipObjective(encoder, token_features)
    return Engine(objective, clip.vocabulary(settings), settings, lanes, on_step)


def prompts_of(clip: Clip, finished: Sequence[Learned]) -> list[Prompt]:
    """Decode the learned tokens to text and score the text, since the text is what a user pastes."""
    with own_modes():
        rows = [learned.token_ids for learned in finished]
        directions = torch.stack([learned.task.target for learned in finished])
        texts = [clip.text_of(row) for row in map(Tensor.tolist, rows)]
        similarities = (clip.text_features(texts) * directions).sum(-1).tolist()
        of_tokens = [0.0] * len(rows)
        for length in {len(row) for row in rows}:  # several with the method bank only
            places = [i for i, row in enumerate(rows) if len(row) == length]
            features = clip.token_features(torch.stack([rows[i] for i in places]))
            for i, value in zip(places, (features * directions[places]).sum(-1).tolist(), strict=True):
                of_tokens[i] = value
    return [
        Prompt(text, tuple(row.tolist()), similarity, token_similarity, learned.steps, learned.soft_score)
        for learned, text, row, similarity, token_similarity in zip(
            finished, texts, rows, similarities, of_tokens, strict=True
        )
    ]


def hash_of(pixels: Tensor) -> str:
    """A content hash of preprocessed pixels."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
