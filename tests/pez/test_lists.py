"""What a user blocks is in no text, and what a user allows is all there is, as people read and write it."""

import re
import unicodedata
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pez
from pez.settings import Vocabularies
from pez.vocabulary import Vocabulary

# A judge of its own: whole words of a text, without case and accents.
BLOCKED = [
    "red",
    "café",
    "Beyoncé",
    "new york",
    "😂",
    "❤",
    "Étoile",
    "blood*",
    "?at",
    "don't",
    "the",
    "GOD",
    "s*",
    "naïve",
]


def plain(text: str) -> str:
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(sign for sign in apart if not unicodedata.combining(sign) and sign != "\ufe0f")


def holds(text: str, word: str) -> bool:
    text, word = plain(text), plain(word)
    if not re.search(r"[\w*?]", word):
        return word in text
    pattern = "".join({"*": r"[^\s]*", "?": r"[^\s]"}.get(sign, re.escape(sign)) for sign in word)
    return re.search(rf"(?:^|(?<=\s)){pattern}(?=\s|$)", text) is not None


def ids_of(clip: pez.Clip, words: list[str], exact: bool, vocabulary: Vocabularies) -> Vocabulary:
    settings = pez.PezSettings(vocabulary=vocabulary, untrained_tokens=True, exact=exact, blocklist=tuple(words))
    return clip.vocabulary(settings)


@given(
    words=st.lists(st.sampled_from(BLOCKED), min_size=1, max_size=4),
    seed=st.integers(0, 2**62),
    exact=st.booleans(),
    upper=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_a_blocked_word_is_in_no_text_of_any_prompt(
    demo_clip: pez.Clip, words: list[str], seed: int, exact: bool, upper: bool
) -> None:
    given_words = [word.upper() for word in words] if upper else words
    vocabulary = ids_of(demo_clip, given_words, exact, "full")
    for i in range(40):
        ids = vocabulary.random_ids(8, torch.Generator().manual_seed(seed + i)).tolist()
        text = demo_clip.text_of(ids)
        again = demo_clip.text_of(demo_clip.tokens.read([text])[0])
        assert not [word for word in words if holds(text, word) or holds(again, word)], text


@pytest.mark.parametrize("word", ["café", "cafe", "CAFÉ", "Café", "cafe\u0301"])
def test_a_word_is_blocked_with_and_without_its_accent(demo_clip: pez.Clip, word: str) -> None:
    left = {demo_clip.text_of([i]) for i in ids_of(demo_clip, [word], False, "full").ids.tolist()}
    before = {demo_clip.text_of([i]) for i in ids_of(demo_clip, [], False, "full").ids.tolist()}
    assert {"café", "cafe"} <= before
    assert before - left == {"café", "cafe"}


def test_an_emoji_is_blocked_also_among_others(demo_clip: pez.Clip) -> None:
    vocabulary = ids_of(demo_clip, ["😂"], False, "full")
    assert not [i for i in vocabulary.ids.tolist() if "😂" in demo_clip.text_of([i])]
    assert len(vocabulary.ids) > 30_000


@pytest.mark.parametrize("exact", [False, True])
def test_spelled_in_pieces_a_blocked_word_is_blocked(demo_clip: pez.Clip, exact: bool) -> None:
    """Every way to spell the word in tokens of the vocabulary needs one that is gone."""
    vocabulary = ids_of(demo_clip, ["beyoncé", "blood"], exact, "full")
    allowed = vocabulary.allowed
    decoder = demo_clip.tokenizer.decoder
    for word in ("beyonce</w>", "beyonc\u00c3\u00a9</w>", "blood</w>"):
        ways = {0}
        for end in range(1, len(word) + 1):
            for start in list(ways):
                token = demo_clip.tokenizer.encoder.get(word[start:end])
                if token is not None and allowed[token]:
                    ways.add(end)
        assert len(word) not in ways, [decoder[i] for i in range(3)]


def test_a_phrase_costs_one_word(demo_clip: pez.Clip) -> None:
    texts = [demo_clip.text_of([i]) for i in ids_of(demo_clip, ["new york"], False, "words").ids.tolist()]
    assert ("new" in texts, "york" in texts) == (True, False)


@pytest.mark.parametrize("name", ["blocklist", "allowlist"])
def test_words_joined_by_commas_are_refused_and_not_taken_for_a_phrase(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} contains 'red, blue'; expected one word or phrase each"):
        pez.PezSettings(**dict[str, Any]({name: ("green", "red, blue")}))


def test_a_plain_string_is_one_word() -> None:
    assert pez.PezSettings(blocklist="blood").blocklist == ("blood",)  # type: ignore[arg-type]
    assert pez.PezSettings(allowlist=["red", "blue"]).allowlist == ("red", "blue")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [(" ",), (3,), 5, ("red", "")])
