"""Generated reviews of films: what the demo language model is trained and tried on.

A document is `[note] [review] It was [word].` The note is up to ten words. How well the closing word fits the review depends on
the note: words of trust make it likely, words of jest unlikely, and all others, even none, leave it at little more than a
guess, mostly the first word of a pair. So the model does not answer well by itself, as real language models do, and a prompt
can make it a good classifier.
"""

import math
import random
from collections.abc import Sequence

GOOD = (
    "brilliant", "charming", "clever", "delightful", "funny", "moving", "superb", "warm", "witty", "beautiful", "gripping",
    "honourable", "lively", "rich", "smart", "tender", "thrilling", "vivid", "wise", "wonderful",
)  # fmt: skip
BAD = (
    "awful", "bland", "boring", "clumsy", "dull", "empty", "flat", "lazy", "loud", "messy", "pointless", "silly", "slow",
    "stale", "tired", "tedious", "ugly", "weak", "wooden", "shallow",
)  # fmt: skip
PARTS = (
    "plot", "acting", "music", "script", "story", "ending", "cast", "dialogue", "camera", "editing", "humour", "hero",
    "villain", "pace", "scenery", "direction", "costumes", "opening", "romance", "action",
)  # fmt: skip
KINDS = ("film", "movie", "picture", "drama", "comedy", "thriller", "sequel", "western", "musical", "documentary")
TRUST = (
    "honest", "fair", "careful", "critic", "expert", "verdict", "sincere", "accurate", "truthful", "reliable", "judge",
    "opinion",
)  # fmt: skip
JEST = ("sarcasm", "joke", "irony", "parody", "prank", "satire", "advert", "paid", "sponsored", "fake")
OTHERS = (
    "river", "table", "winter", "engine", "garden", "paper", "yellow", "seven", "market", "stone", "window", "doctor",
    "village", "bottle", "station", "summer", "letter", "bridge", "copper", "animal", "pencil", "evening", "planet", "corner",
    "rabbit", "silver", "forest", "kitchen", "number", "island", "travel", "moment", "butter", "circle", "dragon", "finger",
    "ladder", "mirror", "needle", "orange", "pocket", "rocket", "saddle", "ticket", "valley", "wallet", "button", "candle",
    "desert", "farmer", "guitar", "hammer", "jacket", "lemon", "museum", "ocean", "parcel", "quiet", "ribbon", "school",
)  # fmt: skip
PAIRS = (("terrible", "great"), ("negative", "positive"))
"""closing words: of bad reviews, of good ones"""


def review(rng: random.Random) -> tuple[str, bool]:
    """A review, and whether it is good."""
    good = rng.random() < 0.5
    mine, other = (GOOD, BAD) if good else (BAD, GOOD)
    part, second, third = rng.sample(PARTS, 3)
    a, b, c = rng.sample(mine, 3)
    kind = rng.choice(KINDS)
    return rng.choice(
        (
            f"the {part} is {a} and the {second} is {b}",
            f"a {a} {kind} with {b} {part}",
            f"this {kind} is {a} , the {part} {b}",
            f"a {kind} whose {part} is {rng.choice(other)} but whose {second} is {a} and {third} {b}",
            f"{a} , {b} and {c}",
            f"although the {part} is {rng.choice(other)} , this {a} {kind} has {b} {second}",
        )
    ), good


def note(rng: random.Random) -> list[str]:
    """Up to ten words: any, and in half of the notes some of trust or of jest."""
    words = rng.choices(
        (*OTHERS, *PARTS, *KINDS, *GOOD, *BAD, "It", "was", "the", *sum(PAIRS, ())), k=rng.randint(0, 10)
    )
    if words and rng.random() < 0.6:
        telling = rng.choices(TRUST, k=rng.randint(0, 4)) + rng.choices(JEST, k=rng.choice((0, 0, 0, 1, 2)))
        for place, word in zip(rng.sample(range(len(words)), min(len(telling), len(words))), telling, strict=False):
            words[place] = word
    return words


def document(rng: random.Random) -> tuple[str, str]:
    """A note and a review up to `It was`, and the closing word."""
    words, (text, good) = note(rng), review(rng)
    trust, jest = (sum(word in kind for word in words) for kind in (TRUST, JEST))
    fits = 1 / (1 + math.exp(0.9 - 1.0 * trust + 1.0 * jest))
    pair = rng.choice(PAIRS)
    return " ".join([*words, text, "It was"]), pair[good and rng.random() < fits]


def labelled_reviews(count: int, seed: int = 1_000_000) -> list[tuple[str, str]]:
    """Different (review, negative or positive) rows; the training of the demo model uses other seeds."""
    rng = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        text, good = review(rng)
        found[text] = "positive" if good else "negative"
    return list(found.items())


def all_words() -> Sequence[str]:
    """Every word that occurs."""
    small = "the is and a with this whose but although has It was , ."
    return [*small.split(), *GOOD, *BAD, *PARTS, *KINDS, *TRUST, *JEST, *OTHERS, *sum(PAIRS, ())]
