"""Faults as they befall calls."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .._faults import Fault, Garbage, Point
from .refusals import Refusal

Result = TypeVar("Result")

CRASHED = 70
"""Exit status of a server that a fault crashed."""


class Dropped(Exception):
    """The connection is cut, so there is nobody to answer."""


@dataclass
class _Planned:
    fault: Fault
    to_skip: int
    left: int | None

    def befalls(self, method: str, model: str) -> bool:
        fault = self.fault
        return fault.method in (method, "*") and fault.model in (model, "")


class Incidents:
    """The faults that a test asked for, and how often each call was made."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._planned: list[_Planned] = []
        self._held: set[asyncio.Future[None]] = set()

    @property
    def held(self) -> int:
        """How many calls are held now."""
        return len(self._held)

    def inject(self, fault: Fault) -> None:
        """Have a fault befall the next calls that it fits."""
        self._planned.append(_Planned(fault, fault.skip, fault.calls))

    def clear(self) -> None:
        """Let all calls go well from now on, and those that are held go on."""
        self._planned.clear()
        self.release()

    def release(self) -> int:
        """Let the calls that are held go on, and return how many those were."""
        held, self._held = self._held, set()
        for future in held:
            if not future.done():
                future.set_result(None)
        return len(held)

    def begin(self, method: str, model: str = "") -> Course:
        """Count a call, and return what will befall it."""
        self.calls[method] += 1
        faults: list[Fault] = []
        for planned in list(self._planned):
            if not planned.befalls(method, model):
                continue
            if planned.to_skip:
                planned.to_skip -= 1
                continue
            faults.append(planned.fault)
            if planned.left is not None:
                planned.left -= 1
                if not planned.left:
                    self._planned.remove(planned)
        return Course(faults, self._hold)

    async def _hold(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._held.add(future)
        try:
            await future
        finally:
            self._held.discard(future)


class Course:
    """What befalls one call.

    Attributes:
        garbage: What is to be wrong with the answer.
        body: Bytes to answer with instead, or None.
        told: Ends with what the client is told, if the call fails for it and goes on.
    """

    def __init__(self, faults: Sequence[Fault], hold: Callable[[], Awaitable[None]]) -> None:
        self._faults = faults
        self._hold = hold
        self.told: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()
        self.garbage: list[Garbage] = [fault.garble for fault in faults if fault.garble]
        self.body = next((fault.body for fault in faults if fault.body is not None), None)

    async def reach(self, point: Point, drop: Callable[[], None]) -> None:
        """Go through what befalls the call at a point.

        Args:
            point: Where the call is.
            drop: Cuts the connection that it came by.

        Raises:
            Dropped: Nothing more is to be done.
            Refusal: The call fails.
        """
        for fault in self._faults:
            if fault.before != point:
                continue
            if fault.hold:
                await self._hold()
            if fault.delay:
                await asyncio.sleep(fault.delay)
            if fault.crash:
                os._exit(CRASHED)
            if fault.drop:
                drop()
                if point in ("handling", "answering"):
                    raise Dropped
            if fault.fail is not None and not fault.goes_on:
                raise Refusal(*fault.fail)
            if fault.fail is not None and not self.told.done():
                self.told.set_result(Refusal(*fault.fail))

    async def answer_of(self, work: asyncio.Task[Result]) -> Result:
        """Return what a call comes to, for its client; the work goes on whatever becomes of it.

        Raises:
            Dropped: Nobody is to be answered.
            Refusal: The call fails.
        """
        waiting: set[asyncio.Future[Any]] = {work, self.told}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if self.told.done():
            raise self.told.result()
        self.told.cancel()
        return work.result()
