"""Procedurally drawn 64x64 scenes with captions, an offline substitute for a photo collection.

A scene is one object on a background. Its seven attributes cover everything a caption can say, so tests can check whether a
model or a prompt captures the shape, the color or the background color. One in eight combinations of attributes is held out
of training, so scores on held-out scenes measure generalization to new combinations, not memory.
"""

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 64  # pixels, both sides

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "moon", "arrow")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")
SIZES = ("small", "medium", "large")
TEXTURES = ("solid", "striped", "dotted")
BACKGROUNDS = ("plain", "gradient", "grid", "cloudy", "wavy")
POSITIONS = (
    "top left", "top", "top right",
    "left", "center", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

VALUES = {
    "shape": SHAPES,
    "color": COLORS,
    "background_color": COLORS,
    "size": SIZES,
    "texture": TEXTURES,
    "background": BACKGROUNDS,
    "position": POSITIONS,
}

_RGB = {
    "red": (214, 30, 36), "orange": (245, 135, 25), "yellow": (245, 222, 50), "green": (40, 150, 60),
    "blue": (35, 75, 205), "purple": (125, 45, 165), "pink": (245, 150, 190), "brown": (115, 70, 35),
    "white": (245, 245, 245), "black": (18, 18, 18),
}  # fmt: skip
_RADIUS = {"small": 10.0, "medium": 14.0, "large": 19.0}  # pixels
_SYNONYMS = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge"), "center": ("center", "middle")}
# People do not mention everything: how often a caption names these attributes.
_SAID = {"size": 0.5, "texture": 0.35, "background": 0.8}

# {o} object phrase, {p} position, {b} background phrase. No commas: every word is one token of CLIP's vocabulary.
_TEMPLATES = (
    "a {o} at the {p} on a {b} background",
    "a {o} in the {p} of a {b} background",
    "a picture of a {o} at the {p} on {b}",
    "a drawing of a {o} in the {p} with a {b} background",
    "a photo of a {o} at the {p} and a {b} backdrop",
    "an image showing a {o} near the {p} on {b}",
    "a {b} scene with a {o} placed at the {p}",
    "{b} background with a {o} at the {p}",
    "on a {b} background a {o} at the {p}",
    "{o} painted on {b} {p}",
    "{o} {p} {b} background",
    "{o} {p} {b}",
    "{p} {o} on {b}",
    "{b} {p} {o}",
)


@dataclasses.dataclass(frozen=True)
class Scene:
    """The attributes of one image; `seed` determines the rest (jitter, exact hue, angle of stripes)."""

    shape: str
    color: str
    size: str
    texture: str
    position: str
    background: str
    background_color: str
    seed: int

    @property
    def held_out(self) -> bool:
        """True for the one in eight combinations of attributes that training never draws."""
        attributes = dataclasses.astuple(self)[:-1]
        return zlib.crc32("|".join(attributes).encode()) % 8 == 0


def sample_scene(rng: np.random.Generator, held_out: bool | None = None) -> Scene:
    """Sample a scene; object and background differ in color.

    Args:
        rng: source of every choice.
        held_out: True or False restricts the choice to that subset of combinations; None = all.
    """
    while True:
        color, background_color = (COLORS[i] for i in rng.choice(len(COLORS), 2, replace=False))
        scene = Scene(
            shape=SHAPES[rng.integers(len(SHAPES))],
            color=color,
            size=SIZES[rng.integers(len(SIZES))],
            texture=TEXTURES[rng.integers(len(TEXTURES))],
            position=POSITIONS[rng.integers(len(POSITIONS))],
            background=BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
            background_color=background_color,
            seed=int(rng.integers(2**31)),
        )
        if held_out is None or scene.held_out == held_out:
            return scene


def held_out_scenes(count: int, seed: int = 0) -> list[Scene]:
    """The first `count` held-out scenes of a fixed, endless sequence."""
    rng = np.random.default_rng([seed, 0x5CE7E5])
    return [sample_scene(rng, held_out=True) for _ in range(count)]


def variants(scene: Scene, attribute: str, count: int, rng: np.random.Generator) -> Iterator[Scene]:
    """Up to `count` training scenes that differ from `scene` in one attribute (and in jitter)."""
    for i in rng.permutation(len(VALUES[attribute])):
        if count == 0:
            return
        other = changed(scene, attribute, VALUES[attribute][i], seed=int(rng.integers(2**31)))
        distinct = VALUES[attribute][i] != getattr(scene, attribute)
        if distinct and other.color != other.background_color and not other.held_out:
            count -= 1
            yield other


def phrases() -> list[str]:
    """A bank of phrases for the method bank: objects, backgrounds and positions, as captions name them."""
    objects = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    backgrounds = [f"{kind} {color} background" for color in COLORS for kind in BACKGROUNDS]
    sizes = [size for name in SIZES for size in _SYNONYMS.get(name, (name,))]
    return [*objects, *backgrounds, *POSITIONS, *sizes, *TEXTURES]


def changed(scene: Scene, attribute: str, value: str, seed: int | None = None) -> Scene:
    """The scene with another value of one attribute, and another seed if given."""
    changes: dict[str, Any] = {attribute: value, "seed": scene.seed if seed is None else seed}
    return dataclasses.replace(scene, **changes)


def caption(scene: Scene, rng: np.random.Generator | None = None, say: str | None = None) -> str:
    """Describe a scene as a person would, without naming everything, in words that are single CLIP tokens.

    Args:
        rng: chooses wording and details; None = seeded by the scene, so that a scene always has the same caption.
        say: an attribute that is always named.
    """
    rng = rng or np.random.default_rng([scene.seed, 1])
    words = {}
    for attribute in VALUES:
        names = _SYNONYMS.get(getattr(scene, attribute), (getattr(scene, attribute),))
        said = rng.random() < _SAID.get(attribute, 1.0) or attribute == say
        name = names[rng.integers(len(names))]
        words[attribute] = name if said else ""
    text = _TEMPLATES[rng.integers(len(_TEMPLATES))].format(
        o="{size} {texture} {color} {shape}".format(**words),
        p=words["position"],
        b="{background} {background_color}".format(**words),
    )
    return " ".join(text.split())


def captions(count: int, seed: int = 0) -> list[str]:
    """Captions of random scenes that are not held out."""
    rng = np.random.default_rng([seed, 2])
    return [caption(sample_scene(rng, held_out=False)) for _ in range(count)]


def caption_words() -> tuple[str, ...]:
    """Every word that captions can contain, sorted."""
    words = " ".join([*_TEMPLATES, *(v for values in VALUES.values() for v in values)])
    synonyms = " ".join(v for values in _SYNONYMS.values() for v in values)
    return tuple(sorted({w for w in f"{words} {synonyms}".split() if "{" not in w}))


def render(scene: Scene) -> NDArray[np.uint8]:
    """Draw a scene.

    Returns:
        (64, 64, 3) uint8 RGB; depends on the scene only.
    """
    rng = np.random.default_rng([scene.seed, 2])
    image = _background(scene, rng)
    radius = _RADIUS[scene.size] * rng.uniform(0.92, 1.08)
    x, y = _object_frame(scene, radius, rng)  # (64, 64) each, in units of the radius, y upward
    inside = np.clip(0.5 - _distance(scene.shape, x, y) * radius, 0.0, 1.0)[..., None]
    image += inside * (_object_color(scene, x, y, radius, rng) - image)
    image += rng.normal(0.0, 2.5, image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def render_all(batch: Sequence[Scene]) -> NDArray[np.uint8]:
    """Draw scenes: (scenes, 64, 64, 3) uint8 RGB."""
    return np.stack([render(scene) for scene in batch])


_COLUMN, _ROW = np.meshgrid(np.arange(SIZE, dtype=np.float32) + 0.5, np.arange(SIZE, dtype=np.float32) + 0.5)


def _shade(color: str, rng: np.random.Generator) -> NDArray[np.float32]:
    return (np.array(_RGB[color]) + rng.uniform(-12, 12, 3)).clip(0, 255).astype(np.float32)


def _contrast(shade: NDArray[np.float32], amount: float) -> NDArray[np.float32]:
    """The same hue, darker if it is bright and lighter if it is dark."""
    goal = np.float32(0.0 if shade.mean() > 90 else 255.0)
    return shade + np.float32(amount) * (goal - shade)


def _background(scene: Scene, rng: np.random.Generator) -> NDArray[np.float32]:
    shade = _shade(scene.background_color, rng)
    other = _contrast(shade, 0.38)
    angle, phase, period = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(9, 13)
    along = (np.cos(angle) * (_COLUMN - SIZE / 2) + np.sin(angle) * (_ROW - SIZE / 2)) / SIZE
    mix: NDArray[np.floating]  # (64, 64), 0 = the background color, 1 = its contrast
    match scene.background:
        case "plain":
            mix = np.zeros_like(_COLUMN)
        case "gradient":
            mix = np.clip(along * 1.2 + 0.6, 0, 1.3)
        case "grid":
            offset = rng.uniform(0, 12, 2)
            lines = np.minimum((_COLUMN + offset[0]) % 12, (_ROW + offset[1]) % 12)
            mix = np.clip(2.0 - lines, 0, 1)
        case "cloudy":
            waves = rng.normal(0, 1, (6, 2)) * 0.11
            mix = sum(
                np.sin(a * _COLUMN + b * _ROW + p) for (a, b), p in zip(waves, rng.uniform(0, 6.3, 6), strict=True)
            )
            mix = np.clip(0.45 + 0.28 * mix, 0, 1)
        case "wavy":
            mix = 0.5 + 0.5 * np.sin(2 * np.pi / period * (_ROW + 2.5 * np.sin(_COLUMN / 6 + phase)))
        case _:
            raise ValueError(f"background {scene.background!r}: expected one of {', '.join(BACKGROUNDS)}")
    return (shade + mix[..., None] * (other - shade)).astype(np.float32)


def _object_frame(
    scene: Scene, radius: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel coordinates in the object's frame, in units of the radius, y upward."""
    words = scene.position.split()
    middle, away = SIZE / 2, 0.28 * SIZE
    column = middle + away * (("right" in words) - ("left" in words)) + rng.uniform(-2, 2)
    row = middle + away * (("bottom" in words) - ("top" in words)) + rng.uniform(-2, 2)
    turn = rng.uniform(-0.2, 0.2)
    dx, dy = (_COLUMN - column) / radius, (row - _ROW) / radius
    return np.cos(turn) * dx + np.sin(turn) * dy, np.cos(turn) * dy - np.sin(turn) * dx


def _object_color(
    scene: Scene, x: NDArray[np.float64], y: NDArray[np.float64], radius: float, rng: np.random.Generator
) -> NDArray[np.floating]:
    shade = _shade(scene.color, rng)
    pitch = 5.5 / radius  # stripes and dots are equally wide in pixels at any object size
    match scene.texture:
        case "solid":
            mix = np.zeros_like(x)
        case "striped":
            angle = rng.uniform(0.5, 1.1)
            mix = ((np.cos(angle) * x + np.sin(angle) * y) / pitch % 1.0 > 0.6).astype(np.float32)
        case "dotted":
            mix = (np.hypot(x / pitch % 1.0 - 0.5, y / pitch % 1.0 - 0.5) < 0.3).astype(np.float32)
        case _:
            raise ValueError(f"texture {scene.texture!r}: expected one of {', '.join(TEXTURES)}")
    return shade + mix[..., None] * (_contrast(shade, 0.5) - shade)


def _distance(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signed distance to the outline in radii, negative inside; exact or a close bound, enough for smooth edges."""
    rho = np.hypot(x, y)
    match shape:
        case "circle":
            return rho - 0.95
        case "ring":
            return np.abs(rho - 0.78) - 0.24
        case "square":
            return np.maximum(np.abs(x), np.abs(y)) - 0.82
        case "diamond":
            return np.abs(x) * 0.83 + np.abs(y) * 0.56 - 0.62
        case "triangle":
            return np.maximum(np.abs(x) * 0.866 + y * 0.5, -y) - 0.55
        case "cross":
            bar = np.maximum(np.abs(x) - 0.3, np.abs(y) - 1.0)
            return np.minimum(bar, np.maximum(np.abs(x) - 1.0, np.abs(y) - 0.3))
        case "star":
            sector = 2 * np.pi / 5
            theta = np.abs((np.arctan2(x, y) + sector / 2) % sector - sector / 2)
            return rho * np.cos(sector / 2 * 1.63 - theta) - 0.47
        case "heart":
            lobes = np.minimum(np.hypot(x - 0.43, y - 0.33), np.hypot(x + 0.43, y - 0.33)) - 0.6
            return np.minimum(lobes, (np.abs(x) + np.abs(y + 0.1) - 0.86) * 0.7071)
        case "moon":
            return np.maximum(rho - 1.0, 0.85 - np.hypot(x - 0.55, y - 0.1))
        case "arrow":
            head = np.maximum((np.abs(x) + y) * 0.7071 - 0.7071, 0.15 - y)
            return np.minimum(head, np.maximum(np.abs(x) - 0.27, np.abs(y + 0.35) - 0.65))
        case _:
            raise ValueError(f"shape {shape!r}: expected one of {', '.join(SHAPES)}")
