"""A causal language model of `transformers`: any folder, hub id or GGUF file, with dense weights that never change.

A batch is a prefix that all of its rows begin with, and an ending for each row. The prefix is computed once and its keys and
values are reused. Endings are padded at their right: a causal model does not look there, so no mask is needed and the result
is exact.
"""

import contextlib
import copy
import functools
import importlib.util
import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pez.demo import LANGUAGE_MODELS
from pez.errors import UserError
from pez.models.quiet import quiet
from pez.vocabulary import Vocabulary

_ANCHOR = "the"  # a word before the ones that are tested
_TRIED_AT_ONCE = 8192  # texts


class LanguageModel:
    """A causal language model and its tokenizer.

    Args:
        name: shown in tables.
        model: a `transformers` causal language model in evaluation mode.
        tokenizer: its tokenizer.
        device: where to put the model.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, device: str | torch.device = "cpu") -> None:
        self.name, self.tokenizer, self.device = name, tokenizer, torch.device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.embedding: Tensor = self.model.get_input_embeddings().weight.detach()
        """(vocab, width) float"""
        self.head = self.model.get_output_embeddings()
        body = self.model.base_model
        self.body = getattr(body, "decoder", body)  # OPT's base model wraps its decoder
        names = inspect.signature(self.body.forward).parameters
        self._cache = "cache" if "cache" in names else "past_key_values"  # renamed in transformers 5
        config = self.model.config
        self.context = int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 1024))
        """the longest input, in tokens"""
        self.start = self._start()
        """token ids that the tokenizer puts before every text, such as <s>"""

    def in_bfloat16(self) -> "LanguageModel":
        """A copy for searches: faster on a GPU and on a CPU with AMX or bfloat16 instructions, at half the memory."""
        return LanguageModel(self.name, copy.deepcopy(self.model).to(torch.bfloat16), self.tokenizer, self.device)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, without those that the tokenizer puts around them."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def text_of(self, ids: Sequence[int]) -> str:
        """The text that a user pastes."""
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text.strip()

    def last_states(self, prefix: Tensor, endings: Sequence[Sequence[int]]) -> Tensor:
        """The hidden states at the last token of every ending, after every prefix.

        Args:
            prefix: (lanes, length, width) float, differentiable; length may be 0.
            endings: token ids, at least one each.

        Returns:
            (lanes, endings, width) float.
        """
        lanes, count = len(prefix), len(endings)
        lengths = torch.tensor([len(ids) for ids in endings])
        padded = torch.zeros(count, int(lengths.max()), dtype=torch.long)
        for row, ids in zip(padded, endings, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        kept = {}
        if prefix.shape[1]:
            cache = getattr(self.body(inputs_embeds=prefix, use_cache=True), self._cache)
            cache.batch_repeat_interleave(count)
            kept = {self._cache: cache}
        # As embeddings, since some models compute positions from ids.
        embedded = self.model.get_input_embeddings()(padded.to(self.device)).repeat(lanes, 1, 1)
        states = self.body(inputs_embeds=embedded, use_cache=bool(kept), **kept).last_hidden_state
        rows = torch.arange(lanes * count, device=self.device)
        last: Tensor = states[rows, (lengths.to(self.device) - 1).repeat(lanes)]
        return last.view(lanes, count, -1)

    def surprise(self, prefix: Tensor, ids: Tensor) -> Tensor:
        """The mean cross-entropy of each prompt's tokens 2 to n, given those before; its exponential is the perplexity.

        Args:
            prefix: (lanes, start + n, width) float, differentiable, the ids of `start` before each prompt.
            ids: (lanes, n) int64; n is at least 2.

        Returns:
            (lanes,) float, in nats.
        """
        states = self.body(inputs_embeds=prefix, use_cache=False).last_hidden_state[:, -ids.shape[1] : -1]
        logits = self.head(states).float()
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(-1)

    def embed(self, ids: Tensor) -> Tensor:
        """(lanes, n) int64 ids to (lanes, start + n, width) embeddings, those of `start` first."""
        return self.with_start(self.embedding[ids])

    def with_start(self, soft: Tensor) -> Tensor:
        """(lanes, n, width) soft prompts with the embeddings of `start` before them."""
        start = self.embedding[torch.tensor(self.start, dtype=torch.long, device=self.device)]
        return torch.cat([start.to(soft.dtype).expand(len(soft), -1, -1), soft], 1)

    @functools.cached_property
    def vocabulary(self) -> "PromptVocabulary":
        """The words that prompts are made of: ASCII letters, and one token each that survives decoding and re-encoding.

        Raises:
            UserError: the tokenizer has no such word.
        """
        first, later = self._words()
        if not (first.any() and later.any()):
            raise UserError(f"no word of {self.name} survives decoding and re-encoding; expected another model")
        return PromptVocabulary(Vocabulary(self.embedding, first), Vocabulary(self.embedding, later))

    def _words(self) -> tuple[Tensor, Tensor]:
        """(vocab,) bool twice: words at the start of a text, and after another word."""
        count, special = len(self.embedding), set(self.tokenizer.all_special_ids)
        anchor = self.encode([_ANCHOR])[0]
        masks = []
        for before in ([], anchor):
            mask = torch.zeros(count, dtype=torch.bool)
            ids = [i for i in range(min(count, len(self.tokenizer))) if i not in special]
            for start in range(0, len(ids), _TRIED_AT_ONCE):
                batch = ids[start : start + _TRIED_AT_ONCE]
                texts = self.tokenizer.batch_decode([[*before, i, *self._after] for i in batch])
                for i, text, read in zip(batch, texts, self.encode(texts), strict=True):
                    words = text.split(" ")
                    whole = len(words) == 2 + bool(before) and all(w.isascii() and w.isalpha() for w in words)
                    mask[i] = whole and len(words[-2]) > 1 and read == [*before, i, *self._after]
            masks.append(mask)
        first, later = masks
        # Without a space before it, a token may be the rest of a longer word. Whole words are tokens after a space, too.
        starts = first.nonzero()[:, 0].tolist()
        after = self.encode([f"{_ANCHOR} {self.text_of([i])}" for i in starts])
        for start, both in zip(starts, after, strict=True):
            first[start] = len(both) == len(anchor) + 1 and bool(later[both[-1]])
        return first, later

    @functools.cached_property
    def _after(self) -> list[int]:
        """The ids of a word that follows another."""
        anchor, both = self.encode([_ANCHOR, f"{_ANCHOR} {_ANCHOR}"])
        return both[len(anchor) :]

    def _start(self) -> list[int]:
        plain: list[int] = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        framed: list[int] = self.tokenizer("a")["input_ids"]
        return framed[: framed.index(plain[0])] if plain and plain[0] in framed else []


class PromptVocabulary:
    """The tokens of prompts. In byte-level tokenizers, the first word of a text is another token than the same word later.

    Args:
        first: of the first position.
        later: of the others.
    """

    def __init__(self, first: Vocabulary, later: Vocabulary) -> None:
        self.first, self.later = first, later

    def at(self, position: int) -> Vocabulary:
        """The vocabulary of a position."""
        return self.later if position else self.first

    def nearest(self, soft: Tensor) -> Tensor:
        """(lanes, n, width) soft prompts to the (lanes, n) int64 nearest tokens, see Vocabulary.nearest."""
        return torch.cat([self.first.nearest(soft[:, :1]), self.later.nearest(soft[:, 1:])], 1)

    def random_ids(self, tokens: int, generator: torch.Generator) -> Tensor:
        """(tokens,) int64, drawn with a CPU generator."""
        return torch.cat([self.first.random_ids(1, generator), self.later.random_ids(tokens - 1, generator)])


def load_language_model(name: str, device: str | torch.device = "cpu") -> LanguageModel:
    """Load a causal language model in float32.

    Args:
        name: "demo-lm", a folder, a hub id, or a GGUF file, whose weights are converted to dense ones.

    No code that comes with a model is ever run.

    Raises:
        UserError: there is no such model, it is not a causal language model, or a library is missing.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(_INSTALL.format(error.name)) from error
    path = Path(LANGUAGE_MODELS.get(name, name)).expanduser()
    source, options = str(path) if path.exists() else name, dict[str, Any]()
    if path.suffix == ".gguf":
        for needed in ("gguf", "accelerate"):
            if not importable(needed):
                raise UserError(_INSTALL.format(needed))
        source, options = str(path.parent), {"gguf_file": path.name}
        if not path.is_file():
            raise UserError(f"there is no file {name}; expected a GGUF file, a folder, a hub id or demo-lm")
    elif path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{name} has no config.json; expected a folder of transformers with a causal language model")
    try:
        # The conversion of a GGUF file has a progress bar that nothing else turns off.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=False, **options
            )
    except Exception as error:  # the library raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot load {name}: {reason or type(error).__name__}") from error
    if model.get_output_embeddings() is None:
        raise UserError(f"{name} is not a causal language model; expected one such as GPT-2 or Llama")
    if options:
        model = _dense(model)
    return LanguageModel(name if name in LANGUAGE_MODELS else path.name or name, model, tokenizer, device)


def importable(module: str) -> bool:
    """Whether a module is installed."""
    return importlib.util.find_spec(module) is not None


def _dense(model: Any) -> Any:
    """The model without its record of a quantization; the weights of a GGUF file must be ordinary tensors."""
    if any(type(p.data) is not Tensor or p.dtype != torch.float32 for p in model.parameters()):
        raise UserError("the GGUF file was read with packed weights; expected dense ones: update transformers and gguf")
    model.config = copy.deepcopy(model.config)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


_INSTALL = "language models need {}; install it with pip install 'pez-captions[lm]'"
