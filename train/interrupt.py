"""Ctrl-C and SIGTERM ask a stage to stop after the step it is in; a second Ctrl-C stops at once."""

import signal
from types import FrameType, TracebackType
from typing import Any


class StoppedByUser(Exception):
    """The run was asked to stop; its state is saved."""


class StopRequest:
    """While entered, `requested` turns True at SIGINT or SIGTERM instead of the process being torn down."""

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
