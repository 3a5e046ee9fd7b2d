"""Our text encoders in mteb's terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .random_state import preserved_random_state

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta


class TextEncoder(Protocol):
    """Anything that turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[n, hidden] float32, finite; rows need not be normalised, as cosine similarity is used."""
        ...


def encode_checked(encoder: TextEncoder, texts: Sequence[str]) -> np.ndarray:
    """Encode, and check what came back.

    Returns:
        [n, hidden] float32.

    Raises:
        ValueError: the result has another shape than [n, hidden], or holds NaN or inf. The message names the encoder.
    """
    name = type(encoder).__name__
    vectors = np.asarray(encoder.encode(texts), dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[0] != len(texts) or vectors.shape[1] == 0:
        raise ValueError(f"{name}.encode: got shape {vectors.shape} for {len(texts)} texts; taken is [n, hidden]")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{name}.encode: {bad.size} of {len(texts)} vectors hold NaN or inf, the first for {texts[bad[0]][:60]!r}"
        )
    return vectors


class MtebEncoder:
    """Adapter from `TextEncoder` to mteb's encoder protocol.

    With `remember` every distinct text is encoded once in the adapter's life, so that the corpus common to all
    languages is encoded once per evaluation. It costs memory: leave it off for corpora that are not small.
    """

    def __init__(self, encoder: TextEncoder, *, remember: bool = True) -> None:
        self.encoder = encoder
        self.remember = remember
        self._known: dict[str, np.ndarray] = {}

    @property
    def mteb_model_meta(self) -> ModelMeta:
        with preserved_random_state():
            from mteb.models.model_meta import ModelMeta

        name = f"conan_fast/{type(self.encoder).__name__}"
        meta: ModelMeta = ModelMeta.create_empty({"name": name, "revision": "local", "modalities": ["text"]})
        return meta

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """The texts of a mteb data loader as [n, hidden] float32; task, split and prompt type make no difference."""
        return self.encode_texts([text for batch in inputs for text in batch["text"]])

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """[n, hidden] float32."""
        if not self.remember:
            return encode_checked(self.encoder, texts)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, encode_checked(self.encoder, new), strict=True))
        return np.stack([self._known[text] for text in texts])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of each pair: [n, hidden], [m, hidden] -> [n, m]."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine row by row: [n, hidden], [n, hidden] -> [n]."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)
