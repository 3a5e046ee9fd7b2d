"""Pairs of texts with a similarity grade derived from their positions in the documentation tree."""

import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from train.data.django_corpus.rst import Section
from train.data.django_corpus.split import fold
from train.data.rows import Scored

MAX_WORDS = 60
MIN_WORDS = 12


@dataclass(frozen=True, slots=True)
class Passage:
    """The beginning of a prose paragraph and its position: page ('topics/db/queries') and section number."""

    text: str
    page: str
    section: int

    @property
    def folder(self) -> str:
        """The first two levels of the page's folder, such as 'topics/db'."""
        return "/".join(self.page.split("/")[:-1][:2])

    @property
    def top_folder(self) -> str:
        return self.page.split("/")[0]


# Score, key that both passages share, key in which they must differ.
_GRADES: tuple[tuple[float, Callable[[Passage], Hashable], Callable[[Passage], Hashable]], ...] = (
    (1.0, lambda passage: (passage.page, passage.section), lambda passage: fold(passage.text)),
    (0.67, lambda passage: passage.page, lambda passage: passage.section),
    (0.33, lambda passage: passage.folder, lambda passage: passage.page),
    (0.0, lambda passage: "the documentation", lambda passage: passage.top_folder),
)


def passages(pages: Iterable[tuple[str, list[Section]]]) -> list[Passage]:
    """The distinct prose paragraphs of at least MIN_WORDS words, truncated to MAX_WORDS, in order."""
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
    """About `count` random pairs, a quarter per grade: same section 1.0, page 0.67, folder 0.33, unrelated 0.0.

    Determined by the seed. Fewer pairs if there are too few candidates.
    """
    rng = random.Random(seed)
    pairs: dict[tuple[str, str], float] = {}
    for score, shared_key, distinct_key in _GRADES:
        groups: dict[Hashable, list[Passage]] = defaultdict(list)
        for passage in candidates:
            groups[shared_key(passage)].append(passage)
        wanted = len(pairs) + count // len(_GRADES)
        for _ in range(20 * count):
            if len(pairs) >= wanted or not candidates:
                break
            a = candidates[rng.randrange(len(candidates))]
            group = groups[shared_key(a)]
            b = group[rng.randrange(len(group))]
            if distinct_key(a) != distinct_key(b) and (b.text, a.text) not in pairs:
                pairs.setdefault((a.text, b.text), score)
    return [Scored(a, b, score) for (a, b), score in pairs.items()]
