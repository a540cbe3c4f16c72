"""Train the demo text-to-image model: a small latent diffusion model of the scenes, steered by the demo CLIP's text tower.

1. Train an autoencoder: 64x64 pictures to 16x16 latents and back.
2. Encode a set of drawn scenes once.
3. Train a UNet to denoise the latents given a caption's token states. Captions come in sentences and in loose words, some
   with foreign tokens strewn in: people's prompts are no sentences. Of several orders of the same loose words the one that
   the CLIP finds nearest to the image is named. One caption in ten is empty, for classifier-free guidance.

The result is a diffusers `StableDiffusionPipeline`. Sources: latent diffusion, arXiv:2112.10752; v-prediction,
arXiv:2202.00512; zero terminal SNR, arXiv:2305.08891; min-SNR weights, arXiv:2303.09556.
"""

import copy
import dataclasses
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderTiny,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pez.demo import load_demo_clip, scenes
from pez.demo.evaluation import normalise
from pez.demo.scenes import Scene
from pez.demo.training.contrastive import training_precision

LATENT = 16  # latents on a side
CHANNELS = 8  # of a latent


@dataclasses.dataclass(frozen=True)
class GeneratorSettings:
    seed: int = 0
    images: int = 100_000
    """training pictures, drawn and encoded before the UNet's training starts"""
    autoencoder_steps: int = 4000
    autoencoder_batch: int = 32
    autoencoder_rate: float = 2e-3
    steps: int = 6500
    """of the UNet; the last fifth of them with a falling learning rate"""
    batch: int = 64
    learning_rate: float = 8e-4
    unconditional: float = 0.1
    """share of empty captions"""
    average: float = 0.999
    """decay of the running mean of the UNet's weights, which is what is kept"""
    workers: int = 2


def train_generator(settings: GeneratorSettings, folder: Path, log: Callable[[str], None] = print) -> None:
    """Train the demo text-to-image model and save it, half precision, as a diffusers folder.

    Args:
        folder: of the result; a training that was interrupted goes on from `training.pt` in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "training.pt"
    state: dict[str, Any] = torch.load(checkpoint, weights_only=True) if checkpoint.exists() else {}
    tokenizer, text_encoder = text_model(folder / "tokenizer")

    vae = autoencoder()
    if "vae" in state:
        vae.load_state_dict(state["vae"])
    else:
        _train_autoencoder(vae, settings, log)
        state = {"vae": vae.state_dict()}
        torch.save(state, checkpoint)

    def save(training: dict[str, Any], averaged: UNet2DConditionModel) -> None:
        torch.save({**state, **training}, checkpoint)
        _save(folder, tokenizer, text_encoder, averaged, vae)

    _train_denoiser(text_encoder, _encoded_scenes(vae, settings, log), settings, state, save, log)
    checkpoint.unlink()


def autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(0, 1, 2),  # a block at full size would cost as much as all the others
        num_decoder_blocks=(2, 1, 0),
        latent_channels=CHANNELS,
    )


def denoiser() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=64,
        attention_head_dim=4,
    )


def text_model(folder: Path) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """The demo guide's tokenizer and text tower as transformers spells them.

    Args:
        folder: where the tokenizer's two files are written.
    """
    ours = SimpleTokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ours.encoder, ensure_ascii=False, separators=(",", ":")))
    merges = "\n".join(" ".join(pair) for pair in ours.bpe_ranks)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges + "\n")
    tower = load_demo_clip().tower
    special = {"bos_token": "<start_of_text>", "eos_token": "<end_of_text>"}
    tokenizer = CLIPTokenizer(
        vocab=ours.encoder,
        merges=[tuple(pair) for pair in ours.bpe_ranks],
        unk_token="<end_of_text>",
        pad_token="<end_of_text>",
        model_max_length=tower.context_length,
        **special,
    )
    width = tower.token_embedding.embedding_dim
    blocks = tower.transformer.resblocks
    config = CLIPTextConfig(
        vocab_size=tower.token_embedding.num_embeddings,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=len(blocks),
        num_attention_heads=blocks[0].attn.num_heads,
        max_position_embeddings=tower.context_length,
        hidden_act="gelu",
        bos_token_id=ours.sot_token_id,
        eos_token_id=ours.eot_token_id,
        pad_token_id=ours.eot_token_id,
    )
    model = CLIPTextModel(config)
    weights = {
        "embeddings.token_embedding.weight": tower.token_embedding.weight,
        "embeddings.position_embedding.weight": tower.positional_embedding,
        "final_layer_norm.weight": tower.ln_final.weight,
        "final_layer_norm.bias": tower.ln_final.bias,
    }
    for i, block in enumerate(blocks):
        at = f"encoder.layers.{i}."
        for kind in ("weight", "bias"):
            stacked = getattr(block.attn, f"in_proj_{kind}").chunk(3)
            for name, part in zip(("q_proj", "k_proj", "v_proj"), stacked, strict=True):
                weights[f"{at}self_attn.{name}.{kind}"] = part
            for name, module in {
                "self_attn.out_proj": block.attn.out_proj,
                "layer_norm1": block.ln_1,
                "layer_norm2": block.ln_2,
                "mlp.fc1": block.mlp.c_fc,
                "mlp.fc2": block.mlp.c_proj,
            }.items():
                weights[f"{at}{name}.{kind}"] = getattr(module, kind)
    names = model.state_dict().keys()
    prefix = "" if "final_layer_norm.weight" in names else "text_model."
    model.load_state_dict({prefix + name: tensor for name, tensor in weights.items()}, strict=False)
    missing = {n for n in names if "position_ids" not in n} - {prefix + name for name in weights}
    assert not missing, missing
    return tokenizer, model.eval().requires_grad_(False)


def _train_autoencoder(vae: AutoencoderTiny, settings: GeneratorSettings, log: Callable[[str], None]) -> None:
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng([settings.seed, 11])
    vae.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), settings.autoencoder_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.autoencoder_rate, total_steps=settings.autoencoder_steps, pct_start=0.05
    )
    start, total = time.monotonic(), 0.0
    for step in range(1, settings.autoencoder_steps + 1):
        drawn = [scenes.render(scenes.sample_scene(rng, held_out=False)) for _ in range(settings.autoencoder_batch)]
        pixels = normalise(np.stack(drawn))
        with training_precision():
            latents = vae.encode(pixels).latents
            # A UNet's latents are never exact: the decoder learns to bear some noise.
            decoded = vae.decode(latents + 0.1 * torch.randn_like(latents)).sample.float()
        latents = latents.float()
        mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        unit = mean.square().mean() + (deviation - 1).square().mean()  # diffusion wants latents of unit variance
        edges = sum(F.l1_loss(decoded.diff(dim=d), pixels.diff(dim=d)) for d in (2, 3))
        loss = F.l1_loss(decoded, pixels) + F.mse_loss(decoded, pixels) + 0.5 * edges + 0.05 * unit
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 200 == 0:
            rate = step * settings.autoencoder_batch / (time.monotonic() - start)
            log(f"autoencoder {step}/{settings.autoencoder_steps}  loss {total / 200:.4f}  {rate:.0f} images/s")
            total = 0.0
    vae.eval()


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """Training scenes."""

    scenes: list[Scene]
    latents: Tensor
    """(images, CHANNELS, LATENT, LATENT) float16"""
    features: Tensor
    """(images, dim) float32, the guide's unit features of the pictures"""


