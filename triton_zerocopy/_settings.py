"""What the user said about a client, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ._errors import InputError
from ._options import seconds
from ._urls import SslOptions, Target, parse_url

MEMORIES: Final = ("auto", "system", "wire")


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """What the user said about a client. Never printed: headers are credentials."""

    url: str
    target: Target
    memory: str
    headers: Mapping[str, str]
    admin_headers: Mapping[str, str]
    ssl: SslOptions | None
    timeout: float | None
    max_shm_bytes: int | None
    shm_mode: int
    shm_gid: int | None
    poison: bool


def make_settings(
    *,
    url: str,
    memory: str,
    headers: Mapping[str, str] | None,
    admin_headers: Mapping[str, str] | None,
    ssl: bool | SslOptions | None,
    timeout: float | None,
    max_shm_bytes: int | None,
    shm_mode: int,
    shm_gid: int | None,
    poison: bool,
) -> Settings:
    """Check the arguments of a client. Raises InputError for what cannot be."""
    target = parse_url(url)
    if max_shm_bytes is not None and max_shm_bytes < 0:
        raise InputError(f"max_shm_bytes is a number of bytes, got {max_shm_bytes}")
    if not 0 <= shm_mode <= 0o666 or shm_mode & 0o600 != 0o600:
        raise InputError(f"shm_mode must let its owner read and write, got {oct(shm_mode)}")
    if ssl is False and target.is_secure:
        raise InputError("grpcs:// is TLS, ssl=False is not")
    options = ssl if isinstance(ssl, SslOptions) else None
    if options is None and (ssl or target.is_secure):
        options = SslOptions()
    return Settings(
        url=url,
        target=target,
        memory=check_memory(memory),
        headers=_check_headers(headers),
        admin_headers=_check_headers(admin_headers),
        ssl=options,
        timeout=seconds(timeout),
        max_shm_bytes=max_shm_bytes,
        shm_mode=shm_mode,
        shm_gid=shm_gid,
        poison=poison,
    )


def check_memory(memory: str) -> str:
    """Raise InputError for a memory that this version does not know."""
    if isinstance(memory, str) and memory.startswith("cuda"):
        raise InputError(f"memory={memory!r}: CUDA memory is not built into this version yet")
    if memory not in MEMORIES:
        raise InputError(f"memory is one of {', '.join(map(repr, MEMORIES))}, got {memory!r}")
    return memory


def _check_headers(headers: Mapping[str, str] | None) -> Mapping[str, str]:
    """Check names and values, without ever repeating a value in a message."""
    checked = {}
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not name or not name.isascii() or not name.isprintable():
            raise InputError(f"a header's name is printable ASCII, got {name!r}")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise InputError(f"the value of header {name!r} is not printable ASCII")
        checked[name.lower()] = value
    return checked
