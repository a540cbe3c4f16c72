"""Language models: what loads, what prompts are made of, and exact scores."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from pez.classification import Examples, Template, read_verbalizer
from pez.demo import LANGUAGE_MODEL
from pez.errors import UserError
from pez.models.language_model import LanguageModel, load_language_model
from pez.objectives.language_model import Classification

WORDS = read_verbalizer("negative=terrible,positive=great")
ROWS = [("a dull film", "negative"), ("the plot is superb and the cast is witty and the music is warm", "positive")]
HEADS = {"num_attention_heads": 4, "max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 2}
KINDS: dict[str, Any] = {
    "gpt2": lambda size: GPT2LMHeadModel(GPT2Config(vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=2)),
    "opt": lambda size: OPTForCausalLM(OPTConfig(vocab_size=size, ffn_dim=64, word_embed_proj_dim=16, **HEADS)),
    "llama": lambda size: LlamaForCausalLM(
        LlamaConfig(vocab_size=size, intermediate_size=64, num_key_value_heads=2, **HEADS)
    ),
}


@pytest.fixture(scope="module")
def demo() -> LanguageModel:
    return load_language_model("demo-lm")


def examples(*rows: tuple[str, str]) -> Examples:
    return Examples.of(list(rows), WORDS, "the test")


def classification(model: LanguageModel, **options: Any) -> Classification:
    return Classification(model, Template(), WORDS, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_scores_as_the_plain_model_on_the_whole_text(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(LANGUAGE_MODEL)
    tokenizer.save_pretrained(tmp_path)
    plain = KINDS[kind](len(tokenizer)).eval()
    plain.save_pretrained(tmp_path)
    objective = classification(load_language_model(str(tmp_path)))
    encoded = objective.encode(examples(*ROWS))
    for prompt in ("", "honest river"):
        losses = []
        for (text, _), label in zip(ROWS, ("terrible", "great"), strict=True):
            ids = tokenizer(f"{prompt} {text} It was".strip(), return_tensors="pt")["input_ids"]
            words = [tokenizer(f"a {word}")["input_ids"][-1] for word in WORDS.values()]
            with torch.no_grad():
                logits = plain(input_ids=ids).logits[0, -1, words]
            losses.append(-logits.log_softmax(-1)[list(WORDS.values()).index(label)])
        assert objective.measure(prompt, encoded).loss == pytest.approx(float(torch.stack(losses).mean()), abs=1e-5)


def test_the_score_of_a_text_does_not_depend_on_its_neighbours(demo: LanguageModel) -> None:
    objective = classification(demo)
    ids = torch.tensor(demo.encode(["honest river stone"]))
    together = objective.encode(examples(*ROWS))
    both = objective.losses(ids, together, [0, 1])
    alone = [objective.losses(ids, together, [i]) for i in (0, 1)]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


def test_prompts_scored_together_have_the_scores_and_gradients_of_each_alone(demo: LanguageModel) -> None:
    objective = classification(demo, fluency=0.1)
    ids = torch.tensor(demo.encode(["honest river stone", "dull fair joke"]))
    encoded = objective.encode(examples(*ROWS))
    losses, gradient = objective.loss_and_gradient(demo.embedding[ids], ids, encoded, [0, 1])
    torch.testing.assert_close(losses, objective.losses(ids, encoded, [0, 1]))
    for lane in range(2):
        some = ids[lane : lane + 1]
        loss, slope = objective.loss_and_gradient(demo.embedding[some], some, encoded, [1, 0])
        torch.testing.assert_close((loss[0], slope[0]), (losses[lane], gradient[lane]))


def test_the_gradient_is_that_of_the_loss(demo: LanguageModel) -> None:
    objective = classification(demo)
    ids = torch.tensor(demo.encode(["honest river stone"]))
    encoded = objective.encode(examples(*ROWS))
    soft = demo.embedding[ids]
    _, gradient = objective.loss_and_gradient(soft, ids, encoded, [0, 1])
    step = 1e-2 * gradient / gradient.norm()
    up, _ = objective.loss_and_gradient(soft + step, ids, encoded, [0, 1])
    down, _ = objective.loss_and_gradient(soft - step, ids, encoded, [0, 1])
    assert float(up - down) == pytest.approx(2 * float((gradient * step).sum()), rel=0.02)


def test_memory_that_runs_out_halves_the_batch_once(demo: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = classification(demo)
    objective.rows = 8
    whole, asked = demo.last_states, list[int]()

    def small(prefix: Any, endings: Any) -> Any:
        asked.append(len(prefix) * len(endings))
        if asked[-1] > 2:
            raise torch.OutOfMemoryError
        return whole(prefix, endings)

    encoded = objective.encode(examples(*(ROWS * 2)))
    expected = objective.measure("honest", encoded)
    monkeypatch.setattr(demo, "last_states", small)
    with pytest.warns(UserWarning, match="continuing with 2 texts at a time"):
        assert objective.measure("honest", encoded).loss == pytest.approx(expected.loss, abs=1e-6)
    asked.clear()
    objective.measure("honest", encoded)
    assert max(asked) <= 2  # remembered


def test_prompts_do_not_begin_with_the_rest_of_a_longer_word() -> None:
    """A byte-level tokenizer of `strokes` and `brokes` also has the token `rokes`, which survives at the start of a text."""
    plain = tokenizers.ByteLevelBPETokenizer()
    plain.train_from_iterator(["the strokes brokes trokes"] * 8, vocab_size=290, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain._tokenizer)
    model = LanguageModel("small", KINDS["gpt2"](len(tokenizer)), tokenizer)
    rest = tokenizer.convert_tokens_to_ids("rokes")
    assert model.encode(["rokes"]) == [[rest]]
    first = [model.text_of([i]) for i in model.vocabulary.first.ids.tolist()]
    assert "strokes" in first
    assert "rokes" not in first


def test_every_word_of_a_vocabulary_survives_in_its_place(demo: LanguageModel) -> None:
    words = demo.vocabulary
    draws = [words.random_ids(6, torch.Generator().manual_seed(i)) for i in range(200)]
    texts = [demo.text_of(ids.tolist()) for ids in draws]
    assert demo.encode(texts) == [ids.tolist() for ids in draws]


def test_the_first_word_is_another_token_than_the_same_word_later(demo: LanguageModel) -> None:
    first, later = demo.encode(["honest honest"])[0]
    assert first != later
    nearest = demo.vocabulary.nearest(demo.embedding[torch.tensor([[first, later]])])
    assert nearest.tolist() == [[first, later]]


def test_a_text_longer_than_the_context_loses_its_end(demo: LanguageModel) -> None:
    objective = classification(demo)
    text = " ".join(["dull"] * 500)
    encoded = objective.encode(examples((text, "negative"), ROWS[1]))
    assert len(encoded.endings[0]) + 10 <= demo.context
    assert objective.measure("honest", encoded).loss > 0


def test_a_word_of_several_tokens_is_refused(demo: LanguageModel) -> None:
    with pytest.raises(UserError, match=r"the word 'excellentissimo' of the label 'positive' is \d+ tokens of demo-lm"):
        Classification(demo, Template(), {"negative": "terrible", "positive": "excellentissimo"})


def test_a_prompt_that_fills_the_context_is_refused(demo: LanguageModel) -> None:
    with pytest.raises(UserError, match="the context of demo-lm is 128 tokens; expected fewer tokens"):
        classification(demo, tokens=128)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing.gguf", "there is no file nothing.gguf"),
        ("EMPTY", "has no config.json"),
        ("a/b/c", "cannot load a/b/c"),
    ],
)
def test_a_name_that_is_no_model_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_language_model(str(tmp_path) if name == "EMPTY" else name)
