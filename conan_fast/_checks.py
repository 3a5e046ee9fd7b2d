"""Argument checks shared by the operators: ValueError for values and shapes, TypeError for dtypes.

Values inside tensors are checked only where they are on the host already, so that no check makes a GPU wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: the dtype of sums, statistics and losses."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def kept_gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of gradients that wait for the loss's own gradient.

    float16 ones wait in float32: without the factor of a loss scaler they would underflow.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def one_of(name: str, value: str, expected: Sequence[str]) -> None:
    """`value` is one of the names `expected`."""
    if value not in expected:
        raise ValueError(f"{name} must be one of {tuple(expected)}, got {value!r}")


def tensor(name: str, value: Any, shape: str) -> None:
    """`value` is a tensor with as many dimensions as `shape` ("N, K, D") has names."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor [{shape}], got {type(value).__name__}")
    if value.dim() != shape.count(",") + 1:
        raise ValueError(f"{name} must have shape [{shape}], got {list(value.shape)}")


def floating_alike(**tensors: Tensor) -> None:
    """All tensors have one device and one dtype out of FLOAT_DTYPES."""
    (first_name, first), *others = tensors.items()
    if first.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{first_name} must be bfloat16, float16, float32 or float64, got {first.dtype}")
    for name, other in others:
        if other.dtype != first.dtype:
            raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}, got {other.dtype}")
        if other.device != first.device:
            raise ValueError(f"{name} must be on the device of {first_name}, {first.device}, got {other.device}")


def ids(name: str, value: Any, shape: Sequence[int], device: torch.device) -> None:
    """`value` is an int64 tensor of `shape` on `device`."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be an int64 tensor {list(shape)}, got {got}")
    if list(value.shape) != list(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name} must be on {device}, got {value.device}")


def _scalar_tensor(name: str, value: Tensor, device: torch.device) -> None:
    if value.dim() != 0:
        raise ValueError(f"{name} as a tensor must have no dimension, got shape {list(value.shape)}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} as a tensor must be floating point, got {value.dtype}")
    if value.device != device and value.device.type != "cpu":
        raise ValueError(f"{name} as a tensor must be on {device} or on the CPU, got {value.device}")


def alpha_value(alpha: float) -> None:
    """`alpha` lies in [0, 1] (NaN does not)."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")


def alpha(value: Any, device: torch.device) -> None:
    """`value` is a number in [0, 1] or a 0-dim tensor (whose value is checked where it is on the host)."""
    if isinstance(value, Tensor):
        _scalar_tensor("alpha", value, device)
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"alpha must be a float or a 0-dim tensor, got {type(value).__name__}")
    else:
        alpha_value(value)


def temperature_value(temperature: float) -> None:
    """`temperature` is positive and finite."""
    if not 0.0 < temperature < math.inf:  # torch.compile does not trace math.isfinite of a dynamic float
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def temperature_tensor(value: Tensor) -> Tensor:
    """`value`, which is positive and finite. ValueError if the host knows that it is not, else NaN instead of it."""
    if value.device.type == "cpu" and not (
        torch.compiler.is_compiling() or torch._C._functorch.is_batchedtensor(value)
    ):
        temperature_value(value.item())
        return value
    return torch.where((value > 0) & (value < math.inf), value, math.nan)


def temperature(value: Any, device: torch.device) -> None:
    """`value` is a positive finite number or a 0-dim tensor (whose value is checked where it is on the host)."""
    if isinstance(value, Tensor):
        _scalar_tensor("temperature", value, device)
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"temperature must be a float or a 0-dim tensor, got {type(value).__name__}")
    else:
        temperature_value(value)


def positive_scale(scale: Any) -> None:
    """`scale` is None or a positive finite number."""
    if scale is None:
        return
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise TypeError(f"scale must be None or a float, got {type(scale).__name__}")
    if not 0.0 < scale < math.inf:  # torch.compile cannot trace math.isfinite
        raise ValueError(f"scale must be None or positive and finite, got {scale}")


def matryoshka(
    dims: Sequence[int] | None, weights: Sequence[float] | None, size: int
) -> tuple[list[int], list[float], list[int]]:
    """Checked Matryoshka dims: (dims in rising order, their weights, the place of each of the caller's dims there)."""
    if dims is None and weights is None:
        return [size], [1.0], [0]
    wanted = [size] if dims is None else list(dims)
    if not wanted:
        raise ValueError("dims must name at least one dimension, got none")
    for dim in wanted:
        if isinstance(dim, bool) or not isinstance(dim, int):
            raise TypeError(f"dims must be ints, got {dim!r}")
        if not 1 <= dim <= size:
            raise ValueError(f"dims must lie in 1..{size} (the embedding's size), got {dim}")
    # Not by sorting, which torch.compile does not trace for ints that may be dynamic.
    places = [len([other for other in wanted if other < dim]) for dim in wanted]
    if len(set(places)) != len(wanted):
        raise ValueError(f"dims must not repeat, got {wanted}")
    factors = [1.0] * len(wanted) if weights is None else [float(weight) for weight in weights]
    if len(factors) != len(wanted):
        raise ValueError(f"dim_weights must have one weight per dim ({len(wanted)}), got {len(factors)}")
    for weight in factors:
        if not -math.inf < weight < math.inf:
            raise ValueError(f"dim_weights must be finite, got {weight}")
    rising = [places.index(place) for place in range(len(wanted))]
    return [wanted[index] for index in rising], [factors[index] for index in rising], places


def sequences(cu_seqlens: Sequence[int], max_seqlen: int, tokens: int) -> list[int]:
    """The lengths of the sequences, with the values of cu_seqlens checked."""
    if cu_seqlens[0] != 0 or cu_seqlens[-1] != tokens:
        got = f"{cu_seqlens[0]} to {cu_seqlens[-1]}"
        raise ValueError(f"cu_seqlens must start at 0 and end at the {tokens} tokens of q, got {got}")
    lengths = [end - start for start, end in pairwise(cu_seqlens)]
    if lengths and min(lengths) < 0:
        raise ValueError(f"cu_seqlens must not fall, got a step of {min(lengths)}")
    longest = max(lengths, default=0)
    if max_seqlen < longest:
        raise ValueError(f"max_seqlen must be at least the longest sequence, {longest}, got {max_seqlen}")
    return lengths
