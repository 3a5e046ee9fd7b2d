"""Inputs of InfoNCE, all its results by name, and comparison with the plain definition."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from conan_fast.contrastive import norms
from conan_fast.contrastive.kernel_backend import workspace
from conan_fast.contrastive.torch_backend import passes as torch_passes

# Ways of the kernel backend through the scores, from everything at once to one tile at a time: bytes of workspace, and
# from how many rows on queries are taken whole.
WAYS = {"whole": (256 << 20, 1), "chunks": (150_000, 1), "blocks": (150_000, 10**9), "tiles": (60_000, 10**9)}


def random_features(
    rows: int,
    negatives: int | None,
    size: int,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> list[Tensor]:
    """Queries [rows, size], positives [rows, size] and, if not None, negatives [rows, negatives, size].

    They require gradients. Their norms differ, so that a missing normalization shows.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, size), (rows, size)] + ([] if negatives is None else [(rows, negatives, size)])
    scales = [torch.rand(*shape[:-1], 1, generator=generator) * 1.5 + 0.5 for shape in shapes]
    wide = torch.promote_types(dtype, torch.float32)
    features = [
        torch.randn(*shape, generator=generator, dtype=wide) * scale
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    return [x.to(device, dtype).requires_grad_() for x in features]


def random_ids(rows: int, negatives: int | None, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """positive_ids and, if there are negatives, negative_ids: about every second query shares its positive's id."""
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randint(-(2**62), 2**62, (rows // 2 + 1,), generator=generator)
    options = {"positive_ids": distinct[torch.randint(0, rows // 2 + 1, (rows,), generator=generator)]}
    if negatives is not None:
        places = torch.randint(0, rows, (rows, negatives), generator=generator)
        options["negative_ids"] = options["positive_ids"][places]
    return {name: ids.to(device) for name, ids in options.items()}


class RandomBatch(NamedTuple):
    """Shapes, options and seed of a call of info_nce."""

    rows: int
    negatives: int | None  # per query
    size: int
    options: dict[str, Any]  # dims, dim_weights, negative_scope
    ids: str  # "none", "positives" or "all": which ids are passed
    zeros: int  # so many first columns are zero in one row of each input
    seed: int

    def inputs(
        self, dtype: torch.dtype = torch.float64, device: str = "cpu", repeat: int = 0
    ) -> tuple[list[Tensor], dict[str, Any]]:
        """(features, options), other ones for each `repeat`."""
        features = random_features(self.rows, self.negatives, self.size, dtype, device, self.seed + repeat)
        with torch.no_grad():
            for row, x in enumerate(features):
                if x.numel():
                    x.flatten(0, -2)[(self.seed + row) % x[..., 0].numel(), : self.zeros] = 0
        ids = {} if self.ids == "none" else random_ids(self.rows, self.negatives, device, self.seed + repeat)
        if self.ids == "positives":
            ids.pop("negative_ids", None)
        return features, self.options | ids


@st.composite
def random_batches(
    draw: st.DrawFn,
    rows: st.SearchStrategy[int],
    negatives: Callable[[int], st.SearchStrategy[int | None]],
    sizes: st.SearchStrategy[int],
    dim_step: int = 1,
) -> RandomBatch:
    """RandomBatch of these sizes; `negatives` is called with the number of rows. dims are multiples of `dim_step`."""
    count, size = draw(rows), draw(sizes)
    prefixes = st.lists(st.integers(1, size // dim_step), min_size=1, max_size=4, unique=True)
    dims = draw(st.one_of(st.none(), prefixes) if size % dim_step == 0 else prefixes)
    options: dict[str, Any] = {"negative_scope": draw(st.sampled_from(["shared", "private"]))}
    if dims is not None:
        options["dims"] = [dim_step * dim for dim in dims]
        if draw(st.booleans()):
            options["dim_weights"] = [0.25 * (index + 1) for index in range(len(dims))]
    return RandomBatch(
        count, draw(negatives(count)), size, options, draw(st.sampled_from(["none", "positives", "all"])),
        draw(st.sampled_from([0, dim_step, size])), draw(st.integers(0, 2**32)),
    )  # fmt: skip


def everything(
    function: Callable[..., Any], features: Sequence[Tensor], temperature: float, **options: Any
) -> dict[str, Tensor]:
    """All results of `function` by name, in float64: losses, scores, gradients of the features and of log temperature.

    The gradients are those of 1.7 times the loss. The temperature's is by its logarithm, because dL/dt carries the
    rounding error of L times 1 / t^2.
    """
    tau = torch.tensor(temperature, dtype=torch.promote_types(features[0].dtype, torch.float32))
    tau = tau.to(features[0].device).requires_grad_()
    result = function(*features, temperature=tau, **options)
    *grads, tau_grad = torch.autograd.grad(result.loss * 1.7, [*features, tau])
    found = {"loss": result.loss, "losses": result.loss_per_dim, "tau": tau_grad * tau}
    found |= dict(zip(("queries", "positives", "negatives"), grads, strict=False))
    if result.negative_scores is not None:
        found["scores"] = result.negative_scores
    return {name: x.detach().double() for name, x in found.items()}


@contextmanager
def way(name: str) -> Iterator[None]:
    """The kernel backend goes one of WAYS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "WORKSPACE_BYTES", WAYS[name][0])
        patch.setattr(workspace, "MIN_WHOLE_ROWS", WAYS[name][1])
        yield


@contextmanager
def small_chunks(workspace_bytes: int, columns: int) -> Iterator[None]:
    """The torch backend takes even a few rows in several chunks and blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_passes, "WORKSPACE_BYTES", workspace_bytes)
        patch.setattr(torch_passes, "BLOCK_COLUMNS", columns)
        patch.setattr(norms, "BLOCK_ROWS", columns)
        yield


def assert_as_exact_as_eager(
    ours: list[dict[str, Tensor]],
    eager: list[dict[str, Tensor]],
    exact: list[dict[str, Tensor]],
    temperature: float,
    factor: float,
) -> None:
    """Error (Frobenius) against float64 on the same inputs at most `factor` that of the plain definition in the dtype.

    Each list holds the results of some batches of the same shapes. The slack is a few roundings in float32, of factors
    and of scores as large as 1 / temperature. It decides where float32 is compared with float32, whose errors are no
    larger. Gradients of features are differences of elements as large as the weights of the losses. That of the
    temperature is a mean of differences of scores.
    """
    slack = torch.finfo(torch.float32).eps * max(4.0, 0.5 / temperature)
    together = [
        {name: torch.stack([result[name] for result in results]) for name in results[0]}
        for results in (ours, eager, exact)
    ]
    for name, truth in together[2].items():
        size = truth.norm()
        if name in ("loss", "losses"):
            size = size + truth.numel() ** 0.5
        if name in ("queries", "positives", "negatives", "tau"):
            size = size + 1e-3 * max(together[2][other].norm() for other in ("queries", "positives"))
        if name == "tau":
            size = size + 0.02 / temperature
        error, other_error = ((results[name] - truth).norm() for results in together[:2])
        allowed = factor * other_error + slack * size
        assert error <= allowed, f"{name}: error {error}, allowed {allowed}, norm {truth.norm()}"
