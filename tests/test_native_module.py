"""What the compiled modules export besides kernels: the saturations, and the GPU that launchers choose kernels by."""

import sys
from importlib.machinery import PathFinder

import pytest
import torch

from conan_fast import _native
from conan_fast.attention.soft_mask import SATURATIONS

KB = 1024


def imported_from(folder, monkeypatch, *path):
    """The facts of conan_fast in `folder`, were it imported from there, with `path` as sys.path."""
    monkeypatch.setattr(_native, "__file__", str(folder / "conan_fast" / "_native.py"))
    monkeypatch.setattr(sys, "path", [str(entry) for entry in path])
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    return _native.build_facts.__wrapped__()


def test_the_source_folder_imported_beside_an_installation_names_both(tmp_path, monkeypatch):
    source, site = tmp_path / "source", tmp_path / "site-packages"
    for folder in (source, site):
        (folder / "conan_fast").mkdir(parents=True)
        (folder / "conan_fast" / "__init__.py").touch()
    alone = imported_from(source, monkeypatch, source, site)
    assert not alone["built"] and f"pip install -e {source}" in alone["reason"] and str(site) not in alone["reason"]

    (site / "conan_fast" / "_build.json").write_text('{"built": true}')
    facts = imported_from(source, monkeypatch, source, site)
    assert not facts["built"] and facts["kernels"] == []
    assert f"imported the source folder {source / 'conan_fast'}" in facts["reason"]
    assert f"not the installation in {site / 'conan_fast'}" in facts["reason"]
    assert f"pip install -e {source}" in facts["reason"]

    monkeypatch.chdir(source)
    assert imported_from(source, monkeypatch, "", site) == facts  # "": the current folder
    assert imported_from(site, monkeypatch, source, site) == {"built": True}


def test_python_and_the_kernels_have_the_same_saturations_in_the_same_order(kernel_backend):
    assert tuple(_native.module(kernel_backend[0]).saturations) == SATURATIONS


@pytest.mark.parametrize(("limit", "capability"), [(227 * KB, 90), (163 * KB, 80), (99 * KB, 86)])
def test_the_emulated_gpu_has_the_capability_of_its_shared_memory(emulated, limit, capability):
    before = emulated.device(0)["shared_memory_per_block"]
    try:
        emulated.set_shared_memory_limit(limit)
        device = {"capability": capability, "shared_memory_per_block": limit, "shared_memory_per_sm": limit + KB}
        assert emulated.device(0) == device
    finally:
        emulated.set_shared_memory_limit(before)


@pytest.mark.gpu
@pytest.mark.skipif(_native.missing_reason("cuda") is not None, reason=f"no kernels: {_native.missing_reason('cuda')}")
def test_launchers_know_the_gpu():
    module = _native.module("cuda")
    for index in (*range(torch.cuda.device_count()), 0):  # GPU 0 again: from the cache
        expected, device = torch.cuda.get_device_properties(index), module.device(index)
        assert divmod(device["capability"], 10) == (expected.major, expected.minor)
        assert device["shared_memory_per_sm"] == expected.shared_memory_per_multiprocessor
        assert device["shared_memory_per_block"] == expected.shared_memory_per_multiprocessor - KB
