"""Measure speed, and quality against time: the engine and the published algorithm on this machine, in one run.

    python -m jobs.benchmark                                        # ViT-B-32, 8 tokens
    python -m jobs.benchmark --device cuda --model ViT-H-14 --tokens 16 --lanes 512 1024 2048 --json bench.json
    python -m jobs.benchmark --curve --model demo --images 256 --plot curve.png
    python -m jobs.benchmark --equal-score --json score.json        # images per hour at the score of the published algorithm
    python -m jobs.benchmark --overhead                             # overhead of the pipeline
    python -m jobs.benchmark --pipeline --images-per-second 40      # does the pipeline keep a GPU of this speed busy?
    python -m jobs.benchmark --costs                                # counted operations of an image, by model and tokens

No Ray; the files of a measurement are in a temporary folder. Speed does not depend on the weights, so they are random unless
--pretrained is given.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pez
from jobs import command
from jobs.arguments import expect_usable, option_of
from jobs.benchmark.options import parser
from jobs.options import expect_writable, usable_device
from pez.errors import UserError
from pez.settings import lanes_for

if TYPE_CHECKING:
    import torch

    from jobs.benchmark.speed import Speed
    from pez.models.clip import Clip


def run(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the benchmark; returns its exit status.

    Raises:
        UserError: invalid options.
    """
    options = parser(prog or command.prog_of(sys.argv[0]), __doc__).parse_args(arguments)
    check(options)
    with command.importing():
        import torch

        import pez.models.clip  # noqa: F401
    device = torch.device(usable_device(options.device))
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)  # the same random weights and targets in every run
    mode = next((mode for mode in _MODES if getattr(options, mode)), None)
    result = benchmark_speed(options, device) if mode is None else _MODES[mode](options, device)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))
    return 0


def check(options: argparse.Namespace) -> None:
    """Check the options before any work.

    Raises:
        UserError: a number out of range, a file that cannot be written, or an option that would be ignored.
    """
    expect_usable({name: value for name, value in vars(options).items() if value is not None})
    for name, (least, most) in _RANGES.items():
        value = getattr(options, name)
        for each in value if isinstance(value, list) else (value,):
            if each is not None and not least <= each <= most:
                raise UserError(f"{option_of(name)} is {each}; expected {least:g} to {most:g}")
    if options.lanes is not None and not options.lanes:
        raise UserError("--lanes is empty; expected one or more numbers")
    modes = [option_of(mode) for mode in _MODES if getattr(options, mode)]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes[:2])} are both given; expected one of them")
    for name, of in _OF_MODES.items():
        if getattr(options, name) is not None and not any(getattr(options, mode) for mode in of):
            raise UserError(f"{option_of(name)} has no effect without {' or '.join(map(option_of, of))}")
    lanes: list[int] = options.lanes or []
    if options.pipeline and len(lanes) > 1:
        raise UserError(f"--lanes has {len(lanes)} numbers; expected one with --pipeline")
    for name, value in _DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.images is None:
        options.images = 3 * _pipeline_lanes(options) if options.pipeline else 32 if options.equal_score else 256
    if options.pipeline and options.images <= _pipeline_lanes(options):
        raise UserError(f"--images is {options.images}; expected more than the {_pipeline_lanes(options)} lanes")
    expect_writable(options.json, "--json")
    expect_writable(options.plot, "--plot")
    expect_writable(options.checkpoint, "--checkpoint")


_METHOD = pez.PezSettings()
_DEFAULTS: dict[str, Any] = {
    "baseline_steps": 300,
    "exact_steps": 3000,
    "swaps": _METHOD.rounds,
    "images_per_second": 40.0,
    "image_size": 512,
    "shard_size": 1000,
}
_OF_MODES = {
    "images": ("curve", "equal_score", "pipeline"),
    "baseline_steps": ("curve",),
    "exact_steps": ("curve", "equal_score"),
    "swaps": ("curve",),
    "plot": ("curve",),
    "checkpoint": ("equal_score",),
    "images_per_second": ("pipeline",),
    "image_size": ("pipeline",),
    "shard_size": ("pipeline",),
}
"""the options that some modes have, and these modes"""
_RANGES: dict[str, tuple[float, float]] = {
    "tokens": (1, 1000),
    "steps": (1, 1e9),
    "lanes": (1, 1e6),
    "threads": (1, 10_000),
    "seconds": (0, 86_400),
    "images": (2, 1e6),
    "baseline_steps": (1, 1e9),
    "swaps": (0, 1e9),
    "exact_steps": (1, 1e9),
    "images_per_second": (0.001, 1e6),
    "image_size": (8, 10_000),
    "shard_size": (1, 1e6),
}
"""allowed range of each option"""


