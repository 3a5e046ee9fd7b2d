"""The teacher of stage 3 scores pairs, so that unrelated pairs can be dropped (paper, section 3)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from train.data.rows import Pair


def teacher_scores(rows: Sequence[Pair], teacher: str) -> NDArray[np.float32]:
    """Cosine similarity of query and positive, float32 [n].

    Rows with a `teacher_score` keep it. For the others, `teacher` is one of: "", score 1 (drops nothing); "tfidf",
    TF-IDF vectors, only useful within one language; a hub name or folder of a SentenceTransformer.
    """
    scores = np.array([np.nan if row.teacher_score is None else row.teacher_score for row in rows], dtype=np.float32)
    missing = [i for i, row in enumerate(rows) if row.teacher_score is None]
    if len(missing) == 0:
        return scores
    queries, positives = [rows[i].query for i in missing], [rows[i].positive for i in missing]
    if teacher == "":
        scores[missing] = 1.0
    elif teacher == "tfidf":
        scores[missing] = _tfidf(queries, positives)
    else:
        scores[missing] = _sentence_transformer(queries, positives, teacher)
    return scores


def _tfidf(queries: Sequence[str], positives: Sequence[str]) -> NDArray[np.float32]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)  # normalizes its rows
    vectorizer.fit([*queries, *positives])
    a, b = vectorizer.transform(queries), vectorizer.transform(positives)
    return np.asarray(a.multiply(b).sum(1), dtype=np.float32).ravel()


def _sentence_transformer(queries: Sequence[str], positives: Sequence[str], name: str) -> NDArray[np.float32]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name)
    a, b = (
        model.encode(list(texts), normalize_embeddings=True, show_progress_bar=True) for texts in (queries, positives)
    )
    return np.asarray((a * b).sum(1), dtype=np.float32)
