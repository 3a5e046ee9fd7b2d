"""The dtypes of an operator's inputs under torch.autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from . import _checks


def enabled(device: torch.device) -> bool:
    """Whether autocast is on for tensors on this device."""
    return _available(device.type) and torch.is_autocast_enabled(device.type)


@torch.compiler.assume_constant_result  # torch 2.6 cannot trace the question
def _available(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


def suspended(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast. Where it is off already this costs nothing, unlike torch.autocast (5 us a time)."""
    return torch.autocast(device.type, enabled=False) if enabled(device) else nullcontext()


def promoted(*tensors: Any) -> Any:
    """Under autocast, floating tensors of several dtypes in the widest of these; without, the tensors as they are.

    For losses, which autocast computes in float32 at least: rounding one input to the autocast dtype, because another
    one comes from a matrix product, would lose what that one has. Other values, such as None, stay as they are.
    """
    present = [x for x in tensors if isinstance(x, Tensor)]
    dtypes = {x.dtype for x in present}
    if len(dtypes) < 2 or not dtypes <= set(_checks.FLOAT_DTYPES) or not enabled(present[0].device):
        return tensors
    widest = reduce(torch.promote_types, dtypes)
    return tuple(x.to(widest) if isinstance(x, Tensor) else x for x in tensors)
