"""What cannot paint is said before any work, in one line; what people have as a model loads."""

import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_generators import (
    as_one_file,
    cached,
    configurations,
    linked,
    rename_weights,
    rewrite,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)

from pez.demo import GENERATOR, GUIDE
from pez.generators.files import check_generator, find_generator
from pez.models.quiet import quiet
from pez.regeneration import load_generator


def pixels(name: object, **options: Any) -> list[bytes]:
    generator = load_generator(str(name), **{"steps": 2, **options})
    return [picture.tobytes() for picture in generator.images(["a red square", "moon"], [0, 1]) if picture is not None]


def refused(name: object, message: str, **options: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_generator(str(name), **options)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a small Stable Diffusion."""
    return stable_diffusion(tmp_path_factory.mktemp("small") / "sd")


@pytest.fixture(scope="session")
def painted(small: Path) -> list[bytes]:
    """What it paints."""
    return pixels(small)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "StableDiffusionImg2ImgPipeline"}, "is a StableDiffusionImg2ImgPipeline; expected a text-to"),
        ({"_class_name": "StableDiffusionControlNetPipeline"}, "expected a text-to-image model"),
        ({"_class_name": "TextToVideoSDPipeline"}, "is a TextToVideoSDPipeline; expected a text-to-image model"),
        ({"_class_name": "HeliosPipeline"}, "is a HeliosPipeline; expected a text-to-image model"),  # of films
        ({"_class_name": None}, "names no pipeline; expected a text-to-image model"),
        ({"_class_name": ["pipeline", "MyPipeline"]}, "names a pipeline with custom code, .*never run"),
        ({"_class_name": {"a": 1}}, "expected a text-to-image model"),
        (
            {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]},
            r"which dpm\+\+ cannot replace; expected scheduler model",
        ),
        (
            {"scheduler": ["elsewhere", "OwnScheduler"]},
            "expected diffusers or transformers: code from elsewhere is never run",
        ),
        ({"unet": ["my_unet", "UNet"]}, "says unet is .'my_unet', 'UNet'.; expected diffusers or transformers"),
        ({"unet": ["transformers", "UNet2DConditionModel"]}, "this version of transformers has no such class"),
        ({"unet": ["diffusers", "utils"]}, "this version of diffusers has no such class"),
        ({"unet": ["diffusers"]}, "expected a library and a class"),
        ({"unet": "UNet2DConditionModel"}, "says unet is 'UNet2DConditionModel'; expected a library and a class"),
        ({"unet": None}, "is a StableDiffusionPipeline without a unet; expected a complete pipeline"),
        ({"vae": [None, None]}, "without a vae; expected a complete pipeline"),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "no text_encoder_2 in .*: copy the whole folder"),
    ],
)
def test_an_index_that_cannot_paint_says_why(tmp_path: Path, index: dict[str, Any], message: str) -> None:
    folder = linked(tmp_path / "model", **index)
    if index.get("_class_name", "") is None:
        index = json.loads((folder / "model_index.json").read_text())
        assert "_class_name" not in index
    refused(folder, message)


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[: len(data) // 2])


def without_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: rewrite(f / "scheduler" / "scheduler_config.json", "{"), "cannot load the scheduler of .*model'"),
        (lambda f: rewrite(f / "unet" / "config.json", "[1]"), "cannot load the unet of .*model'"),
        (lambda f: rewrite(f / "unet" / "config.json", {"block_out_channels": "many"}), "cannot load the unet of"),
        (lambda f: (f / "vae" / "config.json").unlink(), "cannot load the vae of .*: no config.json in"),
        (lambda f: rewrite(f / "text_encoder" / "config.json", ""), "cannot load the text_encoder of .*model'"),
        (lambda f: rewrite(f / "tokenizer" / "vocab.json", "{"), "cannot load the tokenizer of .*model'"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "no tokenizer in .*, but its model_index.json lists one: copy the whole"),
        (without_weights, "no weights in unet/ of .*; expected a diffusion_pytorch_model.safetensors or"),
        (
            lambda f: rewrite(f / "unet" / "diffusion_pytorch_model.safetensors", "version https://git-lfs.github.com/spec/v1\n"),
            "unet/diffusion_pytorch_model.safetensors of .*model' is a git-lfs pointer, .*: run git lfs pull",
        ),
        (lambda f: cut(f / "vae" / "diffusion_pytorch_model.safetensors"), "vae/.* is truncated: it has .* of .* bytes"),
        (lambda f: rewrite(f / "text_encoder" / "model.safetensors", "junk " * 99), "is not safetensors, or is damaged"),
    ],
)  # fmt: skip
def test_a_folder_that_is_not_whole_says_what_is_wrong(
    tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = linked(tmp_path / "model")
    spoil(folder)
    refused(folder, message)


def test_weights_in_pieces_must_all_be_there(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "model"))
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    pieces = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(pieces) > 1
    assert find_generator(str(folder)).variant is None
    pieces[-1].unlink()
    refused(folder, f"no unet/{pieces[-1].name} in .*, but its index lists it: copy the whole model")


def replaced(file: Path, change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> None:
    tensors = dict(change(name, value) for name, value in load_file(file).items())
    file.unlink()
    save_file(tensors, file)


def test_weights_of_another_model_are_found_out_before_they_are_loaded(tmp_path: Path) -> None:
    folder = linked(tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    replaced(weights, lambda name, value: (name, value[..., :1].contiguous()))
    refused(folder, r"unet/.* has conv_in.bias of shape \(1,\); its config.json expects \(48,\)")
    replaced(weights, lambda name, value: (f"other.{name}", value))
    refused(folder, "unet/.* has other.conv_in.bias; expected weights such as conv_in.bias")


def test_weights_that_do_not_load_are_an_error_in_one_line(tmp_path: Path) -> None:
    folder = linked(tmp_path / "model")
    weights = folder / "text_encoder" / "model.safetensors"
    replaced(weights, lambda name, value: (name, value[:1].contiguous()))
    check_generator(str(folder))
    with pytest.raises(ValueError, match="cannot load the generator .*model'") as error:
        load_generator(str(folder))
    assert "\n" not in str(error.value)


def test_a_model_may_keep_a_scheduler_that_is_not_exchangeable(tmp_path: Path) -> None:
    folder = stable_diffusion_3(tmp_path / "sd3")
    refused(folder, r"FlowMatchEulerDiscreteScheduler, which dpm\+\+ cannot replace; expected scheduler model")
    check_generator(str(folder), "model")
    assert len(set(pixels(folder, scheduler="model"))) == 2


def test_a_model_of_two_text_encoders_paints_without_a_watermark(tmp_path: Path) -> None:
    folder = stable_diffusion_xl(tmp_path / "xl")
    check_generator(str(folder))
    generator = load_generator(str(folder), steps=1)
    assert generator.pipeline.watermark is None
    assert len({picture.tobytes() for picture in generator.images(["a", "b"], [0, 1]) if picture}) == 2


def test_guidance_of_a_model_that_knows_none_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(self: Any, prompt: Any = None, num_inference_steps: int = 1, generator: Any = None, output_type: str = "np",
             _own: Any = diffusers.StableDiffusionPipeline.__call__) -> Any:  # fmt: skip
        return _own(self, prompt, num_inference_steps=num_inference_steps, generator=generator, guidance_scale=0.0,
                    output_type=output_type)  # fmt: skip

    guided = pixels(small, guidance=0.0)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "__call__", call)
    refused(small, "is a StableDiffusionPipeline, which takes no guidance; expected guidance 0")
    check_generator(str(small), guidance=0)
    assert pixels(small, guidance=0.0) == guided


def test_a_folder_of_one_variant_alone_loads(small: Path, painted: list[bytes], tmp_path: Path) -> None:
    folder = rename_weights(Path(shutil.copytree(small, tmp_path / "a")), "fp16", "unet", "vae", "text_encoder")
    check_generator(str(folder))
    assert find_generator(str(folder)).variant == "fp16"
    assert pixels(folder) == painted == pixels(folder, variant="fp16")
    refused(folder, "has no variant 'bf16' of its weights; expected fp16", variant="bf16")


def test_a_folder_of_one_variant_for_some_parts_loads(small: Path, painted: list[bytes], tmp_path: Path) -> None:
    folder = rename_weights(Path(shutil.copytree(small, tmp_path / "a")), "ema", "unet")
    assert find_generator(str(folder)).variant == "ema"
    assert pixels(folder) == painted


def test_of_several_variants_the_plain_weights_are_taken_unless_one_is_named(
    small: Path, painted: list[bytes], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "a"))
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    for variant in ("ema", "other"):
        with torch.no_grad():
            unet.conv_out.bias += 1
        unet.save_pretrained(folder / "unet", variant=variant)
    assert find_generator(str(folder)).variant is None
    assert pixels(folder) == painted != pixels(folder, variant="ema")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused(folder, "has only variants of its weights; choose one: ema or other")


def test_what_is_no_folder_of_a_model_says_so(tmp_path: Path, small: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model_index.json").write_text("{")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "model_index.json").write_text("[]")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"x")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "b.safetensors").write_bytes(b"x")
    for name, message in {
        f"{tmp_path}": "no pipeline in .*; expected a diffusers folder with a model_index.json",
        f"{tmp_path}/gone": "no folder or file .*; expected demo, a hub id",
        f"{tmp_path}/broken": "cannot read the model_index.json",
        f"{tmp_path}/list": "the model_index.json of .* is a list; expected an object",
        f"{tmp_path}/lora": "no pipeline in .*, but a LoRA, which only modifies another model; expected a diff",
        f"{tmp_path}/files": "no pipeline in .*, but b.safetensors, which you can pass directly",
        f"{small}/unet": "no pipeline in .*, but a single model with a config.json",
        f"{GUIDE}": "no pipeline in .*, but a CLIP of open_clip",
        "demos": "no folder or file 'demos'; expected demo, a hub id",
        "a/b/c.safetensors": "no folder or file 'a/b/c.safetensors'",
        "https://huggingface.co/a/b": "no folder or file 'https://",
        "": "the generator's name is ''; expected demo, ORG/MODEL, a folder or a .safetensors file",
        " ": "the generator's name is ' '",
    }.items():
        refused(name, message)


def test_a_checkpoint_of_one_file_paints_what_its_folder_paints(
    small: Path, painted: list[bytes], tmp_path: Path
) -> None:
    file = as_one_file(small, tmp_path / "model.safetensors")
    configurations(small, tmp_path / "model")  # beside it, by its name
    check_generator(str(file))
    assert pixels(file) == painted
    refused(file, "is a single file, which has no variants", variant="fp16")
    inside = shutil.move(file, tmp_path / "model" / "v1-5.safetensors")  # or where it lies, as on the hub
    assert pixels(inside) == painted


def test_a_checkpoint_of_one_file_takes_its_configurations_from_the_cache(
    small: Path, painted: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = as_one_file(small, tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    refused(
        file,
        "needs the configurations of stable-diffusion-v1-5/stable-diffusion-v1-5, which are neither in the cache nor .*; "
        "connect to the network, or put .* into a folder model/ next to it",
    )
    bare = configurations(small, tmp_path / "bare")
    cached(tmp_path / "cache", "stable-diffusion-v1-5/stable-diffusion-v1-5", bare)
    check_generator(str(file))
    assert pixels(file) == painted


def test_a_file_that_is_no_whole_model_says_what_it_is(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    whole = load_file(as_one_file(small, tmp_path / "whole.safetensors"))
    unet = {name: value for name, value in whole.items() if name.startswith("model.")}
    for tensors, message in (
        ({"lora_unet_down.lora_up.weight": torch.ones(1)}, "is a LoRA, which only modifies another model"),
        ({"base_model.model.a.lora_A.weight": torch.ones(1)}, "is a LoRA, which only modifies another model"),
        (unet, "has no text encoder and no VAE .it has model.diffusion_model"),
        ({"visual.proj": torch.ones(1)}, "has no denoiser and no text encoder and no VAE .it has visual.proj"),
        ({}, "it has nothing"),
    ):
        save_file(tensors, file)
        refused(file, message)
    cut(tmp_path / "whole.safetensors")
    refused(tmp_path / "whole.safetensors", "is truncated: it has")
    for data, message in (
        (b"", "is not safetensors, or is damaged"),
        (b"\xff" * 99, "is not safetensors, or is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer, not the file itself: run git lfs pull"),
    ):  # fmt: skip
        file.write_bytes(data)
        refused(file, message)
    for extension in ("ckpt", "pt", "CKPT", "bin"):
        torch.save(whole, tmp_path / f"model.{extension}")
        refused(
            tmp_path / f"model.{extension}", "is a pickle, which may run code, .*; expected .safetensors: convert it"
        )
    (tmp_path / "model.gguf").write_bytes(b"GGUF" * 99)
    refused(tmp_path / "model.gguf", "is not a .safetensors file; expected a hub id, a folder in diffusers format")


def test_configurations_of_another_model_beside_a_checkpoint_are_an_error_in_one_line(
    small: Path, tmp_path: Path
) -> None:
    file = as_one_file(small, tmp_path / "model.safetensors")
    configurations(GENERATOR, tmp_path / "model")
    with pytest.raises(ValueError, match="cannot load the generator .*model.safetensors'") as error:
        load_generator(str(file))
    assert "\n" not in str(error.value)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub, of which nobody is asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_hub_model_in_the_cache_needs_no_network(
    cache: Path, small: Path, painted: list[bytes], tmp_path: Path
) -> None:
    cached(cache, "somebody/sd", small)
    check_generator("somebody/sd")
    assert pixels("somebody/sd") == painted
    half = rename_weights(Path(shutil.copytree(small, tmp_path / "half")), "fp16", "unet", "vae", "text_encoder")
    cached(cache, "somebody/half", half)
    assert pixels("somebody/half") == painted


def test_a_hub_model_that_is_in_the_cache_in_part_says_so(cache: Path, small: Path, tmp_path: Path) -> None:
    cached(cache, "somebody/bare", configurations(small, tmp_path / "bare"))
    refused("somebody/bare", "no weights in .*/ of 'somebody/bare'; expected a diffusion_pytorch_model.safetensors")


def test_loading_leaves_the_words_and_bars_of_other_threads_alone(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loads that overlap, the first to begin ending first."""
    libraries = {"diffusers": diffusers, "transformers": transformers}
    before = logging.root.manager.disable, {name: of.utils.logging.get_verbosity() for name, of in libraries.items()}
    begun, ended = threading.Barrier(2, timeout=60), threading.Event()
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    def first() -> None:
        with quiet():
            begun.wait()
            logging.getLogger("diffusers.pipelines").warning("of the first")
        ended.set()

    listener = Listener()
    logging.getLogger("diffusers").addHandler(listener)
    thread = threading.Thread(target=first)
    thread.start()
    try:
        with quiet():
            begun.wait()
            assert ended.wait(60)
            assert not diffusers.utils.logging.is_progress_bar_enabled()
            other = threading.Thread(target=logging.getLogger("diffusers.models").warning, args=("of a third",))
            other.start()
            other.join()
            logging.getLogger("diffusers.models").error("of the second")
            load_generator(str(small))
    finally:
        thread.join()
        logging.getLogger("diffusers").removeHandler(listener)
    assert heard == ["of a third"]
    assert diffusers.utils.logging.is_progress_bar_enabled()
    assert transformers.utils.logging.is_progress_bar_enabled()
    after = logging.root.manager.disable, {name: of.utils.logging.get_verbosity() for name, of in libraries.items()}
    assert after == before
    assert "it/s" not in capsys.readouterr().err


def test_a_hub_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no such model in the cache, and the hub does not answer"):
        check_generator("nobody/no-such-model")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that holds nobody/files, without a pipeline, and nothing else."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if "nobody/files" in self.path else "RepoNotFound")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody/no-such-model", "no model 'nobody/no-such-model' on the hub, and no such folder"),
        ("nobody/files", "no model_index.json in 'nobody/files'; expected a model in diffusers format"),
        ("no body/files", "no model 'no body/files' on the hub"),
    ],
)
def test_a_wrong_name_on_the_hub_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_generator(name)
    assert "\n" not in str(error.value)


def test_without_diffusers_it_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r"no diffusers .*; install it with pip install -e '\.\[verify\]'"):
        check_generator("demo")
