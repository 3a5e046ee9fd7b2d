"""New memory that holds NaN: an output that a kernel or an operator leaves unwritten shows in its results."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """All new memory holds NaN. Switches torch to deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Memory from torch.empty holds NaN, or the lowest integer. torch's switch for determinism stays as it is."""
    empty = torch.empty

    def poisoned(*arguments: object, **options: object) -> Tensor:
        out: Tensor = empty(*arguments, **options)
        return out.fill_(torch.nan if out.dtype.is_floating_point else torch.iinfo(out.dtype).min)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        yield
