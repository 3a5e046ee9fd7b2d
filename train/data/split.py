"""Train and test: who goes where, and which test texts were after all seen in training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

from train.data.languages import NO_WORD_SPACES
from train.data.messages import fold

TEST_SHARE_OF_PAGES = 0.12
TEST_SHARE_OF_MESSAGES = 0.15

# \w leaves out the vowel signs and other marks of Indic scripts, Thai and Khmer, which would tear their words apart.
_WORD = re.compile(r"[\w\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u109f\u1780-\u17d3]+")
_GRAM = 3
_RUN = 8
# In languages without spaces: from this many characters on a text counts as three words.
_MIN_UNSPACED = 8


def fraction(key: str) -> float:
    """A number in [0, 1) that depends on the key alone, the same on every machine and Python."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def is_test_page(page: str) -> bool:
    return fraction("page " + page) < TEST_SHARE_OF_PAGES


def is_test_group(group: str) -> bool:
    return fraction("message " + group) < TEST_SHARE_OF_MESSAGES


class SeenTexts:
    """What training has seen, for leaving out test texts that occur in it.

    Three comparisons: equal to a whole training text (case and white space aside); for texts of three words or more,
    contained in one, words compared without punctuation; and made up for the most part of runs of words from training.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._whole: set[str] = set()
        self._grams: set[int] = set()
        self._runs: set[int] = set()
        self._words = ""
        self._unspaced = ""
        self.add(texts)

    def add(self, texts: Iterable[str]) -> None:
        lines = []
        for text in texts:
            folded = fold(text)
            if folded in self._whole:
                continue
            self._whole.add(folded)
            words = _WORD.findall(folded)
            lines.append(" ".join(words))
            self._grams.update(_grams(words, _GRAM))
            self._runs.update(_grams(words, _RUN))
        self._words += "".join(f"\n {line} " for line in lines)
        # Only texts with a character beyond the Indic blocks can contain a text of a language without word spaces.
        self._unspaced += "".join("\n" + line.replace(" ", "") for line in lines if max(line, default="") >= "\u0e00")

    def equals(self, text: str) -> bool:
        """Whether the text is, as a whole, a training text."""
        return fold(text) in self._whole

    def has(self, text: str, language: str = "en") -> bool:
        """Whether the text equals a training text or, if it is long enough, occurs inside one."""
        folded = fold(text)
        if folded in self._whole:
            return True
        words = _WORD.findall(folded)
        if language in NO_WORD_SPACES:
            joined = "".join(words)
            if len(joined) >= _MIN_UNSPACED and joined in self._unspaced:
                return True
        # Looking the word triples up first spares nearly every text the search through megabytes.
        if len(words) < _GRAM or not self._grams.issuperset(_grams(words, _GRAM)):
            return False
        return f" {' '.join(words)} " in self._words

    def mostly_seen(self, text: str) -> bool:
        """Whether at least half of the text's runs of eight words occur in training: text copied and edited."""
        runs = list(_grams(_WORD.findall(fold(text)), _RUN))
        return bool(runs) and 2 * sum(run in self._runs for run in runs) >= len(runs)


def _grams(words: list[str], length: int) -> Iterator[int]:
    """Hashes of all runs of `length` neighbouring words; good for one process only, as Python's hash() is."""
    return map(hash, zip(*(words[start:] for start in range(length)), strict=False))
