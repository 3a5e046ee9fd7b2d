"""The mask function that transformers calls once per forward pass and kind of layer.

transformers describes a mask by a function of (batch, head, query, key): causal or bidirectional, often combined with
packed sequences or a sliding window. The soft mask replaces "causal or bidirectional"; padding and packing become a
`Layout`; anything else is refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import masking_utils

from . import layout

NAME = "conan_soft_mask"
_ATTRIBUTE = "_conan_fast_mask"
_NEITHER = (
    f"{NAME} replaces a causal or bidirectional mask, got one that is neither (a window, chunks, blocks, images?); "
    "load the model with attn_implementation='sdpa'"
)
MaskFunction = Callable[..., Any]


def create_mask(
    batch_size: int,
    q_length: int | None = None,
    kv_length: int = 0,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    *,
    cache_position: Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: Any = None,
    **_: Any,  # dtype, config, and what may be skipped by sdpa
) -> Tensor | None:
    """What every layer gets as its attention_mask: segments [B, L] (see `layout.of_segments`), or None.

    None says that nothing is padded and no packing was found; the layers then look at their position_ids.

    Args:
        attention_mask: bool [B, L], True for tokens, or None.
        cache_position: [q_length], in place of q_length, q_offset and device in early releases of transformers 5.
        local_size: the window or chunk of the mask function; read from that itself unless torch.compile traces.
        use_vmap: the mask function has parts that the model made itself.

    Raises:
        ValueError: for a cache, and for a mask function that is more than causal or bidirectional, packing, padding
            and a window.
    """
    if q_length is None or device is None:
        assert cache_position is not None
        q_length, device = cache_position.shape[0], cache_position.device
    if kv_length != q_length or kv_offset:
        raise ValueError(
            f"past_key_values: {NAME} does not generate from a cache, got {kv_length} keys for {q_length} queries; "
            "load the model with attn_implementation='sdpa' for that"
        )
    if torch.compiler.is_compiling():
        if local_size is not None and q_length > local_size:
            raise window_error("the attention mask", local_size, q_length)
        _check_traced(mask_function, (batch_size, q_length), use_vmap, device)
        return attention_mask
    parts = _read(mask_function)
    segments = None
    if attention_mask is not None:
        segments = attention_mask.to(torch.int64)
    elif parts.packing is not None:
        segments = parts.packing - parts.packing[:, :1] + 1  # from 1
    elif (position_ids := _position_ids_of_the_call(batch_size, q_length)) is not None:
        found = layout.of_positions(position_ids, batch_size)
        if found.cu_seqlens is not None:
            segments = layout.segments_of_positions(position_ids).expand(batch_size, -1)
            layout.keep(segments, found)
    if not parts.known:
        _check_evaluated(mask_function, segments, (batch_size, q_length), use_vmap, device)
    window = parts.window if parts.window is not None and parts.window < q_length else None
    if segments is None and window is None:
        return None
    if segments is not None:
        mask = segments
    else:  # a tensor that carries the window: not all models tell their layers of it
        mask = torch.ones((1, 1), dtype=torch.int64, device=device).expand(batch_size, q_length)
    setattr(mask, _ATTRIBUTE, Found(segments, window, padding=attention_mask is not None))
    return mask


class Found(NamedTuple):
    """What a mask says."""

    segments: Tensor | None  # [B, L], see `layout.of_segments`; None: look at position_ids
    window: int | None = None  # one that some row is longer than
    padding: bool = True  # segments are the caller's attention_mask, not found in its position_ids


def found_in_mask(attention_mask: Tensor | None) -> Found:
    """What `create_mask` attached; for masks from elsewhere, and where torch.compile traces, the mask itself."""
    found: Found = getattr(attention_mask, _ATTRIBUTE, Found(attention_mask))
    return found


def window_error(name: str, window: int, longest: int) -> ValueError:
    return ValueError(
        f"{name}: {NAME} has no sliding window, got one of {window} and a sequence of {longest} tokens; cut texts to "
        f"{window} tokens, or load the model with attn_implementation='sdpa'"
    )


def _position_ids_of_the_call(batch_size: int, length: int) -> Tensor | None:
    """position_ids [B or 1, L] of the model's forward method, which calls transformers, which calls `create_mask`.

    Where a model is bidirectional, transformers does not look for packed texts in position_ids, and not all models pass
    them to their layers (ModernBERT does not). Without this look into the callers' variables, texts would see each
    other and nothing would say so.
    """
    frame = sys._getframe(2)
    for _ in range(4):
        found = frame.f_locals.get("position_ids")
        if isinstance(found, Tensor) and found.dim() == 2 and found.shape[0] in (1, batch_size):
            return found if found.shape[1] == length else None
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


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


class Parts(NamedTuple):
    """What a mask function consists of besides "causal" or "bidirectional"."""

    known: bool = True  # False: of something else, too
    packing: Tensor | None = None  # [B, L], the numbers of packed sequences
    window: int | None = None  # how many tokens a token sees to one side, itself included


def _read(mask_function: MaskFunction) -> Parts:
    codes, parts = _codes(), Parts()
    for function in _functions(mask_function):
        code = getattr(function, "__code__", None)
        if code is codes["packed"]:
            parts = parts._replace(packing=_variables(function)["packed_sequence_mask"])
        elif code is codes["window"]:
            parts = parts._replace(window=_variables(function)["sliding_window"])
        elif code is codes["bidirectional window"]:
            parts = parts._replace(window=_variables(function)["sliding_window"] + 1)
        elif function not in (masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function):
            parts = parts._replace(known=False)
    return parts


def _functions(function: MaskFunction) -> Iterator[MaskFunction]:
    """The functions of which all have to allow a key."""
    code = getattr(function, "__code__", None)
    if code is _codes()["and"]:
        for part in _variables(function)["mask_functions"]:
            yield from _functions(part)
    elif code is not None and code is _codes().get("remap"):
        yield from _functions(_variables(function)["mask_function"])
    else:
        yield function


def _variables(function: MaskFunction) -> dict[str, Any]:
    """What a function made by a factory remembers of the factory's arguments."""
    cells, names = function.__closure__ or (), function.__code__.co_freevars
    return {name: cell.cell_contents for name, cell in zip(names, cells, strict=True)}


