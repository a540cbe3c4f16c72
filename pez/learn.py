"""Images or texts in, hard prompts out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from pez.engine import Learned, Step, Task, learn, sixteens
from pez.errors import UserError
from pez.models.clip import Clip, ClipObjective
from pez.modes import own_modes
from pez.objectives.objective import Target
from pez.pictures import Pictures, rgb_images
from pez.prompt import Prompt
from pez.settings import PezSettings

OnStep = Callable[[Step], None]

_LANES_ON_CPU, _LANES_ON_GPU = 64, 1024


def learn_prompts(
    clip: Clip,
    images: Pictures,
    settings: PezSettings | None = None,
    keys: Sequence[str] | None = None,
    on_step: OnStep | None = None,
    lanes: int | None = None,
) -> list[Prompt]:
    """Learn one prompt for each image.

    Args:
        images: files, PIL images of any mode or arrays, or a single one; see pez.pictures.
        keys: with the seed, fix each image's random start; default = a hash of its pixels, so that a prompt depends on
            its image alone and not on its neighbours.
        on_step: called with every step of the optimiser.
        lanes: prompts learned side by side, a multiple of 16; default = what suits the device.

    Returns:
        prompts in the order of the images.

    Raises:
        UserError: something that is no image, with its index; one line.
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
    images: Pictures,
    settings: PezSettings | None = None,
    weights: Sequence[float] | None = None,
    on_step: OnStep | None = None,
) -> Prompt:
    """Learn one prompt for all images together.

    Args:
        images: files, PIL images of any mode or arrays, or a single one; see pez.pictures.
        weights: one for each image, 1 = near, negative = away from; default = all 1.

    Raises:
        UserError: something that is no image, or weights that mean nothing; one line.
    """
    pixels = _pixels_of(clip, images)
    if not len(pixels):
        raise UserError("no images; expected one or more")
    with own_modes():
        target = Target(clip.pixel_features(pixels), None if weights is None else _weights_for(pixels, weights))
    return learn_for_targets(clip, [target], [hash_of(pixels)], settings or PezSettings(), on_step)[0]


def distill(clip: Clip, text: str, settings: PezSettings | None = None, on_step: OnStep | None = None) -> Prompt:
    """Shorten a prompt: few tokens whose text feature is near that of the whole text.

    Source: Wen et al. 2023, section 4.3.
    """
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"text is {text!r}; expected a prompt to shorten")
    with own_modes():
        target = Target(clip.text_features([text]))
    return learn_for_targets(clip, [target], [text], settings or PezSettings(), on_step)[0]


def _pixels_of(clip: Clip, images: Pictures) -> Tensor:
    """(n, 3, height, width) float, made as outside of the caller's modes."""
    with own_modes(gradients=False):
        pixels = [clip.preprocess(image) for image in rgb_images(images)]
        return torch.stack(pixels) if pixels else torch.empty(0)


def _weights_for(pixels: Tensor, weights: Sequence[float]) -> Tensor:
    try:
        found = torch.tensor([float(weight) for weight in weights], dtype=torch.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"weights are {weights!r}; expected a number for each image") from error
    if len(found) != len(pixels):
        raise UserError(f"{len(found)} weights for {len(pixels)} images; expected one each")
    if not found.isfinite().all():
        raise UserError(f"weights are {found.tolist()}; expected finite numbers")
    if not found.any():
        raise UserError("all weights are 0; expected one at least that is not, negative = away from")
    return found


def learn_for_targets(
    clip: Clip,
    targets: Sequence[Target],
    keys: Sequence[str],
    settings: PezSettings,
    on_step: OnStep | None = None,
    lanes: int | None = None,
) -> list[Prompt]:
    """Learn one prompt for each target, in their order."""
    # Drawn inside of learn_tasks, and so in its modes.
    tasks = (Task(k, t.direction(), handle=i) for i, (k, t) in enumerate(zip(keys, targets, strict=True)))
    prompts: dict[int, Prompt] = {}
    if lanes is None:
        lanes = _LANES_ON_CPU if clip.device.type == "cpu" else min(_LANES_ON_GPU, sixteens(len(targets)))
    for learned in learn_tasks(clip, tasks, settings, lanes, on_step):
        prompts.update((result.task.handle, prompt) for result, prompt in learned)
    return [prompts[i] for i in range(len(targets))]


def learn_tasks(
    clip: Clip, tasks: Iterable[Task | None], settings: PezSettings, lanes: int, on_step: OnStep | None = None
) -> Iterator[list[tuple[Learned, Prompt]]]:
    """Learn a prompt for every task as they come, and score each as the text that a user pastes.

    Args:
        tasks: targets are directions, (dim,) in the clip's full precision and on its device; None = none is ready yet.
        lanes: prompts learned side by side, a multiple of 16.

    Yields:
        results with their prompts, in lists of those that end together.
    """
    results = _learn_tasks(clip, tasks, settings, lanes, on_step)
    while True:
        with own_modes():  # not around a yield, where it would reach the caller
            some = next(results, None)
        if some is None:
            return
        yield some


def _learn_tasks(
    clip: Clip, tasks: Iterable[Task | None], settings: PezSettings, lanes: int, on_step: OnStep | None
) -> Iterator[list[tuple[Learned, Prompt]]]:
    objective = ClipObjective(clip.encoder(settings.tokens))
    for ended in learn(objective, clip.vocabulary(settings), tasks, settings, lanes, on_step):
        ids = torch.stack([result.token_ids for result in ended])
        directions = torch.stack([result.task.target for result in ended])
        texts = [clip.text_of(row) for row in ids.tolist()]
        of_text = (clip.text_features(texts) * directions).sum(-1).tolist()
        of_tokens = (clip.token_features(ids) * directions).sum(-1).tolist()
        yield [
            (result, Prompt(text, tuple(row), similarity, token_similarity, result.steps))
            for result, text, row, similarity, token_similarity in zip(
                ended, texts, ids.tolist(), of_text, of_tokens, strict=True
            )
        ]


def hash_of(pixels: Tensor) -> str:
    """A name for preprocessed pixels by their content."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
