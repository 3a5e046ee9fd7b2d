"""InfoNCE over two processes with uneven batches equals one process with the whole batch."""

import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from conan_fast import info_nce

SIZES = (3, 5)
SCOPES = ("shared", "private")


def whole_batch():
    generator = torch.Generator().manual_seed(0)
    rows = sum(SIZES)
    features = [torch.randn(*shape, generator=generator).double() for shape in ((rows, 8), (rows, 8), (rows, 2, 8))]
    ids = [torch.randint(0, 4, shape, generator=generator) for shape in ((rows,), (rows, 2))]
    return features, ids


def loss_and_grads(features, ids, scope, group):
    features = [x.clone().requires_grad_() for x in features]
    tau = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    result = info_nce(
        *features, temperature=tau, dims=[8, 3], dim_weights=[1.0, 0.5], positive_ids=ids[0], negative_ids=ids[1],
        negative_scope=scope, group=group,
    )  # fmt: skip
    result.loss.backward()
    return result, [x.grad for x in features], tau.grad


def check_rank(rank, port):
    store = dist.TCPStore("127.0.0.1", port, len(SIZES), is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(SIZES))
    try:
        group = dist.group.WORLD
        features, ids = whole_batch()
        own = slice(sum(SIZES[:rank]), sum(SIZES[: rank + 1]))
        for scope in SCOPES:
            expected, expected_grads, expected_tau = loss_and_grads(features, ids, scope, None)
            result, grads, tau = loss_and_grads([x[own] for x in features], [x[own] for x in ids], scope, group)
            torch.testing.assert_close(result.loss, expected.loss, atol=1e-12, rtol=0)
            torch.testing.assert_close(result.loss_per_dim, expected.loss_per_dim, atol=1e-12, rtol=0)
            torch.testing.assert_close(result.negative_scores, expected.negative_scores[own], atol=1e-12, rtol=0)
            for mine, other in zip(grads, expected_grads, strict=True):
                torch.testing.assert_close(mine, other[own], atol=1e-12, rtol=0)
            dist.all_reduce(tau)  # each process holds its own rows' part
            torch.testing.assert_close(tau, expected_tau, atol=1e-12, rtol=0)
        half = [x[own].bfloat16().requires_grad_() for x in features]
        info_nce(*half, group=group).loss.backward()
        assert all(x.grad.isfinite().all() for x in half)
        nothing = features[0][:0] if rank == 0 else features[0]  # a process without rows takes part all the same
        torch.testing.assert_close(info_nce(nothing, nothing, group=group).loss, info_nce(*features[:1] * 2).loss)
        with pytest.raises(ValueError, match="must agree in D"):  # on both, instead of one waiting for ever
            info_nce(features[0][:, : 4 + rank], features[1][:, : 4 + rank], group=group)
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_one():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(check_rank, args=(port,), nprocs=len(SIZES))