@torch.no_grad()
def _encoded_scenes(vae: AutoencoderTiny, settings: GeneratorSettings, log: Callable[[str], None]) -> _Encoded:
    rng = np.random.default_rng([settings.seed, 13])
    data = [scenes.sample_scene(rng, held_out=False) for _ in range(settings.images)]
    guide = load_demo_clip().model
    start, latents, features = time.monotonic(), [], []
    with multiprocessing.get_context("spawn").Pool(settings.workers) as pool:
        for drawn in pool.imap(scenes.render_all, [data[i : i + 250] for i in range(0, len(data), 250)]):
            pixels = normalise(drawn)
            with training_precision():
                latents.append(vae.encode(pixels).latents.half())
                features.append(F.normalize(guide.encode_image(pixels).float(), dim=-1))
    log(f"drew and encoded {len(data)} pictures in {time.monotonic() - start:.0f} s")
    return _Encoded(data, torch.cat(latents), torch.cat(features))


def _train_denoiser(
    text_encoder: CLIPTextModel,
    data: _Encoded,
    settings: GeneratorSettings,
    state: dict[str, Any],
    save: Callable[[dict[str, Any], UNet2DConditionModel], None],
    log: Callable[[str], None],
) -> None:
    torch.manual_seed(settings.seed + 1)
    unet = denoiser().train().to(memory_format=torch.channels_last)
    averaged = copy.deepcopy(unet).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    first = 0
    if "unet" in state:
        first = state["step"]
        for part, name in ((unet, "unet"), (averaged, "averaged"), (optimizer, "optimizer")):
            part.load_state_dict(state[name])
    noising = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                            prediction_type="v_prediction", rescale_betas_zero_snr=True)  # fmt: skip
    write = PromptWriter()
    rng = np.random.default_rng([settings.seed, 17, first])
    start, total = time.monotonic(), 0.0
    for step in range(first + 1, settings.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(
                1.0, step / 200, (settings.steps - step + 1) / settings.steps * 5
            )
        index = rng.integers(0, len(data.scenes), settings.batch)
        captions = write([data.scenes[i] for i in index], data.features[index], rng, settings.unconditional)
        clean = data.latents[index].float().contiguous(memory_format=torch.channels_last)
        noise, times = torch.randn_like(clean), torch.randint(0, 1000, (len(index),))
        noisy, goal = noising.add_noise(clean, noise, times), noising.get_velocity(clean, noise, times)
        with training_precision():
            states = text_encoder(captions).last_hidden_state
            predicted = unet(noisy, times, states).sample.float()
        alphas = noising.alphas_cumprod[times]
        ratio = alphas / (1 - alphas)
        weight = ratio.clamp(max=5.0) / (ratio + 1)
        weight = torch.where(ratio < 1, torch.ones_like(weight), weight)  # the noisiest steps decide the layout
        loss = ((predicted - goal).square().mean((1, 2, 3)) * weight).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(settings.average, (1 + step) / (10 + step))
            for mean, value in zip(averaged.parameters(), unet.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        total += loss.item()
        if step % 100 == 0:
            rate = (step - first) * settings.batch / (time.monotonic() - start)
            log(f"unet {step}/{settings.steps}  loss {total / 100:.4f}  {rate:.0f} images/s")
            total = 0.0
        if step % 500 == 0 or step == settings.steps:
            parts = {"unet": unet, "averaged": averaged, "optimizer": optimizer}
            save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, averaged)


class PromptWriter:
    """Scenes to the token ids of what somebody might say of them."""

    def __init__(self) -> None:
        clip = load_demo_clip()
        self.model, self.tokenizer = clip.model, SimpleTokenizer(context_length=clip.context_length)
        self.tokens = {word: self.tokenizer.encode(word) for word in scenes.caption_words()}
        self.attributes = {word for values in scenes.VALUES.values() for value in values for word in value.split()}
        self.names = list(self.tokens)

    @torch.no_grad()
    def __call__(self, shown: list[Scene], features: Tensor, rng: np.random.Generator, unconditional: float) -> Tensor:
        """(scenes, 32) int64 ids, padded with the end token as transformers does.

        Args:
            features: (scenes, dim) the guide's features of the pictures.
        """
        rows = np.full((len(shown), self.tokenizer.context_length), self.tokenizer.eot_token_id, np.int64)
        rows[:, 0] = self.tokenizer.sot_token_id
        loose: list[tuple[int, list[str]]] = []
        for i, scene in enumerate(shown):
            kind = rng.random()
            if kind > 0.6:
                loose += [(i, words) for words in self._orders(scene, rng)]
            elif kind > unconditional:
                self._write(rows[i], scenes.caption(scene, rng).split(), rng)
        if loose:
            tried = np.zeros((len(loose), rows.shape[1]), np.int64)  # padded as open_clip does
            for row, (_, words) in zip(tried, loose, strict=True):
                ids = self._ids(words)
                row[: len(ids) + 2] = [self.tokenizer.sot_token_id, *ids, self.tokenizer.eot_token_id]
            near = self.model.encode_text(torch.from_numpy(tried), normalize=True)
            similarity = (near * features[[i for i, _ in loose]]).sum(-1).tolist()
            best: dict[int, tuple[float, list[str]]] = {}
            for (i, words), value in zip(loose, similarity, strict=True):
                best[i] = max(best.get(i, (-2.0, [])), (value, words))
            for i, (_, words) in best.items():
                self._write(rows[i], words, rng)
        return torch.from_numpy(rows)

    def _orders(self, scene: Scene, rng: np.random.Generator, count: int = 6) -> list[list[str]]:
        """Loose words about a scene in some orders: most of its attributes, some words twice, some that say nothing."""
        words = [word for name in scenes.VALUES for word in getattr(scene, name).split() if rng.random() < 0.9] or [
            scene.shape
        ]
        for _ in range(rng.integers(0, 4)):
            word = words[rng.integers(len(words))] if rng.random() < 0.4 else self.names[rng.integers(len(self.names))]
            # A wrong name of an attribute would only teach to disregard names.
            if word in words or word not in self.attributes:
                words.append(word)
        return [list(rng.permutation(words)) for _ in range(count)]

    def _ids(self, words: list[str]) -> list[int]:
        return [token for word in words for token in self.tokens[word]][: self.tokenizer.context_length - 2]

    def _write(self, row: np.ndarray, words: list[str], rng: np.random.Generator) -> None:
        """Fill a row with words, in one case of five with one to three foreign tokens strewn in."""
        ids = self._ids(words)
        if rng.random() < 0.2:
            for token in rng.integers(0, self.tokenizer.sot_token_id, rng.integers(1, 4)):
                ids.insert(rng.integers(len(ids) + 1), int(token))
        ids = ids[: len(row) - 2]
        row[1 : len(ids) + 1] = ids


def _save(
    folder: Path, tokenizer: Any, text_encoder: CLIPTextModel, unet: UNet2DConditionModel, vae: AutoencoderTiny
) -> None:
    scheduler = DPMSolverMultistepScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                                            prediction_type="v_prediction", rescale_betas_zero_snr=True,
                                            timestep_spacing="trailing", steps_offset=1)  # fmt: skip
    parts = {"text_encoder": text_encoder, "unet": unet, "vae": vae}
    halves = {name: copy.deepcopy(part).half() for name, part in parts.items()}
    StableDiffusionPipeline(
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **halves,
    ).save_pretrained(folder)
