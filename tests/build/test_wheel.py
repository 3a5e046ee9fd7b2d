"""The wheel as a user builds it, and the compiler's report of the kernels.

The proofs hide the machine's CUDA toolkit, if it has one, and build with NVIDIA's compiler from PyPI.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import build_backend
import conan_fast
from csrc import resource_report
from tests.support.compiler import compiler_missing
from tests.support.repository import copy_repository

MODULE = "_C" + sysconfig.get_config_var("EXT_SUFFIX")
MEGABYTE = 1e6
DEFAULT_ARCHITECTURES = ["sm_80", "sm_90a", "compute_80"]


def path_without_nvcc(folder: Path) -> str:
    """PATH, with each folder that holds an nvcc replaced by one of links to its other files."""
    folders = []
    for index, name in enumerate(os.get_exec_path()):
        if shutil.which("nvcc", path=name):
            (links := folder / str(index)).mkdir(parents=True)
            for program in Path(name).iterdir():
                if program.name != "nvcc":
                    (links / program.name).symlink_to(program)
            name = str(links)
        folders.append(name)
    return os.pathsep.join(folders)


@dataclass
class Build:
    """A copy of this tree, in which pip runs with build isolation and without a CUDA toolkit."""

    tree: Path
    environment: dict[str, str]
    output: str = ""  # of the first build
    wheel: Path = Path()

    def pip(self, *arguments: str, python: Path | str = sys.executable, **variables: str) -> tuple[int, str]:
        result = subprocess.run(
            [str(python), "-m", "pip", *arguments], cwd=self.tree, env={**self.environment, **variables}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        return result.returncode, result.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The wheel for all default architectures."""
    if reason := compiler_missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("build")
    unset = re.compile(r"(CUDA|CONAN_FAST)\w*|CMAKE_ARGS|PIP_NO_BUILD_ISOLATION|PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not unset.fullmatch(name)}
    environment |= {"PATH": path_without_nvcc(folder / "path"), "CONAN_FAST_CUDA": "1"}
    made = Build(folder / "a tree", environment)  # with a space, which breaks some compilers and linkers
    made.tree.mkdir()
    status, output = made.pip("download", "--no-deps", "--dest", str(folder / "reached"), "pybind11")
    if status != 0:
        pytest.skip(f"PyPI cannot be reached: {output.strip().splitlines()[-1]}")
    copy_repository(made.tree)
    status, made.output = made.pip("wheel", "-v", "--no-deps", "--wheel-dir", str(folder / "wheels"), ".")
    assert status == 0, made.output
    [made.wheel] = (folder / "wheels").iterdir()
    return made


@pytest.mark.proof
def test_wheel_by_the_compiler_of_pypi(build, capsys):
    with zipfile.ZipFile(build.wheel) as wheel:
        names = wheel.namelist()
        facts = json.loads(wheel.read("conan_fast/_build.json"))
    assert f"conan_fast/{MODULE}" in names
    assert build.wheel.stat().st_size < 25 * MEGABYTE
    assert facts["built"] and facts["architectures"] == DEFAULT_ARCHITECTURES
    assert "(PyPI's wheels) compiles for sm_80, sm_90a, compute_80" in build.output
    [isolated] = [line for line in build.output.splitlines() if "Successfully installed" in line and "nvcc" in line]
    assert "torch" not in isolated
    [release] = {pin.split("==")[1] for pin in build_backend.COMPILER_WHEELS if pin.startswith("nvidia-cuda-nvcc==")}
    assert release.startswith(facts["cuda_version"] + ".")
    with capsys.disabled():
        print(f"\nwheel: {build.wheel.stat().st_size / MEGABYTE:.1f} MB")


@pytest.mark.proof
def test_the_module_needs_neither_torch_nor_a_toolkit(build, tmp_path):
    with zipfile.ZipFile(build.wheel) as wheel:
        module = Path(wheel.extract(f"conan_fast/{MODULE}", tmp_path))
    program = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('_C', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.head_dims, importlib.util.find_spec('torch'))"
    )
    alone = [sys.executable, "-I", "-S", "-c", program, str(module)]  # -S: without what is installed
    result = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "[64, 96, 112, 128] None", result.stderr
    linked = subprocess.run(["readelf", "-d", str(module)], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", linked))
    parts_of_linux = r"(libstdc\+\+|libgcc_s|libc|libm|libdl|librt|libpthread|ld-linux-\w+)\.so\.\d+"
    assert needed and all(re.fullmatch(parts_of_linux, name.replace("x86-64", "x86_64")) for name in needed), needed
    assert not re.search(r"\((RPATH|RUNPATH)\)", linked)


@pytest.mark.proof
def test_a_compile_error_is_the_compilers_own(build):
    source = build.tree / "csrc" / "attention" / "common.cu"
    sound = source.read_text()
    try:
        source.write_text(sound + "\nint broken() { return no_such_name; }\n")
        status, output = build.pip("wheel", "--no-deps", "--wheel-dir", str(build.tree / "dist"), ".")
    finally:
        source.write_text(sound)
    assert status != 0
    assert output.count('identifier "no_such_name" is undefined') == 1
    assert output.count("error: conan_fast: the kernels do not compile") == 1
    assert "Traceback" not in output
    # Only pip's own message follows.
    _, after = output.split("error: conan_fast: the kernels do not compile")
    assert len(after.splitlines()) < 15, output


@pytest.mark.proof
def test_an_invalid_setting_is_a_message_of_one_line(build):
    status, output = build.pip("wheel", "--no-deps", "--wheel-dir", str(build.tree / "dist"), ".", CONAN_FAST_CUDA="x")
    assert status != 0 and output.count("error: conan_fast: CONAN_FAST_CUDA is 'x'") == 1
    assert "Traceback" not in output


@pytest.mark.proof
def test_editable_with_and_then_without_kernels(build, tmp_path):
    package = build.tree / "conan_fast"
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    install = "install", "--no-deps", "--editable", "."
    status, output = build.pip(*install, python=python)
    assert status == 0, output
    assert (package / MODULE).exists() and json.loads((package / "_build.json").read_text())["built"]
    status, output = build.pip(*install, python=python, CONAN_FAST_CUDA="0")
    assert status == 0, output
    assert not (package / MODULE).exists()
    assert "CONAN_FAST_CUDA=0" in json.loads((package / "_build.json").read_text())["reason"]


@pytest.fixture(params=["installed", pytest.param("wheel", marks=pytest.mark.proof)])
def facts(request: pytest.FixtureRequest) -> tuple[list[str], list[dict]]:
    """The architectures, and the compiler's report of each kernel."""
    if request.param == "installed":
        info = conan_fast.build_info(kernels=True)
        if not info["kernels"]:
            pytest.skip(f"this installation has no kernels: {info['missing_backends'].get('cuda')}")
        return info["compiled_architectures"], info["kernels"]
    with zipfile.ZipFile(request.getfixturevalue("build").wheel) as wheel:
        written = json.loads(wheel.read("conan_fast/_build.json"))
    return written["architectures"], written["kernels"]


def test_every_kernel_is_compiled_for_every_architecture(facts, capsys):
    architectures, kernels = facts
    with capsys.disabled():
        print("\n" + resource_report.table(kernels))
    compiled = {kernel["architecture"] for kernel in kernels}
    assert compiled == {name for name in architectures if name.startswith("sm_")}  # PTX has no registers
    assert all(0 < kernel["registers"] <= 255 for kernel in kernels)


def test_no_kernel_spills_registers(facts):
    _, kernels = facts
    spills = [kernel for kernel in kernels if kernel["spill_store_bytes"] or kernel["spill_load_bytes"]]
    assert not spills, "\n" + resource_report.table(spills)
