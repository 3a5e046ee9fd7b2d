"""Ctrl-C and SIGTERM stop a stage after the current step; a second Ctrl-C stops immediately."""

import signal
from types import FrameType, TracebackType
from typing import Any


class StoppedByUser(Exception):
    """The user stopped the run; its state is saved."""


class StopRequest:
    """Context manager in which SIGINT and SIGTERM set `requested` instead of ending the process."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
