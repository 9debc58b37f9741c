"""`BlockingCalls`: the CUDA calls that wait until a whole GPU is idle, in a thread apart.

Freeing memory is one of them (CUDA Runtime API, cudaFree: it may synchronise the device), waiting
for work whose stream cannot be named is another. A GPU that somebody keeps busy would hold up
every other job of its `Device` in them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial

from . import cudart
from .countdown import Finish


class BlockingCalls:
    """Makes these calls, one after the other. Used in the device's thread.

    Args:
        device_id: the GPU's ordinal.
        post: runs a job in the device's thread.

    Attributes:
        under_way: how many calls were begun and not finished.
    """

    def __init__(self, device_id: int, post: Callable[[Callable[[], None]], None]) -> None:
        self.under_way = 0
        self._device_id = device_id
        self._post = post
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Finish] | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def run(self, call: Callable[[], None], finish: Finish) -> None:
        """Begin a call; ``finish`` is called in the device's thread when it has returned."""
        if self._thread is None:
            name = f"triton_zerocopy cuda:{self._device_id} blocking"
            self._thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._thread.start()
        self.under_way += 1
        self._calls.put((call, finish))

    def close(self, timeout: float | None = None) -> None:
        """End the thread after its calls. From any thread.

        Args:
            timeout: seconds to wait for it; None for ever.
        """
        self._calls.put(None)
        if self._thread is not None:
            self._thread.join(timeout)

    def _work(self) -> None:
        while (entry := self._calls.get()) is not None:
            call, finish = entry
            error: BaseException | None = None
            try:
                cudart.set_device(self._device_id)
                call()
            except BaseException as problem:  # noqa: BLE001 # it is the waiter's
                error = problem
            self._post(partial(self._end, finish, error))
            del entry, call, finish, error  # what they refer to may be the last user

    def _end(self, finish: Finish, error: BaseException | None) -> None:
        self.under_way -= 1
        finish(error)
