"""Dynamic hard negatives (section 3.4, eq. 5 and 6): easy negatives are replaced by the next of their pool."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class ReplacementRule:
    """Eq. 6, with S0 the score of a negative at its first use and S its current score."""

    replace_below: float = 0.4
    ratio: float = 1.2
    max_score: float = 0.7

    def __call__(self, first: NDArray[np.float32], now: NDArray[np.float32]) -> NDArray[np.bool_]:
        """True where S0 < replace_below, or ratio * S < S0 and S < max_score."""
        return (first < self.replace_below) | ((self.ratio * now < first) & (now < self.max_score))


class DynamicNegatives:
    """The K current negatives of each of n pairs, and each pair's position in its pool.

    Scores come from the loss (`info_nce(...).negative_scores`) without another forward pass. A pair whose pool is used
    up keeps its negatives.
    """

    def __init__(self, pools: NDArray[np.int64], num_negatives: int, rule: ReplacementRule | None) -> None:
        """
        Args:
            pools: [n, P] text indices, hardest first, padded with -1; at least K in each.
            num_negatives: K.
            rule: None never replaces.

        Raises:
            ValueError: a pool is shorter than K.
        """
        self._sizes = (pools >= 0).sum(1)
        if len(pools) and self._sizes.min() < num_negatives:
            short = int(self._sizes.argmin())
            raise ValueError(
                f"pools: pair {short} has {self._sizes[short]} negatives, expected at least {num_negatives}"
            )
        self._pools, self._rule = pools, rule
        self._slots = np.tile(np.arange(num_negatives, dtype=np.int64), (len(pools), 1))  # positions in the pool
        self._next = np.full(len(pools), num_negatives, dtype=np.int64)
        self._first = np.full((len(pools), num_negatives), np.nan, dtype=np.float32)

    def current(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Text indices [len(rows), K] of the current negatives."""
        return np.take_along_axis(self._pools[rows], self._slots[rows], axis=1)

    def update(self, rows: NDArray[np.int64], scores: Tensor) -> float:
        """Record the scores [len(rows), K] of this step and replace negatives by eq. 6.

        Returns:
            The share of replaced negatives.
        """
        if self._rule is None or scores.numel() == 0:
            return 0.0
        rows, at = np.unique(rows, return_index=True)  # a pair that occurs twice counts once
        now = scores.detach().float().cpu().numpy()[at]
        first = np.where(np.isnan(self._first[rows]), now, self._first[rows])
        easy = self._rule(first, now)
        rank = easy.cumsum(1) - 1  # the first easy negative gets the next of the pool, the second the one after
        target = self._next[rows][:, None] + rank
        replaced = easy & (target < self._sizes[rows][:, None])
        self._slots[rows] = np.where(replaced, target, self._slots[rows])
        self._first[rows] = np.where(replaced, np.float32(np.nan), first)
        self._next[rows] += replaced.sum(1)
        return float(replaced.mean())

    def tensors(self) -> dict[str, Tensor]:
        """The state, for the checkpoint."""
        return {
            "slots": torch.from_numpy(self._slots.copy()),
            "next": torch.from_numpy(self._next.copy()),
            "first_scores": torch.from_numpy(self._first.copy()),
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self._slots = tensors["slots"].numpy().copy()
        self._next = tensors["next"].numpy().copy()
        self._first = tensors["first_scores"].numpy().copy()
