"""Which backend a call gets, and what is said where one is missing."""

import warnings

import pytest
import torch

import conan_fast
from conan_fast import _backends


def test_build_info_names_what_is_there_and_why_the_rest_is_not():
    info = conan_fast.build_info()
    assert info["version"] == conan_fast.__version__
    assert "torch" in info["available_backends"]
    for backend in ("cuda", "emulated"):
        assert (backend in info["available_backends"]) != (backend in info["missing_backends"])
    assert all(info["missing_backends"].values())


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
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backends.choose("auto", torch.device("cpu")) == "torch"
    with pytest.warns(UserWarning, match="no kernels"):
        assert _backends.choose("auto", torch.device("cuda")) == "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _backends.choose("auto", torch.device("cuda")) == "torch"
