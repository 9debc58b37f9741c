"""Every test here has an emulated GPU; those that ask for it, a real server that has one, too.

With the option --gpu it is a real one, see gpu_option.py.
"""

from __future__ import annotations

import gc
import time

import emulated_cuda
import pytest
from emulated_cuda import arrays
from emulated_cuda.asserting import new_stream, ok
from emulated_cuda.build import CannotBuild, build, server_libraries
from emulated_cuda.server import CudaServer
from gpu_option import (  # noqa: F401 # hooks and a fixture
    is_real,
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_generate_tests,
    pytest_report_collectionfinish,
    pytest_terminal_summary,
    tell,
)
from gpus import EmulatedGpu, NoGpu, open_gpu, why_no_gpu
from models import MODELS, add_one
from real_machine import C_MODELS, RealMachine, build_backends, registered

from triton_zerocopy._cuda import devices as _devices
from triton_zerocopy.testing import PythonModel, RawModel, TritonServer
from triton_zerocopy.testing.pytest_plugin import _visible_output

PATIENCE = 5.0  # seconds, for threads that end and finalizers that run

FOUR = ("FP32", [4])
SERVED = ("add_one", "fixed", "slow", "rows", "wide_rows", "two", "count", "echo", "fail")
CHAIN = """
platform: "ensemble"
input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling {
  step [
    { model_name: "fixed" model_version: -1
      input_map { key: "INPUT0" value: "INPUT0" }
      output_map { key: "OUTPUT0" value: "between" } },
    { model_name: "fixed" model_version: -1
      input_map { key: "INPUT0" value: "between" }
      output_map { key: "OUTPUT0" value: "OUTPUT0" } }
  ]
}
"""
ON_GPU = PythonModel(
    add_one,
    inputs={"INPUT0": FOUR},
    outputs={"OUTPUT0": FOUR},
    config="instance_group [ { kind: KIND_GPU count: 1 } ]",
)
CUDA_MODELS = {name: MODELS[name] for name in (*SERVED, "ensemble", "optional")}
CUDA_MODELS |= {"chain": RawModel(CHAIN), "on_gpu": ON_GPU}
CUDA_MODELS |= {name: MODELS[name] for name in ("shout",) if name in MODELS}  # BYTES
TWO_GPU_MODELS = {name: MODELS[name] for name in ("add_one", "fixed", "slow")}


HAS_FAILED = pytest.StashKey[bool]()


@pytest.fixture
def anyio_backend():
    """One event loop here; what depends on the loop is tested with both on host memory."""
    return "asyncio", {"debug": True}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Note failed tests: their traceback holds everything, so what they left says nothing."""
    report = yield
    if report.failed:
        item.stash[HAS_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def machine(request):
    """What watches the GPU that a test has: the emulation, or with --gpu a real one's."""
    if not is_real(request.config):
        yield request.getfixturevalue("emulation")
        return
    if (reason := why_no_gpu()) is not None:
        pytest.skip(reason)
    real = RealMachine(request.getfixturevalue("monkeypatch"))
    yield real
    request.node.funcargs.clear()  # as below
    if HAS_FAILED not in request.node.stash:
        _check(real.what_is_left)


@pytest.fixture
def emulation(request):
    """The emulated machine, with one GPU and nothing on it, in the place of cuda-python.

    What a test makes on it must be gone at the test's end.
    """
    emulated_cuda.reset()
    emulated_cuda.install()
    before = emulated_cuda.live()
    yield emulated_cuda
    request.node.funcargs.clear()  # tensors that fixtures made
    try:
        if HAS_FAILED not in request.node.stash:
            _check(lambda: _left_on_the_machine(before))
    finally:
        # A failed test's devices live on in its traceback; the next test makes its own.
        _devices._start_over()
        emulated_cuda.uninstall()
        emulated_cuda.reset()
        arrays.forget_exports()


def _left_on_the_machine(before):
    """Say what a test left behind; None if nothing."""
    emulated_cuda.settle()  # memory goes back in the order of a stream
    live = emulated_cuda.live()
    if live != before:
        return f"left on the emulated machine: {live}, before {before}"
    if arrays.exports():
        return f"{arrays.exports()} DLPack tensors were lent and not given back"
    return None


