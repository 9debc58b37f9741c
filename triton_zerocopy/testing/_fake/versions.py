"""Which release of Triton does what, as far as a client can tell."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

Version = tuple[int, int, int]


@dataclass(frozen=True)
class Release:
    """How one release behaves. The defaults are those of the oldest that is played, 2.46.

    Attributes:
        unregister: What an unregister of a region that a request uses does. "at_once": it is
            unmapped under the request, which kills the server. "refused": an error. "deferred":
            OK, and the region goes with the last request.
        checks_overflow: Whether offset + byte size may not pass 2^64.
        shutdown_text: Whether a server that ends says so to infer calls.
        reserved_keys: Whether keys of the python backend's own memory are refused; "spelled" is
            by their exact beginning, "always" with any number of slashes before it.
        offsets_are_right: Whether the offset of a registration is added once, not twice, and a
            tensor of no bytes may be anywhere in a region.
        client_shm: Whether clients may register memory if nobody says so.
        keys_may_repeat: Whether a key may be registered under several names.
        refuses_repeated_outputs: Whether an output may be requested once only.
    """

    unregister: Literal["at_once", "refused", "deferred"] = "at_once"
    checks_overflow: bool = False
    shutdown_text: bool = False
    reserved_keys: Literal["no", "spelled", "always"] = "no"
    offsets_are_right: bool = False
    client_shm: bool = True
    keys_may_repeat: bool = False
    refuses_repeated_outputs: bool = False


# (since, container, what changed, where that comes from: pull requests of
# triton-inference-server/server, looked up in the sources of each tag; core# is of its core)
CHANGES: tuple[tuple[Version, str, dict[str, Any], str], ...] = (
    ((2, 50, 0), "24.09", {"unregister": "refused"}, "#7567, #7612"),
    ((2, 53, 0), "24.12", {"unregister": "deferred"}, "#7743"),
    ((2, 58, 0), "25.05", {"checks_overflow": True}, "#8170"),
    ((2, 58, 0), "25.05", {"shutdown_text": True}, "#7969"),
    ((2, 59, 1), "25.07", {"reserved_keys": "spelled"}, "#8273"),
    ((2, 60, 0), "25.08", {"reserved_keys": "always"}, "#8336"),
    ((2, 60, 0), "25.08", {"offsets_are_right": True}, "#8330, #8335"),
    ((2, 68, 0), "26.04", {"client_shm": False}, "#8721, #8739"),
    ((2, 69, 0), "26.05", {"keys_may_repeat": True}, "#8733"),
    ((2, 69, 0), "26.05", {"refuses_repeated_outputs": True}, "core#493"),
)

OLDEST: Version = (2, 46, 0)
"""24.05, the first that checks the bounds of a region; nothing older is played."""


def parse(version: str) -> Version:
    """Return a version as numbers.

    Raises:
        ValueError: It is not of the form `2.51.0`, or older than what is played.
    """
    try:
        major, minor, patch = (int(part) for part in version.split("."))
    except ValueError:
        raise ValueError(f"A version looks like '2.51.0', got {version!r}.") from None
    if (major, minor, patch) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ValueError(f"FakeTriton plays servers from {oldest} on, not {version}.")
    return major, minor, patch


def release_of(version: str) -> Release:
    """Return how a version behaves."""
    wanted = parse(version)
    release = Release()
    for since, _, change, _ in CHANGES:
        if since <= wanted:
            release = replace(release, **change)
    return release


_NAMES = {field.name for field in fields(Release)}
assert all(change.keys() <= _NAMES for _, _, change, _ in CHANGES)
