"""Every error this package raises, in one tree.

::

    ZeroCopyError
    ├── RegionError                 memory could not be had or used
    │   ├── RegionClosed            used after aclose()
    │   ├── RegionBusy              a call may still be touching it
    │   ├── CapacityError           no room: /dev/shm, the budget, descriptors, a slot
    │   └── CudaError               a CUDA call failed
    ├── RegistrationError           the server refused to map a region
    │   ├── SharedMemoryDisabled    the server runs without client shared memory
    │   └── ServerCannotSeeMemory   the server cannot open this host's /dev/shm
    ├── InputError (ValueError)     refused before anything was sent
    ├── PoolError                   a slot was moved illegally
    │   ├── PoolClosed              the model was closed
    │   └── PoolExhausted           max_waiting callers wait already
    ├── LeaseReleased               used after its `async with` block
    ├── InferTimeout (TimeoutError) the caller's timeout passed
    ├── ServerUnavailable           no answer from the server
    ├── ClientClosed                used after aclose()
    ├── ForkedClientError           used in a forked child
    ├── WrongLoopError              used from another event loop
    └── InferenceError (tritonclient's InferenceServerException)
                                    the server answered with an error, or with
                                    something that does not fit the request
"""

from __future__ import annotations

from tritonclient.utils import InferenceServerException


class ZeroCopyError(Exception):
    """Base of all errors of this package."""


class RegionError(ZeroCopyError):
    """Shared memory could not be created, mapped or used."""


class RegionClosed(RegionError):
    """The region was closed; make a new one."""


class RegionBusy(RegionError):
    """A call may still be reading or writing this memory.

    After a call that ended ambiguously, ``await region.quiesce()`` first.
    """


class CapacityError(RegionError):
    """There is no room for what was asked.

    Attributes:
        needed: bytes that would have been needed.
        model_ran: True if the server had already run the model when the lack of
            room showed. Repeating the call runs the model again.
    """

    def __init__(self, message: str, *, needed: int, model_ran: bool = False) -> None:
        super().__init__(message)
        self.needed = needed
        self.model_ran = model_ran


class CudaError(RegionError):
    """A CUDA call failed, or CUDA is not there.

    Attributes:
        name: CUDA's name of the error, for example ``"cudaErrorInvalidDevice"``; empty if it
            did not come from CUDA.
        code: its number in ``cudaError_t``, 0 if it did not come from CUDA.
    """

    def __init__(self, message: str, *, name: str = "", code: int = 0) -> None:
        super().__init__(message)
        self.name = name
        self.code = code


class RegistrationError(ZeroCopyError):
    """The server refused to register, unregister or report a region."""


class SharedMemoryDisabled(RegistrationError):
    """The server was started without client shared memory.

    Servers from 2.68 (26.04) on need ``--allow-client-shm=true``.
    """


class ServerCannotSeeMemory(RegistrationError):
    """The server cannot open this host's shared memory.

    It runs elsewhere, in another container without a common ``/dev/shm``, or as
    another user.
    """


class InputError(ZeroCopyError, ValueError):
    """The request was refused before anything was sent.

    The message names the model, the tensor, what was expected and what was got.
    """


class PoolError(ZeroCopyError):
    """A slot was moved in a way that its state does not allow."""


class PoolClosed(PoolError):
    """The model (and so its slots) was closed."""


class PoolExhausted(PoolError):
    """No slot is free and ``max_waiting`` callers are waiting already."""


class LeaseReleased(ZeroCopyError):
    """The lease is over: its mappings may not be read any more.

    Arrays taken from it before stay valid for as long as they are kept.
    """


class InferTimeout(ZeroCopyError, TimeoutError):
    """The caller's timeout passed while waiting for a slot, copying or calling.

    The server may still be running the request. Its slot is not reused before the
    server has answered.
    """


class ServerUnavailable(ZeroCopyError):
    """The server did not answer: not running, not reachable, or the link was lost."""


class ClientClosed(ZeroCopyError):
    """The client was closed; make a new one."""


class ForkedClientError(ZeroCopyError):
    """The client was inherited through fork; make a new one in the child."""


class WrongLoopError(ZeroCopyError):
    """The client belongs to another event loop; make one per loop."""


class InferenceError(ZeroCopyError, InferenceServerException):  # type: ignore[misc]
    """The server answered with an error, or with something that does not fit.

    It is also ``tritonclient.utils.InferenceServerException``, so that existing
    handlers go on working: ``message()``, ``status()`` (for example
    ``"StatusCode.INVALID_ARGUMENT"``) and ``debug_details()`` are there.

    Attributes:
        model: name of the model, empty if none was involved.
        request_id: the caller's request id, empty if none was given.
    """

    def __init__(
        self, message: str, *, status: str | None = None, model: str = "", request_id: str = ""
    ) -> None:
        InferenceServerException.__init__(self, message, status=status)
        self.args = (message,)
        self.model = model
        self.request_id = request_id

    def __str__(self) -> str:
        text: str = InferenceServerException.__str__(self)
        where = f"model {self.model!r}" if self.model else ""
        if self.request_id:
            where = f"{where}, request {self.request_id!r}" if where else self.request_id
        return f"{where}: {text}" if where else text
