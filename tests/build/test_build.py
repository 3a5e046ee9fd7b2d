"""Which kernels an installation compiles, its messages, and the parser of the compiler's report."""

import importlib.metadata
import os
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import build_backend
import setup as build_script
from csrc import resource_report

DEFAULT_ARCHITECTURES = ["sm_80", "sm_90a", "compute_80"]


# Decided by the environment


@dataclass
class Machine:
    """A simulated machine: only the programs in `folder` are on PATH."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch

    def program(self, name: str, script: str = "exit 0") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def nvcc(self, release: str, name: str = "nvcc") -> Path:
        return self.program(name, f'echo "Cuda compilation tools, release {release}, V{release}.99"')

    def driver(self, release: int | None) -> None:
        self.monkeypatch.setattr(build_backend, "has_driver", lambda: True)
        self.monkeypatch.setattr(build_backend, "driver_release", lambda: release)

    def set(self, name: str, value: object) -> None:
        self.monkeypatch.setenv(name, str(value))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Linux with a C++ compiler, without nvcc and driver."""
    for name in ("CONAN_FAST_CUDA", "CONAN_FAST_CUDA_ARCHS", "CUDA_HOME", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(build_backend, "has_driver", lambda: False)
    simulated = Machine(tmp_path, monkeypatch)
    simulated.program("g++")
    return simulated


def complaint() -> str:
    """The message of the build's SystemExit, which is one line."""
    with pytest.raises(SystemExit) as error:
        build_backend.plan()
    message = str(error.value)
    assert message.startswith("error: conan_fast: ") and "\n" not in message
    return message


def test_without_nvcc_and_driver_no_kernels_are_built_and_the_reason_is_given(machine):
    plan = build_backend.plan()
    assert not plan.cuda and plan.nvcc is None and not plan.compiler_wheels
    assert "no nvcc" in plan.no_cuda_reason and "NVIDIA driver" in plan.no_cuda_reason
    assert build_backend.requirements(plan) == []


@pytest.mark.parametrize("wanted", [None, "1"])
@pytest.mark.parametrize("driver", [True, False])
def test_nvcc_on_path_compiles(machine, wanted, driver):
    path = machine.nvcc("12.4")
    if wanted:
        machine.set("CONAN_FAST_CUDA", wanted)
    if driver:
        machine.driver(550)  # its version does not matter with the user's own compiler
    plan = build_backend.plan()
    assert plan.cuda and plan.nvcc == build_backend.Nvcc(path, "12.4", "12.4.99")
    assert plan.architectures == DEFAULT_ARCHITECTURES
    assert build_backend.requirements(plan) == build_backend.BUILD_TOOLS


def test_cuda_home_comes_before_path(machine):
    machine.nvcc("12.6")
    path = machine.nvcc("13.0", "cuda/bin/nvcc")
    machine.set("CUDA_HOME", machine.folder / "cuda")
    assert build_backend.plan().nvcc.path == path
    machine.set("CUDA_HOME", machine.folder / "nowhere")
    assert build_backend.plan().nvcc.release == "12.6"


@pytest.mark.parametrize("driver", [None, 580, 600])
def test_a_driver_alone_selects_the_compiler_from_pypi(machine, driver):
    machine.driver(driver)  # None: a driver of unknown release
    plan = build_backend.plan()
    assert plan.cuda and plan.compiler_wheels and plan.nvcc is None
    assert build_backend.requirements(plan) == build_backend.BUILD_TOOLS + build_backend.COMPILER_WHEELS


def test_a_driver_too_old_for_the_compiler_of_pypi(machine):
    machine.driver(570)
    plan = build_backend.plan()
    assert not plan.cuda and "580" in plan.no_cuda_reason and "570" in plan.no_cuda_reason
    machine.set("CONAN_FAST_CUDA", "1")  # for another machine, for instance
    assert build_backend.plan().compiler_wheels


def test_cuda_1_needs_neither_nvcc_nor_driver(machine):
    machine.set("CONAN_FAST_CUDA", "1")
    assert build_backend.plan().compiler_wheels


def test_an_old_nvcc_is_ignored(machine):
    path = machine.nvcc("12.3")
    plan = build_backend.plan()
    assert not plan.cuda and f"{path} is CUDA 12.3" in plan.no_cuda_reason and "12.4" in plan.no_cuda_reason
    machine.driver(580)
    assert build_backend.plan().compiler_wheels
    machine.set("CONAN_FAST_CUDA", "1")
    assert build_backend.plan().compiler_wheels


@pytest.mark.parametrize("script", ["exit 3", "echo nonsense", "exec /nonexistent"])
def test_nvcc_that_does_not_work(machine, script):
    path = machine.program("nvcc", script)
    message = complaint()
    assert str(path) in message and "CONAN_FAST_CUDA=0" in message
    machine.set("CONAN_FAST_CUDA", "0")
    assert not build_backend.plan().cuda


def test_cuda_0_ignores_the_machine(machine):
    machine.nvcc("13.0")
    machine.driver(600)
    machine.set("CONAN_FAST_CUDA", "0")
    plan = build_backend.plan()
    assert not plan.cuda and "CONAN_FAST_CUDA=0" in plan.no_cuda_reason
    assert build_backend.requirements(plan) == []


@pytest.mark.parametrize("value", ["yes", "2", "01", " "])
def test_cuda_must_be_0_or_1(machine, value):
    machine.set("CONAN_FAST_CUDA", value)
    assert repr(value) in complaint()


@pytest.mark.parametrize("nvcc", [True, False])
def test_without_host_compiler(machine, nvcc):
    (machine.folder / "g++").unlink()
    if nvcc:
        machine.nvcc("13.0")
    else:
        machine.driver(580)
    plan = build_backend.plan()
    assert not plan.cuda and "C++ compiler" in plan.no_cuda_reason
    machine.set("CONAN_FAST_CUDA", "1")
    assert "CONAN_FAST_CUDA=1, but no C++ compiler" in complaint()
    machine.program("my-c++")
    machine.set("CXX", "my-c++ -m64")
    assert build_backend.plan().cuda


def test_other_systems_have_no_kernels(machine):
    machine.nvcc("13.0")
    machine.monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux" in build_backend.plan().no_cuda_reason
    machine.set("CONAN_FAST_CUDA", "1")
    assert "Linux" in complaint()


@pytest.mark.parametrize(
    ("text", "architectures"),
    [
        (build_backend.DEFAULT_ARCHITECTURES, DEFAULT_ARCHITECTURES),
        ("90a", ["sm_90a"]),
        ("sm_80,sm_90a+PTX", ["sm_80", "sm_90a", "compute_90a"]),
        (" 80; 86 120f ;80", ["sm_80", "sm_86", "sm_120f"]),
        ("100a+PTX", ["sm_100a", "compute_100a"]),
    ],
)
def test_architectures(machine, text, architectures):
    machine.set("CONAN_FAST_CUDA_ARCHS", text)
    assert build_backend.plan().architectures == architectures


@pytest.mark.parametrize("text", ["75", "sm_70+PTX", "9.0", "native", "80+ptx", "compute_80", "90b", "8", ";"])
def test_bad_architectures(machine, text):
    machine.set("CONAN_FAST_CUDA_ARCHS", text)
    assert "CONAN_FAST_CUDA_ARCHS" in complaint()


def test_empty_architectures_are_the_default(machine):
    machine.set("CONAN_FAST_CUDA_ARCHS", "")
    assert build_backend.plan().architectures == DEFAULT_ARCHITECTURES


def test_a_driver_is_found_by_its_program(tmp_path, monkeypatch):
    Machine(tmp_path, monkeypatch).program("nvidia-smi")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_backend.has_driver()


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC 13.2", 535),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder@U22)", 580),
        ("something else", None),
    ],
)
def test_driver_release(text, release):
    assert build_backend.driver_release(text) == release


