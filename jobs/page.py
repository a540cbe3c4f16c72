"""The page of `jobs.app`, made with Gradio."""

import dataclasses
import html
import os
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

import pez
from jobs.trial import learn_live
from pez.errors import UserError
from pez.images import ImageError, decode_image
from pez.models.joint import AnyClip
from pez.regeneration import Generator, seed_for

_MOST_IMAGES = 16
_MOST_VISITORS = 32  # that wait in the queue
_LARGEST = "64mb"

Rows = list[list[Any]]
"""name, prompt and similarity"""


@dataclasses.dataclass(frozen=True)
class Models:
    """What the page runs on. One search runs at a time; visitors wait in a queue.

    Args:
        generator: makes images from prompts; None = the page cannot.
        examples: paths of images to try.
    """

    clip: AnyClip
    generator: Generator | None
    examples: list[str]
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


def build_page(models: Models) -> Any:
    """Build the page, a `gradio.Blocks`."""

    def learn(
        files: list[str] | None,
        tokens: float,
        steps: float,
        seed: float,
        blocklist: str,
        together: bool,
        history: Rows,
    ) -> Iterator[tuple[Any, ...]]:
        try:
            names, images = _decoded(files)
            words = tuple(word.strip() for word in blocklist.split(",") if word.strip())
            settings = pez.PezSettings(tokens=int(tokens), steps=int(steps), seed=int(seed), blocklist=words)
            models.clip.vocabulary(settings)  # a word that the model does not have fails here
            yield _state(f"learning with {models.clip.name}"), [], history, history, gr.skip()
            for update in learn_live(models.clip, images, names, settings, together):
                rows: Rows = [[name, prompt, round(similarity, 3)] for name, prompt, similarity in update.rows]
                if update.done:
                    history = [*rows, *history]
                text = "done" if update.done else f"step {update.step} of {update.of}"
                yield _state(text), rows, history, history, "\n".join(row[1] for row in rows)
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    def regenerate(files: list[str] | None, rows: Rows, together: bool) -> list[tuple[Image.Image, str]]:
        if models.generator is None:
            raise gr.Error("the page was started without a generator; start it with --verify", print_exception=False)
        if not rows:
            raise gr.Error("there are no prompts yet; learn them first", print_exception=False)
        names, originals = _decoded(files)
        prompts = [str(row[1]) for row in rows]
        with models.lock:
            made = models.generator.images(prompts, [seed_for(0, str(row[0]), 0) for row in rows])
        shown: list[tuple[Image.Image | None, str]]
        if together:
            shown = [*zip(originals, names, strict=True), (made[0], prompts[0])]
        else:
            pairs = zip(originals, names, made, prompts, strict=False)
            shown = [one for image, name, new, prompt in pairs for one in ((image, name), (new, prompt))]
        return [(image, text) for image, text in shown if image is not None]

    with gr.Blocks(title="pez: prompts from images") as page:
        gr.Markdown(
            "# Prompts from images\nDrop images; a few plain words are learned that CLIP finds closest to them."
        )
        history = gr.State([])
        with gr.Row():
            with gr.Column(scale=1):
                files = gr.File(label="Images", file_count="multiple", file_types=["image"], elem_id="images")
                preview = gr.Gallery(label="Preview", columns=4, height=140, show_label=False, elem_id="preview")
                with gr.Row():
                    tokens = gr.Slider(1, 24, 8, step=1, label="Tokens", elem_id="tokens")
                    steps = gr.Slider(
                        10, 2000, 100 if models.examples else 500, step=10, label="Steps", elem_id="steps"
                    )
                with gr.Row():
                    blocklist = gr.Textbox(label="Words to avoid", placeholder="red, blue*", elem_id="blocklist")
                    seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                together = gr.Checkbox(label="One prompt for all images", elem_id="together")
                start = gr.Button("Learn", variant="primary", elem_id="learn")
                stop = gr.Button("Stop", elem_id="stop")
                if models.examples:
                    gr.Examples([[[path]] for path in models.examples], files, label="Drawn scenes")
            with gr.Column(scale=2):
                state = gr.HTML(_state(f"ready: {models.clip.name}"), elem_id="state")
                table: dict[str, Any] = {"headers": ["image", "prompt", "similarity"], "type": "array", "wrap": True}
                table |= {"interactive": False, "column_widths": ["28%", "54%", "18%"]}
                found = gr.Dataframe(**table, label="Prompts", elem_id="prompts")
                text = gr.Textbox(label="To copy", buttons=["copy"], interactive=False, lines=2, elem_id="copy")
                again = gr.Button("Regenerate and compare", interactive=models.generator is not None, elem_id="again")
                compared = gr.Gallery(label="Original and regenerated", columns=4, height="auto", elem_id="compared")
                with gr.Accordion("History", open=False):
                    earlier = gr.Dataframe(**table, elem_id="history")
        files.change(lambda paths: paths or [], files, preview, show_progress="hidden")
        inputs = [files, tokens, steps, seed, blocklist, together, history]
        learning = start.click(learn, inputs, [state, found, history, earlier, text], concurrency_id="model")
        stop.click(lambda: _state("stopped"), None, state, cancels=[learning])
        again.click(regenerate, [files, found, together], compared, concurrency_id="model")
    page.queue(default_concurrency_limit=1, max_size=_MOST_VISITORS)
    return page


def serve(page: Any, host: str, port: int, share: bool) -> None:
    """Serve the page until interrupted.

    Raises:
        OSError: the port is taken.
    """
    page.launch(
        server_name=host, server_port=port, share=share, quiet=True, show_error=True, max_file_size=_LARGEST, pwa=False
    )


def _decoded(files: list[str] | None) -> tuple[list[str], list[Image.Image]]:
    """Names and RGB images of uploaded files.

    Raises:
        UserError: there are none, too many, or one is not an image.
    """
    if not files:
        raise UserError("no images; drop one or more first")
    if len(files) > _MOST_IMAGES:
        raise UserError(f"{len(files)} images; expected at most {_MOST_IMAGES}. For more, use pez caption")
    names, images = [], []
    for path in files:
        name = os.path.basename(path)
        try:
            with open(path, "rb") as file:
                images.append(decode_image(file.read()))
        except ImageError as error:
            raise UserError(f"{name}: {error}") from error
        names.append(name)
    return names, images


def _state(text: str) -> str:
    return f"<p role='status'>{html.escape(text)}</p>"
