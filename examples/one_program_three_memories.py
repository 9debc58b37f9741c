"""One program for three memories: one argument differs, the results do not.

    python examples/one_program_three_memories.py
    python examples/one_program_three_memories.py system cuda:0

Without arguments it takes "wire" and "system", and "cuda:0" if this process and the server
have a GPU.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np

import triton_zerocopy as tz
from triton_zerocopy.testing import PythonModel, TritonServer


def norm(VECTOR):
    return (VECTOR**2).sum(axis=1, keepdims=True)


def repeat(X):
    return np.concatenate([X, X])


MODELS = {
    "norm": PythonModel(
        norm,
        inputs={"VECTOR": ("FP32", [3])},
        outputs={"NORM": ("FP32", [1])},
        max_batch_size=4,
    ),
    "repeat": PythonModel(repeat, inputs={"X": ("FP32", [-1])}, outputs={"Y": ("FP32", [-1])}),
}
BATCH = np.arange(30, dtype=np.float32).reshape(10, 3)


async def use(client: tz.Client, memory: str) -> dict[str, np.ndarray]:
    """Call the models in several ways; nothing but ``memory`` says where tensors are."""
    found = {}
    async with client.model("norm", memory=memory) as model:
        assert memory in (model.memory, "auto")

        # A result is numpy's, or a DeviceArray in the memory of a GPU. This reads both.
        result = await model.infer({"VECTOR": BATCH[:3]})
        found["three rows"] = await result.numpy("NORM")

        # A batch may have any number of rows, and be a list of them.
        result = await model.infer({"VECTOR": BATCH})
        found["more rows than the model takes"] = await result.numpy("NORM")
        result = await model.infer({"VECTOR": list(BATCH[:2])})
        found["a list of rows"] = await result.numpy("NORM")

        # Into an array of yours, from wherever the output is.
        norms = np.empty((3, 1), np.float32)
        await model.infer({"VECTOR": BATCH[3:6]}, out={"NORM": norms})
        found["an array given for the output"] = norms

        # A lease, its input given as a host array, which is copied to its place.
        async with model.lease({"VECTOR": (4, 3)}) as lease:
            for rows in (4, 2):
                result = await lease.infer({"VECTOR": BATCH[:rows]})
                # In host memory this is a view that the next infer overwrites, so copy it.
                found[f"a lease, {rows} rows"] = (await result.numpy("NORM")).copy()

    async with client.model("repeat", memory=memory) as model:
        # The first output is of unknown size and comes inside the answer; the others do not.
        for size in (100, 120, 70_000):
            result = await model.infer({"X": np.arange(size, dtype=np.float32)})
            found[f"{size} items repeated"] = await result.numpy("Y")
    return found


def compare(found: dict[str, dict[str, np.ndarray]]) -> None:
    (first, expected), *others = found.items()
    for memory, results in others:
        assert results.keys() == expected.keys()
        for what, array in results.items():
            assert array.dtype == expected[what].dtype, (memory, what)
            assert np.array_equal(array, expected[what]), f"{what}: {memory} differs from {first}"


async def main(memories: list[str]) -> None:
    found = {}
    async with TritonServer(models=MODELS) as server, tz.Client(server.grpc_url) as client:
        for memory in memories or ["wire", "system", "cuda:0"]:
            try:
                found[memory] = await use(client, memory)
            except (tz.CudaError, tz.RegistrationError) as error:
                if memories:
                    sys.exit(f"{memory} cannot be used: {error}")  # a named memory is meant
                print(f"{memory} is left out: {error}")
    assert np.array_equal(found[next(iter(found))]["three rows"], [[5], [50], [149]])
    compare(found)
    count = len(next(iter(found.values())))
    print(f"{count} results, the same in {', '.join(found)}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
