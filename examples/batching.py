"""Batches: larger than the model takes, and out of rows that lie apart.

Shapes are always full, with the batch dimension in front.
"""

from __future__ import annotations

import asyncio

import numpy as np

import triton_zerocopy as tz
from triton_zerocopy.testing import PythonModel, TritonServer


def norm(VECTOR):
    return (VECTOR**2).sum(axis=1, keepdims=True)


MODEL = PythonModel(
    norm,
    inputs={"VECTOR": ("FP32", [3])},
    outputs={"NORM": ("FP32", [1])},
    max_batch_size=4,
    instances=2,
)


async def main() -> None:
    async with (
        TritonServer(models={"norm": MODEL}) as server,
        tz.Client(server.grpc_url) as client,
        client.model("norm", slots=3) as model,
    ):
        # 10 rows, and the model takes 4: three parts go through three slots at a time, and
        # come back as one array, in order.
        batch = np.arange(30, dtype=np.float32).reshape(10, 3)
        result = await model.infer({"VECTOR": batch})
        assert result["NORM"].shape == (10, 1)
        assert np.array_equal(result["NORM"], (batch**2).sum(axis=1, keepdims=True))
        print(f"{len(batch)} rows in parts of {model.max_batch_size}: {result['NORM'].ravel()}")

        # A list of rows, each without the batch dimension. They are not stacked first: each is
        # copied straight to its place in shared memory.
        rows = [np.full(3, number, dtype=np.float32) for number in range(6)]
        result = await model.infer({"VECTOR": rows})
        assert result["NORM"].ravel().tolist() == [3 * number**2 for number in range(6)]
        print(f"a list of {len(rows)} rows: {result['NORM'].ravel()}")

        # Outputs may go into arrays of yours, for example the same one for every call.
        norms = np.empty((10, 1), dtype=np.float32)
        await model.infer({"VECTOR": batch}, out={"NORM": norms})
        assert np.array_equal(norms, (batch**2).sum(axis=1, keepdims=True))


if __name__ == "__main__":
    asyncio.run(main())
