"""One visitor's search for prompts: it runs in a thread and reports its progress, for `jobs.app`."""

import dataclasses
import queue
import threading
from collections.abc import Iterator, Sequence

from PIL import Image

import pez
from jobs.live import BestPrompts
from pez.learn import settings_for
from pez.models.joint import AnyClip
from pez.settings import lanes_for
from pez.tasks import Step
from pez.template import template_of
from pez.threads import begin_thread

_EVERY = 10  # steps between two updates


@dataclasses.dataclass(frozen=True)
class Update:
    """The best prompts so far."""

    step: int
    of: int
    rows: list[tuple[str, str, float]]
    """name, prompt and similarity of each target"""
    done: bool = False


class _AbandonedError(Exception):
    """The visitor has gone."""


def learn_live(
    clip: AnyClip, images: Sequence[Image.Image], names: Sequence[str], settings: pez.PezSettings, together: bool
) -> Iterator[Update]:
    """Learn prompts and yield the best so far; the last update has the similarities of the texts.

    If the iterator is closed, learning stops at the next step.

    Args:
        images: RGB images, one prompt each.
        together: one prompt for all of them.

    Raises:
        UserError: settings that the model cannot meet.
    """
    names, settings = [" + ".join(names)] if together else list(names), settings_for(clip, settings)
    updates: queue.Queue[Update | BaseException] = queue.Queue()
    gone = threading.Event()
    best = BestPrompts(settings)
    taken, steps, template = 0, settings.steps_for(len(names), lanes_for(clip.device.type)), template_of(settings)

    def on_step(step: Step) -> None:
        nonlocal taken
        if gone.is_set():
            raise _AbandonedError
        taken += 1
        best.add(step)
        if taken % _EVERY == 1:
            rows = [(names[i], template.around(clip.text_of(ids)), score) for i, score, ids, _ in best]
            updates.put(Update(taken, steps, rows))

    def learn() -> None:
        begin_thread()
        try:
            if together:
                prompts = [pez.learn_prompt(clip, images, settings, on_step=on_step)]
            else:
                prompts = pez.learn_prompts(clip, images, settings, on_step=on_step)
            rows = [(name, prompt.text, prompt.similarity) for name, prompt in zip(names, prompts, strict=True)]
            updates.put(Update(steps, steps, rows, done=True))
        except BaseException as error:
            updates.put(error)

    thread = threading.Thread(target=learn, name="learning", daemon=True)
    thread.start()
    try:
        while True:
            update = updates.get()
            if isinstance(update, BaseException):
                raise update
            yield update
            if update.done:
                return
    finally:
        gone.set()
        thread.join()