def test_a_list_of_something_else_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"blocklist is .*; expected words, like \('red', 'blue\*'\)"):
        pez.PezSettings(blocklist=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["red", " red", "Red", "RED ", "café", "CAFÉ", "7", "😂", "beyoncé"])
def test_a_word_of_one_token_can_be_allowed_however_it_is_written(demo_clip: pez.Clip, word: str) -> None:
    for vocabulary in get_args(Vocabularies):
        allowed = demo_clip.vocabulary(pez.PezSettings(vocabulary=vocabulary, allowlist=(word,)))
        assert [demo_clip.text_of([i]) for i in allowed.ids.tolist()] == [word.strip().lower()]


def test_several_words_in_one_are_refused_with_what_to_do(demo_clip: pez.Clip) -> None:
    with pytest.raises(ValueError, match="'new york' in the allowlist is not one token of this model; list its words"):
        demo_clip.vocabulary(pez.PezSettings(allowlist=("new york",)))
    with pytest.raises(ValueError, match="'happ' in the allowlist occurs only as part of words in this model"):
        demo_clip.vocabulary(pez.PezSettings(allowlist=("red", "happ")))


def test_signs_that_image_programs_take_as_commands_are_not_in_full(demo_clip: pez.Clip) -> None:
    full, exact = (
        demo_clip.vocabulary(pez.PezSettings(vocabulary="full", untrained_tokens=True, exact=e)).ids.tolist()
        for e in (False, True)
    )
    signs = set("()[]{}|<>\\#")
    assert not [i for i in full if signs & set(demo_clip.text_of([i])) or "//" in demo_clip.text_of([i])]
    assert len(full) == 34_090
    assert len(exact) == 49_406
    assert signs <= {demo_clip.text_of([i]) for i in exact}
    assert {"&", "!", ",", "'s", "😂"} <= {demo_clip.text_of([i]) for i in full}
    allowed = demo_clip.vocabulary(pez.PezSettings(allowlist=("(", "red", ")"))).ids
    assert {demo_clip.text_of([i]) for i in allowed.tolist()} == {"(", "red", ")"}


COMMAND = re.compile(r"[()\[\]{}|<>\\#]|//|/\*|\*/|__|\$\$|--|::|\b(AND|BREAK)\b")
CHOSEN = ("blood*", "re?", "star", "🔥", "new york")
CHOSEN_TEXT = re.compile(r"\b(blood\w*|re\w|star|new york)\b|🔥")


@pytest.mark.parametrize(
    "settings",
    [
        pez.PezSettings(vocabulary="full", untrained_tokens=True, blocklist=CHOSEN),
        pez.PezSettings(vocabulary="words", untrained_tokens=True, plain_text=True, blocklist=CHOSEN),
        pez.PezSettings(method="pez", vocabulary="full", plain_text=True, blocklist=CHOSEN),
    ],
    ids=["full", "words", "pez"],
)
def test_no_blocked_word_and_no_command_is_in_ten_thousand_prompts(
    demo_clip: pez.Clip, settings: pez.PezSettings
) -> None:
    vocabulary = demo_clip.vocabulary(settings)
    ids = vocabulary.random_ids(80_000, torch.Generator().manual_seed(0)).view(10_000, 8)
    texts = [demo_clip.text_of(row) for row in ids.tolist()]
    assert not [text for text in texts if COMMAND.search(text) or CHOSEN_TEXT.search(text)]
    assert len(vocabulary.ids) > 15_000


def test_commands_are_allowed_on_request(demo_clip: pez.Clip) -> None:
    plain, any_sign = (
        demo_clip.vocabulary(pez.PezSettings(vocabulary="full", untrained_tokens=True, plain_text=chosen)).ids
        for chosen in (None, False)
    )
    gone = {demo_clip.text_of([i]) for i in set(any_sign.tolist()) - set(plain.tolist())}
    assert {"(", "[", "--", "::", "|"} <= gone
    assert all(COMMAND.search(text) for text in gone)
    joining = demo_clip.vocabulary(pez.PezSettings(method="pez", vocabulary="full", plain_text=True)).ids
    assert not [i for i in joining.tolist() if "-" in demo_clip.text_of([i]) or ":" in demo_clip.text_of([i])]
