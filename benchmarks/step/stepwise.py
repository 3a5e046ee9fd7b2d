"""A loop that somebody else has written, one turn at a time: it runs in a thread that waits in between."""

import threading
import weakref
from collections.abc import Callable

Pause = Callable[[], None]


class Stepwise:
    """`work(pause)` from one call of `pause` to the next per `advance()`; never at the same time as the caller.

    If closed or dropped it ends with an exception from within `pause`, which no `except Exception` catches.
    """

    def __init__(self, work: Callable[[Pause], object]) -> None:
        self._turns = _Turns()
        self.thread = threading.Thread(target=self._turns.run, args=(work,), daemon=True)
        self.thread.start()
        self.close = weakref.finalize(self, self._turns.stop, self.thread)  # at exit, too

    def advance(self) -> None:
        """Raises what the work raises; RuntimeError if it is over."""
        turns = self._turns
        if turns.over:
            raise RuntimeError("the work is over")
        turns.go.release()
        turns.paused.acquire()
        if turns.over:
            raise turns.error or RuntimeError("the work came to its end")


class _Stopped(BaseException):
    pass


class _Turns:
    """go: the thread may run. paused: the caller may. It must not refer to the Stepwise, which could not be dropped."""

    def __init__(self) -> None:
        self.go, self.paused = threading.Semaphore(0), threading.Semaphore(0)
        self.stopped = self.over = False
        self.error: BaseException | None = None

    def run(self, work: Callable[[Pause], object]) -> None:
        self.go.acquire()
        try:
            if not self.stopped:
                work(self.pause)
        except BaseException as error:
            self.error = error
        self.over = True
        self.paused.release()

    def pause(self) -> None:
        self.paused.release()
        self.go.acquire()
        if self.stopped:
            raise _Stopped

    def stop(self, thread: threading.Thread) -> None:
        self.stopped = True
        self.go.release()
        if thread is not threading.current_thread():  # the garbage collector may run in any thread
            thread.join()
