"""Outputs whose size the model's metadata does not tell, and how to give them room.

Shared memory is reserved before a call, so the room for an output must be known by then. It is
learned from earlier answers, set by you, or found by running the model again.
"""

from __future__ import annotations

import asyncio

import numpy as np

import triton_zerocopy as tz
from triton_zerocopy.testing import PythonModel, TritonServer


def repeat(X):
    return np.concatenate([X, X])


def count(N):
    return np.arange(N[0], dtype="float32")


MODELS = {
    "repeat": PythonModel(repeat, inputs={"X": ("FP32", [-1])}, outputs={"Y": ("FP32", [-1])}),
    "count": PythonModel(count, inputs={"N": ("INT32", [1])}, outputs={"Y": ("FP32", [-1])}),
}


async def counted(model: tz.Model, n: int) -> int:
    result = await model.infer({"N": [n]})
    assert np.array_equal(result["Y"], np.arange(n, dtype=np.float32))
    return len(result["Y"])


async def main() -> None:
    async with TritonServer(models=MODELS) as server, tz.Client(server.grpc_url) as client:
        # An output that grows with its input: nothing to do. The first one comes inside the
        # answer, and tells how much room outputs for inputs of such a size need.
        async with client.model("repeat") as model:
            for size in (100, 120, 5000, 300_000):
                result = await model.infer({"X": np.zeros(size, np.float32)})
                assert result["Y"].shape == (2 * size,)
            print("an output that follows its input needs no settings")

        # An output that does not: say how large it gets at most.
        async with client.model("count", output_bytes={"Y": 4 * 100_000}) as model:
            assert [await counted(model, n) for n in (10, 100_000)] == [10, 100_000]
            print("output_bytes: there is room for 100000 items")

            # If it gets larger all the same, the model has run already. The slot grows, so the
            # next call fits; whether to repeat this one is yours to decide.
            try:
                await counted(model, 200_000)
            except tz.CapacityError as error:
                print(f"no room for {error.needed} bytes; the model has run: {error.model_ran}")
            else:
                raise AssertionError("800000 bytes went into 400000")
            assert await counted(model, 200_000) == 200_000

        # A model that may run twice for one call: the room is found by trying.
        async with client.model("count", repeatable=True) as model:
            assert [await counted(model, n) for n in (10, 500_000)] == [10, 500_000]
            print("repeatable: the call was repeated with more room")


if __name__ == "__main__":
    asyncio.run(main())
