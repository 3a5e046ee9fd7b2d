"""Adds a step to setuptools' `build` that compiles the kernels with CMake. Metadata is in pyproject.toml.

build_backend.py decides what is compiled, CMakeLists.txt how.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from setuptools import Command, Distribution, setup
from setuptools.command.build import build

from build_backend import WITHOUT_KERNELS, Nvcc, Plan, fail, find_compiler_wheels, nvcc_of, plan
from csrc import resource_report

ROOT = Path(__file__).parent.resolve()
MODULE = "_C" + sysconfig.get_config_var("EXT_SUFFIX")


class NativeDistribution(Distribution):
    """Marks a wheel with compiled modules as platform specific."""

    def has_ext_modules(self) -> bool:
        return plan().cuda


class BuildNative(Command):
    """Compiles conan_fast._C if planned, and writes it and _build.json into the package."""

    description = "compile conan_fast._C if planned"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []
    build_lib: str
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib = None  # type: ignore[assignment]

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        package = Path(self.get_package()).resolve()
        package.mkdir(parents=True, exist_ok=True)
        module, facts = package / MODULE, package / "_build.json"
        for earlier in (module, facts):
            earlier.unlink(missing_ok=True)
        facts.write_text(json.dumps(build_kernels(plan(), module), indent=1) + "\n")

    def get_package(self) -> str:
        return str(ROOT / "conan_fast") if self.editable_mode else os.path.join(self.build_lib, "conan_fast")

    def _files(self) -> list[str]:
        return ["_build.json", *([MODULE] if plan().cuda else [])]

    def get_outputs(self) -> list[str]:
        return [os.path.join(self.build_lib, "conan_fast", name) for name in self._files()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.editable_mode:
            return {}
        return {os.path.join(self.build_lib, "conan_fast", name): f"conan_fast/{name}" for name in self._files()}

    def get_source_files(self) -> list[str]:  # for a source distribution, besides the packages
        sources = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file() and path.suffix != ".pyc")
        return ["build_backend.py", "CMakeLists.txt"] + [str(path.relative_to(ROOT)) for path in sources]


def build_kernels(plan: Plan, module: Path) -> dict[str, Any]:
    """Compiles in build/ and copies the module to `module`. Returns the content of _build.json."""
    info: dict[str, Any] = {
        "built": plan.cuda, "reason": plan.no_cuda_reason, "cuda_version": None, "architectures": [], "kernels": [],
    }  # fmt: skip
    if not plan.cuda:
        print(f"conan_fast._C: not built: {plan.no_cuda_reason}")
        return info
    folder = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
    nvcc = plan.nvcc or toolkit_of_wheels(find_compiler_wheels(), folder.parent)
    origin = nvcc.path if plan.nvcc else "PyPI's wheels"
    print(f"conan_fast._C: nvcc {nvcc.version} ({origin}) compiles for {', '.join(plan.architectures)}")
    compile_with_cmake(plan, nvcc, folder)
    shutil.copyfile(folder / MODULE, module)
    info["cuda_version"], info["architectures"] = nvcc.release, plan.architectures
    info["kernels"] = resource_report.gather(folder / "kernel_objects.txt")
    compiled = load(folder / MODULE)
    resource_report.add_dynamic_shared_memory(info["kernels"], compiled.dynamic_shared_bytes)
    resource_report.add_threads(info["kernels"], compiled.threads_per_block)
    print(resource_report.table(info["kernels"]))
    return info


def load(file: Path) -> ModuleType:
    """Imports the compiled module, which needs no GPU."""
    spec = importlib.util.spec_from_file_location("conan_fast._C", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_with_cmake(plan: Plan, nvcc: Nvcc, folder: Path) -> None:
    # Objects are reused by the next build. CMake's cache is not: it would keep options of earlier builds. After a
    # change of compiler, which CMake does not support in one folder, nothing is reused.
    toolchain = f"{nvcc}\n{os.environ.get('CXX')}\n"
    stamp = folder / "toolchain.txt"
    if folder.exists() and not (stamp.exists() and stamp.read_text() == toolchain):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stamp.write_text(toolchain)
    (folder / "CMakeCache.txt").unlink(missing_ok=True)

    ninja = tool("ninja", "BIN_DIR")
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": ninja,
        "Python_EXECUTABLE": sys.executable,
        "CONAN_FAST_PYBIND11_INCLUDE": pybind11_include(folder.parent),
        "CMAKE_CUDA_COMPILER": str(nvcc.path),
        "CONAN_FAST_CUDA_ARCHS": ";".join(plan.architectures),
    }
    if "CXX" in os.environ:
        options["CMAKE_CUDA_HOST_COMPILER"] = os.environ["CXX"]
    definitions = [f"-D{name}={value}" for name, value in options.items()]
    definitions += shlex.split(os.environ.get("CMAKE_ARGS", ""))
    configure = [tool("cmake", "CMAKE_BIN_DIR"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *definitions]
    call([*configure, "--log-level=NOTICE"], "CMake could not configure the build of the kernels")
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0))
    call([ninja, "-C", str(folder), f"-j{jobs}"], "the kernels do not compile")


def call(command: list[str], complaint: str) -> None:
    sys.stdout.flush()  # the child writes to the same pipe
    try:
        status = subprocess.run(command, check=False).returncode
    except OSError as error:
        fail(f"{complaint}: {error}")
    if status != 0:
        fail(f"{complaint}: see the message above; {WITHOUT_KERNELS}")


def tool(name: str, folder_attribute: str) -> str:
    """cmake or ninja: the program (not the Python wrapper) of the package from PyPI if installed, else PATH's."""
    try:
        folder = getattr(importlib.import_module(name), folder_attribute)
    except (ImportError, AttributeError):
        folder = None
    found = (shutil.which(name, path=folder) if folder else None) or shutil.which(name)
    return found or fail(
        f"{name} was not found, and pip does not install it without build isolation: pip install {name}"
    )


