"""The four kinds of training rows, and the error for data that cannot be parsed into one."""

from dataclasses import dataclass
from typing import TypeVar


class DataError(ValueError):
    """Unusable data. The message names the file, the row (counted from 1) and the problem."""


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text for pretraining (stage 1) and for training the tokenizer."""

    text: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and the text that answers it (stages 3 and 4).

    `negatives` are hard negatives. `language` is the query's language. `teacher_score` is the cosine similarity of the
    pair under a teacher embedder, None if unknown (stage 3 of the paper drops pairs below 0.4).
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    language: str = "en"
    teacher_score: float | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Two texts with a graded similarity, for STS and the CoSENT loss. Only the order of the scores matters."""

    a: str
    b: str
    score: float


@dataclass(frozen=True, slots=True)
class Instruction:
    """A task, its input and its output (stages 2 and 3). Either `instruction` or `input` may be empty."""

    instruction: str
    input: str
    output: str
    language: str = "en"

    def as_pair(self) -> Pair:
        """Query: instruction and input. Positive: output (paper, stage 3)."""
        query = "\n".join(part for part in (self.instruction, self.input) if part)
        return Pair(query, self.output, language=self.language)


Row = TypeVar("Row", Text, Pair, Scored, Instruction)
