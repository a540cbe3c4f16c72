"""Train a demo model: a CLIP, written as an open_clip folder, or the text-to-image model, written as a diffusers folder.

    python -m jobs.train_demo --output pez/demo/guide --seed 0
    python -m jobs.train_demo --output pez/demo/guide --evaluate
    python -m jobs.train_demo --output pez/demo/generator --generator

A CLIP loads with `open_clip.create_model_and_transforms("local-dir:FOLDER")` and takes about half an hour on two cores. The
text-to-image model loads with `diffusers.StableDiffusionPipeline.from_pretrained("FOLDER")`, takes about two hours, and
resumes after an interruption; its text encoder is that of the demo guide.
"""

import dataclasses
import json
from pathlib import Path

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
    seed: int = 0
    """seed of the weights and the scenes"""
    steps: int | None = None
    """training steps; default = those of the shipped models"""

    def check(self, given: frozenset[str]) -> None:
        """Refuse options that would be ignored, and everything that can be checked without loading anything."""
        if self.evaluate:
            refuse_without("", given, {"generator", "seed", "steps"}, "with --evaluate, which trains nothing")
            if not (self.output / "open_clip_config.json").is_file():
                raise UserError(f"no model in {self.output}; expected a folder with open_clip_config.json")
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
    with command.importing():
        import open_clip
        from safetensors.torch import save_file

        from pez.demo.evaluation import evaluate_demo_clip
        from pez.demo.training.clip import MODEL_CONFIG, PREPROCESS_CONFIG, TrainingSettings, train_demo_clip

    if not job.evaluate:
        model = train_demo_clip(TrainingSettings(**chosen), log=_log)
        job.output.mkdir(parents=True, exist_ok=True)
        config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
        (job.output / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, job.output / "open_clip_model.safetensors")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{job.output}")
    for name, score in evaluate_demo_clip(model).items():
        print(f"{name:17s} {score:.3f}")
    return 0


def _log(line: str) -> None:
    print(line, flush=True)


def main(prog: str | None = None) -> None:
    command.run(TrainDemoJob, __doc__, train, prog)


if __name__ == "__main__":
    main()