def pybind11_include(folder: Path) -> Path:
    # Copied, because pip's isolated environment has a new path in every build, which would recompile everything.
    try:
        pybind11 = importlib.import_module("pybind11")
    except ImportError:
        fail("pybind11 was not found, and pip does not install it without build isolation: pip install pybind11")
    copy = folder / f"pybind11-{pybind11.__version__}"
    return copy_once(Path(pybind11.get_include()), copy)


def toolkit_of_wheels(wheels: Path, folder: Path) -> Nvcc:
    """The toolkit in nvcc's layout (lib64, not lib) under a constant path: headers copied, the rest linked."""
    version = nvcc_of(wheels / "bin" / "nvcc").version
    toolkit = folder / f"cuda-{version}"
    copy_once(wheels / "include", toolkit / "include")
    links = {toolkit / "bin" / path.name: path for path in (wheels / "bin").iterdir()}
    links |= {toolkit / "nvvm": wheels / "nvvm", toolkit / "lib": wheels / "lib", toolkit / "lib64": wheels / "lib"}
    (toolkit / "bin").mkdir(exist_ok=True)  # a folder of links: nvcc uses the parent of bin as the toolkit
    for link, target in links.items():
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    return nvcc_of(toolkit / "bin" / "nvcc")


def copy_once(source: Path, target: Path) -> Path:
    """Copies a folder unless `target` exists. Modes are not copied: the source may be read-only."""
    if not target.exists():
        unfinished = target.with_name(target.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        for file in filter(Path.is_file, source.rglob("*")):
            copy = unfinished / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        unfinished.rename(target)
    return target


if __name__ == "__main__":  # also where the build backend runs it; the tests import it
    build.sub_commands = [("build_native", None), *build.sub_commands]
    setup(distclass=NativeDistribution, cmdclass={"build_native": BuildNative})
