"""torch tensors in, torch tensors out, and nothing goes through the host in between.

A decoder writes images on the GPU, straight to where the server reads them. The outputs are
read on the GPU where the server wrote them, and go into a second model. What this process
copies between host and GPU meanwhile is counted, and must be nothing.

    pip install "triton-zerocopy[cuda]" torch
    python examples/torch_pipeline.py

It needs a GPU. What it needs of torch is in one small class, so that it runs over other array
libraries too; the tests run it over one that emulates a GPU.

The models are Python functions on the server's CPU, so here the server copies for itself. Models
on the GPU would not.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import triton_zerocopy as tz
from triton_zerocopy.testing import PythonModel, TritonServer


def invert(IMAGES):
    return 255 - IMAGES


def mean(IMAGES):
    return IMAGES.mean(axis=(1, 2, 3), dtype="float32").reshape(-1, 1)


IMAGE = ("FP32", [3, 224, 224])
MODELS = {
    "invert": PythonModel(
        invert, inputs={"IMAGES": IMAGE}, outputs={"NEGATIVES": IMAGE}, max_batch_size=8
    ),
    "mean": PythonModel(
        mean, inputs={"IMAGES": IMAGE}, outputs={"MEANS": ("FP32", [1])}, max_batch_size=8
    ),
}
ROWS = 8
SHAPE = (ROWS, 3, 224, 224)


class Copies:
    """How many copies between host and GPU there were in a block; known after it."""

    count: int


class Arrays(Protocol):
    """What this program needs of an array library, on GPU 0."""

    def empty(self, shape: tuple[int, ...]) -> Any: ...
    def from_dlpack(self, array: Any) -> Any: ...
    def make_stream(self) -> Any: ...
    def on(self, stream: Any) -> AbstractContextManager[Any]: ...
    def counting(self) -> AbstractContextManager[Copies]: ...
    def to_list(self, tensor: Any) -> list[float]: ...


class Torch:
    """torch, as far as this program needs it."""

    def __init__(self) -> None:
        try:
            import torch
        except ImportError:
            sys.exit("this example needs torch: pip install torch")
        if not torch.cuda.is_available():
            sys.exit("this example needs a GPU, and torch finds none (torch.cuda.is_available())")
        self.torch: Any = torch

    def empty(self, shape: tuple[int, ...]) -> Any:
        return self.torch.empty(shape, device="cuda:0")

    def from_dlpack(self, array: Any) -> Any:
        return self.torch.from_dlpack(array)

    def make_stream(self) -> Any:
        return self.torch.cuda.Stream()

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        return self.torch.cuda.stream(stream)

    @contextlib.contextmanager
    def counting(self) -> Iterator[Copies]:
        """Count by CUPTI, which sees all copies of this process, whoever makes them."""
        profiler = self.torch.profiler
        copies = Copies()
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as profile:
            yield copies
            self.torch.cuda.synchronize()
        names = [event.name for event in profile.events()]
        copies.count = sum("Memcpy HtoD" in name or "Memcpy DtoH" in name for name in names)

    def to_list(self, tensor: Any) -> list[float]:
        return tensor.cpu().ravel().tolist()


async def run(arrays: Arrays, client: tz.Client, inverter: tz.Model, meaner: tz.Model) -> list[Any]:
    """Return the means that the second model found, in three ways."""
    decoder = arrays.make_stream()
    async with inverter.lease({"IMAGES": SHAPE}) as lease:
        # The decoder's stream is noted here, as the one that the images are made on. The block
        # has no await in it: torch's current stream is the thread's, so of all tasks.
        with arrays.on(decoder):
            images = arrays.from_dlpack(lease.inputs["IMAGES"])  # no copy
            for number in range(ROWS):
                images[number].fill_(number)  # stands for a decoder; only queued here
        result = await lease.infer()  # sent when the decoder's stream is done
        negatives = arrays.from_dlpack(result["NEGATIVES"])  # no copy

        # The second model takes a tensor, which the GPU copies to its slot. The result is ready
        # on every stream.
        result = await meaner.infer({"IMAGES": negatives})
        first = arrays.from_dlpack(result["MEANS"])

        # The same into a tensor of one's own.
        second = arrays.empty((ROWS, 1))
        await meaner.infer({"IMAGES": negatives}, out={"MEANS": second})

        whole = arrays.empty(SHAPE)
        whole.copy_(negatives)

    # Without a copy: the server reads the tensor where it is.
    async with client.adopt(whole) as adopted:
        result = await meaner.infer({"IMAGES": adopted})
        third = arrays.from_dlpack(result["MEANS"])
    return [first, second, third]


async def main(arrays: Arrays) -> None:
    async with (
        TritonServer(models=MODELS) as server,
        tz.Client(server.grpc_url, memory="cuda:0") as client,
        client.model("invert") as inverter,
        client.model("mean") as meaner,
    ):
        with arrays.counting() as copies:
            found = await run(arrays, client, inverter, meaner)
        assert copies.count == 0, f"{copies.count} copies between host and GPU"

        # The count would have seen one.
        with arrays.counting() as others:
            result = await meaner.infer({"IMAGES": arrays.empty(SHAPE)})
            await result.numpy("MEANS")
        assert others.count > 0, "copies between host and GPU are not seen"

        for means in found:
            assert arrays.to_list(means) == [255 - number for number in range(ROWS)]
        print(f"3 x {ROWS} means, {copies.count} copies between host and GPU")


if __name__ == "__main__":
    try:
        asyncio.run(main(Torch()))
    except (tz.CudaError, tz.RegistrationError) as error:
        sys.exit(f"this example needs a GPU that the server sees, too: {error}")
