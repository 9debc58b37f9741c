"""`RetryPolicy`: when a call is sent again because its server was not there; and `Retries`."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from ._errors import InputError, ServerUnavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Send calls again that found no server, until their timeout passes.

    Only for calls that did not reach the server (nothing listens, it is stopping, its memory
    cannot be registered): they have not run, and are sent again from the same slot, with the
    same data. A call whose connection broke may have run; it is sent again, with other memory,
    only by a model that was opened with ``repeatable=True``, and never from a lease. Models that
    take sequences are never retried.

    The pause before the n-th repetition is random, between 0 and ``first_pause * 2**(n-1)``
    seconds but at most ``longest_pause``, so that many clients do not come back at the same time
    ("full jitter": Marc Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015).

    Attributes:
        attempts: how often a call is sent again at most; None for as often as its timeout lets.
        first_pause: seconds.
        longest_pause: seconds.

    Raises:
        InputError: one of them is negative or no number.
    """

    attempts: int | None = None
    first_pause: float = 0.05
    longest_pause: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.attempts is not None and (
            isinstance(self.attempts, bool)
            or not isinstance(self.attempts, int)
            or self.attempts < 0
        ):
            raise InputError(f"attempts is a number of times or None, got {self.attempts!r}")
        for name in ("first_pause", "longest_pause"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise InputError(f"{name} is a number of seconds, got {value!r}")

    def allows(self, count: int) -> bool:
        """Tell whether a call that was sent again ``count`` times may be once more."""
        return self.attempts is None or count < self.attempts

    def pause(self, count: int) -> float:
        """Return the seconds to wait before that."""
        # Beyond 2**30 the longest pause holds for any sensible first one.
        longest = min(self.longest_pause, self.first_pause * 2 ** min(count, 30))
        return random.uniform(0, longest)  # noqa: S311 # nothing secret


class Retries:
    """How often one call was sent again.

    Args:
        policy: what the client was told, None if such a call is not sent again.
    """

    __slots__ = ("_count", "policy")

    def __init__(self, policy: RetryPolicy | None) -> None:
        self.policy = policy
        self._count = 0

    async def wait(self, problem: ServerUnavailable) -> None:
        """Pause if the policy allows another attempt, else raise the problem."""
        if self.policy is None or not self.policy.allows(self._count):
            raise problem
        pause = self.policy.pause(self._count)
        self._count += 1
        await asyncio.sleep(pause)
