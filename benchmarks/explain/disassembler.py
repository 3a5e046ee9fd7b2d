"""Finding and running NVIDIA's disassembler, cuobjdump, which in turn calls nvdisasm."""

import importlib.util
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

PROGRAMS = ("cuobjdump", "nvdisasm")
TIMEOUT_S = 120


class NoDisassembly(RuntimeError):
    """The message is the reason."""


@cache
def path_of_programs() -> str:
    """The folders, as in PATH, in which both programs are found. Raises NoDisassembly."""
    folders = [Path(os.environ[name]) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders += map(Path, os.get_exec_path())
    if nvcc := shutil.which("nvcc"):
        folders.append(Path(nvcc).resolve().parent)  # PATH may have a link to it
    spec = importlib.util.find_spec("nvidia")  # a namespace that all of NVIDIA's packages share
    for folder in (spec.submodule_search_locations or []) if spec else []:
        folders += sorted(Path(folder).glob("cu*/bin"), reverse=True)  # cu13; the newest first
    path = os.pathsep.join(map(str, folders))
    if all(shutil.which(program, path=path) for program in PROGRAMS):
        return path
    raise NoDisassembly(
        "no disassembler found, so no instructions are shown: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
        " (or set CUDA_HOME to a CUDA toolkit)"
    )


def module_file() -> Path:
    """The compiled module. Raises NoDisassembly if there is none."""
    spec = importlib.util.find_spec("conan_fast._C")
    if spec is None or spec.origin is None:
        raise NoDisassembly("conan_fast._C was not found")
    return Path(spec.origin)


def sass(module: Path, symbol: str, architecture: str) -> str:
    """What cuobjdump prints for one kernel. Raises NoDisassembly."""
    path = path_of_programs()
    program = shutil.which("cuobjdump", path=path) or "cuobjdump"
    command = [program, "-sass", "-fun", symbol, "-arch", architecture, str(module)]
    environment = {**os.environ, "PATH": path}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoDisassembly(f"{program}: {error}") from error
    if done.returncode != 0 or f"Function : {symbol}" not in done.stdout:
        # Each part of the module without the function causes a warning, which says nothing.
        said = [line for line in done.stderr.splitlines() if "not found" not in line]
        raise NoDisassembly(f"{program} shows no {symbol} for {architecture}{': ' if said else ''}{' '.join(said)}")
    return done.stdout
