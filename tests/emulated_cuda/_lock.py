"""The emulation's lock, under which nobody else's code runs.

A garbage collection may start anywhere, and with it the finalizers of the library. One that
waited, under this lock, for a lock whose holder waits for this one would hang; with the real CUDA
that cannot happen, as no Python runs inside of it. So there is no collection under the lock, nor
does anything die there that has a finalizer.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator

_lock = threading.Lock()
_waiting: list[threading.Lock] = []  # each is released once
_local = threading.local()

# Who holds the lock or waits for it. Collections are off while there is anybody; each is on the
# list before turning them off, and the last one turns them on before leaving it.
_inside: list[int] = []
_exits = 0
_collects = True
_trash: list[object] = []


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Hold the lock; again in the same thread does no harm."""
    if getattr(_local, "is_inside", False):
        yield
        return
    _enter()
    try:
        yield
    finally:
        dead = _leave()
    del dead


def die_later(thing: object) -> None:
    """Keep something alive until the lock is free."""
    _trash.append(thing)


def wait_for_change() -> None:
    """Let other threads in until one of them announces a change."""
    waiting = threading.Lock()
    waiting.acquire()
    _waiting.append(waiting)
    _leave()
    try:
        waiting.acquire()
    finally:
        _enter()


def announce_change() -> None:
    while _waiting:
        _waiting.pop().release()


def _enter() -> None:
    _come()
    _lock.acquire()
    _local.is_inside = True


def _leave() -> list[object]:
    global _trash
    dead, _trash = _trash, []
    _local.is_inside = False
    _go()
    _lock.release()
    return dead


def _come() -> None:
    global _collects  # noqa: PLW0603
    # What the tests want of the collector can be seen only while nobody is inside, and if
    # nobody left in the meantime.
    exits, collects = _exits, gc.isenabled()
    if not _inside and exits == _exits:
        _collects = collects
    _inside.append(threading.get_ident())
    gc.disable()


def _go() -> None:
    global _exits  # noqa: PLW0603
    # Under the lock: who comes now waits until the last line was done.
    if len(_inside) == 1 and _collects:
        gc.enable()
    _exits += 1
    _inside.pop()
    if _inside:
        gc.disable()
