"""The real GPU of this machine, as the tests watch it, and the server on it.

What the library made is counted exactly: every CUDA call of it goes through one module, whose
functions are wrapped here. What the GPU has left is asked of CUDA, with a tolerance: the server's
and other libraries' memory is counted there, too.
"""

from __future__ import annotations

import http.client
import importlib
import json
import shutil
import sys
import threading
from pathlib import Path

from gpus import release_caches
from real_memory import GRANULE, ok, runtime

from triton_zerocopy._cuda import cudart
from triton_zerocopy.testing import RawModel

TOLERANCE = 32 * GRANULE
"""Bytes that others may take meanwhile, for one CUDA itself, for kernels that it loads."""

ROOT = Path(__file__).parents[2]

_PAIRS = {
    "malloc": "free",
    "malloc_host": "free_host",
    "make_stream": "destroy_stream",
    "make_event": "destroy_event",
}


class RealMachine:
    """Notes what the library makes on the GPU and gives back, as long as a test lasts."""

    def __init__(self, monkeypatch):
        self._live = {make: set() for make in _PAIRS}
        self._lock = threading.Lock()
        for make, end in _PAIRS.items():
            self._wrap(monkeypatch, make, end)
        self.rebase()

    def rebase(self):
        """Begin to compare the GPU's free memory with what it is now."""
        release_caches()
        self._free = free_bytes()

    def live(self):
        """Return how many things of each kind the library has, without those it has none of."""
        with self._lock:
            return {make: len(handles) for make, handles in self._live.items() if handles}

    def what_is_left(self):
        """Say what is left behind; None if nothing is."""
        if live := self.live():
            return f"left by the library: {live}"
        release_caches()
        missing = self._free - free_bytes()
        if missing > TOLERANCE:
            return f"{missing / GRANULE:.1f} granules of 2 MiB are missing on the GPU"
        return None

    def _wrap(self, monkeypatch, make, end):
        made, ended, live = getattr(cudart, make), getattr(cudart, end), self._live[make]

        def noting_make(*arguments):
            handle = made(*arguments)
            with self._lock:
                live.add(handle)
            return handle

        def noting_end(handle):
            ended(handle)
            with self._lock:
                live.discard(handle)

        monkeypatch.setattr(cudart, make, noting_make)
        monkeypatch.setattr(cudart, end, noting_end)


def free_bytes():
    """Return how many bytes of GPU 0 nobody has."""
    return ok(runtime().cudaMemGetInfo())[0]


# The server


C_MODELS = {
    f"{backend}_{label}": RawModel(
        f"""
backend: "{backend}"
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
input [ {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }} ]
output [ {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }} ]
"""
    )
    for backend in ("null", "memcpy")
    for label in ("first", "second")
}
"""Of the benchmarks' backends, which are there if gcc is."""


def registered(server):
    """Return the names of the CUDA regions that the server has, as its HTTP endpoint says."""
    host, port = server.http_url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("GET", "/v2/cudasharedmemory/status")
        return {each["name"] for each in json.loads(connection.getresponse().read())}
    finally:
        connection.close()


def build_backends(directory):
    """Build the benchmarks' backends for the server; return whether that was possible."""
    if shutil.which("gcc") is None:
        return False
    # They belong to the checkout and are not installed; the library itself comes first.
    sys.path.append(str(ROOT))
    try:
        importlib.import_module("benchmarks.gpu.backends").build(directory)
    finally:
        sys.path.remove(str(ROOT))
    return True