def test_the_hooks_return_what_the_plan_needs(machine):
    machine.set("CONAN_FAST_CUDA", "1")
    machine.monkeypatch.setattr(build_backend._setuptools, "get_requires_for_build_wheel", lambda settings: ["own"])
    machine.monkeypatch.setattr(build_backend._setuptools, "get_requires_for_build_editable", lambda settings: ["own"])
    wanted = ["own", *build_backend.BUILD_TOOLS, *build_backend.COMPILER_WHEELS]
    assert build_backend.get_requires_for_build_wheel() == wanted
    assert build_backend.get_requires_for_build_editable() == wanted


def test_without_isolation_the_missing_compiler_is_named(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(SystemExit, match="pip install nvidia-cuda-nvcc==") as error:
        build_backend.find_compiler_wheels()
    assert all(wheel in str(error.value) for wheel in build_backend.COMPILER_WHEELS)


def test_a_copied_toolkit_has_the_modes_of_the_umask_and_is_copied_once(tmp_path):
    source = tmp_path / "read-only"
    (source / "crt").mkdir(parents=True)
    header = source / "crt" / "host_config.h"
    header.write_text("first")
    for path in (header, source / "crt", source):
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = os.umask(0o027)
    try:
        target = build_script.copy_once(source, tmp_path / "build" / "include")
    finally:
        os.umask(before)
    copied = target / "crt" / "host_config.h"
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (target.parent, target, target / "crt", copied)]
    assert modes == [0o750, 0o750, 0o750, 0o640] and copied.read_text() == "first"
    copied.write_text("second")
    assert build_script.copy_once(source, target) == target and copied.read_text() == "second"


