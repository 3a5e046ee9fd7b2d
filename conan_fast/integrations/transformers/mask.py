"""The mask function that transformers calls once per forward pass and kind of layer.

transformers describes a mask by a function of (batch, head, query, key): causal or bidirectional, often combined with
packed sequences or a sliding window. The soft mask replaces "causal or bidirectional"; padding and packing become a
`Layout`; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from . import layout

NAME = "conan_soft_mask"
MaskFunction = Callable[..., Any]


def create_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    *,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: Any = None,
    **_: Any,  # dtype, config, and what may be skipped by sdpa
) -> Tensor | None:
    """What every layer gets as its attention_mask: segments [B, L] (see `layout.of_segments`), or None.

    None says that nothing is padded and no packing was found; the layers then look at their position_ids.

    Args:
        attention_mask: bool [B, L], True for tokens, or None.
        local_size: the window or chunk of the mask function.
        use_vmap: the mask function has parts that the model made itself.

    Raises:
        ValueError: for a cache, and for a mask function that is more than causal or bidirectional, packing, padding,
            and a window that no sequence exceeds.
    """
    if kv_length != q_length or isinstance(q_offset, Tensor) or q_offset or kv_offset:
        raise ValueError(
            f"past_key_values: {NAME} does not generate from a cache, got {kv_length} keys for {q_length} queries; "
            "load the model with attn_implementation='sdpa' for that"
        )
    if torch.compiler.is_compiling():
        _check_traced(mask_function, q_length, local_size, use_vmap, device)
        return attention_mask
    known, packing = _read(mask_function)
    segments = None
    if attention_mask is not None:
        segments = attention_mask.to(torch.int64)
    elif packing is not None:
        segments = packing - packing[:, :1] + 1  # from 1
    longest = q_length if segments is None else layout.of_segments(segments).max_seqlen
    if local_size is not None and longest > local_size + 1:
        raise window_error("the attention mask", local_size, longest)
    if not known or (local_size is not None and q_length > local_size):
        _check_evaluated(mask_function, segments, (batch_size, q_length), use_vmap, device)
    return segments


def window_error(name: str, window: int, longest: int) -> ValueError:
    return ValueError(
        f"{name}: {NAME} has no sliding window (or chunks), got one of {window} and a sequence of {longest} tokens; "
        f"cut texts to {window} tokens, or load the model with attn_implementation='sdpa'"
    )


@cache
def _codes() -> dict[str, CodeType]:
    """The code of the functions that transformers' factories return."""
    index = torch.zeros((1, 1), dtype=torch.int64)
    causal = masking_utils.causal_mask_function
    made = {
        "and": masking_utils.and_masks(causal),
        "window": masking_utils.sliding_window_overlay(1),
        "bidirectional window": masking_utils.sliding_window_bidirectional_overlay(1),
        "packed": masking_utils.packed_sequence_mask_function(index),
    }
    # Releases differ in how they number the positions of a packed batch.
    if remap := getattr(masking_utils, "remap_positions_for_packed_sequence", None):
        made["remap"] = remap(causal, index)
    return {name: function.__code__ for name, function in made.items()}


def _read(mask_function: MaskFunction) -> tuple[bool, Tensor | None]:
    """(whether all of it is known, the packed sequence numbers [B, L] in it)."""
    known, packing = True, None
    for part in _parts(mask_function):
        if part is masking_utils.causal_mask_function or part is masking_utils.bidirectional_mask_function:
            continue
        code = getattr(part, "__code__", None)
        if code is _codes()["packed"]:
            packing = _variables(part)["packed_sequence_mask"]
        # Windows are compared with the longest sequence by `create_mask`.
        known = known and code in (_codes()["packed"], _codes()["window"], _codes()["bidirectional window"])
    return known, packing


def _parts(function: MaskFunction) -> Iterator[MaskFunction]:
    """The functions of which all have to allow a key."""
    code = getattr(function, "__code__", None)
    if code is _codes()["and"]:
        for part in _variables(function)["mask_functions"]:
            yield from _parts(part)
    elif code is not None and code is _codes().get("remap"):
        yield from _parts(_variables(function)["mask_function"])
    else:
        yield function


def _variables(function: MaskFunction) -> dict[str, Any]:
    """What a function made by a factory remembers of the factory's arguments."""
    cells = function.__closure__ or ()  # type: ignore[attr-defined]
    names = function.__code__.co_freevars  # type: ignore[attr-defined]
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}


def _check_evaluated(
    mask_function: MaskFunction, segments: Tensor | None, shape: tuple[int, int], use_vmap: bool, device: Any
) -> None:
    """The mask, evaluated, is causal or bidirectional within each sequence."""
    batch_size, length = shape
    mask_BLL = masking_utils.sdpa_mask(
        batch_size=batch_size, q_length=length, kv_length=length, mask_function=mask_function,
        allow_is_causal_skip=False, use_vmap=use_vmap, device=device,
    )[:, 0]  # fmt: skip
    if segments is None:
        segments = torch.ones((batch_size, length), dtype=torch.int64, device=mask_BLL.device)
    within = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] != 0)
    causal = torch.ones((length, length), dtype=torch.bool, device=mask_BLL.device).tril()
    if not any(bool(((mask_BLL == base) | ~within).all()) for base in (causal, torch.ones_like(causal))):
        raise ValueError(
            f"attention mask: {NAME} replaces a causal or bidirectional mask, got one that is neither (a window, "
            "chunks, blocks, images?); load the model with attn_implementation='sdpa'"
        )


def _check_traced(
    mask_function: MaskFunction, length: int, local_size: int | None, use_vmap: bool, device: Any
) -> None:
    """The same as far as it can be done while torch.compile traces: no tensor's value is known there."""
    if local_size is not None and length > local_size:
        raise window_error("the attention mask", local_size, length)
    if use_vmap:
        raise ValueError(
            f"attention mask: under torch.compile {NAME} does not support a mask to which the model adds parts of its "
            "own; do not compile it, or load the model with attn_implementation='sdpa'"
        )
