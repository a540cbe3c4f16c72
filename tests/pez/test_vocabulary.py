import pytest
import torch
import torch.nn.functional as F

import pez
from pez import lists
from pez.demo.scenes import caption_words
from pez.vocabulary import Vocabulary, argmax


def words_of(clip: pez.Clip, settings: pez.PezSettings) -> set[str]:
    return {clip.tokenizer.decoder[int(i)] for i in clip.vocabulary(settings).ids}


def test_the_nearest_token_is_the_one_of_largest_cosine() -> None:
    torch.manual_seed(0)
    embedding = torch.randn(50, 8, dtype=torch.float64) * torch.rand(50, 1, dtype=torch.float64)
    allowed = torch.rand(50) < 0.5
    soft = torch.randn(3, 4, 8, dtype=torch.float64)
    cosine = F.cosine_similarity(soft.unsqueeze(2), embedding, dim=-1).masked_fill(~allowed, -torch.inf)
    assert torch.equal(Vocabulary(embedding, allowed).nearest(soft), cosine.argmax(-1))


@pytest.mark.parametrize("width", [24_192, 49_408, 4_096, 4_100, 64, 1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_first_of_equal_products_is_the_nearest_token(width: int, dtype: torch.dtype) -> None:
    products = torch.randint(-3, 4, (5, width), generator=torch.Generator().manual_seed(0)).to(dtype)
    products[0] = 1
    products[1, -1] = 9

    assert argmax(products).tolist() == products.double().numpy().argmax(-1).tolist()


def test_blocks_of_products_find_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary(torch.randn(100, 8), torch.ones(100, dtype=torch.bool))
    soft = torch.randn(9, 8, 8)
    whole = vocabulary.nearest(soft), vocabulary.nearest_few(soft, 5).sort(-1).values
    for size in (1, 20_000):  # one block of 16 rows, and of 32
        monkeypatch.setattr("pez.vocabulary._BYTES_ON_A_CPU", size)
        assert len(list(vocabulary._products(soft))) > 2
        assert torch.equal(vocabulary.nearest(soft), whole[0])
        assert torch.equal(vocabulary.nearest_few(soft, 5).sort(-1).values, whole[1])


def test_no_allowed_token_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token is allowed"):
        Vocabulary(torch.randn(5, 2), torch.zeros(5, dtype=torch.bool))


def test_start_and_end_are_never_chosen(demo_clip: pez.Clip) -> None:
    ids = demo_clip.vocabulary(pez.PezSettings(vocabulary="full", exact=True)).ids
    assert len(ids) == 49406
    assert {49406, 49407}.isdisjoint(ids.tolist())


def test_prompts_of_the_default_last_as_text_in_any_order(demo_clip: pez.Clip) -> None:
    vocabulary = demo_clip.vocabulary(pez.PezSettings(vocabulary="full", untrained_tokens=True))
    assert len(vocabulary.ids) > 30_000
    words = demo_clip.vocabulary(pez.PezSettings(vocabulary="words", untrained_tokens=True)).allowed
    signs = Vocabulary(vocabulary.embedding, vocabulary.allowed & ~words)  # ":)", "'s", "&", "...", emoji
    for tokens in (vocabulary, signs):
        for seed in range(1000):
            ids = tokens.random_ids(8, torch.Generator().manual_seed(seed)).tolist()
            assert demo_clip.tokenizer.encode(demo_clip.text_of(ids)) == ids


def test_an_allowlist_of_fragments_alone_is_taken_as_it_is(demo_clip: pez.Clip) -> None:
    assert words_of(demo_clip, pez.PezSettings(vocabulary="full", allowlist=("happ",))) == {"happ"}


def test_the_demo_recommends_its_caption_words(demo_clip: pez.Clip) -> None:
    words = words_of(demo_clip, pez.PezSettings())
    assert "triangle</w>" in words
    assert len(words) == len(caption_words())


def test_words_are_what_people_write_by_itself(demo_clip: pez.Clip) -> None:
    pieces = words_of(demo_clip, pez.PezSettings(vocabulary="words", untrained_tokens=True))
    assert "red</w>" in pieces
    assert "red" not in pieces
    assert "!</w>" not in pieces
    assert all(demo_clip.tokenizer.decode([i]).strip().isalpha() for i in map(demo_clip.tokenizer.encoder.get, pieces))
    assert len(pieces) == 24_131
    assert not pieces & {f"{end}</w>" for end in ("chley", "esi", "ing", "tion", "ness", "ed", "s", "ville")}


def test_an_allowlist_is_all_there_is(demo_clip: pez.Clip) -> None:
    assert words_of(demo_clip, pez.PezSettings(allowlist=("red", "blue*"))) >= {"red</w>", "blue</w>", "blues</w>"}
    assert "green</w>" not in words_of(demo_clip, pez.PezSettings(allowlist=("red", "blue*")))


def test_a_word_that_no_token_spells_cannot_be_allowed(demo_clip: pez.Clip) -> None:
    with pytest.raises(ValueError, match="'qwxz' in the allowlist is not one token"):
        demo_clip.vocabulary(pez.PezSettings(allowlist=("qwxz",)))


def test_a_blocked_word_cannot_be_spelled_from_pieces(demo_clip: pez.Clip) -> None:
    tokenizer = demo_clip.tokenizer
    gone = lists.blocked(demo_clip.tokens, ["blood"], demo_clip.ordinary_tokens())
    assert gone[tokenizer.encoder["blood</w>"]]
    assert gone[tokenizer.encoder["blood"]]
    for cut in range(1, 5):
        piece = "blood"[:cut]
        assert gone[tokenizer.encoder[piece]], piece
    assert not gone[tokenizer.encoder["red</w>"]]


def test_a_pattern_blocks_every_ending(demo_clip: pez.Clip) -> None:
    tokenizer = demo_clip.tokenizer
    gone = lists.blocked(demo_clip.tokens, ["blood*"], demo_clip.ordinary_tokens())
    left = [p for p, i in tokenizer.encoder.items() if p.startswith("blood") and not gone[i]]
    assert left == []


def test_blocked_words_are_never_in_a_prompt(demo_clip: pez.Clip, images: list) -> None:
    plain = pez.learn_prompts(demo_clip, images[:4], pez.PezSettings(steps=40))
    words = tuple({w for p in plain for w in p.text.split()} - {"a", "of", "on"})
    without = pez.learn_prompts(demo_clip, images[:4], pez.PezSettings(steps=40, blocklist=words))
    assert words
    assert not {w for p in without for w in p.text.split()} & set(words)
