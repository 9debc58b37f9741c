"""The first call: a numpy array goes to a model, and one comes back.

Starts a Triton of its own. For yours, give its gRPC address to `tz.Client`.
"""

from __future__ import annotations

import asyncio

import numpy as np

import triton_zerocopy as tz
from triton_zerocopy.testing import PythonModel, TritonServer


def double(INPUT0):
    return INPUT0 * 2


MODEL = PythonModel(double, inputs={"INPUT0": ("FP32", [-1])}, outputs={"OUTPUT0": ("FP32", [-1])})


async def main() -> None:
    async with (
        TritonServer(models={"double": MODEL}) as server,
        tz.Client(server.grpc_url) as client,
        client.model("double") as model,
    ):
        print(f"tensors are in {model.memory} memory")

        # An array of the model's datatype. The result is the caller's to keep.
        x = np.arange(4, dtype=np.float32)
        result = await model.infer({"INPUT0": x}, timeout=5.0)
        print(f"{x} doubled is {result['OUTPUT0']}")
        assert np.array_equal(result["OUTPUT0"], x * 2)

        # Plain numbers take the model's datatype.
        result = await model.infer({"INPUT0": [1, 2.5]})
        assert result["OUTPUT0"].tolist() == [2.0, 5.0]

        # As many calls as there are slots run at a time; the others wait in line.
        results = await asyncio.gather(*(model.infer({"INPUT0": x + i}) for i in range(20)))
        for i, result in enumerate(results):
            assert np.array_equal(result["OUTPUT0"], (x + i) * 2)
        print(f"{len(results)} calls went through {model.statistics().capacity} slots")

        # Nothing is cast silently, and what does not fit is never sent.
        try:
            await model.infer({"INPUT0": x.astype(np.float64)})
        except tz.InputError as error:
            print(f"refused: {error}")
        else:
            raise AssertionError("float64 was taken for FP32")


if __name__ == "__main__":
    asyncio.run(main())
