"""Train a CLIP on symbols: 1,600 concepts with names and keywords. The demo's scenes have only 61 words.

The symbols measure what the scenes cannot: whether prompts from a wide vocabulary are good under a judge. They are not part
of this project, but emoji of four vendors, from npm packages:

    npm install --prefix symbols emoji-datasource-google emoji-datasource-twitter \\
        @lobehub/fluent-emoji-3d @lobehub/fluent-emoji-flat emojibase-data
    pip install resvg_py

For every fifth concept, the image of one vendor is held out; these images are the test set.

Source: CLIP, arXiv:2103.00020.
"""

import dataclasses
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from torch import Tensor, nn

from pez.demo.evaluation import normalise
from pez.demo.training.contrastive import activate_residual_blocks, contrastive_loss, optimize, training_precision
from pez.errors import UserError

SIZE = 64
_VENDORS = {
    "google": ("emoji-datasource-google/img/google/64", ".png", ("soft", "shaded", "cartoon")),
    "twitter": ("emoji-datasource-twitter/img/twitter/64", ".png", ("flat", "simple", "graphic")),
    "fluent-3d": ("@lobehub/fluent-emoji-3d/assets", ".webp", ("glossy", "3d", "render")),
    "fluent-flat": ("@lobehub/fluent-emoji-flat/assets", ".svg", ("clean", "vector", "illustration")),
}
"""folder, extension and style words of each vendor"""
_COLORS = {
    "white": (245, 245, 245), "black": (20, 20, 20), "gray": (128, 128, 128), "red": (200, 40, 40),
    "orange": (240, 140, 30), "yellow": (240, 215, 60), "green": (50, 150, 60), "blue": (40, 80, 200),
    "purple": (130, 60, 170), "pink": (245, 160, 190), "brown": (120, 75, 40), "cyan": (60, 200, 210),
}  # fmt: skip
_LEFT_OUT = (None, 9)  # groups of emoji: components, and flags, whose names are not words
_LENGTHS = 3  # groups of texts by length
_LEAST_VENDORS = 3  # concepts with images of fewer vendors are skipped


@dataclasses.dataclass(frozen=True)
class SymbolSettings:
    """Settings for training."""

    seed: int = 0
    steps: int = 1800
    batch: int = 192
    """images per step, of different concepts"""
    learning_rate: float = 1.5e-3
    image_size: int = SIZE
    """pixels; the symbols are drawn from images of 64"""
    image_width: int = 24
    """of the image tower, a ResNet of [2, 2, 2, 2] blocks"""
    text_width: int = 128
    noise: float = 0.25
    """share of captions with one to four random tokens inserted, from the whole vocabulary"""

    def model_config(self) -> dict[str, Any]:
        """The architecture, as an open_clip configuration."""
        return {
            "embed_dim": 128,
            "vision_cfg": {
                "image_size": self.image_size,
                "layers": [2, 2, 2, 2],
                "width": self.image_width,
                "head_width": 64,
            },
            "text_cfg": {
                "context_length": 32,
                "vocab_size": 49408,
                "width": self.text_width,
                "heads": 4,
                "layers": 4,
            },
        }


@dataclasses.dataclass(frozen=True)
class Symbols:
    """Images with their concepts."""

    images: Tensor
    """(n, 4, 64, 64) float, red, green, blue times alpha, and alpha, 0 to 1"""
    concept: np.ndarray
    """(n,) concept of each image"""
    vendor: np.ndarray
    """(n,) vendor of each image"""
    held_out: np.ndarray
    """(n,) bool, images of the test set"""
    names: list[str]
    """name of each concept"""
    keywords: list[list[str]]
    """keywords of each concept"""

    def caption(self, image: int, background: str, rng: np.random.Generator) -> str:
        """A random caption: the name or keywords, and perhaps style and background."""
        concept = self.concept[image]
        keywords = self.keywords[concept]
        chosen = [str(word) for word in rng.permutation(keywords)[: rng.integers(0, 4)]] if keywords else []
        words = [] if chosen and rng.random() < 0.2 else [self.names[concept]]
        words += chosen
        rng.shuffle(words)
        style = list(_VENDORS.values())[self.vendor[image]][2]
        if rng.random() < 0.5:
            words.insert(0, str(rng.choice(style)))
        if rng.random() < 0.5:
            words.append(f"on {background}" if rng.random() < 0.5 else background)
        return (", " if rng.random() < 0.3 else " ").join(words)

    def full_caption(self, image: int, background: str) -> str:
        """The caption of a test image: style, name and background."""
        style = list(_VENDORS.values())[self.vendor[image]][2][0]
        return f"{style} {self.names[self.concept[image]]} on {background}"


