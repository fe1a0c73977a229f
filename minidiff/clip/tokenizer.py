"""CLIP's tokenizer: text to ids by byte-level byte-pair encoding (Sennrich et al. 2016).

A text is cleaned and cut into pieces (words, digits, runs of signs). A piece starts as its UTF-8
bytes, one symbol each, the last one marked as the end of the piece; then adjacent symbols are
merged, always the pair that comes first in the vocabulary's list of merges, until none is listed.
What is left are the tokens. No text is unknown: at worst it is spelled byte by byte.

The published vocabulary is that of Radford et al. 2021 (github.com/openai/CLIP).
"""

from __future__ import annotations

import gzip
import html
import reprlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
URL = f"https://raw.githubusercontent.com/openai/CLIP/main/clip/{VOCABULARY}"
SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
MERGES = 48894  # of the 262,144 listed: with 2 * 256 bytes and 2 marks, 49,408 tokens

CONTEXT_LENGTH = 77  # of every published CLIP
END = "</w>"  # at the end of a piece's last token
KEPT_WORDS = 1 << 17  # how many words are kept with their ids

# A list of merges is readable text, so every byte has a visible character: its own in Latin-1, or,
# where that has none, one from 256 on. The ids of the 256 bytes follow this order.
_VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = bytes([*_VISIBLE, *(byte for byte in range(256) if byte not in _VISIBLE)])
ALPHABET = "".join(map(chr, [*_VISIBLE, *range(256, 512 - len(_VISIBLE))]))
BYTE_TOKENS = [*ALPHABET, *(character + END for character in ALPHABET)]
_TO_ID = bytes(BYTES.index(byte) for byte in range(256))
_SHOW = str.maketrans(BYTES.decode("latin-1"), ALPHABET)
_HIDE = str.maketrans(ALPHABET, BYTES.decode("latin-1"))


# ------------------------------------------------------------------------------- text to pieces


def clean(text: str) -> str:
    """Wrong encodings repaired, HTML entities resolved, white space single, lower case."""
    # ftfy costs more than all the rest, and changes nothing in printable ASCII without entities.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@cache
def _pattern():
    import regex  # which, other than re, knows classes of letters and numbers

    pieces = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    return regex.compile(pieces, regex.IGNORECASE)  # "'ſ" is a "'s" too


def split(cleaned: str) -> list[str]:
    """Contractions, runs of letters, single digits, runs of other signs; white space goes."""
    return _pattern().findall(cleaned)


def byte_ids(piece: str) -> list[int]:
    """The ids of a piece's UTF-8 bytes; the last one's is that of a byte at the end."""
    ids = list(piece.encode().translate(_TO_ID))
    ids[-1] += 256
    return ids


# --------------------------------------------------------------------------------- the tokenizer


class Piece(NamedTuple):
    """How a piece becomes ids: its bytes, then its tokens after every merge, between spaces."""

    text: str
    steps: list[str]
    ids: list[int]


class Explanation(NamedTuple):
    """What `explain` shows of a text; `print` it."""

    text: str
    cleaned: str
    pieces: list[Piece]

    def __str__(self) -> str:
        lines = [f"text     {self.text!r}", f"cleaned  {self.cleaned!r}"]
        for piece in self.pieces:
            lines.append(f"piece    {piece.text!r}")
            lines += [f"         {step}" for step in piece.steps]
            lines.append(f"ids      {' '.join(map(str, piece.ids))}")
        return "\n".join(lines)


