"""Owner files: how anybody can tell whose shared memory is left over, and whose is in use.

A client that shares memory has one small file beside its regions, and holds it locked for as
long as it lives. Whoever can lock the file knows that its owner is dead: a lock ends with the
process, however that ends. A process id would not tell, for ids are used again, and mean
nothing in another container that sees the same /dev/shm.

What holds at each time:

======================================  =================================================
an owner                                its file
======================================  =================================================
is being made                           is there and empty, for a moment not locked
is alive                                is locked; it was before the first region was made
closed, and the server let go of all    is gone
closed, and something was left          is there, not locked
died                                    is there, not locked
======================================  =================================================

A reaper may lock a file that its owner has just created, and remove it as that of a dead one.
So the owner looks after locking whether its file still has a name, and starts again if not; a
reaper looks, too, as another one may have been faster.

flock belongs to an open file that a forked child shares with its parent. The child closes its
copies, which unlocks nothing, and touches no file of its parent's.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import Final

from ._regions.names import new_owner_id, owner_file_name
from ._regions.system import SHM_DIRECTORY

_FORMAT: Final = 1
MAX_RECORD: Final = 4096  # bytes; what is larger was not written here
_ATTEMPTS: Final = 100


@dataclass(frozen=True, slots=True)
class Record:
    """What an owner file says. Anybody may have written it.

    Attributes:
        server: which server the regions are registered with, see `server_key`.
        rests: True if the owner used ensembles: after an error they may still read memory
            that the server is ready to let go of.
    """

    server: str
    rests: bool = False

    def pack(self) -> bytes:
        """Return the file's content."""
        record = {"format": _FORMAT, "server": self.server, "rests": self.rests}
        return json.dumps(record).encode()

    @staticmethod
    def parse(content: bytes) -> Record | None:
        """Return what a file's content says, None if that makes no sense."""
        if len(content) > MAX_RECORD:
            return None
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            return None
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            return None
        server, rests = found.get("server"), found.get("rests")
        if not isinstance(server, str) or not isinstance(rests, bool):
            return None
        return Record(server, rests)


# Descriptors that hold a lock. A fork waits until none is just being opened or closed.

_held: set[int] = set()
_holding = threading.RLock()  # reentrant: a finalizer may run while it is held


def hold(path: str, flags: int) -> int:
    """Open a file that is to be locked; a forked child closes its copy."""
    with _holding:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        _held.add(descriptor)
    return descriptor


def let_go(descriptor: int) -> None:
    """Close what ``hold`` opened, and so unlock it."""
    with _holding:
        _held.discard(descriptor)
        os.close(descriptor)


def _close_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)  # never LOCK_UN, which would unlock the parent's
    _held.clear()
    _holding.release()


os.register_at_fork(
    before=_holding.acquire, after_in_parent=_holding.release, after_in_child=_close_in_child
)


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Lock a file; tell whether that worked, and the file still has a name."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0


class Owner:
    """The file of one client, locked by it. Making one blocks: run it off the loop.

    Attributes:
        id: what the names of this client's regions carry.
        names: regions that the server may know. While there is one the file must not go.

    Raises:
        OSError: the file could not be made; then nothing is left of it.
    """

    def __init__(self, server: str, *, mode: int = 0o600, gid: int | None = None) -> None:
        self.names: set[str] = set()
        self._record = Record(server)
        for _ in range(_ATTEMPTS):
            if self._create(mode, gid):
                break
        else:
            raise OSError("somebody removes each owner file at once")
        self._end = weakref.finalize(
            self, _end, self._path, self._descriptor, self.names, os.getpid()
        )

    def _create(self, mode: int, gid: int | None) -> bool:
        self.id = new_owner_id()
        self._path = f"{SHM_DIRECTORY}/{owner_file_name(self.id)}"
        self._descriptor = hold(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            if not try_lock(self._descriptor):
                # A reaper has it, and removes it.
                let_go(self._descriptor)
                return False
            if gid is not None:
                os.fchown(self._descriptor, -1, gid)
            os.fchmod(self._descriptor, mode)  # after chown, which clears bits
            self._write()
        except BaseException:
            unlink(self._path)
            let_go(self._descriptor)
            raise
        return True

    def _write(self) -> None:
        content = self._record.pack()
        if os.pwrite(self._descriptor, content, 0) != len(content):
            raise OSError("an owner file could not be written as a whole")
        os.ftruncate(self._descriptor, len(content))
        # Not yet found dead, see Claim.is_forgotten.
        os.utime(self._descriptor, (time.time(), 0))

    def note_rest(self) -> None:
        """Record that memory of this owner must rest before it is unregistered. Blocking."""
        if not self._record.rests:
            self._record = Record(self._record.server, rests=True)
            self._write()

    def release(self) -> None:
        """End the ownership; the file goes if nothing of the client is left. Idempotent."""
        self._end()


def _end(path: str, descriptor: int, names: set[str], pid: int) -> None:
    if os.getpid() != pid:
        return  # closed after the fork; the file is the parent's
    if not names:
        unlink(path)
    let_go(descriptor)


class Unrecorded(Owner):
    """An owner without a file, where none can be made: what is left of it stays."""

    def __init__(self) -> None:
        self.id = new_owner_id()
        self.names = set()

    def note_rest(self) -> None:
        """There is nowhere to record it."""

    def release(self) -> None:
        """There is nothing to release."""


def unlink(path: str) -> None:
    """Remove a file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
