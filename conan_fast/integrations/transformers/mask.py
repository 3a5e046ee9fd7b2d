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
from transformers import PreTrainedModel, masking_utils

from . import layout

NAME = "conan_soft_mask"
TRACKED = ("alpha", "is_causal", "cu_seq_lens_q")  # keywords that a layer must not miss
UNKNOWN = torch.int8  # dtype of a mask while torch.compile traces: packed or not, that stands in position_ids
_ATTRIBUTE = "_conan_fast_mask"
_NEITHER = (
    f"{NAME} replaces a causal or bidirectional mask, got one that is neither (a window, chunks, blocks, images?); "
    "load the model with another attn_implementation"
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
) -> Tensor:
    """What every layer gets as its attention_mask: segments [B, L] (see `layout.of_segments`), and what was found.

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
    _check_lengths(q_length, kv_length, kv_offset, attention_mask)
    shape = batch_size, q_length
    if torch.compiler.is_compiling():
        if local_size is not None and q_length > local_size:
            raise window_error("the attention mask", local_size, q_length)
        return _traced_mask(mask_function, attention_mask, shape, use_vmap, device)
    parts, call = _read(mask_function), Call.of_the_model(shape)
    segments, position_ids = None, call.position_ids
    if attention_mask is not None:
        segments = attention_mask.to(torch.int64)
        layout.of_segments(segments, position_ids)
    elif parts.packing is not None:
        segments = parts.packing - parts.packing[:, :1] + 1  # from 1
    elif position_ids is not None and "cu_seq_lens_q" not in call.keywords:  # which say it without a look at a tensor
        found = layout.of_positions(position_ids, batch_size)
        if found.cu_seqlens is not None:
            segments = layout.segments_of_positions(position_ids).expand(batch_size, -1)
            layout.keep(segments, found)
    causal = parts.causal
    if not parts.known:
        causal = _evaluated(mask_function, segments, shape, use_vmap, device)
    mask = segments
    if mask is None:  # a tensor that carries what was found
        mask = torch.ones((1, 1), dtype=torch.int64, device=device).expand(shape)
    padding = attention_mask is not None
    setattr(mask, _ATTRIBUTE, Found(segments, parts.window, padding, causal, call.keywords))
    return mask


def _check_lengths(q_length: int, kv_length: int, kv_offset: int, attention_mask: Tensor | None) -> None:
    if kv_length != q_length or kv_offset:
        if attention_mask is not None and kv_offset == 0 and attention_mask.shape[1] == kv_length:
            raise ValueError(
                f"attention_mask: got {kv_length} positions for {q_length} tokens; {NAME} expects one per token, and "
                "does not generate from a cache; load the model with another attn_implementation for that"
            )
        raise ValueError(
            f"past_key_values: {NAME} does not generate from a cache, got {kv_length} keys for {q_length} queries; "
            "load the model with another attn_implementation for that"
        )


class Found(NamedTuple):
    """What a mask says."""

    segments: Tensor | None  # [B, L], see `layout.of_segments`; None: look at position_ids
    window: int | None = None  # how many tokens a token sees to one side, itself included
    padding: bool = True  # segments are the caller's attention_mask, not found in its position_ids
    causal: bool | None = None  # what alpha replaces; None: either, or not known
    keywords: frozenset[str] = frozenset()  # of the model's call, which the layers have to get as well
    traced: bool = False  # torch.compile traced the mask, and only position_ids show whether texts are packed
    complete: bool = True  # False: a mask from elsewhere, or one that lost what was found by being copied


def found_in_mask(attention_mask: Tensor | None) -> Found:
    """What `create_mask` attached; for masks from elsewhere, and where torch.compile traces, the mask itself."""
    if attention_mask is not None and attention_mask.dtype == UNKNOWN:
        return Found(None, traced=True)
    found: Found = getattr(attention_mask, _ATTRIBUTE, Found(attention_mask, complete=False))
    return found


def window_error(name: str, window: int, longest: int) -> ValueError:
    return ValueError(
        f"{name}: {NAME} has no sliding window, got one of {window} and a sequence of {longest} tokens; cut texts to "
        f"{window} tokens, or load the model with another attn_implementation"
    )


class Call(NamedTuple):
    """What the model was called with, as far as its layers may not get it."""

    position_ids: Tensor | None  # [B or 1, L]
    keywords: frozenset[str]

    @staticmethod
    def of_the_model(shape: tuple[int, int]) -> Call:
        """Read from the variables of the forward methods that lead here: they call transformers, which calls us.

        Where a model is bidirectional, transformers does not look for packed texts in position_ids, and not all models
        pass them to their layers (ModernBERT does not), nor all keywords (StableLM passes none, SentenceTransformer
        drops alpha). Without this look, texts would see each other, or alpha would be ignored, and nothing would say
        so.
        """
        position_ids, keywords, frame = None, set(), sys._getframe(2)
        for _ in range(48):
            module = frame.f_locals.get("self")
            if isinstance(module, PreTrainedModel) or type(module).__module__.startswith("sentence_transformers."):
                if position_ids is None:
                    position_ids = frame.f_locals.get("position_ids")
                given = frame.f_locals.get("kwargs") or {}
                keywords |= {name for name in TRACKED if given.get(name) is not None}
            if frame.f_back is None:
                break
            frame = frame.f_back
        if not isinstance(position_ids, Tensor) or position_ids.shape[-1] != shape[1]:
            position_ids = None
        elif position_ids.dim() == 3:  # by axis of an image
            layout.refuse_restarts(position_ids)
            position_ids = None
        elif position_ids.dim() != 2 or position_ids.shape[0] not in (1, shape[0]):
            position_ids = None
        return Call(position_ids, frozenset(keywords))


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
    """What a mask function consists of."""

    known: bool = True  # False: of something else, too
    causal: bool | None = None
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
        elif function in (masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function):
            parts = parts._replace(causal=function is masking_utils.causal_mask_function)
        else:
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


def _evaluated(
    mask_function: MaskFunction, segments: Tensor | None, shape: tuple[int, int], use_vmap: bool, device: Any
) -> bool | None:
    """Whether the mask, evaluated, is causal within each sequence, or bidirectional (False), or both (None)."""
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
        segments = torch.ones(shape, dtype=torch.int64, device=mask_BLL.device)
    within = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] != 0)
    lower = torch.ones((length, length), dtype=torch.bool, device=mask_BLL.device).tril()
    causal, bidirectional = (bool(((mask_BLL == base) | ~within).all()) for base in (lower, torch.ones_like(lower)))
    if not (causal or bidirectional):
        raise ValueError(f"attention mask: {_NEITHER}")
    return None if causal and bidirectional else causal


def _traced_mask(
    mask_function: MaskFunction, mask: Tensor | None, shape: tuple[int, int], use_vmap: bool, device: Any
) -> Tensor:
    """The same as far as it can be done while torch.compile traces, where no tensor's value is known."""
    if use_vmap:
        raise ValueError(
            f"attention mask: under torch.compile {NAME} does not support a mask to which the model adds parts of its "
            "own; do not compile it, or load the model with another attn_implementation"
        )
    batch_size, length = shape
    rows, tokens = torch.arange(batch_size, device=device)[:, None], torch.arange(length - 1, device=device)[None]
    heads = torch.zeros_like(rows)
    following = mask_function(rows, heads, tokens, tokens + 1)  # may a token see the next one?
    torch._assert_async(following.all() | ~following.any(), f"attention mask: {_NEITHER}")  # without text it is dropped
    if mask is not None:
        return mask
    if mask_function is masking_utils.bidirectional_mask_function:  # transformers does not look for packed texts then
        return torch.ones(shape, dtype=UNKNOWN, device=device)
    begins = ~mask_function(rows, heads, tokens + 1, tokens).expand(batch_size, -1)
    return torch.nn.functional.pad(begins, (1, 0)).cumsum(1) + 1
