"""Time CLIP's tokenizer beside open_clip's: `python -m benchmarks.clip_tokenizer`.

Both turn the same captions, never seen before, into ids, in turns (A B A B ...) in one process with
caches that are empty at first, and must agree. Counted is processor time. A ratio is open_clip's
median time over ours, with a 95% bootstrap interval over the rounds. The captions have twelve words
and a full stop:

- common words: of 3,000 words, so that after the first round both have met them all;
- all words: of the 32,000 or so that the vocabulary has, so that every round brings some new ones;
- new words: two words written as one, so that hardly any was met before: byte-pair encoding itself;
- accents and emoji: common words, an accent and an emoji: ftfy's repair, the same in both, is most
  of the work, and only printable ASCII is spared it.
"""

from __future__ import annotations

import random
import time
from statistics import median

import open_clip
import torch

from benchmarks.run import described, ratio, table
from minidiff.clip import tokenizer

ROUNDS, CAPTIONS, WORDS = 11, 1000, 12
WANTED = 3.0


def captions(kind: str, words: list[str], rng: random.Random) -> list[str]:
    """Captions of a kind that the module's first lines describe."""
    common = words[:3000]
    draw = {
        "common words": lambda: rng.choice(common),
        "all words": lambda: rng.choice(words),
        "new words": lambda: rng.choice(common) + rng.choice(common),
        "accents and emoji": lambda: rng.choice(common),
    }[kind]
    end = " café 🎉." if kind == "accents and emoji" else "."
    return [" ".join(draw() for _ in range(WORDS)) + end for _ in range(CAPTIONS)]


def seconds(tokenize, texts: list[str]) -> tuple[float, torch.Tensor]:
    start = time.process_time()
    ids = tokenize(texts)
    return time.process_time() - start, ids


def main() -> None:
    rows = []
    for kind in ("common words", "all words", "new words", "accents and emoji"):
        theirs, ours = open_clip.SimpleTokenizer(), tokenizer.published.__wrapped__()
        ends = [t.removesuffix(tokenizer.END) for t in ours.tokens if t.endswith(tokenizer.END)]
        words = [word for word in ends if len(word) > 2 and word.isascii() and word.isalpha()]
        rng, times = random.Random(0), ([], [])
        for _ in range(ROUNDS):
            texts = captions(kind, words, rng)
            a, expected = seconds(theirs, texts)
            b, ids = seconds(ours.tokenize, texts)
            if not torch.equal(ids, expected):
                raise AssertionError(f"different ids for {kind}")
            times[0].append(a)
            times[1].append(b)
        wanted = None if kind == "accents and emoji" else WANTED
        speeds = [f"{CAPTIONS / median(t):,.0f}" for t in times]
        first = f"{times[0][0] / times[1][0]:.2f}"
        rows.append([kind, *speeds, first, *described(ratio(*times), wanted)])
    header = ["captions", "open_clip, texts/s", "minidiff, texts/s", "ratio, first round", "ratio"]
    print(table([*header, "wanted"], rows))


if __name__ == "__main__":
    main()
