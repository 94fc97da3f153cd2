"""CLIP's byte-level vocabulary: the letters that stand for bytes, and a tokenizer of nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["END", "START", "byte_letters", "byte_tokenizer"]

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in CLIP's vocabulary, in its order (OpenAI CLIP, simple_tokenizer)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]


def byte_tokenizer(vocabulary: int = 514, length: int = 77) -> Any:
    """A CLIP tokenizer without merges, so that every text has one token per byte; the two end marks are the last ids."""
    from transformers import CLIPTokenizer

    letters = byte_letters()
    words = {word: i for i, word in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    words |= {START: vocabulary - 2, END: vocabulary - 1}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END, "model_max_length": length,
                 "tokenizer_class": "CLIPTokenizer"}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(marks), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder)