def load_symbols(folder: Path) -> Symbols:
    """Read the images of all vendors.

    Args:
        folder: where npm installed the packages.

    Raises:
        UserError: a package is missing.
    """
    modules = folder / "node_modules" if (folder / "node_modules").is_dir() else folder
    for package in ("emojibase-data/en/data.json", *(path for path, _, _ in _VENDORS.values())):
        if not (modules / package).exists():
            raise UserError(f"{modules} has no {package}; install the packages listed in {__name__}")
    images, concept, vendor = [], [], []
    names: list[str] = []
    keywords: list[list[str]] = []
    for entry in json.loads((modules / "emojibase-data/en/data.json").read_text()):
        found = []
        for i, (path, extension, _) in enumerate(_VENDORS.values()):
            code = entry["hexcode"].lower()
            files = [
                modules / path / f"{each}{extension}" for each in (code, code.replace("-fe0f", ""), f"{code}-fe0f")
            ]
            if file := next((f for f in files if f.is_file()), None):
                found.append((i, file))
        if len(found) < _LEAST_VENDORS or entry.get("group") in _LEFT_OUT:
            continue
        for i, file in found:
            images.append(_read(file))
            vendor.append(i)
            concept.append(len(names))
        names.append(entry["label"].replace(":", "").lower())
        own = set(names[-1].split())
        keywords.append([tag.lower() for tag in entry.get("tags", []) if tag.lower() not in own])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    pixels[:, :3] *= pixels[:, 3:]
    concepts, vendors = np.array(concept), np.array(vendor)
    held_out = (concepts % 5 == 0) & (vendors == concepts // 5 % len(_VENDORS))
    return Symbols(pixels, concepts, vendors, held_out, names, keywords)


def unseen_images(symbols: Symbols, count: int, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Held-out images with captions; the same for the same seed."""
    rng = np.random.default_rng([seed, 11])
    chosen = rng.permutation(np.flatnonzero(symbols.held_out))[:count]
    backgrounds = [str(rng.choice(list(_COLORS))) for _ in chosen]
    drawn = _on_backgrounds(symbols.images[chosen], backgrounds, rng, jitter=0.0)
    pixels = (drawn * 255).round().byte().permute(0, 2, 3, 1).numpy()
    captions = [symbols.full_caption(i, color) for i, color in zip(chosen, backgrounds, strict=True)]
    return [(Image.fromarray(image), caption) for image, caption in zip(pixels, captions, strict=True)]


def write_unseen(symbols: Symbols, file: Path) -> None:
    """Write the unseen images with their captions as a shard, in the order of `unseen_images`."""
    with tarfile.open(file, "w") as shard:
        for i, (image, caption) in enumerate(unseen_images(symbols, int(symbols.held_out.sum()))):
            png = io.BytesIO()
            image.save(png, "PNG")
            for extension, content in (("png", png.getvalue()), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{i:05d}.{extension}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def train_symbol_clip(settings: SymbolSettings, symbols: Symbols, log: Callable[[str], None] = print) -> nn.Module:
    """Train a CLIP from scratch.

    Returns:
        open_clip.CLIP in float32 and eval mode, with the architecture of `settings.model_config()`.
    """
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng([settings.seed, 5])
    model = open_clip.CLIP(**settings.model_config()).to(memory_format=torch.channels_last)
    activate_residual_blocks(model.visual)
    tokenizer = SimpleTokenizer(context_length=32)
    seen = [np.flatnonzero((symbols.concept == c) & ~symbols.held_out) for c in range(len(symbols.names))]

    def losses() -> Iterator[Tensor]:
        for _ in range(settings.steps):
            chosen = np.array([rng.choice(seen[c]) for c in rng.permutation(len(seen))[: settings.batch]])
            backgrounds = [str(rng.choice(list(_COLORS))) for _ in chosen]
            texts = [
                _tokens(symbols.caption(i, color, rng), tokenizer, settings.noise, rng)
                for i, color in zip(chosen, backgrounds, strict=True)
            ]
            drawn = _on_backgrounds(symbols.images[chosen], backgrounds, rng, jitter=1.0, size=settings.image_size)
            images = (drawn * 2 - 1).contiguous(memory_format=torch.channels_last)
            with training_precision():
                image_features = model.encode_image(images).float()
                text_features = _encode_text(model, texts).float()
            yield contrastive_loss(image_features, text_features, model.logit_scale)

    def report(step: int, loss: float, rate: float) -> None:
        log(f"{step}/{settings.steps}  loss {loss:.3f}  {rate * settings.batch:.0f} images/s")

    model.train()
    optimize(losses(), list(model.parameters()), settings.steps, settings.learning_rate, 0.05, report)
    trained: nn.Module = model.eval()
    return trained


@torch.no_grad()
def evaluate_symbol_clip(model: Any, symbols: Symbols) -> dict[str, float]:
    """Top-1 and top-5 retrieval of the concept of each test image among all names."""
    chosen = np.flatnonzero(symbols.held_out)
    rng = np.random.default_rng(3)
    backgrounds = [str(rng.choice(list(_COLORS))) for _ in chosen]
    size = model.visual.image_size
    drawn = _on_backgrounds(symbols.images[chosen], backgrounds, rng, jitter=0.0, size=size)
    images = normalise((drawn * 255).round().byte().permute(0, 2, 3, 1).numpy())
    tokenizer = SimpleTokenizer(context_length=32)
    image_features = model.encode_image(images, normalize=True)
    text_features = model.encode_text(tokenizer(symbols.names), normalize=True)
    ranked = (image_features @ text_features.T).topk(5).indices.numpy() == symbols.concept[chosen][:, None]
    return {"top-1": float(ranked[:, 0].mean()), "top-5": float(ranked.any(1).mean()), "images": float(len(chosen))}


def _read(file: Path) -> np.ndarray:
    """(64, 64, 4) uint8."""
    if file.suffix == ".svg":
        import resvg_py

        data = bytes(resvg_py.svg_to_bytes(svg_path=str(file), width=SIZE, height=SIZE, skip_system_fonts=True))
        image = Image.open(io.BytesIO(data))
    else:
        image = Image.open(file)
    return np.asarray(image.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _on_backgrounds(
    symbols: Tensor, colors: Sequence[str], rng: np.random.Generator, jitter: float, size: int = SIZE
) -> Tensor:
    """Draw each symbol on a background: (n, 4, 64, 64) to (n, 3, size, size), 0 to 1.

    Args:
        jitter: 0 = centered, on a plain color; 1 = moved, scaled and rotated, on an uneven color.
    """
    n = len(symbols)

    def spread(low: float, high: float, *shape: int) -> Tensor:
        middle = (low + high) / 2
        drawn = rng.uniform(low - middle, high - middle, (n, *shape))
        return middle + jitter * torch.from_numpy(drawn).float()

    scale, angle, moved = spread(0.65, 1.0), spread(-0.2, 0.2), spread(-0.15, 0.15, 2)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    transform = torch.stack([torch.stack([cos, -sin, moved[:, 0]], -1), torch.stack([sin, cos, moved[:, 1]], -1)], 1)
    grid = F.affine_grid(transform, [n, 4, size, size], align_corners=False)
    placed = F.grid_sample(symbols, grid, align_corners=False)
    flat = torch.tensor([_COLORS[color] for color in colors]).float() / 255  # (n, 3)
    flat = (flat + jitter * torch.from_numpy(rng.uniform(-0.06, 0.06, (n, 3))).float())[:, :, None, None]
    slope = jitter * torch.from_numpy(rng.uniform(-0.12, 0.12, (n, 1, 2))).float()
    line = torch.linspace(-1, 1, size)
    ground = flat + slope[..., :1, None] * line[:, None] + slope[..., 1:, None] * line
    return (placed[:, :3] + (1 - placed[:, 3:]) * ground).clamp(0, 1)


def _tokens(text: str, tokenizer: SimpleTokenizer, noise: float, rng: np.random.Generator) -> list[int]:
    ids = tokenizer.encode(text)
    if rng.random() < noise:
        for token in rng.integers(0, tokenizer.sot_token_id, rng.integers(1, 5)):
            ids.insert(int(rng.integers(len(ids) + 1)), int(token))
    return [tokenizer.sot_token_id, *ids[:22], tokenizer.eot_token_id]


def _encode_text(model: Any, texts: list[list[int]]) -> Tensor:
    """The model's text features, (n, dim). The tower is causal, so nothing is computed after the end of a text.

    Texts of similar length are encoded together.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    size = -(-len(order) // _LENGTHS)
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    features = torch.cat([_encode_padded(model, [texts[i] for i in group]) for group in groups])
    return features[torch.tensor(order).argsort()]


def _encode_padded(model: Any, texts: list[list[int]]) -> Tensor:
    length = max(map(len, texts))
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    ends = torch.tensor([len(text) - 1 for text in texts])
    features: Tensor = x[torch.arange(len(texts)), ends] @ model.text_projection
    return features
