"""Small open_clip folders with tokenizers as the hub's models have them, made here: nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pez.demo import scenes
from pez.words import words_by_language

VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
KINDS = ("mT5", "XLM", "Gemma", "BERT", "byte-level")


def corpus() -> list[str]:
    """Captions, and English words as often as people write them, in both cases."""
    words = sorted(words_by_language()[0].items(), key=lambda item: -item[1])[:3000]
    often = [word for word, use in words for _ in range(1 + int(use**0.5))]
    lines = [" ".join(often[i : i + 9]) for i in range(0, len(often), 9)]
    captions = [scenes.caption(scene) for scene in scenes.held_out_scenes(500)]
    return [
        *lines,
        *captions,
        *(line.title() for line in lines[::5]),
        "new york café beyoncé 😂 ❤️ (red:1.3) [a|b] #tag",
    ] * 2


def hub_model(kind: str, folder: Path) -> str:
    """Write a model of random weights with such a tokenizer; returns its name."""
    tokenizer = {"mT5": _mt5, "XLM": _xlm, "Gemma": _gemma, "BERT": _bert, "byte-level": _byte_level}[kind]()
    tokenizer.save_pretrained(folder)
    text: dict[str, Any] = {
        "context_length": 20,
        "vocab_size": len(tokenizer) + 5,
        "width": 32,
        "heads": 4,
        "layers": 2,
    }
    text["hf_tokenizer_name"] = "somebody/something"
    match kind:
        case "mT5":
            text |= {"pool_type": "eos", "eos_id": 1, "tokenizer_kwargs": {"clean": "canonicalize"}}
        case "XLM" | "byte-level":
            text |= {"pool_type": "eos", "eos_id": 2}
        case "Gemma":
            text |= {"pool_type": "last", "no_causal_mask": True, "tokenizer_kwargs": {"clean": "canonicalize"}}
        case "BERT":
            text |= {"pool_type": "last", "no_causal_mask": True, "tokenizer_kwargs": {"strip_sep_token": True}}
    config = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": text, "custom_text": True}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VISION, text_cfg=text)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def _wrapped(tokenizer: Tokenizer, template: str, **special: str) -> PreTrainedTokenizerFast:
    named = [(token, tokenizer.token_to_id(token)) for token in special.values() if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _unigram(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False)
    return _trained(tokenizer, trainer)


def _mt5() -> PreTrainedTokenizerFast:
    """As google/mt5-base, of MetaCLIP 2's ViT-L-14-worldwide: no start token."""
    tokenizer = _unigram(["<pad>", "</s>", "<unk>"])
    return _wrapped(tokenizer, "$A </s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _xlm() -> PreTrainedTokenizerFast:
    """As facebook/xlm-v-base, of MetaCLIP 2's larger models."""
    tokenizer = _unigram(["<s>", "<pad>", "</s>", "<unk>"])
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return _wrapped(tokenizer, "<s> $A </s>", **special)


def _gemma() -> PreTrainedTokenizerFast:
    """As Gemma's, of SigLIP 2: pairs of bytes over whole texts, no split at spaces, no mark before the first word."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<pad>", "<eos>", "<unk>"]
    # Trained on words with the mark before them, as SentencePiece does.
    words = pre_tokenizers.Metaspace()
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = words
    trainer = trainers.BpeTrainer(vocab_size=2500, special_tokens=special, show_progress=False)
    learned = json.loads(_trained(learner, trainer).to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    tokenizer.model = models.BPE(learned["vocab"], merges, unk_token="<unk>")
    return _wrapped(tokenizer, "$A <eos>", pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _bert() -> PreTrainedTokenizerFast:
    """As bert-base-uncased, of CLIPA."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=2500, special_tokens=special, show_progress=False))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _wrapped(tokenizer, "[CLS] $A [SEP]", **names)


def _byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's: a word has its space before it, and so the first word of a text is another token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    _trained(tokenizer, trainer)
    return _wrapped(tokenizer, "<s> $A </s>", bos_token="<s>", pad_token="<pad>", eos_token="</s>")
