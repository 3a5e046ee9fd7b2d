"""The four kinds of training rows, and the error for data that cannot be one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the row (counted from 1) and what is wrong."""


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text for pretraining (stage 1) and for the tokenizer."""

    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and the text that answers it (stages 3 and 4).

    `negatives` are hard negatives; `language` is the language of the query; `teacher_score` is a teacher embedder's
    cosine similarity of query and positive (stage 3 drops pairs below 0.4), None where nobody scored the pair.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    language: str = "en"
    teacher_score: float | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Two texts and their graded similarity (semantic textual similarity, the CoSENT loss). Only the order matters."""

    a: str
    b: str
    score: float


@dataclass(frozen=True, slots=True)
class Instruction:
    """A task, what it is applied to, and the answer (stages 2 and 3). One of `instruction`, `input` may be empty."""

    instruction: str
    input: str
    output: str
    language: str = "en"

    def as_pair(self) -> Pair:
        """Instruction and input are the query, the output is the positive (paper, stage 3)."""
        query = "\n".join(part for part in (self.instruction, self.input) if part)
        return Pair(query, self.output, language=self.language)


Row = TypeVar("Row", Text, Pair, Scored, Instruction)
