"""The examples that use a GPU, and the page about GPUs, on an emulated one.

An example runs by itself in a process of its own. That process runs this file, which puts the
emulation in the place of cuda-python and then runs the example as Python would.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import inspect
import io
import os
import re
import runpy
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import emulated_cuda
import numpy as np
import pytest
from emulated_cuda import arrays
from emulated_cuda.server import CudaServer, server_environment

import triton_zerocopy as tz
from triton_zerocopy.testing import PythonModel

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "gpu.md"
SHM = Path("/dev/shm")


# The examples


SAYS = {
    "one_program_three_memories": "9 results, the same in wire, system, cuda:0\n",
    "torch_pipeline": "3 x 8 means, 0 copies between host and GPU\n",
}


@pytest.mark.parametrize("example", SAYS)
def test_an_example_that_uses_a_gpu(emulated_library, example):
    from test_examples import Program, assert_nothing_is_left_of

    command = [__file__, emulated_library, EXAMPLES / f"{example}.py"]
    with Program(*command, PYTHONPATH=str(ROOT / "tests")) as program:
        status, output = program.wait()
    assert (status, output) == (0, f"{SAYS[example]}nothing is left on the GPU\n")
    assert_nothing_is_left_of(program)
    assert list(SHM.glob(f"emucuda.{program.pid}.*")) == []
    emulated_cuda.sweep()  # what the server had


def test_a_server_without_a_gpu_is_told(emulated_library):
    """The client has one, and a named memory is not replaced by another one."""
    from test_examples import Program

    command = [__file__, "", EXAMPLES / "one_program_three_memories.py", "cuda:0"]
    with Program(*command, PYTHONPATH=str(ROOT / "tests")) as program:
        status, output = program.wait()
    assert status == 1
    assert "cuda:0 cannot be used: the server cannot open memory of cuda:0" in output


class EmulatedArrays:
    """What torch_pipeline.py needs of an array library."""

    empty = staticmethod(arrays.empty)
    from_dlpack = staticmethod(arrays.from_dlpack)
    make_stream = staticmethod(arrays.Stream)
    on = staticmethod(arrays.current_stream)

    @contextlib.contextmanager
    def counting(self):
        """Count the bytes that are copied, not the copies: none is none."""

        def count():
            return sum(emulated_cuda.bytes_copied(kind, origin=None) for kind in ("H2D", "D2H"))

        before = count()
        copies = SimpleNamespace()
        yield copies
        copies.count = count() - before

    def to_list(self, tensor):
        return tensor.numpy().ravel().tolist()


def run_example(library, path, arguments):
    """Run an example as a program that has a GPU, as does the server that it starts."""
    if library:
        # For the server only: this process has started, and does not load the library.
        os.environ.update(server_environment(Path(library)))
    emulated_cuda.install()
    before = emulated_cuda.live()
    sys.argv = [path, *arguments]
    if Path(path).stem == "torch_pipeline":
        asyncio.run(runpy.run_path(path)["main"](EmulatedArrays()))
    else:
        runpy.run_path(path, run_name="__main__")
    deadline = time.monotonic() + 10
    while emulated_cuda.live() != before:  # the device's thread ends after the client
        assert time.monotonic() < deadline, emulated_cuda.live()
        gc.collect()
        emulated_cuda.settle()
        time.sleep(0.01)
    assert arrays.exports() == 0
    sys.stdout.write("nothing is left on the GPU\n")


# The page


class Stream(arrays.Stream):
    def wait_stream(self, other):
        self.wait(other)


class CurrentStream:
    def wait_stream(self, other):
        arrays.make_wait(arrays.current_handle(), int(other), 0)


def stand_in_for_torch():
    """As much of torch as the page uses."""

    def device_of(name):
        return int(name.removeprefix("cuda:"))

    def rand(*shape, device):
        values = np.random.default_rng(1).random(shape, np.float32)
        return arrays.from_numpy(values, device=device_of(device))

    torch = ModuleType("torch")
    torch.from_dlpack = arrays.from_dlpack
    torch.rand = rand
    torch.empty = lambda *shape, device: arrays.empty(shape, device=device_of(device))
    torch.cuda = SimpleNamespace(
        Stream=Stream, stream=arrays.current_stream, current_stream=CurrentStream
    )
    return torch


def embed(IMAGES):
    return IMAGES.reshape(len(IMAGES), 16, -1).mean(axis=2)


def score(VECTORS):
    return VECTORS.sum(axis=1, keepdims=True)


MODELS = {
    "embed": PythonModel(
        embed,
        inputs={"IMAGES": ("FP32", [3, 224, 224])},
        outputs={"VECTORS": ("FP32", [16])},
        max_batch_size=8,
    ),
    "score": PythonModel(
        score,
        inputs={"VECTORS": ("FP32", [16])},
        outputs={"SCORES": ("FP32", [1])},
        max_batch_size=8,
    ),
}


@pytest.fixture
def page_server(emulated_library, tmp_path, emulation):
    emulation.set_devices(2)
    with CudaServer(MODELS, library=emulated_library, directory=tmp_path, devices=2) as server:
        yield server
        assert server.regions() == {}
        assert server.memory.live_ipc() == 0
        server.kill()
    emulation.sweep()


def test_the_page_runs(page_server, monkeypatch):
    """Its first block is a program; the others are what may go on inside its ``main``."""
    monkeypatch.setitem(sys.modules, "torch", stand_in_for_torch())
    found = re.finditer(
        r"^```(python|text)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    (_, program), *rest = [match.groups() for match in found]
    namespace = {"__name__": "gpu"}
    exec(program.replace("localhost:8001", page_server.grpc_url), namespace)
    asyncio.run(namespace["main"]())
    ran = 0

    async def go_on():
        nonlocal ran
        printed = ""
        for language, text in rest:
            if language == "text":
                assert printed == text
                continue
            code = compile(text, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            with contextlib.redirect_stdout(io.StringIO()) as output:
                if inspect.iscoroutine(result := eval(code, namespace)):
                    await result
            printed = output.getvalue()
            ran += 1

    async def main():
        async with tz.Client(page_server.grpc_url, memory="cuda:0") as client:
            namespace["client"] = client
            namespace["embed"] = await client.model("embed")
            namespace["score"] = await client.model("score")
            namespace["images"] = namespace["torch"].rand(8, 3, 224, 224, device="cuda:0")
            await go_on()
            namespace.clear()

    asyncio.run(main())
    assert ran >= 10


if __name__ == "__main__":
    run_example(sys.argv[1], sys.argv[2], sys.argv[3:])
