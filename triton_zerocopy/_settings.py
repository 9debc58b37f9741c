"""What the user said about a client, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from ._errors import CudaError, InputError
from ._options import seconds
from ._retry import RetryPolicy
from ._urls import SslOptions, Target, parse_url

MEMORIES: Final = ("auto", "system", "wire")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FRAMING: Final = frozenset(
    (
        "accept-encoding",
        "connection",
        "content-length",
        "content-encoding",
        "content-type",
        "expect",
        "inference-header-content-length",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
"""Headers that say how a message is to be read, which is this library's to say."""
_CUDA: Final = re.compile(r"cuda:(0|[1-9]\d{0,3})")


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
    server_devices: Mapping[int, int] | Sequence[str] | None
    poison: bool
    retry: RetryPolicy | None
    place: str = ""

    def server_device_id(self, device_id: int, uuid: bytes) -> int:
        """Return the server's ordinal of a GPU of this process.

        Raises:
            CudaError: it is not among those that the server is said to have.
        """
        devices = self.server_devices
        if devices is None:
            return device_id
        if isinstance(devices, Mapping):
            if device_id in devices:
                return devices[device_id]
            known: object = dict(devices)
        else:
            wanted = uuid.hex()
            listed = [_plain_uuid(each) for each in devices]
            found = [n for n, each in enumerate(listed) if each and wanted.startswith(each)]
            if len(found) == 1:
                return found[0]
            known = list(devices)
        raise CudaError(
            f"cuda:{device_id} (GPU-{UUID(bytes=uuid)}) is not one of server_devices={known}"
        )


def _plain_uuid(text: str) -> str:
    """Return the digits of a UUID as CUDA_VISIBLE_DEVICES has it, which may be shortened."""
    return text.lower().removeprefix("gpu-").replace("-", "")


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
    server_devices: Mapping[int, int] | Sequence[str] | None,
    poison: bool,
    retry: RetryPolicy | None,
    place: str = "",
) -> Settings:
    """Check the arguments of a client. Raises InputError for what cannot be."""
    target = parse_url(url)
    if max_shm_bytes is not None and max_shm_bytes < 0:
        raise InputError(f"max_shm_bytes is a number of bytes, got {max_shm_bytes}")
    if not 0 <= shm_mode <= 0o666 or shm_mode & 0o600 != 0o600:
        raise InputError(f"shm_mode must let its owner read and write, got {oct(shm_mode)}")
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise InputError(f"retry is a RetryPolicy or None, got {type(retry).__name__}")
    if ssl is False and target.is_secure:
        raise InputError("grpcs:// and https:// are TLS, ssl=False is not")
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
        server_devices=_check_devices(server_devices),
        poison=poison,
        retry=retry,
        place=place,
    )


def check_memory(memory: str) -> str:
    """Raise InputError for what is no memory."""
    if memory not in MEMORIES and not (isinstance(memory, str) and _CUDA.fullmatch(memory)):
        raise InputError(
            f"memory is one of {', '.join(map(repr, MEMORIES))} or 'cuda:0', 'cuda:1', ..., got "
            f"{memory!r}"
        )
    return memory


def cuda_device_of(memory: str) -> int | None:
    """Return the ordinal of the GPU that a memory is on; None for host memory."""
    match = _CUDA.fullmatch(memory)
    return int(match[1]) if match else None


def _check_devices(
    devices: Mapping[int, int] | Sequence[str] | None,
) -> Mapping[int, int] | Sequence[str] | None:
    if devices is None:
        return None
    if isinstance(devices, Mapping):
        if all(isinstance(each, int) and each >= 0 for pair in devices.items() for each in pair):
            return dict(devices)
    elif not isinstance(devices, str) and all(isinstance(each, str) for each in devices):
        return tuple(devices)
    raise InputError(
        "server_devices maps ordinals of this process to the server's, or lists the UUIDs of the "
        f"server's GPUs in its order, got {devices!r}"
    )


def _check_headers(headers: Mapping[str, str] | None) -> Mapping[str, str]:
    """Check names and values, without ever repeating a value in a message."""
    checked = {}
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise InputError(f"a header's name is a word of ASCII characters, got {name!r}")
        if name.lower() in _FRAMING:
            raise InputError(f"the header {name!r} is the library's own to set")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise InputError(f"the value of header {name!r} is not printable ASCII")
        checked[name.lower()] = value
    return checked
