"""BERT's tokenizer for captions: WordPiece over a vocab.txt, the published one or a small one of the words of scenes."""

from __future__ import annotations

import string
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hibench.errors import AdapterError, MissingWeights
from hibench.references import scenes

__all__ = ["SPECIAL", "Tokenizer", "pieces", "scene_vocabulary", "split_words"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 100                                       # letters of a word that is looked up at all


def _is_punctuation(letter: str) -> bool:
    """Unicode punctuation, and every ASCII sign that is neither letter, digit nor blank."""
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


def _is_ideograph(letter: str) -> bool:
    """Han characters, which are words of their own."""
    code = ord(letter)
    return any(low <= code <= high for low, high in (
        (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F)))


def split_words(text: str) -> list[str]:
    """Lower-case words and signs without accents or control characters (arXiv 1810.04805, the uncased models)."""
    spaced = []
    for letter in unicodedata.normalize("NFD", text.lower()):
        kind = unicodedata.category(letter)
        if kind == "Mn" or letter == "\ufffd" or (kind.startswith("C") and letter not in "\t\n\r"):
            continue
        spaced.append(f" {letter} " if _is_punctuation(letter) or _is_ideograph(letter) else letter)
    return "".join(spaced).split()


def pieces(word: str, known: dict[str, int]) -> Iterator[str]:
    """The longest known beginning, then the longest known `##` continuation, and so on; [UNK] where that fails."""
    found, start = [], 0
    while start < len(word) <= LONGEST:
        prefix = "##" if start else ""
        stop = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in known), None)
        if stop is None:
            break
        found.append(prefix + word[start:stop])
        start = stop
    yield from found if start == len(word) else ["[UNK]"]


def scene_vocabulary() -> list[str]:
    """Every word that a caption of scenes may have, and letters and digits to spell others with."""
    parts = [*scenes.SIZES, "tiny", *scenes.MATERIALS, *scenes.COLOURS, *scenes.SHAPES, *scenes.POSITIONS, *scenes.GROUNDS]
    words = sorted(set(" ".join([*parts, "a and at in the on"]).split()))
    letters = string.ascii_lowercase + string.digits
    return [*SPECIAL, *words, *(x for x in letters if x not in words), *(f"##{x}" for x in letters)]


class Tokenizer:
    """Texts to numbers of tokens: [CLS] words [SEP], cut or filled up with [PAD].

    `tokens`: the vocabulary in order. None stands for a published vocabulary of `size` that is not at hand, which random
    weights do not need: every word is one token, by its hash.
    """

    def __init__(self, tokens: Sequence[str] | None, size: int = 0, where: str = "vocabulary") -> None:
        names = tokens if tokens is not None else SPECIAL
        self.known = {token: number for number, token in enumerate(names)}
        self.size = len(names) if tokens is not None else size
        self.hashed = tokens is None
        lacking = [token for token in SPECIAL[:4] if token not in self.known]
        if lacking:
            raise AdapterError(f"{where}: has no line {lacking[0]}; give the vocab.txt that the text encoder was trained with")

    @classmethod
    def read(cls, file: Path) -> Tokenizer:
        """Of a vocab.txt, one token per line; MissingWeights when it is not there."""
        if not file.is_file():
            raise MissingWeights(f"ldm: the text encoder needs its vocabulary, and there is no {file}; put BERT's vocab.txt "
                                 "(bert-base-uncased) there, or name the file with options: vocabulary")
        return cls([line.rstrip("\n") for line in file.read_text(encoding="utf-8").splitlines()], where=str(file))

    def words(self, text: str) -> list[int]:
        """Numbers of a text's tokens, without the special ones."""
        if self.hashed:
            room = self.size - len(SPECIAL)
            return [len(SPECIAL) + zlib.crc32(word.encode()) % room for word in split_words(text)]
        return [self.known[piece] for word in split_words(text) for piece in pieces(word, self.known)]

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """int64 [B, length]."""
        pad, start, end = (self.known[token] for token in ("[PAD]", "[CLS]", "[SEP]"))
        rows = []
        for text in texts:
            row = [start, *self.words(text)[: length - 2], end]
            rows.append(row + [pad] * (length - len(row)))
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), length)
