"""Strings: Triton's BYTES, as arrays of `bytes`."""

from __future__ import annotations

import asyncio

import numpy as np

import triton_zerocopy as tz
from triton_zerocopy.testing import PythonModel, TritonServer


def shout(TEXT):
    return np.array([text.upper() + b"!" for text in TEXT], dtype=object)


MODEL = PythonModel(shout, inputs={"TEXT": ("BYTES", [-1])}, outputs={"LOUD": ("BYTES", [-1])})


async def main() -> None:
    async with (
        TritonServer(models={"shout": MODEL}) as server,
        tz.Client(server.grpc_url) as client,
        client.model("shout") as model,
    ):
        # `str` goes as UTF-8. What comes back is `bytes`: only you know whether it is text.
        result = await model.infer({"TEXT": ["hello", "world"]})
        loud = [text.decode() for text in result["LOUD"]]
        print(loud)
        assert loud == ["HELLO!", "WORLD!"]

        # Any bytes, of any length, zeros included, in an object array.
        raw = np.array([b"", b"\x00abc\xff", b"x" * 100_000], dtype=object)
        result = await model.infer({"TEXT": raw})
        assert result["LOUD"].tolist() == [text.upper() + b"!" for text in raw]
        print(f"{len(raw)} elements of 0 to {max(map(len, raw))} bytes went through")

        # In a lease, strings are given to infer: they have no fixed size to lease.
        async with model.lease() as lease:
            result = await lease.infer({"TEXT": "one"})
            assert result["LOUD"].tolist() == [b"ONE!"]


if __name__ == "__main__":
    asyncio.run(main())
