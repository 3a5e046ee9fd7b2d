"""The choice of a backend, and the message if one is missing."""

import warnings

import pytest
import torch

import conan_fast
from conan_fast import _backends, _native


def test_build_info_lists_backends_and_why_others_are_missing():
    info = conan_fast.build_info()
    assert info["version"] == conan_fast.__version__
    assert "torch" in info["available_backends"]
    for backend in ("cuda", "emulated"):
        assert (backend in info["available_backends"]) != (backend in info["missing_backends"])
    assert all(info["missing_backends"].values())


def test_build_info_is_short_and_lists_the_kernels_where_asked(monkeypatch):
    kernel = {"name": "sm80_forward", "architecture": "sm_80", "registers": 128}
    facts = {"built": True, "architectures": ["sm_80"], "cuda_version": "13.0", "kernels": [kernel] * 100}
    monkeypatch.setattr(_native, "build_facts", lambda: facts)
    info = conan_fast.build_info()
    assert len(str(info)) < 1000 and info["cuda_version"] == "13.0"
    assert conan_fast.build_info(kernels=True) == info | {"kernels": [kernel] * 100}


def test_a_missing_backend_raises_with_the_reason():
    q = torch.zeros(1, 2, 1, 4)
    x = torch.ones(2, 4)
    for backend, reason in conan_fast.build_info()["missing_backends"].items():
        with pytest.raises(RuntimeError, match="build_info") as error:
            conan_fast.soft_mask_attention(q, q, q, 0.5, backend=backend)
        assert reason in str(error.value)
        with pytest.raises(RuntimeError, match="build_info"):
            conan_fast.info_nce(x, x, backend=backend)


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend"):
        conan_fast.info_nce(torch.ones(2, 4), torch.ones(2, 4), backend="triton")


def test_auto_is_silent_on_the_cpu_and_warns_once_for_a_gpu_without_kernels(monkeypatch):
    monkeypatch.setattr(_backends, "_warned", set())
    monkeypatch.setattr(_backends, "missing_reason", lambda backend: "no kernels" if backend != "torch" else None)
    assert_falls_back_with_one_warning("no kernels", lambda _: None)


def test_auto_warns_once_for_a_call_that_the_kernels_do_not_support(monkeypatch):
    monkeypatch.setattr(_backends, "_warned", set())
    monkeypatch.setattr(_backends, "missing_reason", lambda backend: None)
    assert_falls_back_with_one_warning("head_dim 80", lambda _: ValueError("head_dim 80"))
    assert _backends.choose("auto", torch.device("cuda"), lambda _: None) == "cuda"
    with pytest.raises(ValueError, match="head_dim 80"):
        _backends.choose("cuda", torch.device("cuda"), lambda _: ValueError("head_dim 80"))


def assert_falls_back_with_one_warning(reason, unsupported):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backends.choose("auto", torch.device("cpu"), unsupported) == "torch"
    with pytest.warns(UserWarning, match=reason):
        assert _backends.choose("auto", torch.device("cuda"), unsupported) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backends.choose("auto", torch.device("cuda"), unsupported) == "torch"


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        (["sm_80"], (8, 0), True),
        (["sm_80"], (8, 9), True),
        (["sm_89"], (8, 6), False),
        (["sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (9, 0), True),
        (["sm_80", "compute_80"], (12, 0), True),
        (["sm_90a"], (9, 0), True),
        (["sm_90a"], (10, 0), False),
        (["sm_100a"], (10, 3), False),
        (["sm_100f"], (10, 3), True),
        (["compute_90a"], (10, 0), False),
        ([], (8, 0), False),
    ],
)
def test_which_gpus_compiled_code_runs_on(architectures, capability, covered):
    assert _native.covers(architectures, capability) == covered


def test_without_a_gpu_the_compiled_kernels_are_missing_for_that_reason(monkeypatch):
    monkeypatch.setattr(_native, "build_facts", lambda: {"built": True, "architectures": ["sm_80"]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _native.cuda_missing_reason.__wrapped__() == "torch sees no CUDA device"


def test_a_driver_older_than_the_compiler_is_named(monkeypatch):
    class Compiled:
        driver_version = staticmethod(lambda: 12040)
        runtime_version = staticmethod(lambda: 13000)

    monkeypatch.setattr(_native, "build_facts", lambda: {"built": True, "architectures": ["sm_80"]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(_native, "module", lambda _: Compiled)
    assert "CUDA 13, the driver supports CUDA 12" in _native.cuda_missing_reason.__wrapped__()
