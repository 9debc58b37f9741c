"""`Claim`: the file of a dead owner, locked, and what can be removed for it.

Whoever is about to reap for its own server locks the file alone. Whoever only looks, because
it is another server's, shares the lock with others that look, for a moment.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable
from typing import Final

from ._owners import MAX_RECORD, Record, hold, let_go, try_lock, unlink
from ._regions.names import owner_of_file, owner_of_region
from ._regions.system import SHM_DIRECTORY

logger = logging.getLogger("triton_zerocopy")

FORGOTTEN_AFTER: Final = 24 * 3600.0
"""Seconds until the file of a dead owner is removed that no client of its server came for."""
_LOOKS: Final = 20
_LOOK: Final = 0.005  # seconds, some times as long as another server's reaper looks at a file


class Claim:
    """The file of a dead owner, locked by this process so that nobody else reaps it.

    Attributes:
        id: what the names of the owner's regions carry.
        record: what the file says; None for one that was never written, whose owner had
            nothing yet.
    """

    def __init__(self, path: str, owner_id: str, descriptor: int, record: Record | None) -> None:
        self.id = owner_id
        self.record = record
        self._path = path
        self._descriptor: int | None = descriptor

    @property
    def user(self) -> int:
        """The user that the file belongs to."""
        assert self._descriptor is not None
        return os.fstat(self._descriptor).st_uid

    def remove(self) -> bool:
        """Remove the file; tell whether that was allowed."""
        try:
            unlink(self._path)
        except OSError:
            return False  # in a sticky directory only its own user may
        return True

    def is_forgotten(self) -> bool:
        """Tell whether the owner was found dead long ago; notes the time if it is the first."""
        assert self._descriptor is not None
        found_dead = os.fstat(self._descriptor).st_mtime
        if found_dead:
            return time.time() - found_dead > FORGOTTEN_AFTER
        try:
            os.utime(self._descriptor)
        except OSError:
            pass  # not ours; its own user's clients will
        return False

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            let_go(descriptor)


def claim_dead(
    claims: list[Claim], server: str, is_stopped: Callable[[], bool] = lambda: False
) -> None:
    """Lock the files of all dead owners. Blocking.

    Those of the server's own clients are locked for this process alone. Others' are only
    looked at: that lock is shared, and must soon be released.

    Args:
        claims: they are added to it one by one, so that none is lost.
        server: whose clients' regions are to be unregistered.
        is_stopped: asked before each; True ends it early.
    """
    for name in _names():
        owner_id = owner_of_file(name)
        if owner_id is not None and not is_stopped():
            claim = _claim(f"{SHM_DIRECTORY}/{name}", owner_id, server)
            if claim is not None:
                claims.append(claim)


def _claim(path: str, owner_id: str, server: str) -> Claim | None:
    try:
        # Nonblocking, for it may be anything, also a pipe that nobody writes to.
        descriptor = hold(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None  # gone, a link, or not ours to open
    try:
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if is_file and try_lock(descriptor, fcntl.LOCK_SH):  # so its owner is dead
            content = os.pread(descriptor, MAX_RECORD + 1, 0)
            record = Record.parse(content)
            if record is None and content:
                logger.warning("%s is no owner file that this version can read; it is left", path)
            elif record is None or record.server != server or _lock_alone(descriptor):
                return Claim(path, owner_id, descriptor, record)
    except OSError:
        pass
    let_go(descriptor)
    return None


def _lock_alone(descriptor: int) -> bool:
    """Lock a dead owner's file; tell whether that worked. Others may be looking at it."""
    for _ in range(_LOOKS):
        if try_lock(descriptor):
            return True
        time.sleep(_LOOK)
    return False  # another reaper is at work for it


def unlink_regions(claims: Iterable[Claim]) -> int:
    """Remove the files of dead owners' regions; return how many. Blocking.

    Nobody can need their names any more, while whoever has them mapped keeps the memory.
    """
    users = {claim.id: claim.user for claim in claims}
    removed = 0
    for name in _names() if users else ():
        user = users.get(owner_of_region(name) or "")
        path = f"{SHM_DIRECTORY}/{name}"
        try:
            # Of another user it is not that owner's, whatever the names say.
            if user is not None and os.lstat(path).st_uid == user:
                os.unlink(path)
                removed += 1
        except OSError:
            continue
    return removed


def _names() -> list[str]:
    try:
        return os.listdir(SHM_DIRECTORY)
    except OSError:
        return []