def _check(what_is_wrong):
    """Fail if something stays wrong. Threads of a closed client may take a moment to end."""
    deadline = time.monotonic() + PATIENCE
    while True:
        gc.collect()
        wrong = what_is_wrong()
        if wrong is None:
            return
        assert time.monotonic() < deadline, wrong
        time.sleep(0.01)


@pytest.fixture(scope="session")
def emulated_library(request, tmp_path_factory):
    """The server's half of the emulation, compiled."""
    try:
        with _visible_output(request.config):
            libraries = server_libraries()
        return build(tmp_path_factory.mktemp("emulated_cuda"), libraries)
    except CannotBuild as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def _one_gpu(emulated_library, tmp_path_factory):
    yield from _serve(CUDA_MODELS, emulated_library, tmp_path_factory, devices=1)


@pytest.fixture(scope="session")
def _two_gpus(emulated_library, tmp_path_factory):
    yield from _serve(TWO_GPU_MODELS, emulated_library, tmp_path_factory, devices=2)


def _serve(models, library, factory, *, devices):
    directory = factory.mktemp("server")
    with CudaServer(models, library=library, directory=directory, devices=devices) as server:
        yield server
        # An orderly end takes the server seconds; nobody looks at it any more.
        server.kill()
    emulated_cuda.sweep()


@pytest.fixture
def cuda_server(request, _one_gpu, leaves_nothing, emulation):
    """A server with one GPU, and the promise that the test leaves nothing behind on it."""
    yield from _guarded(request, _one_gpu, leaves_nothing)


@pytest.fixture
def two_gpu_server(request, _two_gpus, leaves_nothing, emulation):
    """The same with two GPUs; the test's side has as many, and neither reaches the other's."""
    emulation.set_devices(2)
    yield from _guarded(request, _two_gpus, leaves_nothing)


def _guarded(request, server, leaves_nothing):
    leaves_nothing.watch(server)  # system regions, files and processes
    before = server.memory.live_ipc(), server.regions()
    yield server
    if HAS_FAILED not in request.node.stash:
        _check(lambda: _left_on_the_server(server, before))


def _left_on_the_server(server, before):
    now = server.memory.live_ipc(), server.regions()
    return None if now == before else f"left on the server: {now}, before {before}"


@pytest.fixture(scope="session")
def _real_gpu(tmp_path_factory):
    backends = tmp_path_factory.mktemp("backends")
    models = CUDA_MODELS | (C_MODELS if build_backends(backends) else {})
    with TritonServer(models, backend_directory=backends) as server:
        yield server


@pytest.fixture
def real_server(request, _real_gpu, leaves_nothing, machine):
    """A server on the real GPU, and the promise that the test leaves nothing behind on it."""
    leaves_nothing.watch(_real_gpu)
    before = registered(_real_gpu)
    machine.rebase()  # the server has taken its memory
    yield _real_gpu
    if HAS_FAILED not in request.node.stash:
        _check(lambda: _left_registered(_real_gpu, before))


def _left_registered(server, before):
    now = registered(server)
    return None if now == before else f"left on the server: {now}, before {before}"


@pytest.fixture
def open_library(machine):
    """A function that returns a library on the real GPU by its name, or skips the test."""

    def opened(name):
        try:
            library = open_gpu(name)
        except NoGpu as error:
            pytest.skip(str(error))
        machine.rebase()  # it has taken some of its own
        return library

    return opened


@pytest.fixture
def gpu(request, open_library):
    """A GPU, and an array library on it."""
    name = getattr(request, "param", None)
    return EmulatedGpu() if name is None else open_library(name)


@pytest.fixture
def gpu_server(request):
    """A server that sees that GPU."""
    name = "real_server" if is_real(request.config) else "cuda_server"
    return request.getfixturevalue(name)


# For the tests of the emulation itself


@pytest.fixture
def pointer(emulation):
    """Device memory of 2 MiB full of zeros."""
    address = ok(emulation.runtime.cudaMalloc(2 << 20))
    yield address
    ok(emulation.runtime.cudaFree(address))


@pytest.fixture
def stream(emulation):
    """A stream that waits for no other."""
    handle = new_stream()
    yield handle
    ok(emulation.runtime.cudaStreamDestroy(handle))


@pytest.fixture
def pinned(emulation):
    """Pinned memory of 64 bytes: its address, and an array over it."""
    address = ok(emulation.runtime.cudaHostAlloc(64, 0))
    yield address, emulation.host_view(address, 64)
    ok(emulation.runtime.cudaFreeHost(address))
