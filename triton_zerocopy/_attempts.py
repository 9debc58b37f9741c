"""`Attempts`: what went wrong with a call so far, and whether it may be sent again.

================================  =======================================================
the attempt                       it is sent again
================================  =======================================================
met a region the server lost      once, registered anew: it never ran
outgrew an output                 by a repeatable model, with more room: it has run
did not reach the server          as the client's `RetryPolicy` says: it never ran
ended without an answer           as the policy says, by a repeatable model, in other
                                  memory: it may have run
anything else                     never
================================  =======================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from ._datatypes import Shape
from ._endings import Ending, ending_of, is_unreached, outgrown_output, public_error
from ._engine import Engine
from ._errors import CapacityError, ServerUnavailable
from ._requests import Request
from ._retry import Retries
from ._slots import Slot
from ._specs import ModelSpec
from ._transports.base import CallOptions, ServerError

_MOST: Final = 8
"""A repeatable call grows its outputs this often at most; each doubles, so it is plenty."""


class Caller(Protocol):
    """The `Executor` whose call it is."""

    engine: Engine
    spec: ModelSpec
    is_repeatable: bool

    def outgrew(self, name: str, shapes: Sequence[Shape], byte_size: int) -> None: ...


class Attempts:
    """The attempts of one call, made when the first of them failed.

    Args:
        executor: of the call.
        may_move: True if the call may go on in other memory than it began in.
    """

    __slots__ = ("_count", "_executor", "_may_move", "_retries", "_was_renewed")

    def __init__(self, executor: Caller, *, may_move: bool) -> None:
        self._executor = executor
        self._may_move = may_move
        self._count = 0
        is_sequence = executor.spec.is_sequence
        self._retries = Retries(None if is_sequence else executor.engine.runtime.settings.retry)
        self._was_renewed = False

    async def recover(
        self, error: ServerError, slot: Slot, request: Request, options: CallOptions
    ) -> None:
        """Return if the request may be sent again, else raise what the caller sees.

        Cancellation: safe; what was begun on the slot goes on and holds it.
        """
        executor = self._executor
        self._count += 1
        ending = ending_of(error)
        has_region = slot.region is not None or bool(request.placed)
        if ending is Ending.REGION_LOST and has_region and not self._was_renewed:
            try:
                await executor.engine.renew(slot, request.placed)
            except ServerUnavailable as away:
                await self.wait(away)
            else:
                self._was_renewed = True
            return
        outgrown = outgrown_output(error)
        if outgrown is None:
            problem = public_error(error, model=executor.spec.name, request_id=options.request_id)
            problem.__cause__ = error
            may_move = ending is Ending.AMBIGUOUS and error.code == "UNAVAILABLE"
            if not isinstance(problem, ServerUnavailable) or not (may_move or is_unreached(error)):
                raise problem
            if may_move:
                await self._move(problem, slot, request)
            await self.wait(problem)
            return
        name, needed = outgrown
        executor.outgrew(name, request.shapes, needed)
        if not executor.is_repeatable or self._count >= _MOST:
            raise CapacityError(
                f"model {executor.spec.name!r}: output {name!r} needs {needed} bytes, more than "
                "its slot had. The model has run; the next call has room. Set output_bytes, or "
                "repeatable=True if the model may run twice",
                needed=needed,
                model_ran=True,
            ) from error

    async def wait(self, problem: ServerUnavailable) -> None:
        """Pause if the policy allows another attempt, else raise the problem."""
        await self._retries.wait(problem)

    async def _move(self, problem: ServerUnavailable, slot: Slot, request: Request) -> None:
        """Let the slot have other memory; raise the problem if the call cannot use it."""
        is_allowed = self._retries.policy is not None and self._executor.is_repeatable
        if not is_allowed or not self._may_move or request.placed:
            raise problem
        await self._executor.engine.replace(slot)
