"""Train a demo CLIP and write it as an open_clip folder.

    python -m jobs.train_demo --output pez/demo/guide --seed 0
    python -m jobs.train_demo --output pez/demo/guide --evaluate

The folder loads with `open_clip.create_model_and_transforms("local-dir:FOLDER")`. About half an hour on two cores.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import open_clip
import tyro
from safetensors.torch import save_file

from pez.demo.evaluation import evaluate_demo_clip
from pez.demo.training import MODEL_CONFIG, PREPROCESS_CONFIG, TrainingSettings, train_demo_clip


@dataclasses.dataclass(frozen=True)
class TrainDemoJob:
    """Train a demo CLIP on drawn scenes, or evaluate a trained one on held-out scenes."""

    output: Path
    """folder of the model: open_clip_config.json and open_clip_model.safetensors"""
    evaluate: bool = False
    """train nothing; print the scores of the model in the folder"""
    training: Annotated[TrainingSettings, tyro.conf.arg(name="")] = TrainingSettings()


def main() -> None:
    job = tyro.cli(TrainDemoJob, description=__doc__)
    if not job.evaluate:
        model = train_demo_clip(job.training, log=lambda line: print(line, flush=True))
        job.output.mkdir(parents=True, exist_ok=True)
        config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
        (job.output / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, job.output / "open_clip_model.safetensors")
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{job.output}")
    for name, score in evaluate_demo_clip(model).items():
        print(f"{name:17s} {score:.3f}")


if __name__ == "__main__":
    main()
