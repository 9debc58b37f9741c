"""How a run is made: on a real GPU or on an emulated one, at full size or only to try it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_zerocopy.testing import RawModel, TritonServer

from .. import measuring

_TESTS = Path(__file__).parents[2] / "tests"
_EMULATED, _QUICK = "emulated", "quick"
_QUICK_SLICE = 0.01  # seconds


@dataclass(frozen=True)
class Mode:
    """How a run is made.

    Attributes:
        is_emulated: CUDA is that of the tests.
        is_quick: sizes and turns are small, so that all of it takes seconds.
    """

    is_emulated: bool
    is_quick: bool

    def __str__(self) -> str:
        words = [_EMULATED] * self.is_emulated + [_QUICK] * self.is_quick
        return ",".join(words) or "full"

    @classmethod
    def parse(cls, text: str) -> Mode:
        """Return the mode that ``str`` gave this text for."""
        words = text.split(",")
        return cls(_EMULATED in words, _QUICK in words)

    def prepare(self) -> None:
        """Make this process fit for it. Before anything asks for CUDA."""
        if self.is_quick:
            measuring.SLICE = _QUICK_SLICE
        if self.is_emulated:
            _emulation().install()
            _complete()

    @contextlib.contextmanager
    def server(self, models: Mapping[str, RawModel], directory: Path) -> Iterator[TritonServer]:
        """Run a server with models of the backends in a directory."""
        options: dict[str, Any] = {"backend_directory": directory / "backends"}
        if not self.is_emulated:
            with TritonServer(models, **options) as server:
                yield server
            return
        _emulation()
        from emulated_cuda.build import build, server_libraries
        from emulated_cuda.server import CudaServer

        library = directory / "emulated_cuda"
        library.mkdir()
        options |= {"library": build(library, server_libraries()), "directory": directory}
        with CudaServer(models, **options) as server:
            yield server
            server.kill()  # an orderly end takes it seconds


def _emulation() -> Any:
    if str(_TESTS) not in sys.path:
        sys.path.append(str(_TESTS))
    import emulated_cuda

    return emulated_cuda


def _complete() -> None:
    """Add what tritonclient's helpers ask CUDA for, and this library does not."""
    from emulated_cuda import driver, runtime

    success, result = runtime.cudaError_t.cudaSuccess, driver.CUresult.CUDA_SUCCESS
    added: Any = {
        runtime: {
            "cudaDeviceAttr": type("cudaDeviceAttr", (), {"cudaDevAttrUnifiedAddressing": 41}),
            "cudaDeviceGetAttribute": lambda *_: (success, 1),
            "cudaStreamCreate": lambda: runtime.cudaStreamCreateWithFlags(0),
        },
        driver: {
            "cuDeviceGet": lambda ordinal: (result, ordinal),
            "cuDevicePrimaryCtxGetState": lambda _: (result, 0, 1),
        },
    }
    for module, names in added.items():
        for name, value in names.items():
            if not hasattr(module, name):
                setattr(module, name, value)