def _check_evaluated(
    mask_function: MaskFunction, segments: Tensor | None, shape: tuple[int, int], use_vmap: bool, device: Any
) -> None:
    """The mask, evaluated, is causal or bidirectional within each sequence."""
    batch_size, length = shape
    queries: dict[str, Any] = {"q_length": length, "device": device}
    if "cache_position" in inspect.signature(masking_utils.sdpa_mask).parameters:
        queries = {"cache_position": torch.arange(length, device=device)}
    mask = masking_utils.sdpa_mask(
        batch_size=batch_size, kv_length=length, mask_function=mask_function, allow_is_causal_skip=False,
        use_vmap=use_vmap, **queries,
    )  # fmt: skip
    assert mask is not None  # [B, 1, L, L]: nothing is skipped
    mask_BLL = mask[:, 0]
    if segments is None:
        segments = torch.ones((batch_size, length), dtype=torch.int64, device=mask_BLL.device)
    within = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] != 0)
    causal = torch.ones((length, length), dtype=torch.bool, device=mask_BLL.device).tril()
    if not any(bool(((mask_BLL == base) | ~within).all()) for base in (causal, torch.ones_like(causal))):
        raise ValueError(f"attention mask: {_NEITHER}")


def _check_traced(mask_function: MaskFunction, shape: tuple[int, int], use_vmap: bool, device: Any) -> None:
    """The same as far as it can be done while torch.compile traces, where no tensor's value is known."""
    if use_vmap:
        raise ValueError(
            f"attention mask: under torch.compile {NAME} does not support a mask to which the model adds parts of its "
            "own; do not compile it, or load the model with attn_implementation='sdpa'"
        )
    batch_size, length = shape
    rows, tokens = torch.arange(batch_size, device=device)[:, None], torch.arange(length - 1, device=device)[None]
    following = mask_function(rows, torch.zeros_like(rows), tokens, tokens + 1)  # may a token see the next one?
    torch._assert_async(following.all() | ~following.any(), f"attention mask: {_NEITHER}")  # without text it is dropped
