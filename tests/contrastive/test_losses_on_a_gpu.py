"""The losses in torch alone, on a GPU: nothing waits for it, and the results are the CPU's."""

import pytest
import torch

from conan_fast import cosent, info_nce
from tests.support.contrastive import random_features

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

IDS = torch.arange(12) // 2


def contrastive(features, ids, temperature, scope):
    options = {"positive_ids": ids, "negative_ids": ids[:, None].repeat(1, 3), "negative_scope": scope}
    return info_nce(*features, temperature=temperature, dims=[4, 16, 9], **options, backend="torch").loss


def ranking(features, labels, temperature):
    return cosent(*features[:2], labels, temperature=temperature, dims=[4, 16, 9])


def losses(features, ids, temperature):
    """Each loss, as a function of nothing."""
    return [
        lambda: contrastive(features, ids, temperature, "shared"),
        lambda: contrastive(features, ids, temperature, "private"),
        lambda: ranking(features, ids, temperature),
        lambda: ranking(features, ids.float() / 2.5, temperature),
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature_tensor", [False, True])
def test_nothing_waits_for_the_gpu(dtype, temperature_tensor):
    features, ids = random_features(12, 3, 16, dtype, "cuda"), IDS.cuda()
    temperature = torch.tensor(0.1, device="cuda", requires_grad=True) if temperature_tensor else 0.1
    wanted = features + ([temperature] if temperature_tensor else [])
    for loss in losses(features, ids, temperature):
        torch.autograd.grad(loss(), wanted, allow_unused=True)  # libraries set themselves up in the first call
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in losses(features, ids, temperature):
            torch.autograd.grad(loss(), wanted, allow_unused=True)
        with torch.no_grad():
            for loss in losses(features, ids, temperature):
                loss()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_results_are_the_cpus():
    features, on_gpu = (random_features(12, 3, 16, torch.float64, device) for device in ("cpu", "cuda"))
    ours, theirs = (losses(x, ids, 0.1) for x, ids in ((on_gpu, IDS.cuda()), (features, IDS)))
    for mine, other in zip(ours, theirs, strict=True):
        grads = torch.autograd.grad(mine(), on_gpu, allow_unused=True)
        for grad, expected in zip(grads, torch.autograd.grad(other(), features, allow_unused=True), strict=True):
            assert (grad is None) == (expected is None)
            if grad is not None:
                torch.testing.assert_close(grad.cpu(), expected, atol=1e-12, rtol=1e-10)


def test_a_temperature_on_the_cpu():
    features, ids = random_features(12, 3, 16, torch.float32, "cuda"), IDS.cuda()
    grads = []
    for device in ("cpu", "cuda"):
        temperature = torch.tensor(0.1, device=device, requires_grad=True)
        grads += torch.autograd.grad(contrastive(features, ids, temperature, "shared"), temperature)
    assert grads[0].device.type == "cpu"
    torch.testing.assert_close(grads[0], grads[1].cpu())
