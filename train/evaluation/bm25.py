"""The BM25 baseline, with the same tasks and metrics as the encoders."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from train.evaluation.local_search import LocalSearch

# Letters, marks and digits. `\w` would split Hindi, Bengali, Khmer and Thai words at vowel signs.
_WORD = r"[\p{L}\p{M}\p{N}]+"
# Scripts without spaces between words: Han and kana, Thai, Lao, Burmese, Khmer.
_NO_SPACES = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")


@cache
def _splitter() -> Any:
    """Normalizer (NFKC, lower case) and word splitter of the `tokenizers` library.

    Words are also split where the script changes, so that BM25 finds a Latin name inside Chinese or Thai text.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers

    words = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return normalizer, pre_tokenizers.Sequence([words, pre_tokenizers.UnicodeScripts()])


# nDCG@10 of heading -> section over 700 sections of Django's documentation: 0.699 with neither stop words nor stemming,
# 0.701 with stop words, 0.733 with stemming, 0.737 with both (0.734 with the longer list of stop words).
# Message retrieval, mean of 25 languages, in the same order: 0.187, 0.193, 0.197, 0.203 (0.196).
@cache
def _english_stop_words_and_stemmer() -> tuple[frozenset[str], Any]:
    import Stemmer
    from bm25s.tokenization import STOPWORDS_EN

    return frozenset(STOPWORDS_EN), Stemmer.Stemmer("english")


def tokenize(text: str) -> list[str]:
    """The BM25 terms of a text.

    Words are lower-cased and stemmed (English Snowball stemmer, which ignores other scripts); English stop words are
    removed. A word in a script without spaces becomes its character bigrams, as usual in search engines for Chinese and
    Japanese; a single character stays.
    """
    normalizer, splitter = _splitter()
    stop_words, stemmer = _english_stop_words_and_stemmer()
    terms: list[str] = []
    for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
        if _NO_SPACES.match(word):
            terms += [word[i : i + 2] for i in range(max(len(word) - 1, 1))]
        elif word not in stop_words:
            terms.append(stemmer.stemWord(word))
    return terms


class BM25Search(LocalSearch):
    """Okapi BM25 of the library `bm25s` with its defaults (Lucene's variant, k1 = 1.5, b = 0.75)."""

    def __init__(self) -> None:
        super().__init__()
        self._retriever: Any = None

    def set_corpus(self, texts: Sequence[str]) -> None:
        import bm25s

        self._retriever = bm25s.BM25()
        # bm25s cannot index a corpus without any term, so a document without terms gets the empty term.
        self._retriever.index([tokenize(text) or [""] for text in texts], show_progress=False)

    def rank(self, queries: Sequence[str], top_k: int) -> tuple[np.ndarray, np.ndarray]:
        terms = [tokenize(query) for query in queries]
        indices, scores = self._retriever.retrieve(terms, k=top_k, show_progress=False)
        return indices, scores
