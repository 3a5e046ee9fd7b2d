"""Which rows each step uses: endless shuffled passes, sources by weight, languages by share.

Everything follows from the seed and a few counters. The counters are saved in checkpoints, so that a resumed run
samples the same rows as an uninterrupted one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from train.data.languages import sampling_shares
from train.recipe import Source

Indices = NDArray[np.int64]


class ShuffledSampler:
    """Endless passes over some indices, each pass in a new random order."""

    def __init__(self, indices: Indices | range, seed: Sequence[int]) -> None:
        self._indices = np.asarray(indices, dtype=np.int64)
        if len(self._indices) == 0:
            raise ValueError("indices: got 0 rows; at least one is needed")
        self._seed = tuple(seed)
        self.taken = 0
        self._pass = -1
        self._order = self._indices

    def take(self, count: int) -> Indices:
        """The next `count` indices."""
        pieces: list[Indices] = []
        while count:
            passed, position = divmod(self.taken, len(self._indices))
            if passed != self._pass:
                self._order = np.random.default_rng((*self._seed, passed)).permutation(self._indices)
                self._pass = passed
            piece = self._order[position : position + count]
            pieces.append(piece)
            self.taken += len(piece)
            count -= len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


class MixtureSampler:
    """Random rows from several groups by share; each group is sampled in shuffled passes."""

    def __init__(self, groups: Mapping[str, Indices], shares: Mapping[str, float], seed: Sequence[int]) -> None:
        names = sorted(name for name in groups if shares.get(name, 0) > 0)
        if not names:
            raise ValueError(f"shares: none of the groups {sorted(groups)} has a share, got {dict(shares)}")
        self._samplers = [ShuffledSampler(groups[name], (*seed, i)) for i, name in enumerate(names)]
        unscaled = np.array([shares[name] for name in names])
        self._probabilities = unscaled / unscaled.sum()
        self._seed = tuple(seed)
        self.taken = 0

    def take(self, count: int) -> Indices:
        rng = np.random.default_rng((*self._seed, len(self._samplers), self.taken))
        counts = rng.multinomial(count, self._probabilities)
        self.taken += count
        return rng.permutation(np.concatenate([s.take(int(c)) for s, c in zip(self._samplers, counts, strict=True)]))

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken, "groups": [s.taken for s in self._samplers]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]
        for sampler, taken in zip(self._samplers, state["groups"], strict=True):
            sampler.taken = taken


def language_sampler(
    row_languages: Sequence[str], shares: Literal["rows", "table7"], seed: Sequence[int]
) -> MixtureSampler:
    """Samples row indices, uniformly ("rows") or languages by the paper's shares ("table7").

    Raises:
        ValueError: "table7", and no row's language is in table 7.
    """
    everything = np.arange(len(row_languages))
    if shares == "rows":
        return MixtureSampler({"all": everything}, {"all": 1.0}, seed)
    names = np.array(row_languages)
    groups = {str(name): everything[names == name] for name in np.unique(names)}
    return MixtureSampler(groups, sampling_shares(groups), seed)


class WeightedRoundRobin:
    """Sources take turns: over any number of steps each gets its share of the turns, within one turn."""

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights:
            raise ValueError("weights: no source; at least one is needed")
        self._shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self.taken = [0] * len(weights)

    def next(self) -> int:
        owed = self._shares * (sum(self.taken) + 1) - np.asarray(self.taken)
        source = int(owed.argmax())
        self.taken[source] += 1
        return source


class SourceSampler:
    """The rows of each step: sources take turns by weight, and the rows of a step come from one source."""

    def __init__(self, sources: Sequence[Source], row_languages: Sequence[Sequence[str]], seed: Sequence[int]) -> None:
        """`row_languages`: per source the language of each row."""
        self._sources = sources
        self._turns = WeightedRoundRobin([source.weight for source in sources])
        self._samplers = [
            language_sampler(languages, source.shares, (*seed, i))
            for i, (source, languages) in enumerate(zip(sources, row_languages, strict=True))
        ]

    def take(self) -> tuple[int, Indices]:
        """The index of the next source, and batch_size of its rows."""
        source = self._turns.next()
        return source, self._samplers[source].take(self._sources[source].batch_size)

    def take_rows(self, count: int) -> Iterator[tuple[int, Indices]]:
        """Steps with at least `count` rows in total."""
        while count > 0:
            source, rows = self.take()
            count -= len(rows)
            yield source, rows

    def state(self) -> dict[str, Any]:
        return {"turns": self._turns.taken, "samplers": [sampler.state() for sampler in self._samplers]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._turns.taken = list(state["turns"])
        for sampler, saved in zip(self._samplers, state["samplers"], strict=True):
            sampler.load_state(saved)
