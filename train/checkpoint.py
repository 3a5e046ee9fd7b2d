"""Checkpoints for exact resumption: safetensors and JSON, written atomically."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from train.files import atomic_folder

# Number of checkpoints kept: one can be copied while the next is being written.
KEPT = 2


@dataclass
class Checkpoint:
    """The state of a stage besides model and optimizer."""

    step: int  # optimizer steps done
    state: dict[str, Any] = field(default_factory=dict)  # JSON
    tensors: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> Path:
    """Write `folder`/step-XXXXXXXX and delete all but the newest `KEPT`."""
    target = folder / f"step-{checkpoint.step:08d}"
    with atomic_folder(target) as partial:
        save_file(_parameters(model), partial / "model.safetensors")
        save_file(_optimizer_tensors(model, optimizer), partial / "optimizer.safetensors")
        save_file({n: t.contiguous() for n, t in checkpoint.tensors.items()}, partial / "stage.safetensors")
        (partial / "state.json").write_text(json.dumps({"step": checkpoint.step, "state": checkpoint.state}))
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`, or None."""
    return next(reversed(_all(folder)), None)


def load_checkpoint(path: Path, model: nn.Module, optimizer: Optimizer) -> Checkpoint:
    """Load a checkpoint into model and optimizer, and return the rest.

    Raises:
        ValueError: the model's parameters differ from the checkpoint's in name or shape.
    """
    saved = load_file(path / "model.safetensors")
    named = dict(model.named_parameters())
    if {n: t.shape for n, t in saved.items()} != {n: p.shape for n, p in named.items()}:
        raise ValueError(f"{path}: its parameters do not match the recipe's model; did [model] change?")
    for name, parameter in named.items():
        parameter.data.copy_(saved[name])
    for key, value in load_file(path / "optimizer.safetensors").items():
        name, _, slot = key.rpartition("/")
        # AdamW keeps its step count on the CPU unless it is capturable.
        optimizer.state[named[name]][slot] = value if slot == "step" else value.to(named[name].device)
    content = json.loads((path / "state.json").read_text())
    return Checkpoint(content["step"], content["state"], load_file(path / "stage.safetensors"))


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    # named_parameters() returns tied parameters once, as safetensors requires.
    return {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}


def _optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{slot}": value
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }
