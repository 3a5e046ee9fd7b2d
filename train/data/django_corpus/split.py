"""The train/test split, and detection of test texts that also occur in training."""

import hashlib
import re
from collections.abc import Iterable, Iterator

# Languages written without spaces between words: a word count says nothing about their texts.
NO_WORD_SPACES: frozenset[str] = frozenset({"zh", "ja", "th", "km"})

TEST_SHARE_OF_PAGES = 0.12
TEST_SHARE_OF_MESSAGES = 0.15

# \w does not match the vowel signs and other marks of Indic scripts, Thai and Khmer, which would split their words.
_WORD = re.compile(r"[\w\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u109f\u1780-\u17d3]+")
# Containment in a training text is tested for texts of at least this many words ...
_MIN_WORDS = 3
# ... or, in languages without word spaces, this many characters.
_MIN_CHARACTERS = 8
# Length in words of the n-grams that identify an edited copy.
_COPY_NGRAM = 8


def fold(text: str) -> str:
    """Normalize for comparison: case folded, white space collapsed."""
    return " ".join(text.casefold().split())


def fraction(key: str) -> float:
    """A hash of the key in [0, 1), the same on every machine and Python version."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def is_test_page(page: str) -> bool:
    return fraction("page " + page) < TEST_SHARE_OF_PAGES


def is_test_group(group: str) -> bool:
    return fraction("message " + group) < TEST_SHARE_OF_MESSAGES


class SeenTexts:
    """An index of the training texts, for removing test texts that occur in them.

    Three tests: `equals`, the same text up to case and white space; `has`, contained in a training text, compared word
    by word without punctuation; `mostly_seen`, at least half of the text's 8-grams occur in training.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._whole: set[str] = set()
        self._trigrams: set[int] = set()
        self._copy_ngrams: set[int] = set()
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
            self._trigrams.update(_ngrams(words, _MIN_WORDS))
            self._copy_ngrams.update(_ngrams(words, _COPY_NGRAM))
        self._words += "".join(f"\n {line} " for line in lines)
        # Only texts with a character above the Indic blocks can contain text of a language without word spaces.
        self._unspaced += "".join("\n" + line.replace(" ", "") for line in lines if max(line, default="") >= "\u0e00")

    def equals(self, text: str) -> bool:
        """Whether the text is a training text."""
        return fold(text) in self._whole

    def has(self, text: str, language: str = "en") -> bool:
        """Whether the text equals a training text or, if long enough, is contained in one."""
        folded = fold(text)
        if folded in self._whole:
            return True
        words = _WORD.findall(folded)
        if language in NO_WORD_SPACES:
            joined = "".join(words)
            if len(joined) >= _MIN_CHARACTERS and joined in self._unspaced:
                return True
        # The cheap trigram lookup rules out nearly every text before the substring search through megabytes.
        if len(words) < _MIN_WORDS or not self._trigrams.issuperset(_ngrams(words, _MIN_WORDS)):
            return False
        return f" {' '.join(words)} " in self._words

    def mostly_seen(self, text: str) -> bool:
        """Whether at least half of the text's 8-grams occur in training: a copied and edited text."""
        ngrams = list(_ngrams(_WORD.findall(fold(text)), _COPY_NGRAM))
        return bool(ngrams) and 2 * sum(ngram in self._copy_ngrams for ngram in ngrams) >= len(ngrams)


def _ngrams(words: list[str], length: int) -> Iterator[int]:
    """Hashes of all word n-grams of this length. Python's hash() differs between processes, so do not store them."""
    return map(hash, zip(*(words[start:] for start in range(length)), strict=False))
