"""What a measurement was made with: hardware, driver, versions, sources."""

import hashlib
import os
import platform
import subprocess
from contextlib import suppress
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from conan_fast import build_info

ROOT = Path(__file__).parent.parent
PEERS = ("cut-cross-entropy", "flash-attn", "flash-attn-3", "flash-attn-4", "inf-cl", "liger-kernel", "xformers")
PACKAGES = (*PEERS, "accelerate", "sentence-transformers", "transformers", "triton")


@cache
def facts(device: torch.device) -> dict[str, Any]:
    """For JSON; None for what does not exist or is unknown."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gpu": gpu and gpu.name,
        "gpu_memory_bytes": gpu and gpu.total_memory,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "cpu": f"{_cpu_model() or platform.machine()}, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "packages": {name: _version(name) for name in sorted(PACKAGES)},
        "conan_fast": _installation(),
        "git_commit": os.environ.get("CONAN_FAST_COMMIT") or _output("git", "rev-parse", "HEAD"),
        "uncommitted_changes": _output("git", "status", "--porcelain", "--untracked-files=no"),
        "csrc_sha256": csrc_sha256(),
    }


def _installation() -> dict[str, Any]:
    """`build_info` without the reasons why backends are missing: they may name folders of this machine."""
    facts = build_info()
    return {**facts, "missing_backends": sorted(facts["missing_backends"])}


def csrc_sha256() -> str:
    """Hash of the names and contents of all files in csrc/."""
    digest = hashlib.sha256()
    for path in sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file() and path.suffix != ".pyc"):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _cpu_model() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return None


def _output(*command: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip() or None
    return None
