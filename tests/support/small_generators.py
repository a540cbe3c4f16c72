"""Text-to-image models with random weights, small and whole, in the formats that people have them in."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pez.demo import GENERATOR

_BLOCKS = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}


def linked(folder: Path, **index: Any) -> Path:
    """The demo's generator in a folder of its own, with other words in its index; None takes one away."""
    shutil.copytree(GENERATOR, folder, copy_function=os.link)
    words = json.loads((folder / "model_index.json").read_text()) | index
    rewrite(folder / "model_index.json", {name: word for name, word in words.items() if word is not None})
    return folder


def rewrite(file: Path, words: Any) -> None:
    """Put another file in the place of a link."""
    file.unlink(missing_ok=True)
    file.write_text(words if isinstance(words, str) else json.dumps(words))


def rename_weights(folder: Path, variant: str, *parts: str) -> Path:
    """Let parts have a variant of their weights only."""
    for part in parts:
        [file] = (folder / part).glob("*.safetensors")
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))
    return folder


def text_encoder(kind: Any = CLIPTextModel, width: int = 16) -> Any:
    return kind(
        CLIPTextConfig(
            hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=77, projection_dim=width, vocab_size=49408, eos_token_id=49407,
        )
    ).eval()  # fmt: skip


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(GENERATOR / "tokenizer", model_max_length=77)


def unet(**changes: Any) -> diffusers.UNet2DConditionModel:
    options = {
        **_BLOCKS,
        "sample_size": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
    }
    return diffusers.UNet2DConditionModel(**(options | changes)).eval()


def vae(**changes: Any) -> diffusers.AutoencoderKL:
    options = {
        **_BLOCKS,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
    }
    return diffusers.AutoencoderKL(**(options | changes)).eval()


def stable_diffusion(folder: Path) -> Path:
    """As SD 1.5, smaller."""
    torch.manual_seed(0)
    diffusers.StableDiffusionPipeline(
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        unet=unet(),
        vae=vae(),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """Two text encoders, and sizes in the time embedding."""
    torch.manual_seed(0)
    diffusers.StableDiffusionXLPipeline(
        text_encoder=text_encoder(),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(),
        unet=unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + 16,
        ),
        vae=vae(),
        scheduler=diffusers.EulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def stable_diffusion_3(folder: Path) -> Path:
    """A transformer, flow matching, and no T5, as many people keep it."""
    torch.manual_seed(0)
    diffusers.StableDiffusion3Pipeline(
        text_encoder=text_encoder(CLIPTextModelWithProjection),
        tokenizer=tokenizer(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection),
        tokenizer_2=tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8, num_layers=1, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=32,
            caption_projection_dim=16, pooled_projection_dim=32, in_channels=4, out_channels=4, pos_embed_max_size=8,
        ).eval(),
        vae=vae(shift_factor=0.0),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def configurations(folder: Path, target: Path) -> Path:
    """A model's folder without its weights."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors")))


def cached(cache: Path, name: str, folder: Path) -> None:
    """Put a folder into a hub's cache, as if it had been downloaded."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, model / "snapshots" / ("0" * 40))


def as_one_file(folder: Path, file: Path) -> Path:
    """A Stable Diffusion of one block's depth as a single file, with the names that its first authors' code gave.

    Names: https://github.com/CompVis/latent-diffusion, ldm/modules/diffusionmodules.
    """
    made: dict[str, Tensor] = {}
    for name, value in load_file(next((folder / "unet").glob("*.safetensors"))).items():
        made[f"model.diffusion_model.{_unet_name(name)}"] = value
    for name, value in load_file(next((folder / "vae").glob("*.safetensors"))).items():
        flat = ".attentions." in name and value.ndim == 2
        made[f"first_stage_model.{_vae_name(name)}"] = value[..., None, None] if flat else value
    for name, value in load_file(next((folder / "text_encoder").glob("*.safetensors"))).items():
        made[f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}"] = value
    save_file({name: value.contiguous() for name, value in made.items()}, file)
    return file


_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip


def _unet_name(name: str) -> str:
    words = name.split(".")
    match words:
        case ["time_embedding", layer, end]:
            return f"time_embed.{0 if layer == 'linear_1' else 2}.{end}"
        case ["conv_in", end]:
            return f"input_blocks.0.0.{end}"
        case ["conv_norm_out", end]:
            return f"out.0.{end}"
        case ["conv_out", end]:
            return f"out.2.{end}"
        case ["mid_block", "resnets", i, part, end]:
            return f"middle_block.{2 * int(i)}.{_RESNET[part]}.{end}"
        case ["mid_block", "attentions", _, *rest]:
            return f"middle_block.1.{'.'.join(rest)}"
        case ["down_blocks", i, "resnets", j, part, end]:
            return f"input_blocks.{1 + 2 * int(i) + int(j)}.0.{_RESNET[part]}.{end}"
        case ["down_blocks", i, "attentions", j, *rest]:
            return f"input_blocks.{1 + 2 * int(i) + int(j)}.1.{'.'.join(rest)}"
        case ["down_blocks", i, "downsamplers", _, _, end]:
            return f"input_blocks.{2 * (int(i) + 1)}.0.op.{end}"
        case ["up_blocks", i, "resnets", j, part, end]:
            return f"output_blocks.{2 * int(i) + int(j)}.0.{_RESNET[part]}.{end}"
        case ["up_blocks", i, "attentions", j, *rest]:
            return f"output_blocks.{2 * int(i) + int(j)}.1.{'.'.join(rest)}"
        case ["up_blocks", i, "upsamplers", _, _, end]:  # behind a resnet without attention
            return f"output_blocks.{2 * int(i) + 1}.1.conv.{end}"
    raise AssertionError(name)


_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}


def _vae_name(name: str) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    match name.split("."):
        case [side, "mid_block", "resnets", i, *rest]:
            return f"{side}.mid.block_{int(i) + 1}.{'.'.join(rest)}"
        case [side, "mid_block", "attentions", _, part, *rest]:
            return f"{side}.mid.attn_1.{_ATTENTION[part]}.{rest[-1]}"
        case ["encoder", "down_blocks", i, "resnets", j, *rest]:
            return f"encoder.down.{i}.block.{j}.{'.'.join(rest)}"
        case ["encoder", "down_blocks", i, "downsamplers", _, *rest]:
            return f"encoder.down.{i}.downsample.{'.'.join(rest)}"
        case ["decoder", "up_blocks", i, "resnets", j, *rest]:
            return f"decoder.up.{1 - int(i)}.block.{j}.{'.'.join(rest)}"
        case ["decoder", "up_blocks", i, "upsamplers", _, *rest]:
            return f"decoder.up.{1 - int(i)}.upsample.{'.'.join(rest)}"
    return name
