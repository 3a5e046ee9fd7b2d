"""A loop that somebody else has written, one turn at a time: it runs in a thread that waits in between."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

Pause = Callable[[], None]


class Stepwise:
    """`work(pause)` from one call of `pause` to the next per `advance()`; never at the same time as the caller.

    When closed, or dropped, it ends with an exception from within `pause`, which no `except Exception` catches.
    """

    def __init__(self, work: Callable[[Pause], object]) -> None:
        self._baton = _Baton()
        self.thread = threading.Thread(target=_run, args=(work, self._baton), daemon=True)
        self.thread.start()
        self.close = weakref.finalize(self, _close, self._baton, self.thread)  # at exit, too

    def advance(self) -> None:
        """Raises what the work raises; RuntimeError if it has come to its end."""
        if self._baton.over:
            raise RuntimeError("the work is over")
        self._baton.go.release()
        self._baton.paused.acquire()
        if (error := self._baton.error) is not None:
            self._baton.error = None
            raise error
        if self._baton.over:
            raise RuntimeError("the work came to its end")


class _Stopped(BaseException):
    pass


class _Baton:
    """go: the thread may run. paused: the caller may."""

    def __init__(self) -> None:
        self.go, self.paused = threading.Semaphore(0), threading.Semaphore(0)
        self.stopped = self.over = False
        self.error: BaseException | None = None

    def pause(self) -> None:
        self.paused.release()
        self.wait()

    def wait(self) -> None:
        self.go.acquire()
        if self.stopped:
            raise _Stopped


def _run(work: Callable[[Pause], object], baton: _Baton) -> None:
    try:
        baton.wait()
        work(baton.pause)
    except _Stopped:
        pass
    except BaseException as error:
        baton.error = error
    finally:
        baton.over = True
        baton.paused.release()


def _close(baton: _Baton, thread: threading.Thread) -> None:
    baton.stopped = True
    baton.go.release()
    if thread is not threading.current_thread():  # the collector of garbage may run in any
        thread.join()
