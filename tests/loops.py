"""The event loops that tests are run on: values for the fixture ``anyio_backend``."""

from __future__ import annotations

import pytest

BOTH = [
    pytest.param(("asyncio", {"debug": True}), id="asyncio", marks=pytest.mark.on_asyncio),
    pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop", marks=pytest.mark.on_uvloop),
]
