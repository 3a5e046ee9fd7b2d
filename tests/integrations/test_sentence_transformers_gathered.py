"""gather_across_devices=True in two processes: equal to the stock losses, and to one process with the whole batch."""

import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from conan_fast.integrations.sentence_transformers import CachedInfoNCELoss, InfoNCELoss, stock
from tests.integrations.sentence_transformer_models import (
    DIM,
    assert_equal,
    features,
    small_model,
    texts,
    value_and_gradients,
)

PROCESSES, ROWS = 2, 5
MATRYOSHKA = {"matryoshka_dims": [4, DIM, 8], "matryoshka_weights": [0.5, 1.0, 2.0]}


def replace_model(loss, model):
    """As the Trainer does."""
    for name, child in loss.named_children():
        if name == "model":
            loss.model = model
        else:
            replace_model(child, model)
    return loss


def gathered(loss, ddp, columns, rank):
    """(mean value over the processes, gradients that DDP leaves), and this process's own value."""
    own = [column[rank * ROWS : (rank + 1) * ROWS] for column in columns]
    value, grads = value_and_gradients(replace_model(loss, ddp), own, model=ddp)
    mean = value.clone()
    dist.all_reduce(mean)
    return (mean / PROCESSES, {name.removeprefix("module."): grad for name, grad in grads.items()}), value


def check(kind, model, ddp, rank, negatives, matryoshka):
    columns = [texts(ROWS * PROCESSES, seed) for seed in range(2 + negatives)]
    options = {"mini_batch_size": 3} if kind is CachedInfoNCELoss else {}
    options |= {"scale": 13.0, "gather_across_devices": True}
    other = kind.stock_loss(model, **options)
    options |= MATRYOSHKA if matryoshka else {}
    if matryoshka:
        other = stock.MatryoshkaLoss(model, other, *MATRYOSHKA.values())
    expected, expected_value = gathered(other, ddp, columns, rank)
    mine, value = gathered(kind(model, **options), ddp, columns, rank)
    torch.testing.assert_close(value, expected_value, rtol=1e-6, atol=0)
    assert_equal(mine, expected)
    options |= {"gather_across_devices": False}
    assert_equal(mine, value_and_gradients(kind(model, **options), columns))  # one process with the whole batch

    columns[1][1] = columns[-1][ROWS + 2] = columns[1][ROWS]  # duplicates in the same process and the other one
    options |= {"mask_duplicates": True}
    whole = value_and_gradients(kind(model, **options), columns)
    options |= {"gather_across_devices": True}
    masked = gathered(kind(model, **options), ddp, columns, rank)[0]
    assert_equal(masked, whole)
    assert (masked[0] - gathered(replace_model(other, model), ddp, columns, rank)[0][0]).abs() > 1e-3


def check_process(rank, port, folder):
    torch.set_num_threads(1)
    model = small_model(f"{folder}/{rank}", dropout=0.0).double()  # before transformers knows of other processes
    store = dist.TCPStore("127.0.0.1", port, PROCESSES, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    try:
        model[0].auto_model.pooler.requires_grad_(False)  # nothing uses it, and DDP would wait for its gradients
        ddp = DistributedDataParallel(model)
        for kind in (InfoNCELoss, CachedInfoNCELoss):
            for negatives, matryoshka in ((0, False), (1, True), (2, False)):
                check(kind, model, ddp, rank, negatives, matryoshka)
        uneven = features(model, [texts(ROWS + rank, seed) for seed in range(2)])
        with pytest.raises(ValueError, match="batches of one size in all processes"):  # on both
            InfoNCELoss(model, gather_across_devices=True)(uneven, None)
        dist.barrier()  # the store lives in the first process
    finally:
        dist.destroy_process_group()


def test_two_processes_equal_the_stock_losses_and_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.set_forkserver_preload(["torch", "sentence_transformers"])  # imported once, not by each process
    mp.start_processes(check_process, args=(port, str(tmp_path)), nprocs=PROCESSES, start_method="forkserver")


def test_without_other_processes_it_changes_nothing(tmp_path):
    model, columns = small_model(tmp_path), [texts(ROWS, seed) for seed in range(3)]
    alone = value_and_gradients(InfoNCELoss(model), columns)
    assert_equal(value_and_gradients(InfoNCELoss(model, gather_across_devices=True), columns), alone)
