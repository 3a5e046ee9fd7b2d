"""Adapter from our text encoders to mteb's encoder protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.evaluation.encoder import TextEncoder
from train.evaluation.random_state import preserved_random_state

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta


def encode_checked(encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray:
    """Encode, and check the result.

    Returns:
        [n, hidden] float32.

    Raises:
        ValueError: the shape is not [n, hidden], or there are NaN or inf. The message names the encoder.
    """
    name = type(encoder).__name__
    vectors = np.asarray(encoder.encode(texts), dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[0] != len(texts) or vectors.shape[1] == 0:
        raise ValueError(f"{name}.encode: got shape {vectors.shape} for {len(texts)} texts; expected [n, hidden]")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{name}.encode: {bad.size} of {len(texts)} vectors contain NaN or inf, first for {texts[bad[0]][:60]!r}"
        )
    return vectors


def model_meta(implementation: object) -> ModelMeta:
    """mteb's metadata of a local model, named after the implementation's class."""
    with preserved_random_state():
        from mteb.models.model_meta import ModelMeta

    name = f"conan_fast/{type(implementation).__name__}"
    meta: ModelMeta = ModelMeta.create_empty({"name": name, "revision": "local"})
    return meta


class MtebAdapter:
    """A `TextEncoder` with mteb's encoder protocol.

    Args:
        cache: encode every distinct text once and keep its vector, so that the corpus that all languages share is
            encoded once per evaluation. Turn it off for corpora whose vectors do not fit in memory.
    """

    def __init__(self, encoder: TextEncoder, *, cache: bool = True) -> None:
        self.encoder = encoder
        self._cache: dict[str, np.ndarray] | None = {} if cache else None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        return model_meta(self.encoder)

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """[n, hidden] float32 for the texts of an mteb data loader; task, split and prompt type are ignored."""
        return self.encode_texts([text for batch in inputs for text in batch["text"]])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """[n, hidden] float32."""
        if self._cache is None:
            return encode_checked(self.encoder, texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if new:
            self._cache.update(zip(new, encode_checked(self.encoder, new), strict=True))
        return np.stack([self._cache[text] for text in texts])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of all pairs: [n, hidden], [m, hidden] -> [n, m]."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine row by row: [n, hidden], [n, hidden] -> [n]."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)
