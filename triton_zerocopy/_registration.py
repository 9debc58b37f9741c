"""A region becomes known to a server, and is forgotten by it.

What holds after each end:

- ``register`` failed: the server may know the name (the answer was lost), so it is
  unregistered in passing; it is never tried again under the same name.
- ``unregister`` returned: no request at the server refers to the region any more.
- ``unregister`` raised: the region may still be written to; its memory is not reused.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ._endings import Ending, ending_of
from ._errors import (
    RegistrationError,
    ServerCannotSeeMemory,
    ServerUnavailable,
    SharedMemoryDisabled,
)
from ._regions.base import Region
from ._regions.cuda import CudaRegion
from ._regions.system import SystemRegion
from ._transports.base import ServerError, Transport

CALL_TIMEOUT: Final = 10.0  # seconds for one call of the control plane
LAST_WORDS: Final = 0.5
"""Seconds to tell the server that regions are gone, when the time to close is over."""

_POLL: Final = 0.005  # seconds between two looks at a region that is in use

CUDA_CAUSES: Final = (
    "it runs on another host, sees no GPU (its log says why), or in a container without the same "
    "IPC and PID namespace (docker run --ipc=host --pid=host on both); or its GPUs are numbered "
    "otherwise (CUDA_VISIBLE_DEVICES; tell the client by server_devices), it is another MIG "
    "instance, or this is WSL or Jetson, where CUDA IPC is limited or missing (memory='system')"
)
"""All that the server answers is "invalid args"; its reasons are in its log only."""

ENSEMBLE_REST: Final = 5.0
"""Seconds a region rests after an error of an ensemble: the error may be answered while
sibling steps still read the inputs, and nothing tells when they end. Unregistering it
under them crashes the server."""


async def register(transport: Transport, region: Region) -> None:
    """Make a region known to the server.

    Raises:
        SharedMemoryDisabled, ServerCannotSeeMemory, RegistrationError: it refused.
        ServerUnavailable: it did not answer.

    Cancellation: the server may know the region.
    """
    try:
        if isinstance(region, CudaRegion):
            await transport.register_cuda(
                region.name,
                region.raw_handle,
                region.server_device_id,
                region.byte_size,
                timeout=CALL_TIMEOUT,
            )
        else:
            assert isinstance(region, SystemRegion)
            await transport.register_system(
                region.name, region.key, region.byte_size, timeout=CALL_TIMEOUT
            )
    except ServerError as error:
        problem = _explain(error, region)
        if isinstance(problem, ServerUnavailable) and not _never_arrived(error):
            await _take_back(transport, region, problem)
        raise problem from error


def may_have_arrived(problem: BaseException) -> bool:
    """Tell whether what ``register`` raised leaves it open if the server knows the region."""
    cause = problem.__cause__
    return (
        isinstance(problem, ServerUnavailable)
        and isinstance(cause, ServerError)
        and not _never_arrived(cause)
    )


def _never_arrived(error: ServerError) -> bool:
    return ending_of(error) is Ending.NOT_RUN


async def _take_back(transport: Transport, region: Region, why: ServerUnavailable) -> None:
    """Unregister a region that may or may not have been registered."""
    try:
        await ask_to_forget(transport, region)
    except ServerError as second:
        why.add_note(f"and it could not be unregistered: {second.message}")


async def ask_to_forget(transport: Transport, region: Region) -> None:
    """Unregister a region, without proof that the server lets go of it. Raises ServerError."""
    if isinstance(region, CudaRegion):
        await transport.unregister_cuda(region.name, timeout=CALL_TIMEOUT)
    else:
        await transport.unregister_system(region.name, timeout=CALL_TIMEOUT)


async def is_known(transport: Transport, region: Region) -> bool:
    """Tell whether the server knows a region by its name. Raises ServerError."""
    if isinstance(region, CudaRegion):
        return await transport.has_cuda(region.name, timeout=CALL_TIMEOUT)
    return await transport.has_system(region.name, timeout=CALL_TIMEOUT)


async def unregister(transport: Transport, region: Region, *, timeout: float) -> None:
    """Have the server forget a region, and return when no request uses it any more.

    Args:
        transport: the server.
        region: the region.
        timeout: seconds until this gives up.

    Raises:
        RegistrationError: it was still in use when the timeout passed.
        ServerUnavailable: the server did not answer.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not await is_let_go(transport, region):
        if loop.time() >= deadline:
            raise RegistrationError(
                f"a region is still in use by the server after {timeout:g} seconds; it stays "
                "registered, and its memory is not reused"
            )
        await asyncio.sleep(_POLL)


async def is_let_go(transport: Transport, region: Region) -> bool:
    """Ask the server once to forget a region; tell whether no request uses it any more.

    Servers 2.50 to 2.52 refuse while the region is in use; later ones say OK at once and
    let go later, so the status is the proof. The unregister is repeated too, because a
    deferred one can get lost in the server.

    Raises:
        RegistrationError: the server does not say.
        ServerUnavailable: the server did not answer.
    """
    try:
        await ask_to_forget(transport, region)
        return not await is_known(transport, region)
    except ServerError as error:
        if is_in_use(error):
            return False
        raise _explain(error, region) from error


def is_in_use(error: ServerError) -> bool:
    """Tell whether a server refused to forget a region because a request uses it (2.50 to 2.52)."""
    return "currently in use" in error.message


def _explain(error: ServerError, region: Region) -> RegistrationError | ServerUnavailable:
    message = error.message
    if isinstance(region, CudaRegion):
        if "GPUs not supported" in message:
            return RegistrationError("the server was built without GPU support")
        if "failed to register" in message:
            return ServerCannotSeeMemory(
                f"the server cannot open memory of cuda:{region.device_id} as its GPU "
                f"{region.server_device_id}; {CUDA_CAUSES}"
            )
    if "Unable to open shared memory region" in message:
        return ServerCannotSeeMemory(
            "the server cannot open this host's shared memory; it runs on another host, in a "
            "container without a common /dev/shm (docker run --ipc=host on both, or one shared "
            "/dev/shm volume), or as another user (see shm_mode and shm_gid)"
        )
    known = explain_refusal(error)
    if known is not None:
        return known
    return RegistrationError(f"the server refused a region of {region.byte_size} bytes: {message}")


def explain_refusal(error: ServerError) -> RegistrationError | ServerUnavailable | None:
    """Return what a caller sees where all calls about shared memory fail, else None."""
    message = error.message
    if error.code == "UNIMPLEMENTED" and "disabled" in message:
        return SharedMemoryDisabled(
            f"{message} (servers from 2.68 on start with client shared memory off)"
        )
    if "restricted" in message:
        return RegistrationError(
            f"the server restricts its shared memory calls: {message}; pass admin_headers"
        )
    if error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
        return ServerUnavailable(f"the server did not answer about shared memory: {message}")
    return None
