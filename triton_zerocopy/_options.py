"""Options that several calls share, checked."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Final

from tritonclient.utils import (
    TRITON_RESERVED_REQUEST_PARAMS,
    TRITON_RESERVED_REQUEST_PARAMS_PREFIX,
)

from ._errors import InputError
from ._transports.base import DEFAULT_OPTIONS, CallOptions, Parameter


class UseDefault(enum.Enum):
    """Stands for a timeout that was not given."""

    USE_DEFAULT = "the default"


USE_DEFAULT: Final = UseDefault.USE_DEFAULT


def seconds(timeout: float | None) -> float | None:
    """Check a timeout in seconds; None is for ever."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise InputError(f"a timeout is a number of seconds or None, got {timeout!r}")
    return None if math.isinf(timeout) else timeout


def make_options(
    request_id: str,
    priority: int,
    queue_timeout: float | None,
    parameters: Mapping[str, Parameter] | None,
) -> CallOptions:
    """Check what changes from call to call.

    Args:
        request_id: any text.
        priority: 0 for the model's default, else from 1, the highest.
        queue_timeout: seconds in the server's queue, None for the model's default.
        parameters: names to str, bool, int or float.

    Raises:
        InputError: one of them cannot be sent, or is a name that Triton reserves.
    """
    if not request_id and not priority and queue_timeout is None and not parameters:
        return DEFAULT_OPTIONS
    if not isinstance(request_id, str):
        raise InputError(f"request_id is a str, got {type(request_id).__name__}")
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority < 2**64:
        raise InputError(f"priority is an integer from 0 on, got {priority!r}")
    microseconds = None
    if queue_timeout is not None:
        waited = seconds(queue_timeout)
        if not waited:
            raise InputError(
                f"queue_timeout is a positive number of seconds, got {queue_timeout!r}"
            )
        microseconds = max(1, round(waited * 1e6))
    for name, value in (parameters or {}).items():
        if not isinstance(name, str) or not name:
            raise InputError(f"a parameter's name is a str, got {name!r}")
        if name in TRITON_RESERVED_REQUEST_PARAMS or name.startswith(
            TRITON_RESERVED_REQUEST_PARAMS_PREFIX
        ):
            raise InputError(f"the parameter name {name!r} is reserved by Triton")
        if not isinstance(value, (str, bool, int, float)):
            raise InputError(
                f"parameter {name!r} is a str, bool, int or float, got {type(value).__name__}"
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"parameter {name!r} does not fit in 64 bits: {value}")
    return CallOptions(request_id, priority, microseconds, dict(parameters or {}))
