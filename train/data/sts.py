"""Graded pairs of texts from where they stand in the documentation tree."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from train.data.messages import fold
from train.data.rows import Scored
from train.data.rst import Section

MAX_WORDS = 60
MIN_WORDS = 12


@dataclass(frozen=True, slots=True)
class Passage:
    """The beginning of a paragraph of prose, and where it stands: section, page, part ('topics/db'), top ('topics')."""

    text: str
    page: str
    section: int

    @property
    def part(self) -> str:
        folders = self.page.split("/")[:-1]
        return "/".join(folders[:2])

    @property
    def top(self) -> str:
        return self.page.split("/")[0]


# Score, what both sides share, what they must not share.
_GRADES: tuple[tuple[float, Callable[[Passage], Hashable], Callable[[Passage], Hashable]], ...] = (
    (1.0, lambda passage: (passage.page, passage.section), lambda passage: fold(passage.text)),
    (0.67, lambda passage: passage.page, lambda passage: passage.section),
    (0.33, lambda passage: passage.part, lambda passage: passage.page),
    (0.0, lambda passage: "the documentation", lambda passage: passage.top),
)


def passages(pages: Iterable[tuple[str, list[Section]]]) -> list[Passage]:
    """Every different prose paragraph of at least MIN_WORDS words, cut to MAX_WORDS, in order."""
    found: dict[str, Passage] = {}
    for page, sections in pages:
        for position, section in enumerate(sections):
            for paragraph in section.paragraphs:
                words = paragraph.text.split()
                if not paragraph.is_code and len(words) >= MIN_WORDS:
                    text = " ".join(words[:MAX_WORDS])
                    found.setdefault(fold(text), Passage(text, page, position))
    return list(found.values())


def graded_pairs(candidates: list[Passage], count: int, seed: int) -> list[Scored]:
    """About `count` pairs, a quarter of each grade: same section 1.0, same page 0.67, same part 0.33, unrelated 0.0.

    Drawn at random, the same for the same seed; fewer where the candidates do not give that many.
    """
    draw = random.Random(seed)
    pairs: dict[tuple[str, str], float] = {}
    for score, shared, distinct in _GRADES:
        groups: dict[Hashable, list[Passage]] = defaultdict(list)
        for passage in candidates:
            groups[shared(passage)].append(passage)
        wanted = len(pairs) + count // len(_GRADES)
        for _ in range(20 * count):
            if len(pairs) >= wanted or not candidates:
                break
            a = candidates[draw.randrange(len(candidates))]
            group = groups[shared(a)]
            b = group[draw.randrange(len(group))]
            if distinct(a) != distinct(b) and (b.text, a.text) not in pairs:
                pairs.setdefault((a.text, b.text), score)
    return [Scored(a, b, score) for (a, b), score in pairs.items()]
