"""The page of `jobs.app`, made with Gradio."""

import html
import os
from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

import pez
from jobs.page_models import Models
from jobs.trial import learn_live
from pez import offensive
from pez.errors import UserError
from pez.images import ImageError, decode_image
from pez.regeneration import seed_for

_MOST_IMAGES = 16
_MOST_VISITORS = 32  # that wait in the queue
_LARGEST = "64mb"
_SEARCHES = "the best one is kept"
_TEMPLATE = "fixed words around the prompt, which stands at {}"
STYLE = "#preview .fixed-height, #compared .fixed-height { min-height: 11rem !important; }"
"""galleries as high as their images; Gradio's have 450 pixels or more"""

Rows = list[list[Any]]
"""name, prompt and similarity; in the history, also the model"""
Learned = tuple[list[str], bool]
"""the images of the last search, and whether they have one prompt together"""


def build_page(models: Models) -> Any:
    """Build the page, a `gradio.Blocks`."""

    def learn(
        files: list[str] | None,
        model: str,
        tokens: float,
        steps: float,
        searches: float,
        template: str,
        blocklist: str,
        seed: float,
        together: bool,
        history: Rows,
    ) -> Iterator[tuple[Any, ...]]:
        try:
            names, images = _decoded(files)
            settings = pez.PezSettings(
                tokens=int(tokens),
                steps=int(steps),
                restarts=int(searches),
                seed=int(seed),
                template=template.strip() or None,
                blocklist=blocked_words(blocklist),
            )
            of = list(files or ()), together
            yield _state(f"loading {model}"), [], history, history, "", of
            clip = models.clip(model)
            clip.vocabulary(settings)  # a word that the model does not have fails here
            for update in learn_live(clip, images, names, settings, together):
                rows: Rows = [[name, prompt, round(similarity, 3)] for name, prompt, similarity in update.rows]
                if update.done:
                    history = [*([*row, model] for row in rows), *history]
                text = "done" if update.done else f"step {update.step} of {update.of}"
                yield _state(text), rows, history, history, "\n".join(row[1] for row in rows), of
        except UserError as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from error

    def regenerate(rows: Rows, of: Learned) -> list[tuple[Image.Image, str]]:
        if models.generator is None:
            raise gr.Error("the page was started without a generator; start it with --verify", print_exception=False)
        if not rows:
            raise gr.Error("there are no prompts yet; learn them first", print_exception=False)
        files, together = of
        names, originals = _decoded(files)
        prompts = [str(row[1]) for row in rows]
        made = models.generator.images(prompts, [seed_for(0, str(row[0]), 0) for row in rows])
        shown: list[tuple[Image.Image | None, str]]
        if together:
            shown = [*zip(originals, names, strict=True), (made[0], prompts[0])]
        else:
            pairs = zip(originals, names, made, prompts, strict=True)
            shown = [one for image, name, new, prompt in pairs for one in ((image, name), (new, prompt))]
        return [(image, text) for image, text in shown if image is not None]

    with gr.Blocks(title="pez: prompts from images") as page:
        default = pez.PezSettings()
        gr.Markdown(
            "# Prompts from images\nDrop images; a few plain words are learned that CLIP finds closest to them."
        )
        history, learned = gr.State([]), gr.State(([], False))
        with gr.Row():
            with gr.Column(scale=1):
                files = gr.File(label="Images", file_count="multiple", file_types=["image"], elem_id="images")
                preview = gr.Gallery(label="Preview", columns=4, height="auto", show_label=False, elem_id="preview")
                model = gr.Dropdown(models.names, value=models.names[0], label="Model", elem_id="model")
                with gr.Row():
                    tokens = gr.Slider(1, 24, 8, step=1, label="Tokens", elem_id="tokens")
                    steps = gr.Slider(
                        10, 2000, round(default.gradient_steps, -1), step=10, label="Steps", elem_id="steps"
                    )
                    often = models.searches(models.names[0])
                    searches = gr.Slider(1, 16, often, step=1, label="Searches", info=_SEARCHES, elem_id="searches")
                template = gr.Textbox(
                    label="Template", placeholder="a tiger in the style of {}", info=_TEMPLATE, elem_id="template"
                )
                with gr.Row():
                    blocklist = gr.Textbox(label="Words to avoid", placeholder="red, blue*", elem_id="blocklist")
                    seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                together = gr.Checkbox(label="One prompt for all images", elem_id="together")
                with gr.Row():
                    start = gr.Button("Learn", variant="primary", elem_id="learn")
                    stop = gr.Button("Stop", elem_id="stop")
                if models.examples:
                    gr.Examples([[[path]] for path in models.examples], files, label="Drawn scenes")
            with gr.Column(scale=2):
                state = gr.HTML(_state("ready"), elem_id="state")
                table: dict[str, Any] = {"type": "array", "wrap": True, "interactive": False}
                headers = ["image", "prompt", "similarity"]
                widths: list[str | int] = ["28%", "54%", "18%"]
                found = gr.Dataframe(headers=headers, column_widths=widths, **table, label="Prompts", elem_id="prompts")
                text = gr.Textbox(label="To copy", buttons=["copy"], interactive=False, lines=2, elem_id="copy")
                again = gr.Button("Regenerate and compare", interactive=models.generator is not None, elem_id="again")
                compared = gr.Gallery(label="Original and regenerated", columns=4, height="auto", elem_id="compared")
                with gr.Accordion("History", open=False):
                    headers, widths = [*headers, "model"], ["20%", "44%", "16%", "20%"]
                    earlier = gr.Dataframe(headers=headers, column_widths=widths, **table, elem_id="history")
        files.change(lambda paths: paths or [], files, preview, show_progress="hidden")
        model.change(models.searches, model, searches, show_progress="hidden")
        inputs = [files, model, tokens, steps, searches, template, blocklist, seed, together, history]
        learning = start.click(learn, inputs, [state, found, history, earlier, text, learned], concurrency_id="model")
        stop.click(lambda: _state("stopped"), None, state, cancels=[learning])
        again.click(regenerate, [found, learned], compared, concurrency_id="model")
    page.queue(default_concurrency_limit=1, max_size=_MOST_VISITORS)
    return page


def serve(page: Any, host: str, port: int, share: bool) -> None:
    """Serve the page until interrupted.

    Raises:
        OSError: the port is taken.
    """
    page.launch(
        server_name=host,
        server_port=port,
        share=share,
        quiet=True,
        show_error=True,
        max_file_size=_LARGEST,
        pwa=False,
        css=STYLE,
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


def blocked_words(text: str) -> tuple[str, ...]:
    """The words of a blocklist, which are separated by commas.

    Raises:
        UserError: a list in a file; visitors do not read files of this machine.
    """
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    for word in words:
        if word.startswith("@") and word != offensive.NAME:
            raise UserError(f"words to avoid has {word[:40]}; expected words, or {offensive.NAME}")
    return words


def _state(text: str) -> str:
    return f"<p role='status'>{html.escape(text)}</p>"