class Tokenizer:
    """The byte-pair encoding of a list of merges, as `train_bpe` learns it and JSON gives it back.

    The ids: the 256 bytes, the 256 bytes that end a piece, one token a merge, `start`, `end`;
    `len(tokenizer)` is their number. ValueError for a merge of tokens that no earlier merge makes,
    or whose token was made before.
    """

    def __init__(self, merges: Iterable[Sequence[str]]):
        self.merges = [tuple(pair) for pair in merges]
        self.tokens = list(BYTE_TOKENS)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        self._made = {}  # (id, id) -> id: the smaller it is, the earlier the merge
        for i, pair in enumerate(self.merges, len(self.tokens)):
            token = "".join(pair)
            if len(pair) != 2 or not self._ids.keys() >= set(pair) or token in self._ids:
                raise ValueError(
                    f"{pair!r} is no merge: expected a new pair of tokens that are known by then"
                )
            self._made[self._ids[pair[0]], self._ids[pair[1]]] = i
            self._ids[token] = i
            self.tokens.append(token)
        self.start, self.end = len(self.tokens), len(self.tokens) + 1
        self.tokens += ["<|startoftext|>", "<|endoftext|>"]
        self._words: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def merging(self, piece: str) -> Iterator[list[int]]:
        """The ids of a piece's bytes, then after every merge: one list, which changes in place."""
        made, never = self._made.get, len(self)
        ids = byte_ids(piece)
        yield ids
        candidates = [made(pair, never) for pair in pairwise(ids)]
        while candidates and (token := min(candidates)) < never:
            i = candidates.index(token)
            ids[i] = token
            del ids[i + 1], candidates[i]
            if i > 0:
                candidates[i - 1] = made((ids[i - 1], token), never)
            if i < len(candidates):
                candidates[i] = made((token, ids[i + 1]), never)
            yield ids

    def _word(self, word: str) -> list[int]:
        """The ids of a cleaned text without white space, which are kept for the next time."""
        word_ids = []
        for piece in split(word):
            # Merging would come to the same: a token stands for all places where it was learnt,
            # and in a piece with the same borders the same merges happen.
            whole = self._ids.get(piece.encode().decode("latin-1").translate(_SHOW) + END)
            word_ids += [whole] if whole is not None else deque(self.merging(piece), 1).pop()
        if len(self._words) >= KEPT_WORDS:
            self._words.clear()
        self._words[word] = word_ids
        return word_ids

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length, without start and end."""
        known, ids = self._words, []
        for word in clean(text).split():  # no piece has white space: words do not touch
            ids += known.get(word) or self._word(word)
        return ids

    def tokenize(
        self,
        texts: str | Sequence[str],
        context_length: int = CONTEXT_LENGTH,
        truncate: bool = False,
    ) -> Tensor:
        """Texts to ids (B, context_length) int64: start, the text's tokens, end, zeros.

        ValueError for a text of more than context_length - 2 tokens, unless `truncate` says that
        only its first ones count; TypeError for what is no text.
        """
        if context_length < 2:
            raise ValueError(f"context_length is {context_length}: expected 2 or more")
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = np.zeros((len(texts), context_length), np.int64)
        for row, text in zip(rows, texts, strict=True):
            if not isinstance(text, str):
                raise TypeError(f"{reprlib.repr(text)} is no text: expected a str or a list of str")
            ids = self.encode(text)
            room = context_length - 2
            if len(ids) > room:
                if not truncate:
                    raise ValueError(
                        f"{reprlib.repr(text)} has {len(ids)} tokens: "
                        f"expected {room} at most, or truncate=True"
                    )
                ids = ids[:room]
            row[0] = self.start
            row[1 : len(ids) + 1] = ids
            row[len(ids) + 1] = self.end
        return torch.from_numpy(rows)

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The cleaned text of ids (L,) up to the first end, its pieces apart by single spaces.

        Bytes that are no UTF-8, as in a text cut in mid-character, give U+FFFD. ValueError for an
        id that the vocabulary does not have, or for the ids of several texts.
        """
        ids = torch.as_tensor(ids)
        if ids.ndim != 1:
            raise ValueError(f"ids are {tuple(ids.shape)}: expected (L,), one text at a time")
        spelled = bytearray()
        for i in ids.tolist():
            if not 0 <= i < len(self):
                raise ValueError(f"unknown id {i}: expected 0 to {len(self) - 1}")
            if i == self.end:
                break
            if i == self.start:
                continue
            token = self.tokens[i]
            spelled += token.removesuffix(END).translate(_HIDE).encode("latin-1")
            spelled += b" " * token.endswith(END)
        return spelled.decode(errors="replace").rstrip(" ")

    def explain(self, text: str) -> Explanation:
        """The way of a text to its ids: cleaned, cut into pieces, every piece merge by merge."""
        cleaned, pieces = clean(text), []
        for piece in split(cleaned):
            steps = []
            for ids in self.merging(piece):
                steps.append(" ".join(self.tokens[i] for i in ids))
            pieces.append(Piece(piece, steps, ids))
        return Explanation(text, cleaned, pieces)


# -------------------------------------------------------------------------------------- learning


def train_bpe(texts: Iterable[str], merges: int) -> list[tuple[str, str]]:
    """Learn a list of merges for `Tokenizer`: time after time, the pair that occurs most often.

    Of equally frequent pairs the first in alphabetical order is taken. The list is shorter than
    `merges` where no pair occurs twice any more. ValueError for fewer than no merges.
    """
    if merges < 0:
        raise ValueError(f"merges is {merges}: expected 0 or more")
    count = Counter(piece for text in texts for piece in split(clean(text)))
    parts = {piece: [BYTE_TOKENS[i] for i in byte_ids(piece)] for piece in count}
    occurs, where = Counter(), defaultdict(set)  # of a pair: how often, in which pieces
    for piece in count:
        for pair in pairwise(parts[piece]):
            occurs[pair] += count[piece]
            where[pair].add(piece)

    learnt = []
    while occurs and len(learnt) < merges:
        best = min(occurs, key=lambda pair: (-occurs[pair], pair))
        if occurs[best] < 2:
            break
        learnt.append(best)
        for piece in where.pop(best):
            for pair in pairwise(parts[piece]):
                occurs[pair] -= count[piece]
            parts[piece] = _merged(parts[piece], best)
            for pair in pairwise(parts[piece]):
                occurs[pair] += count[piece]
                where[pair].add(piece)
        del occurs[best]
    return learnt


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """`parts` with every such pair made one, from the left."""
    out = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


# ------------------------------------------------------------------------- the published vocabulary


@cache
def published() -> Tokenizer:
    """The tokenizer of the published CLIPs, 49,408 tokens; the list of merges is downloaded once.

    ValueError if the file is not the published one, OSError if it cannot be had.
    """
    from minidiff.data.hosts import data_root, fetch

    path = fetch(URL, data_root() / "clip" / VOCABULARY, SHA256)
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    return Tokenizer(line.split() for line in lines[1 : 1 + MERGES])  # the first line is a title


def tokenize(
    texts: str | Sequence[str], context_length: int = CONTEXT_LENGTH, truncate: bool = False
) -> Tensor:
    """Texts to the published CLIPs' ids (B, context_length); see `Tokenizer.tokenize`."""
    return published().tokenize(texts, context_length, truncate)


def decode(ids: Tensor | Sequence[int]) -> str:
    """The text of the published CLIPs' ids (L,); see `Tokenizer.decode`."""
    return published().decode(ids)


def explain(text: str) -> Explanation:
    """How a text becomes the published CLIPs' ids; see `Tokenizer.explain`."""
    return published().explain(text)