# The report of ptxas

REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN10conan_fast4tidyEi' for 'sm_80'
ptxas info    : Function properties for _ZN10conan_fast4tidyEi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4224 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 46.532 ms
ptxas info    : Overriding global maxrregcount 24 with entry-specific value 32 computed using thread count
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z8spillingPfi' for 'sm_90a'
ptxas info    : Function properties for _Z8spillingPfi
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 2 barriers, 16 bytes cumulative stack size
ptxas info    : Compile time = 4137.176 ms
ptxas info    : Function properties for _Z6helperPfi
    912 bytes stack frame, 940 bytes spill stores, 1992 bytes spill loads
""".splitlines(keepends=True)
OTHER_LINES = """\
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in function 'x'
ptxas warning : Registers are spilled to local memory in function 'x'
launch.cu(7): warning #177-D: variable "x" was declared but never referenced
""".splitlines(keepends=True)


def test_report_of_each_kernel_with_the_functions_it_calls():
    zeros = {"stack_bytes": 0, "spill_store_bytes": 0, "spill_load_bytes": 0}
    tidy, spilling = resource_report.parse(REPORT)
    used = {"registers": 32, "static_shared_bytes": 4224}
    assert tidy == {"name": "_ZN10conan_fast4tidyEi", "architecture": "sm_80", **used, **zeros}
    assert spilling["architecture"] == "sm_90a" and spilling["registers"] == 255
    assert spilling["static_shared_bytes"] == 0
    assert [spilling[key] for key in zeros] == [928, 952, 2000]


def test_the_launcher_keeps_the_report_and_shows_the_rest(tmp_path, capfd):
    mixed = [line for pair in zip(REPORT, OTHER_LINES, strict=False) for line in pair] + REPORT[len(OTHER_LINES) :]
    compiler = (
        "import pathlib, sys; sys.stderr.write(pathlib.Path(sys.argv[1]).read_text()); sys.exit(int(sys.argv[2]))"
    )
    (tmp_path / "said").write_text("".join(mixed))
    target = tmp_path / "x.o"
    for status in (1, 0):
        command = [sys.executable, "-c", compiler, str(tmp_path / "said"), str(status), "-o", str(target)]
        assert resource_report.main(command) == status
        assert capfd.readouterr().err == "".join(OTHER_LINES)
        assert (tmp_path / "x.o.resources").exists() == (status == 0)
    assert (tmp_path / "x.o.resources").read_text() == "".join(REPORT)


def test_dynamic_shared_memory_finds_its_kernel():
    names = [
        "void conan_fast::forward<conan_fast::Bf16, 112>(conan_fast::AttentionParams)",
        "void conan_fast::backward<conan_fast::Fp16, 64, 128, 2>(conan_fast::AttentionParams)",
        "conan_fast::schedule(conan_fast::AttentionParams, int, int)",
        "void conan_fast::delta<conan_fast::Bf16>(conan_fast::AttentionParams, int)",
    ]
    kernels = [{"name": name} for name in names]
    sizes = {"forward<112>": 1, "backward<64, 128, 2>": 2, "schedule": 3, "forward<64>": 9}
    resource_report.add_dynamic_shared_memory(kernels, sizes)
    assert [kernel["dynamic_shared_bytes"] for kernel in kernels] == [1, 2, 3, 0]


def test_reports_are_gathered_with_readable_names(tmp_path):
    (tmp_path / "a.o.resources").write_text("".join(REPORT))
    (tmp_path / "objects.txt").write_text("a.o\nnever-compiled.o\n")
    kernels = resource_report.gather(tmp_path / "objects.txt")
    assert [kernel["architecture"] for kernel in kernels] == ["sm_80", "sm_90a"]
    if shutil.which("c++filt"):
        assert [kernel["name"] for kernel in kernels] == ["conan_fast::tidy(int)", "spilling(float*, int)"]
    header, *lines = resource_report.table(kernels).splitlines()
    assert len(lines) == 2 and "registers" in header and "255" in lines[1] and "2952" in lines[1]
