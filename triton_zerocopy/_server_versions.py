"""What servers do with shared memory by version, and what this library does about it.

Versions are Triton's own (2.51), not those of NGC containers (24.10). Sources are pull requests of
triton-inference-server/server, and what its source says where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ._errors import RegistrationError
from ._transports.base import ServerInfo

Release = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Quirk:
    """Something that some versions do and others do not.

    Attributes:
        first: the first version that does it.
        fixed: the first one that does not any more; None if all later ones do.
        does: what the server does.
        answer: what this library does about it.
        source: where this is from.
    """

    first: Release
    fixed: Release | None
    does: str
    answer: str
    source: str

    def __str__(self) -> str:
        return f"{self.does}: {self.answer} [{self.source}]"

    def holds_for(self, release: tuple[int, ...]) -> bool:
        """Tell whether a server of that version does it."""
        return self.first <= release and (self.fixed is None or release < self.fixed)


_ANY: Final = (0, 0)

NO_FENCE: Final = Quirk(
    _ANY,
    (2, 50),
    "unmaps a region under a running request, and crashes",
    "shared memory is refused; tensors go over the wire",
    "#7567, #7612 (24.09)",
)

QUIRKS: Final = (
    NO_FENCE,
    Quirk(
        (2, 50),
        (2, 53),
        "refuses to unregister a region while a request uses it",
        "a fence unregisters again until it is done",
        "#7567, #7612 (24.09)",
    ),
    Quirk(
        (2, 53),
        None,
        "answers an unregister at once and lets go when the last request ends",
        "a fence asks for the status until the region is gone, and repeats the unregister",
        "#7743 (24.12)",
    ),
    Quirk(
        _ANY,
        (2, 59),
        "can crash when a call's deadline or cancel meets its end",
        "calls have no deadline at the server and are never cancelled there; a connection that "
        "breaks cancels its calls, though, with gRPC",
        "#7840 (24.12), #8078 (25.04), #8220 (25.06)",
    ),
    Quirk(
        _ANY,
        (2, 58),
        "adds offset and size of a tensor without a check for overflow",
        "places are checked before they are sent",
        "#8170 (25.05)",
    ),
    Quirk(
        _ANY,
        (2, 58),
        "answers calls with 'no available versions' while it stops",
        "that is an InferenceError; only a missing region is taken for a restart",
        "#7969 (25.05)",
    ),
    Quirk(
        _ANY,
        (2, 60),
        "counts the offset of a registration twice",
        "regions are registered from their beginning",
        "#8330, #8335 (25.08)",
    ),
    Quirk(
        _ANY,
        (2, 69),
        "maps another file when one key is registered under two names",
        "a key has one name, and neither is used again",
        "#8733 (26.05)",
    ),
    Quirk(
        (2, 68),
        None,
        "shares memory with clients only if started with --allow-client-shm=true",
        "'auto' goes over the wire, 'system' raises SharedMemoryDisabled",
        "#8721, #8739 (26.04)",
    ),
    Quirk(
        _ANY,
        None,
        "answers an error of an ensemble while other steps may still read its inputs",
        "the slot rests, and its region is not unregistered before the model is closed",
        "core, ensemble_scheduler.cc",
    ),
)


def quirks_of(server: ServerInfo) -> tuple[Quirk, ...]:
    """Return what holds for a server."""
    return tuple(quirk for quirk in QUIRKS if quirk.holds_for(server.release))


def check_release(server: ServerInfo) -> None:
    """Raise RegistrationError for a server whose regions cannot be used safely."""
    if NO_FENCE.holds_for(server.release):
        raise RegistrationError(
            f"Triton {server.version} can crash when shared memory is unregistered and gives no "
            "proof that it let go; use memory='wire' or a server from 2.50 (24.09) on"
        )
