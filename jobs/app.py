"""Open a web page to try it on: drop images, watch their prompts improve, regenerate the images and compare.

    python -m jobs.app --demo                                    # no network, no GPU
    python -m jobs.app --model ViT-L-14 --pretrained openai
    python -m jobs.app --also ViT-L-14/openai local              # visitors choose between three or more
    python -m jobs.app --verify stabilityai/stable-diffusion-2-1

The page is on this machine only (127.0.0.1) unless --host names another address. `pip install -e '.[app]'` adds Gradio.
Exit status: 0 = ended, 2 = bad usage.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from jobs import command
from jobs.arguments import Group
from jobs.options import DeviceOption, expect_device, expect_one_generator, refuse_beside_demo, refuse_ignored
from pez.demo import CLIPS
from pez.errors import UserError
from pez.models.names import is_demo
from pez.settings import ModelSettings
from pipeline.settings import GeneratorSettings
from pipeline.terminal import Activity, open_console, plain, say

if TYPE_CHECKING:
    from jobs.page_models import Models


@dataclasses.dataclass(frozen=True)
class AppJob(DeviceOption):
    """Options of `pez app`."""

    demo: bool = False
    """use the demo models and the demo generator"""
    also: tuple[str, ...] = ()
    """other models that visitors may choose, loaded when needed: NAME/WEIGHTS such as ViT-L-14/openai, hf-hub:ORG/REPO, demo;
    'A + B' = both together, as for SDXL; local = all whose weights are on this machine"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 = reachable from other machines, without a password"""
    port: int = 7860
    """port to listen on"""
    share: bool = False
    """also make a public link through Gradio's servers"""
    model: Annotated[ModelSettings, Group("model")] = ModelSettings()
    generator: Annotated[GeneratorSettings, Group("verification")] = GeneratorSettings()

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored."""
        if self.demo:
            refuse_beside_demo(self.model, given)
        refuse_ignored(given - ({"verify"} if self.demo else set()), model=self.model)
        expect_one_generator(self.generator)
        expect_device(self.device)
        if not 1 <= self.port <= 65535:
            raise UserError(f"port is {self.port}; expected 1 to 65535")


def app(job: AppJob) -> int:
    """Run the job until it is interrupted; returns its exit status."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs Gradio; pip install -e '.[app]'")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is sent anywhere
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    console = open_console()
    with Activity(console, "loading PyTorch and Gradio") as activity:
        with command.importing():
            from jobs.page import build_page, serve
        models = _load(job, activity)
        page = build_page(models)
    say(console, plain(f"http://{job.host}:{job.port}"))
    try:
        serve(page, job.host, job.port, job.share)
    except OSError as error:
        raise UserError(f"cannot listen on {job.host}:{job.port}: {' '.join(str(error).split())}") from error
    return 0


def _load(job: AppJob, activity: Activity) -> Models:
    """Load the models of the page."""
    from jobs.page_models import Models, choices_of
    from pipeline.stages.verification import generator_of

    device = job.local_device()
    settings, generator, also = job.model, job.generator, job.also
    if job.demo:
        settings = settings if is_demo(settings) else dataclasses.replace(settings, model="demo")
        generator = dataclasses.replace(generator, verify=generator.verify or "demo")
        also = (*CLIPS, *also)
    choices = choices_of(settings, also)
    made = None
    if generator.verify is not None:
        activity.now(f"loading the generator {generator.verify}")
        made = generator_of(generator, device)
    models = Models(choices, device, made, _examples() if is_demo(settings) else ())
    activity.now(f"loading {models.names[0]}")
    models.clip(models.names[0])
    return models


def _examples() -> list[str]:
    """Files of drawn scenes, for the demo."""
    import tempfile

    from PIL import Image

    from pez.demo import scenes

    folder = Path(tempfile.mkdtemp(prefix="pez-examples-"))
    paths = []
    for number, scene in enumerate(scenes.held_out_scenes(4), 1):
        path = folder / f"scene-{number}.png"
        Image.fromarray(scenes.render(scene)).save(path)
        paths.append(str(path))
    return paths


def main(prog: str | None = None) -> None:
    command.run(AppJob, __doc__, app, prog)


if __name__ == "__main__":
    main()
