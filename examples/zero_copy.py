"""No copy at all: inputs are made where the server reads them, outputs read where it wrote.

A lease is one slot of shared memory that is yours for the time of an `async with` block.
"""

from __future__ import annotations

import asyncio

import numpy as np

import triton_zerocopy as tz
from triton_zerocopy.testing import PythonModel, TritonServer


def invert(IMAGES):
    means = IMAGES.mean(axis=(1, 2, 3), dtype=np.float32)
    return {"NEGATIVES": 255 - IMAGES, "MEANS": means[:, np.newaxis]}


MODEL = PythonModel(
    invert,
    inputs={"IMAGES": ("UINT8", [3, 224, 224])},
    outputs={"NEGATIVES": ("UINT8", [3, 224, 224]), "MEANS": ("FP32", [1])},
    max_batch_size=8,
)


def decode_into(image: np.ndarray, number: int) -> None:
    """Stands for a decoder, a camera or a socket that writes into memory it is given."""
    image[:] = number


async def use_a_lease(model: tz.Model) -> np.ndarray:
    async with model.lease({"IMAGES": (8, 3, 224, 224)}) as lease:
        images = lease.inputs["IMAGES"]  # an array over the slot
        for number, image in enumerate(images):
            decode_into(image, number)
        result = await lease.infer()
        assert result["MEANS"].ravel().tolist() == list(range(8))
        print(f"means of 8 images: {result['MEANS'].ravel()}")

        # The lease may be used again, also with fewer rows. The next answer goes to the same
        # place, so copy what must survive it.
        first = result["NEGATIVES"][0].copy()
        images[:2] = 100
        result = await lease.infer(shapes={"IMAGES": (2, 3, 224, 224)})
        assert result["MEANS"].ravel().tolist() == [100, 100]
        assert (first == 255).all()
        kept = result["NEGATIVES"]

    # After the block the mappings are closed.
    try:
        result["NEGATIVES"]
    except tz.LeaseReleased as error:
        print(f"after the block: {error}")
    else:
        raise AssertionError("a result was read after its lease")
    return kept


async def main() -> None:
    async with (
        TritonServer(models={"invert": MODEL}) as server,
        tz.Client(server.grpc_url, memory="system") as client,
        client.model("invert", shapes={"IMAGES": (8, 3, 224, 224)}) as model,
    ):
        # An array that was kept stays valid. Its slot is not used for anything else meanwhile.
        kept = await use_a_lease(model)
        assert (kept == 155).all()
        print(f"an array is kept: {model.statistics().parked} slot is parked for it")
        del kept

        # The slot is back when the event loop has had its turn.
        await asyncio.sleep(0)
        assert model.statistics().parked == 0
        print("the array is gone, and the slot is free again")


if __name__ == "__main__":
    asyncio.run(main())
