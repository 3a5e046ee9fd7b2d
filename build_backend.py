"""The build backend of pyproject.toml: setuptools, and the plan of what is compiled with which requirements.

Environment variables:
  CONAN_FAST_CUDA        1: build the kernels or fail; 0: do not; unset: build them if nvcc or an NVIDIA driver is found
  CUDA_HOME, PATH        where nvcc is searched
  CONAN_FAST_CUDA_ARCHS  for example "80;90a" or "sm_80,sm_90a+PTX"; the default is "80+PTX;90a"
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  (every hook that is not defined here)

OLDEST_NVCC = (12, 4)
DEFAULT_ARCHITECTURES = "80+PTX;90a"
BUILD_TOOLS = ["cmake>=3.24", "ninja>=1.10", "pybind11>=2.13,<4"]
# NVIDIA's compiler from PyPI: nvcc with ptxas and the linker; the headers that nvcc includes; the device code generator
# (cicc) with libdevice; the runtime's headers and static library; CCCL, whose nv/target CUDA's headers include. All are
# of one release. nvcc's own requirements have no versions, so each is pinned here.
COMPILER_WHEELS = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
]
OLDEST_DRIVER_FOR_WHEELS = 580  # CUDA 13.0 code does not run on an older one
WITHOUT_KERNELS = "CONAN_FAST_CUDA=0 installs without the CUDA kernels"


@dataclass(frozen=True)
class Nvcc:
    path: Path
    release: str  # "13.0"
    version: str  # "13.0.88"


@dataclass(frozen=True)
class Plan:
    """What is built: kernels with `nvcc`, with the compiler of COMPILER_WHEELS, or for `no_cuda_reason` not at all."""

    architectures: list[str]  # in nvcc's names: sm_80 is machine code, compute_80 is PTX
    nvcc: Nvcc | None = None
    compiler_wheels: bool = False
    no_cuda_reason: str | None = None

    @property
    def cuda(self) -> bool:
        return self.no_cuda_reason is None


def fail(message: str) -> NoReturn:
    """Ends the build with one line. SystemExit, because pip shows the stack of any other exception."""
    raise SystemExit(f"error: conan_fast: {message}")


def parse_architectures(text: str) -> list[str]:
    """ "80+PTX;90a" -> ["sm_80", "sm_90a", "compute_80"]."""
    machine_code, ptx = [], []
    for item in filter(None, re.split(r"[;,\s]+", text.strip())):
        match = re.fullmatch(r"(?:sm_)?(\d{2,3})([af]?)(\+PTX)?", item)
        if match is None:
            fail(f'CONAN_FAST_CUDA_ARCHS has {item!r}; expected a list such as "80;90a" or "sm_80,sm_90a+PTX"')
        if int(match[1]) < 80:
            fail(f"CONAN_FAST_CUDA_ARCHS has {item!r}; the kernels need sm_80 (Ampere) or newer")
        machine_code.append(f"sm_{match[1]}{match[2]}")
        if match[3]:
            ptx.append(f"compute_{match[1]}{match[2]}")
    if not machine_code:
        fail(f"CONAN_FAST_CUDA_ARCHS is empty; unset it for {DEFAULT_ARCHITECTURES!r}")
    return list(dict.fromkeys(machine_code + ptx))


def find_nvcc() -> Path | None:
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=str(Path(home, "bin"))) if home else None
    found = found or shutil.which("nvcc")
    return Path(found) if found else None


@functools.cache
def nvcc_of(path: Path) -> Nvcc:
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f"{path} --version failed: {error}; {WITHOUT_KERNELS}")
    match = re.search(r"release (\d+\.\d+), V(\d+\.\d+\.\d+)", output)
    if match is None:
        fail(f"{path} --version names no release: {output.strip()!r}; {WITHOUT_KERNELS}")
    return Nvcc(path, match[1], match[2])


def find_host_compiler() -> str | None:
    wanted = os.environ.get("CXX")
    names = [wanted.split()[0]] if wanted else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def has_driver() -> bool:
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def driver_release(text: str | None = None) -> int | None:
    """580 of "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  ..."; None where it cannot be read."""
    if text is None:
        try:
            text = Path("/proc/driver/nvidia/version").read_text()
        except OSError:
            return None
    match = re.search(r"NVRM version:.*?\s(\d{3})\.\d+", text)
    return int(match[1]) if match else None


def plan() -> Plan:
    """The plan for this environment. SystemExit with one line if the environment is contradictory."""
    architectures = parse_architectures(os.environ.get("CONAN_FAST_CUDA_ARCHS") or DEFAULT_ARCHITECTURES)
    wanted = os.environ.get("CONAN_FAST_CUDA", "")
    if wanted not in ("", "0", "1"):
        fail(f"CONAN_FAST_CUDA is {wanted!r}; expected 1 (build the kernels), 0 (do not) or nothing (if possible)")

    def without(reason: str) -> Plan:
        return Plan(architectures, no_cuda_reason=reason)

    def impossible(reason: str) -> Plan:
        if wanted == "1":
            fail(f"CONAN_FAST_CUDA=1, but {reason}")
        return without(reason)

    if wanted == "0":
        return without("CONAN_FAST_CUDA=0 was set when conan_fast was installed")
    if sys.platform != "linux":
        return impossible("the kernels are built on Linux only")
    path = find_nvcc()
    nvcc = nvcc_of(path) if path else None
    lack = "no nvcc was found (CUDA_HOME, PATH) when conan_fast was installed"
    if nvcc is not None and tuple(map(int, nvcc.release.split("."))) < OLDEST_NVCC:
        lack = f"{path} is CUDA {nvcc.release}, but the kernels need CUDA {'.'.join(map(str, OLDEST_NVCC))} or newer"
        nvcc = None  # as if not found: a distribution's /usr/bin/nvcc cannot be taken off PATH
    if nvcc is None and wanted != "1":
        if not has_driver():
            return without(f"{lack}, nor an NVIDIA driver, with which the compiler would be installed from PyPI")
        driver = driver_release()
        if driver is not None and driver < OLDEST_DRIVER_FOR_WHEELS:
            return without(
                f"{lack}; CUDA 13 from PyPI needs NVIDIA driver {OLDEST_DRIVER_FOR_WHEELS} or newer, found {driver}"
            )
    if find_host_compiler() is None:
        return impossible("no C++ compiler was found (CXX, or c++, g++, clang++ on PATH), which nvcc needs")
    return Plan(architectures, nvcc=nvcc, compiler_wheels=nvcc is None)


def requirements(plan: Plan) -> list[str]:
    return (BUILD_TOOLS if plan.cuda else []) + (COMPILER_WHEELS if plan.compiler_wheels else [])


def find_compiler_wheels() -> Path:
    """The folder of NVIDIA's wheels with bin/nvcc and the rest of the toolkit."""
    try:
        nvcc = importlib.metadata.distribution("nvidia-cuda-nvcc").locate_file("nvidia/cu13/bin/nvcc")
    except importlib.metadata.PackageNotFoundError:
        nvcc = None
    root = Path(str(nvcc)).parents[1] if nvcc else None
    parts = "bin/nvcc", "nvvm/bin/cicc", "include/crt/host_config.h", "include/cuda_runtime.h", "include/cccl"
    missing = [part for part in parts if root is None or not (root / part).exists()]
    if root is None or missing:
        fail(
            "no nvcc was found (CUDA_HOME, PATH), and pip does not install NVIDIA's compiler without build isolation: "
            f"pip install {' '.join(COMPILER_WHEELS)}; {WITHOUT_KERNELS}"
        )
    return root


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return _setuptools.get_requires_for_build_wheel(config_settings) + requirements(plan())


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return _setuptools.get_requires_for_build_editable(config_settings) + requirements(plan())
