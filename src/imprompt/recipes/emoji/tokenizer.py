"""A byte-level BPE vocabulary of the captions' own words, in `CLIPTokenizer` form."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from imprompt.emoji.styles import STYLES
from imprompt.recipes.emoji.captions import PLAIN, STYLED
from imprompt.recipes.emoji.paths import cache_folder, models_folder
from imprompt.recipes.emoji.sources import load_subjects

VOCABULARY_SIZE = 2048
MAX_LENGTH = 24
WORD_END = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocabulary_size: int = VOCABULARY_SIZE) -> CLIPTokenizer:
    """Tokenizer whose vocabulary, in CLIP's order, is: bytes, bytes that end a word, merges, start, end.

    Args:
        texts: What the merges are learnt from.
        vocabulary_size: Number of entries, the two special ones included.
    """
    bytes_alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = [*bytes_alphabet, *(symbol + WORD_END for symbol in bytes_alphabet)]
    merges = _learn_merges(texts, num_merges=vocabulary_size - len(base) - 2)
    vocabulary = {token: number for number, token in enumerate([*base, *("".join(merge) for merge in merges)])}
    for special in (START, END):
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_LENGTH)


def _learn_merges(texts: Iterable[str], num_merges: int) -> Any:
    """Most frequent pairs first, words split as CLIP splits them."""
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    template = CLIPTokenizer().backend_tokenizer
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = template.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=num_merges + 2 * len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    return _merges_of(learner)[:num_merges]


def _merges_of(learner: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]


def corpus() -> list[str]:
    """Words of all emoji, people and symbols too, so that the vocabulary outlives any growth of the pictures."""
    texts = []
    for subject in load_subjects(cache_folder() / "packages", groups=None):
        texts += [subject.label, subject.label, *subject.tags]
    words = [template.format(name="", word=style.word) for template in STYLED for style in STYLES]
    return texts + 100 * words + 100 * [template.format(name="") for template in PLAIN]


def load_tokenizer(folder: Path | None = None) -> CLIPTokenizer:
    """The tokenizer in a folder, by default the recipe's, trained where there is none yet."""
    folder = folder or tokenizer_folder()
    if not (folder / "tokenizer_config.json").exists():
        save_tokenizer(train_tokenizer(corpus()), folder)
    return CLIPTokenizer.from_pretrained(folder)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write `vocab.json` and `merges.txt` beside what transformers writes, for readers that know only those."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def tokenise(texts: tuple[str, ...], folder: Path | None = None) -> Int[Tensor, "texts length"]:
    """Token ids, padded as the pipeline pads prompts, by the tokenizer in a folder; by default the recipe's own."""
    tokens = load_tokenizer(folder)(list(texts), padding="max_length", truncation=True, max_length=MAX_LENGTH)
    return torch.tensor(tokens.input_ids)


def tokenizer_folder() -> Path:
    """Folder of the finished tokenizer."""
    return models_folder() / "tokenizer"