def benchmark_speed(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time a step of the baseline and of the engine; print a table."""
    import torch
    import torch.nn.functional as F

    from jobs.benchmark.speed import machine, time_baseline, time_engine
    from pez.modes import fast_bfloat16

    precision = options.precision or ("bf16" if fast_bfloat16(device) else "fp32")
    lanes = options.lanes or ([64] if device.type == "cpu" else [1024])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are intended here
        clip = _load(options, device, "fp32")
    settings = pez.PezSettings(tokens=options.tokens, vocabulary=options.vocabulary, method="pez")
    clip.encoder(options.tokens)  # raises if they do not fit the model
    target = F.normalize(torch.randn(max(lanes), clip.text_features(["a"]).shape[1], device=device), dim=-1)
    print(f"{machine(device)}\n{clip.name}, {options.tokens} tokens\n")
    print(f"{'':38s}{'ms/image-step':>14s}{'ratio':>8s}{'GFLOP':>8s}{'of peak':>9s}{'peak MB':>9s}{'images/h':>10s}")

    def show(speed: Speed) -> Speed:
        ratio = (speeds[0] if speeds else speed).seconds_per_image_step / speed.seconds_per_image_step
        per_hour = 3600 / speed.seconds_per_image_step / steps
        print(
            f"{speed.name:38s}{speed.seconds_per_image_step * 1e3:14.3f}{ratio:8.1f}{speed.flop_per_image_step / 1e9:8.2f}"
            f"{speed.share:9.0%}{speed.peak_bytes / 2**20:9.0f}{per_hour:10.0f}",
            flush=True,
        )
        return speed

    speeds: list[Speed] = []
    baseline = time_baseline(clip, target[0], settings, options.seconds)
    chosen = len(clip.vocabulary(settings).ids)  # cached for all lane counts, and after the baseline was timed
    default = dataclasses.replace(settings, method="default").for_vocabulary(chosen)
    steps = options.steps or default.searches * default.gradient_steps
    speeds.append(show(baseline))
    engine = clip.with_engine(precision, _compiled(options, device))  # type: ignore[arg-type]
    for count in lanes:
        try:
            speeds.append(show(time_engine(clip, engine, target[:count], settings, options.seconds)))
        except RuntimeError as error:  # memory, compiler or device; other lane counts may work
            print(f"engine, {count} lanes: {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
    if len(speeds) == 1:
        raise UserError("the engine failed with all of these lane counts; choose others with --lanes")
    best = min(speeds[1:], key=lambda speed: speed.seconds_per_image_step)
    ratio = speeds[0].seconds_per_image_step / best.seconds_per_image_step
    print(
        f"\nratio {ratio:.1f}: image-steps per second, {best.name} over the baseline;"
        f" images/h at {steps} gradient steps.\n"
        f"The baseline projects onto all {clip.tower.token_embedding.num_embeddings} tokens, the engine on {chosen}."
    )
    return {
        "ratio": ratio,
        "machine": machine(device),
        "model": clip.name,
        "tokens": options.tokens,
        "steps": steps,
        "speeds": [{**dataclasses.asdict(speed), "share_of_peak": speed.share} for speed in speeds],
    }


def benchmark_curve(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Score against steps and seconds, on held-out scenes."""
    from jobs.benchmark.curve import curves, plot_curves
    from jobs.benchmark.speed import machine

    clip = _load(options, device, "fp32").with_engine(options.precision or "fp32", _compiled(options, device))
    judge = pez.load_clip("demo-judge", device=device) if options.model == "demo" else None
    settings = pez.PezSettings(
        tokens=options.tokens, steps=options.steps, swaps=options.swaps, vocabulary=options.vocabulary
    )
    print(
        f"{machine(device)}\n{clip.name}, {options.tokens} tokens, {clip.precision}, {options.images} held-out scenes\n"
    )
    points, gain = curves(clip, judge, settings, options.images, options.baseline_steps, options.exact_steps, print)
    ours, exact = ([p for p in points if p.method == method][-1] for method in ("default", "exact"))
    judged = "" if gain.judged is None else f", judge {gain.judged:+.4f} +- {gain.judged_interval:.4f}"
    print(
        f"\ndefault ({ours.steps} steps) over exact ({exact.steps}), scene by scene:"
        f" {gain.similarity:+.4f} +- {gain.interval:.4f}{judged}"
    )
    if options.plot:
        plot_curves(points, options.plot)
    return {
        "machine": machine(device),
        "model": clip.name,
        "tokens": options.tokens,
        "curve": [dataclasses.asdict(point) for point in points],
        "gain": dataclasses.asdict(gain),
    }


def benchmark_overhead(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The same images through the pipeline and through the bare method."""
    from jobs.benchmark.overhead import measure_overhead
    from jobs.benchmark.speed import machine

    method = pez.PezSettings(tokens=options.tokens, steps=options.steps)
    overhead = measure_overhead(method)
    print(f"{machine(device)}\ndemo, {options.tokens} tokens, {method.total_steps} steps, {overhead.images} images\n")
    print(f"bare {overhead.bare_seconds:.2f} s, pipeline {overhead.pipeline_seconds:.2f} s: {overhead.share:+.1%}")
    return {"machine": machine(device), **dataclasses.asdict(overhead)}


def benchmark_equal_score(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Images per hour of the default method over those of the published algorithm, at its score."""
    import time

    from jobs.benchmark.equal_score import measure_equal_score
    from jobs.benchmark.speed import machine
    from pez.modes import fast_bfloat16

    start = time.monotonic()
    precision = options.precision or ("bf16" if fast_bfloat16(device) else "fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are intended here
        clip = _load(options, device, "fp32")
    engine = clip.with_engine(precision, _compiled(options, device))  # type: ignore[arg-type]
    print(f"{machine(device)}\n{clip.name}, {options.tokens} tokens, {precision}, {options.images} held-out scenes\n")
    settings = pez.PezSettings(tokens=options.tokens, vocabulary=options.vocabulary)
    found = measure_equal_score(
        clip, engine, settings, options.images, options.exact_steps, options.seconds / 2, _say, options.checkpoint
    )
    reached, minutes = found.tried[-1], (time.monotonic() - start) / 60
    if found.ratio is None:
        print(f"\nno budget reached the score of {options.exact_steps} published steps; {minutes:.1f} minutes")
    else:
        print(
            f"\nequal_score_ratio {found.ratio:.0f}: {3600 / reached.seconds:.0f} images/h over"
            f" {3600 / found.published.seconds:.2f}, at a score that differs by {reached.difference:+.4f} +-"
            f" {reached.interval:.4f} image by image; measured in {minutes:.1f} minutes"
        )
    return {
        "equal_score_ratio": found.ratio,
        "machine": machine(device),
        "model": clip.name,
        "tokens": options.tokens,
        "precision": precision,
        "minutes": minutes,
        **dataclasses.asdict(found),
    }


def benchmark_pipeline(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Keep a GPU of a given speed busy, simulated by one that only waits."""
    import torch

    from jobs.benchmark.pipeline import measure_pipeline, show
    from jobs.benchmark.speed import machine

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its towers do not compute
        clip = _load(options, device, "fp32")
    threads, lanes = torch.get_num_threads(), _pipeline_lanes(options)
    method = pez.PezSettings(tokens=options.tokens, steps=options.steps, vocabulary=options.vocabulary)
    print(
        f"{machine(device)}\n{clip.name}, {lanes} lanes, {threads} decoding threads per shard; {options.images} JPEG photos of"
        f" {options.image_size}x{options.image_size} in shards of {options.shard_size}\n"
    )
    speed = measure_pipeline(
        clip,
        method,
        options.images_per_second,
        options.images,
        lanes,
        threads,
        options.shard_size,
        options.image_size,
    )
    show(speed, _say)
    return {
        "machine": machine(device),
        "model": clip.name,
        "lanes": lanes,
        "threads": threads,
        "shard_size": options.shard_size,
        "image_size": options.image_size,
        **dataclasses.asdict(speed),
        "sustained": speed.sustained,
        "cores": speed.cores,
        "cpu_seconds_per_image": speed.cpu_seconds.total,
    }


def benchmark_costs(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Count the operations of an image; computes nothing."""
    from jobs.benchmark.costs import MODELS, TOKENS, WORDS, count_costs

    settings = pez.PezSettings(steps=options.steps)
    return {"costs": [dataclasses.asdict(one) for one in count_costs(MODELS, TOKENS, settings, WORDS, _say)]}


_MODES: dict[str, Callable[[argparse.Namespace, torch.device], dict[str, Any]]] = {
    "costs": benchmark_costs,
    "curve": benchmark_curve,
    "equal_score": benchmark_equal_score,
    "overhead": benchmark_overhead,
    "pipeline": benchmark_pipeline,
}
"""by the option that chooses them; without one, `benchmark_speed`"""


def _say(line: str) -> None:
    print(line, flush=True)


def _pipeline_lanes(options: argparse.Namespace) -> int:
    return options.lanes[0] if options.lanes else lanes_for("cuda")


def _compiled(options: argparse.Namespace, device: torch.device) -> bool:
    return device.type == "cuda" if options.compiled is None else options.compiled


def _load(options: argparse.Namespace, device: torch.device, precision: Any) -> Clip:
    return pez.load_clip(options.model, options.pretrained, device, precision)


def main(prog: str | None = None) -> None:
    command.end(lambda: run(None, prog))


if __name__ == "__main__":
    main()
