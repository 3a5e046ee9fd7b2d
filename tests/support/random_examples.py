"""Hypothesis tests of slow code: a few random examples by default, many under the marker `proof`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy


def random_examples(few: int, *, proof: int, **strategies: SearchStrategy[Any]) -> Callable[..., Callable[..., None]]:
    """A decorator like hypothesis.given that makes two tests of one function.

    The test with "few-examples" in its id runs `few` examples. The one with "many-examples" runs `proof` examples and
    has the marker proof.
    """
    counts = {"few-examples": few, "many-examples": proof}

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        runs = {
            name: settings(deadline=None, max_examples=count)(given(**strategies)(test))
            for name, count in counts.items()
        }

        @pytest.mark.parametrize("examples", ["few-examples", pytest.param("many-examples", marks=pytest.mark.proof)])
        @functools.wraps(test)
        def run(examples: str, **fixtures: Any) -> None:
            runs[examples](**fixtures)

        # What pytest supplies: `examples`, and the arguments of the test that are not random.
        fixtures = inspect.signature(runs["few-examples"]).parameters.values()
        examples = inspect.Parameter("examples", inspect.Parameter.KEYWORD_ONLY)
        run.__signature__ = inspect.Signature([*fixtures, examples])  # type: ignore[attr-defined]
        return run

    return decorate
