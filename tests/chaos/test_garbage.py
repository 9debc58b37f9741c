"""Answers made to harm: what the server says of shapes, sizes and names is not believed.

The kinds that `FakeTriton` has are tested in tests/fake; here are bodies made by hand and by chance.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

import triton_zerocopy as tz
from triton_zerocopy.testing import Fault

pytestmark = pytest.mark.anyio

X = np.arange(16, dtype=np.float32) * 0 + 5
X[0] = 0


def answer(shape=(16,), datatype="FP32", name="OUTPUT0", raw=(b"",), outputs=1, **more):
    message = service_pb2.ModelInferResponse(model_name="work", model_version="1", **more)
    for _ in range(outputs):
        output = message.outputs.add(name=name, datatype=datatype)
        output.shape.extend(shape)
    message.raw_output_contents.extend(raw)
    return message


def with_parameters(**values):
    message = answer()
    for key, value in values.items():
        message.outputs[0].parameters[key].int64_param = value
    return message


HUGE = 2**62
HOSTILE = {
    "huge": answer([HUGE]),
    "huge product": answer([2**31, 2**31, 2**31]),
    "product that wraps to 16": answer([2**32, 2**32, 16]),
    "product that wraps to 0": answer([2**32, 2**32]),
    "the largest number": answer([2**63 - 1]),
    "negative": answer([-16]),
    "two negatives": answer([-4, -4]),
    "the smallest number": answer([-(2**63)]),
    "one too many": answer([17]),
    "a page too many": answer([1025]),
    "thousands of dimensions": answer([1] * 5000 + [16]),
    "33 dimensions": answer([1] * 32 + [16]),
    "no elements, and impossible": answer([0, HUGE, HUGE]),
    "no dimension": answer([]),
    "another type": answer(datatype="FP64"),
    "half the size": answer(datatype="FP16"),
    "strings": answer(datatype="BYTES"),
    "no type": answer(datatype=""),
    "not a type": answer(datatype="NAN"),
    "another name": answer(name="OUTPUT1"),
    "no name": answer(name=""),
    "a name of a megabyte": answer(name="x" * (1 << 20)),
    "twice": answer(outputs=2),
    "a thousand times": answer(outputs=1000),
    "none": answer(outputs=0, raw=()),
    "inline, too short": answer(raw=[b"1234"]),
    "inline, too long": answer(raw=[b"x" * 1000]),
    "more bytes than outputs": answer(raw=[b"", b"x" * 64, b"y" * 64]),
    "a size of its own": with_parameters(shared_memory_byte_size=HUGE, shared_memory_offset=-64),
    "another model": answer(id="another's"),
}
HARMLESS = {"a size of its own", "another model", "twice", "a thousand times"}
HARMLESS |= {"more bytes than outputs", "inline, too long", "inline, too short", "no dimension"}


async def still_works(model):
    result = await model.infer({"INPUT0": X})
    np.testing.assert_array_equal(result["OUTPUT0"], X + 1)
    assert model.statistics().available == model.statistics().capacity


@pytest.mark.parametrize("way", ["infer", "lease"])
async def test_hostile_answers(fake, way):
    """Refused, or nothing of it was believed; never a read past the slot, and the slot is free."""
    async with tz.Client(fake.grpc_url) as client, client.model("work", slots=1) as model:
        await still_works(model)
        await still_works(model)  # its output is in shared memory now
        for kind, message in HOSTILE.items():
            await fake.ainject(Fault("ModelInfer", body=message.SerializeToString()))
            try:
                if way == "infer":
                    result = await model.infer({"INPUT0": X})
                    assert result["OUTPUT0"].nbytes <= X.nbytes, kind
                else:
                    async with model.lease({"INPUT0": X.shape}) as lease:
                        result = await lease.infer({"INPUT0": X})
                        assert result["OUTPUT0"].nbytes <= X.nbytes, kind
                    del result
            except tz.InferenceError as error:
                assert len(str(error)) < 5000, kind
            else:
                assert kind in HARMLESS, kind
            await still_works(model)


@pytest.mark.parametrize("memory", ["system", "wire"])
async def test_answers_with_bytes_changed_by_chance(fake, memory):
    """Whatever comes of them is a result no larger than the slot, or an error of this library."""
    rng = random.Random(memory)
    true = answer(raw=[b""] if memory == "system" else [(X + 1).tobytes()]).SerializeToString()
    async with tz.Client(fake.grpc_url, memory=memory) as client:
        async with client.model("work", slots=2) as model:
            await still_works(model)
            ends = set()
            for _ in range(100):
                body = bytearray(true)
                for _ in range(rng.choice([1, 1, 2, 8])):
                    match rng.randrange(3):
                        case 0:
                            body[rng.randrange(len(body))] = rng.randrange(256)
                        case 1:
                            del body[rng.randrange(len(body)) :]
                            body = body or bytearray(b"\0")
                        case _:
                            body.insert(rng.randrange(len(body)), rng.randrange(256))
                await fake.ainject(Fault("ModelInfer", body=bytes(body)))
                try:
                    result = await model.infer({"INPUT0": X})
                except tz.ZeroCopyError as error:
                    ends.add(type(error))
                else:
                    assert result["OUTPUT0"].nbytes <= max(4096, len(body))
                    ends.add("believed")
            await still_works(model)
            assert tz.InferenceError in ends


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ServerMetadata"])
async def test_garbage_when_a_model_is_opened(fake, method):
    rng = random.Random(method)
    for number in range(10):
        body = rng.randbytes(rng.choice([1, 8, 100])) if number else b""
        await fake.ainject(Fault(method, body=body))
        async with tz.Client(fake.grpc_url) as client:
            try:
                async with client.model("work", slots=1) as model:
                    await model.infer({"INPUT0": X})
            except tz.ZeroCopyError:
                pass
        fake.clear()
    async with tz.Client(fake.grpc_url) as client, client.model("work", slots=1) as model:
        await still_works(model)
