"""Logging of a stage: progress bar, metrics.jsonl, speed.jsonl and TensorBoard.

metrics.jsonl has only deterministic values, so that a resumed run writes the same bytes as an uninterrupted one.
Throughput and memory go to speed.jsonl.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from train.files import write_text

Values = Mapping[str, float | Tensor]


class Metrics:
    """Averages the values of the steps and writes them every `log_every` steps.

    Tensors are read, which waits for a GPU, only when a line is written.
    """

    def __init__(self, folder: Path, stage: str, *, total_steps: int, done_steps: int, log_every: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.log_every = log_every
        for name in ("metrics.jsonl", "speed.jsonl"):
            _truncate_after(folder / name, done_steps)
        self._metrics_file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._speed_file = (folder / "speed.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=done_steps + 1)
        self._bar = tqdm(
            total=total_steps, initial=done_steps, desc=f"{stage:>10}", unit="step", dynamic_ncols=True, mininterval=0.5
        )
        self._pending: list[dict[str, float | Tensor]] = []
        self._tokens = 0
        self._since = time.perf_counter()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.close()
        self._metrics_file.close()
        self._speed_file.close()
        self._board.close()

    def add(self, step: int, values: Values, *, tokens: int) -> None:
        """Add the values of a step (counted from 1)."""
        self._pending.append(dict(values))
        self._tokens += tokens
        if step % self.log_every == 0 or step == self._bar.total:
            self._write(step)
        self._bar.update()

    def state(self) -> list[dict[str, float]]:
        """The values not yet written, for the checkpoint."""
        return [{name: float(value) for name, value in values.items()} for values in self._pending]

    def load_state(self, state: list[dict[str, float]]) -> None:
        self._pending = [dict(values) for values in state]

    def _write(self, step: int) -> None:
        columns: dict[str, list[float]] = {}
        for values in self.state():
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
        means = {name: sum(column) / len(column) for name, column in columns.items()}
        self._pending.clear()
        now = time.perf_counter()
        speed = {"tokens_per_second": self._tokens / (now - self._since)}
        if torch.cuda.is_available():
            speed["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._tokens, self._since = 0, now
        self._metrics_file.write(json.dumps({"step": step, **means}) + "\n")
        self._speed_file.write(json.dumps({"step": step, **speed}) + "\n")
        self._metrics_file.flush()
        self._speed_file.flush()
        for name, value in {**means, **speed}.items():
            self._board.add_scalar(name, value, step)
        shown: dict[str, Any] = {"loss": f"{means['loss']:.3f}"}
        if "alpha" in means:
            shown["alpha"] = f"{means['alpha']:.2f}"
        self._bar.set_postfix({**shown, "tok/s": f"{speed['tokens_per_second']:,.0f}"}, refresh=False)


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl; empty if the file does not exist."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def _truncate_after(file: Path, step: int) -> None:
    """Drop the lines of steps after the checkpoint, including a line that a killed process left incomplete."""
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError):
            break
        kept.append(line + "\n")
    write_text(file, "".join(kept))
