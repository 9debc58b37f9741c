"""The guard of the tests finds what is planted."""

from __future__ import annotations

import subprocess
import sys

import pytest

import triton_zerocopy as tz
from triton_zerocopy._regions.budget import Budget
from triton_zerocopy._regions.system import SystemRegion

pytestmark = pytest.mark.anyio


def test_a_file_is_found(leaves_nothing):
    region = SystemRegion(10, owner_id="0" * 16, budget=Budget(None))
    with pytest.raises(AssertionError, match="files left"):
        leaves_nothing.check()
    region.free()
    leaves_nothing.check()


async def test_a_registration_is_found(server, leaves_nothing):
    planted = SystemRegion(64, owner_id="0" * 16, budget=Budget(None))
    async with tz.Client(server.grpc_url) as client:
        await client.triton.register_system_shared_memory("planted", planted.key, 64)
        planted.free()
        with pytest.raises(AssertionError, match="regions left registered"):
            leaves_nothing.check()
        await client.triton.unregister_system_shared_memory("planted")
        leaves_nothing.check()


def test_a_process_is_found(leaves_nothing):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with pytest.raises(AssertionError, match="processes left running"):
        leaves_nothing.check()
    process.communicate()
    leaves_nothing.check()
