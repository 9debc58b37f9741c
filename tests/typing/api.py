"""The type contract of the public API: checked, never run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import triton_zerocopy as tz
from triton_zerocopy.testing import FakeState, FakeTriton, Fault, PythonModel, TritonServer

Array = npt.NDArray[np.float32]


async def use(x: Array) -> None:
    async with tz.Client("localhost:8001", memory="auto", ssl=tz.SslOptions()) as client:
        assert_type(client, tz.Client)
        assert_type(await client.is_ready(), bool)
        async with client.model("m", slots=4, shapes={"A": (1, 2)}) as model:
            assert_type(model, tz.Model)
            assert_type(model.inputs["A"], tz.TensorSpec)
            assert_type(model.statistics(), tz.PoolStatistics)
            result = await model.infer(
                {"A": x, "B": [1, 2], "C": "text"}, timeout=1.0, out={"D": x}
            )
            assert_type(result, tz.InferResult)
            mapping: Mapping[str, npt.NDArray[Any]] = result
            assert_type(await result.numpy("D"), npt.NDArray[Any])
            async with model.lease({"A": (1, 2)}) as lease:
                assert_type(lease, tz.Lease)
                lease.inputs["A"][:] = 1
                assert_type(await lease.infer(), tz.InferResult)
            del mapping
        opened = await client.model("m", timeout=None)
        assert_type(opened, tz.Model)
        async with client.region(1 << 20) as region:
            assert_type(region, tz.Region)
            place = region.tensor((256,), "FP32", offset=0)
            assert_type(place, tz.RegionTensor)
            assert_type(await region.write(x), int)
            await client.infer("m", {"A": place, "B": x}, outputs={"C": place})
            await client.infer("m", {"A": place}, outputs=["C"])
        assert_type(client.statistics(), tz.ClientStatistics)
        assert_type(await client.reap(timeout=1.0), tz.Reclaimed)
    try:
        raise tz.CapacityError("m", needed=1)
    except tz.CapacityError as error:
        assert_type(error.needed, int)


def double(INPUT0: Array) -> Array:
    return INPUT0 * 2


def serve() -> None:
    model = PythonModel(double, inputs={"A": ("FP32", [-1])}, outputs={"B": ("FP32", [-1])})
    with TritonServer(models={"double": model}) as server:
        assert_type(server.grpc_url, str)
    with FakeTriton({"double": model}, version="2.60.0", restricted={"health": ("a", "b")}) as fake:
        assert_type(fake, FakeTriton)
        fake.inject(Fault("ModelInfer", before="running", fail=("INTERNAL", "no")))
        assert_type(fake.release(), int)
        assert_type(fake.state(), FakeState)
        assert_type(fake.state().calls["ModelInfer"], int)


async def serve_and_await() -> None:
    async with FakeTriton() as fake:
        assert_type(await fake.arelease(), int)
        assert_type(await fake.astate(), FakeState)
