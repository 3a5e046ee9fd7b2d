"""Comparison of results."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Results = Sequence[Tensor] | Mapping[str, Tensor]


def assert_same(ours: Results, theirs: Results, tolerance: float = 1e-10) -> None:
    """The tensors of both have the same dtype and shape, and values within the tolerance, absolute plus relative."""
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
