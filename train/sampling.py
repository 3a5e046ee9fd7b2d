"""Which rows come in which step: endless shuffled passes, several sources by weight, languages by share.

All of it follows from the seed and a few counters, and the counters go into the checkpoint, so that a resumed run draws
what the run without a break would have drawn.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from train.data.languages import sampling_shares
from train.recipe import Source

Indices = NDArray[np.int64]


class Shuffled:
    """Endless passes over some indices, each pass in a new order."""

    def __init__(self, indices: Indices | range, seed: Sequence[int]) -> None:
        self._indices = np.asarray(indices, dtype=np.int64)
        if len(self._indices) == 0:
            raise ValueError("indices: there is nothing to draw from, got 0 rows")
        self._seed = tuple(seed)
        self.taken = 0
        self._pass = -1
        self._order = self._indices

    def take(self, count: int) -> Indices:
        """The next `count` indices."""
        parts: list[Indices] = []
        while count:
            passed, position = divmod(self.taken, len(self._indices))
            if passed != self._pass:
                self._order = np.random.default_rng((*self._seed, passed)).permutation(self._indices)
                self._pass = passed
            part = self._order[position : position + count]
            parts.append(part)
            self.taken += len(part)
            count -= len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


class Grouped:
    """Rows drawn from groups (languages) by their shares; each group in its own shuffled passes."""

    def __init__(self, groups: Mapping[str, Indices], shares: Mapping[str, float], seed: Sequence[int]) -> None:
        names = sorted(name for name in groups if shares.get(name, 0) > 0)
        if not names:
            raise ValueError(f"shares: none of the groups {sorted(groups)} has a share, got {dict(shares)}")
        self._samplers = [Shuffled(groups[name], (*seed, i)) for i, name in enumerate(names)]
        weights = np.array([shares[name] for name in names])
        self._shares = weights / weights.sum()
        self._seed = tuple(seed)
        self.taken = 0

    def take(self, count: int) -> Indices:
        rng = np.random.default_rng((*self._seed, len(self._samplers), self.taken))
        counts = rng.multinomial(count, self._shares)
        self.taken += count
        drawn = np.concatenate([s.take(int(c)) for s, c in zip(self._samplers, counts, strict=True)])
        return rng.permutation(drawn)

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken, "groups": [s.taken for s in self._samplers]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]
        for sampler, taken in zip(self._samplers, state["groups"], strict=True):
            sampler.taken = taken


def by_language(languages: Sequence[str], shares: Literal["rows", "table7"], seed: Sequence[int]) -> Grouped:
    """Draws rows, given each row's language: "rows", every row alike; "table7", languages by the paper's shares.

    Raises:
        ValueError: if no language of the rows is in table 7, and its shares were asked for.
    """
    everything = np.arange(len(languages))
    if shares == "rows":
        return Grouped({"all": everything}, {"all": 1.0}, seed)
    names = np.array(languages)
    groups = {str(name): everything[names == name] for name in np.unique(names)}
    return Grouped(groups, sampling_shares(groups), seed)


class Turns:
    """Whose turn it is: over any stretch of steps each source gets its share, give or take one step."""

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights:
            raise ValueError("weights: there is no source to draw from")
        self._weights = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self.taken = [0] * len(weights)

    def next(self) -> int:
        owed = self._weights * (sum(self.taken) + 1) - np.asarray(self.taken)
        source = int(owed.argmax())
        self.taken[source] += 1
        return source


class SourceSampler:
    """The rows of each step: sources take turns by weight, a step's rows come from one source."""

    def __init__(self, sources: Sequence[Source], languages: Sequence[Sequence[str]], seed: Sequence[int]) -> None:
        """`languages`: for each source the language of each of its rows."""
        self._sources = sources
        self._turns = Turns([source.weight for source in sources])
        self._samplers = [
            by_language(names, source.shares, (*seed, i))
            for i, (source, names) in enumerate(zip(sources, languages, strict=True))
        ]

    def take(self) -> tuple[int, Indices]:
        """The number of the source whose turn it is, and batch_size of its rows."""
        turn = self._turns.next()
        return turn, self._samplers[turn].take(self._sources[turn].batch_size)

    def several(self, rows: int) -> Iterator[tuple[int, Indices]]:
        """Steps until at least `rows` rows have come."""
        while rows > 0:
            turn, drawn = self.take()
            rows -= len(drawn)
            yield turn, drawn

    def state(self) -> dict[str, Any]:
        return {"turns": self._turns.taken, "samplers": [sampler.state() for sampler in self._samplers]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._turns.taken = list(state["turns"])
        for sampler, saved in zip(self._samplers, state["samplers"], strict=True):
            sampler.load_state(saved)
