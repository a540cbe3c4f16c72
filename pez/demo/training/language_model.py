"""Train the demo language model: a small Llama of generated reviews, with a byte-level tokenizer of its own."""

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pez.demo.reviews import all_words, document

_CLOSING_WEIGHT = 4.0  # of the closing word's loss; the rest of a document only teaches how words follow each other


@dataclasses.dataclass(frozen=True)
class ReviewerSettings:
    """Settings of the training."""

    seed: int = 0
    steps: int = 1500
    batch: int = 64
    rate: float = 3e-3
    width: int = 96
    layers: int = 3


def train_reviewer(settings: ReviewerSettings, folder: Path, log: Callable[[str], None]) -> None:
    """Train, and write a folder of `transformers` in half precision."""
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    tokenizer = _tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            intermediate_size=3 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), settings.rate, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(settings.steps):
        warm = min(1.0, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * warm * (0.5 + 0.5 * math.cos(math.pi * step / settings.steps))
        loss, closing = _losses(model, tokenizer, [document(rng) for _ in range(settings.batch)])
        optimizer.zero_grad()
        (loss + _CLOSING_WEIGHT * closing).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            log(f"step {step + 1}: loss {loss.item():.3f}, of closing words {closing.item():.3f}")
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: list[tuple[str, str]]
) -> tuple[Tensor, Tensor]:
    """The mean loss of all tokens but the closing words, and that of the closing words."""
    rows = [tokenizer(f"{text} {word}")["input_ids"] for text, word in documents]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for padded, row in zip(ids, rows, strict=True):
        padded[: len(row)] = torch.tensor(row)
    logits = model(input_ids=ids).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    last = torch.arange(ids.shape[1] - 1) == (lengths - 2)[:, None]
    before = torch.arange(ids.shape[1] - 1) < (lengths - 2)[:, None]
    return losses[before].mean(), losses[last].mean()


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's, in which every word of the reviews is one token, at the start of a text and after a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = list(all_words())
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text for word in words for text in (word, f" {word}")] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
