"""Train a demo model: a CLIP as an open_clip folder, the text-to-image model as a diffusers folder, or the language model.

    python -m jobs.train_demo --output pez/demo/guide --seed 0
    python -m jobs.train_demo --output pez/demo/guide --evaluate
    python -m jobs.train_demo --output pez/demo/generator --generator
    python -m jobs.train_demo --output pez/demo/reviewer --language-model
    python -m jobs.train_demo --output symbols/guide --symbols symbols

A CLIP loads with `open_clip.create_model_and_transforms("local-dir:FOLDER")` and takes about half an hour on two cores. The
text-to-image model loads with `diffusers.StableDiffusionPipeline.from_pretrained("FOLDER")`, takes about two hours, and
resumes after an interruption; its text encoder is that of the demo guide. The language model of generated reviews loads with
`transformers.AutoModelForCausalLM.from_pretrained("FOLDER")` and takes a few minutes. A CLIP of symbols is for measuring only
(`pez/demo/training/symbols.py`); `unseen.tar` in its folder holds images that it was not trained on.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jobs import command
from jobs.options import refuse_without
from pez.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainDemoJob:
    """Train a demo model on drawn scenes, or evaluate a trained CLIP on held-out scenes."""

    output: Path
    """folder for the model"""
    evaluate: bool = False
    """do not train; print the scores of the CLIP in the folder"""
    generator: bool = False
    """train the text-to-image model"""
    language_model: bool = False
    """train the language model, on generated reviews"""
    symbols: Path | None = None
    """train a CLIP on the drawn symbols of the npm packages in this folder"""
    image_size: int = 64
    """of --symbols: pixels"""
    image_width: int = 24
    """of --symbols: width of the image tower"""
    text_width: int = 128
    """of --symbols: width of the text tower, a multiple of 4"""
    seed: int = 0
    """seed of the weights and the images"""
    steps: int | None = None
    """training steps; default = those of the shipped models"""

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored, and everything that can be checked without loading anything."""
        if self.evaluate:
            trained = {"generator", "language_model", "seed", "steps"}
            refuse_without("", given, trained, "with --evaluate, which trains nothing")
            if not (self.output / "open_clip_config.json").is_file():
                raise UserError(f"no model in {self.output}; expected a folder with open_clip_config.json")
        if self.symbols is None:
            refuse_without("symbols", given, {"image_size", "image_width", "text_width"}, "without --symbols")
        else:
            others = {"generator", "language_model", "evaluate"}
            refuse_without("", given, others, "with --symbols, which trains a CLIP and evaluates it")
            for name, least in (("image_size", 32), ("image_width", 8), ("text_width", 8)):
                value = getattr(self, name)
                if not least <= value <= 4096 or value % 4:
                    option = f"--{name.replace('_', '-')}"
                    raise UserError(f"{option} is {value}; expected a multiple of 4 from {least} to 4096")
        if self.generator and self.language_model:
            raise UserError("--generator and --language-model are both given; expected one of them")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; expected 0 to {2**32 - 1}")
        if self.steps is not None and not 1 <= self.steps <= 1e9:
            raise UserError(f"steps is {self.steps}; expected 1 to 1e+09")
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f"{self.output} is a file; expected a folder")


def train(job: TrainDemoJob) -> int:
    """Run the job; returns its exit status."""
    chosen = {"seed": job.seed, **({} if job.steps is None else {"steps": job.steps})}
    if job.generator:
        try:
            from pez.demo.training.generator import GeneratorSettings, train_generator
        except ImportError as error:
            advice = "install it with pip install 'pez-captions[demo-training]'"
            raise UserError(f"the text-to-image model needs {error.name}; {advice}") from error

        train_generator(GeneratorSettings(**chosen), job.output, log=_log)
        return 0
    if job.language_model:
        try:
            from pez.demo.training.language_model import ReviewerSettings, train_reviewer
        except ImportError as error:
            advice = "install it with pip install 'pez-captions[demo-training]'"
            raise UserError(f"the language model needs {error.name}; {advice}") from error

        train_reviewer(ReviewerSettings(**chosen), job.output, log=_log)
        return 0
    if job.symbols is not None:
        return _train_on_symbols(job, job.symbols, chosen)
    with command.importing():
        import open_clip

        from pez.demo.evaluation import evaluate_demo_clip
        from pez.demo.training.clip import MODEL_CONFIG, TrainingSettings, train_demo_clip

    if not job.evaluate:
        model = train_demo_clip(TrainingSettings(**chosen), log=_log)
        _write_clip(model, MODEL_CONFIG, job.output)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{job.output}")
    for name, score in evaluate_demo_clip(model).items():
        print(f"{name:17s} {score:.3f}")
    return 0


def _train_on_symbols(job: TrainDemoJob, folder: Path, chosen: dict[str, int]) -> int:
    with command.importing():
        from pez.demo.training import symbols
    drawn = symbols.load_symbols(folder)
    _log(f"{len(drawn.names)} concepts, {len(drawn.images)} images, {int(drawn.held_out.sum())} of them unseen")
    settings = symbols.SymbolSettings(
        **chosen, image_size=job.image_size, image_width=job.image_width, text_width=job.text_width
    )
    model = symbols.train_symbol_clip(settings, drawn, _log)
    _write_clip(model, settings.model_config(), job.output)
    symbols.write_unseen(drawn, job.output / "unseen.tar")
    for name, score in symbols.evaluate_symbol_clip(model, drawn).items():
        print(f"{name:17s} {score:.3f}")
    return 0


def _write_clip(model: Any, config: dict[str, Any], folder: Path) -> None:
    """Write a CLIP as an open_clip folder, in half precision."""
    from safetensors.torch import save_file

    from pez.demo.training.clip import PREPROCESS_CONFIG

    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_cfg": config, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


def _log(line: str) -> None:
    print(line, flush=True)


def main(prog: str | None = None) -> None:
    command.run(TrainDemoJob, __doc__, train, prog)


if __name__ == "__main__":
    main()
