"""The adapter in the families of transformers: equal to an explicit mask in float64, or refused by name."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from conan_fast.integrations.transformers import NAME, register
from tests.support import explicit_attention, families
from tests.support.families import ENCODERS, FAMILIES, WINDOW, WINDOWED

register()
SUPPORTED = [family for family in FAMILIES if family != "gemma2"]
TOLERANCE = 1e-10


class Batch(NamedTuple):
    inputs: dict[str, Any]
    shape: tuple[int, int]
    sequences: list[tuple[int, list[int]]]  # (row, places)


def ids(batch: int, length: int) -> Tensor:
    return torch.randint(3, families.VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


def padded(lengths: list[int], side: str) -> Batch:
    longest = max(lengths)
    places = [list(range(n)) if side == "right" else list(range(longest - n, longest)) for n in lengths]
    mask = torch.zeros(len(lengths), longest, dtype=torch.int64)
    for row, own in enumerate(places):
        mask[row, own] = 1
    inputs = {"input_ids": ids(len(lengths), longest), "attention_mask": mask}
    return Batch(inputs, (len(lengths), longest), list(enumerate(places)))


def packed(lengths: list[int], by: str) -> Batch:
    total, ends = sum(lengths), torch.tensor([0, *lengths]).cumsum(0)
    inputs: dict[str, Any] = {
        "input_ids": ids(1, total), "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
    }  # fmt: skip
    if by == "cu_seq_lens":
        inputs |= {"cu_seq_lens_q": ends.int(), "cu_seq_lens_k": ends.int()}
        inputs |= {"max_length_q": max(lengths), "max_length_k": max(lengths)}
    sequences = [(0, list(range(int(start), int(stop)))) for start, stop in itertools.pairwise(ends)]
    return Batch(inputs, (1, total), sequences)


def batches(lengths: list[int]) -> dict[str, Batch]:
    longest = max(lengths)
    whole = Batch({"input_ids": ids(2, longest)}, (2, longest), [(row, list(range(longest))) for row in range(2)])
    return {
        "whole": whole,
        "padded right": padded(lengths, "right"),
        "padded left": padded(lengths, "left"),
        "packed by position_ids": packed(lengths, "position_ids"),
        "packed by cu_seq_lens": packed(lengths, "cu_seq_lens"),
    }


def results(model: torch.nn.Module, batch: Batch, **more: Any) -> list[Tensor]:
    """Hidden states of the tokens, then the gradients of all parameters for a random sum of them."""
    out = families.hidden(model, **batch.inputs, **more)
    tokens = torch.zeros(batch.shape, dtype=torch.bool)
    for row, places in batch.sequences:
        tokens[row, places] = True
    found = out[tokens]
    weights = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(2))
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((found * weights).sum(), parameters, allow_unused=True)
    return [found, *(x for x in gradients if x is not None)]


def assert_close(ours: list[Tensor], expected: list[Tensor]) -> None:
    assert len(ours) == len(expected) > 1
    for mine, other in zip(ours, expected, strict=True):
        assert bool((mine - other).abs().max() <= TOLERANCE * other.abs().max().clamp(min=1)), (
            (mine - other).abs().max()
        )


@pytest.mark.parametrize("family", SUPPORTED)
@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 1.0])
def test_equal_to_an_explicit_mask(family: str, alpha: float | None) -> None:
    model = families.model(family, NAME)
    for batch in batches([3, 7, 1, 8]).values():
        value = (1.0 if family in ENCODERS else 0.0) if alpha is None else alpha
        mask = explicit_attention.mask_of_sequences(*batch.shape, batch.sequences, value)
        expected = results(families.model(family, explicit_attention.register(mask)), batch)
        assert_close(results(model, batch, **({} if alpha is None else {"alpha": alpha})), expected)


@pytest.mark.parametrize("family", SUPPORTED)
def test_lengths_beyond_a_window_are_refused_or_right(family: str) -> None:
    model = families.model(family, NAME)
    for batch in batches([3, WINDOW + 3, 1, 2]).values():
        if family in WINDOWED:
            for alpha in (0.0, 0.3, 1.0):
                expected = rf"sliding.window.*{WINDOW}.* {WINDOW + 3} tokens"
                if family == "gemma3_bidirectional":
                    expected += "|neither .a window"
                with pytest.raises(ValueError, match=expected):
                    results(model, batch, alpha=alpha)
            continue
        mask = explicit_attention.mask_of_sequences(*batch.shape, batch.sequences, 0.3)
        expected = results(families.model(family, explicit_attention.register(mask)), batch)
        assert_close(results(model, batch, alpha=0.3), expected)


@pytest.mark.parametrize("family", [x for x in SUPPORTED if "gemma2" not in x])
def test_alpha_0_and_1_are_the_models_own_outputs(family: str) -> None:
    ours = families.model(family, NAME)
    causal, bidirectional = families.model(family, "sdpa"), families.model(family, "sdpa", is_causal=False)
    for name, batch in batches([3, 7, 1, 8]).items():
        own = batch
        if name.startswith("packed"):  # transformers separates texts only in causal models
            if family in ENCODERS:
                continue
            own = batch._replace(inputs={x: batch.inputs[x] for x in ("input_ids", "position_ids")})
        if family in ENCODERS:
            assert_close(results(ours, batch), results(causal, own))
            continue
        assert_close(results(ours, batch, alpha=0.0), results(causal, own))
        if not name.startswith("packed"):
            assert_close(results(ours, batch, alpha=1.0), results(bidirectional, own))


def test_softcap_is_refused() -> None:
    model = families.model("gemma2", NAME)
    for batch in batches([3, 7]).values():
        with pytest.raises(ValueError, match="softcap: conan_soft_mask does not support"):
            results(model, batch)


def test_a_bidirectional_config_separates_packed_texts() -> None:
    """sdpa and eager do not: with is_causal = False they ignore where positions begin anew."""
    model = families.model("llama", NAME, is_causal=False)
    batch = packed([3, 7, 2], "position_ids")
    mask = explicit_attention.mask_of_sequences(*batch.shape, batch.sequences, 1.0)
    assert_close(results(model, batch), results(families.model("llama", explicit_attention.register(mask)), batch))
