"""The option --gpu: the tests of this directory on a real GPU, without any emulation.

Without it nothing changes, but that tests which only a real GPU can answer are skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from gpus import KERNEL_LIBRARIES

_HERE = Path(__file__).parent
_ONLY_EMULATED = "test_emulat"  # the emulation's own tests
_TOLD = pytest.StashKey[list[str]]()
_LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser):
    parser.addoption(
        "--gpu",
        action="store_true",
        default=False,
        help="run tests/cuda on the GPU of this machine; nothing is emulated then",
    )


def pytest_configure(config):
    _configs[:] = [config]


_configs = []


def skip_without_gpu():
    """Skip a module of tests that only a real GPU can pass. Called where it is imported."""
    __tracebackhide__ = True
    if not is_real(_configs[0]):
        reason = "needs a real GPU: python -m pytest tests/cuda --gpu"
        pytest.skip(reason, allow_module_level=True)


def is_real(config):
    """Tell whether a real GPU is to be used."""
    return config.getoption("gpu", default=False)


def pytest_generate_tests(metafunc):
    """On a real GPU, run the tests that ask for ``gpu`` with each library."""
    if "gpu" in metafunc.fixturenames and is_real(metafunc.config):
        metafunc.parametrize("gpu", KERNEL_LIBRARIES, indirect=True)


def pytest_collection_modifyitems(config, items):
    """On a real GPU, leave out what steers the emulation."""
    if not is_real(config):
        return
    left_out = {
        item for item in items if item.path.is_relative_to(_HERE) and _needs_emulation(item)
    }
    config.stash[_LEFT_OUT] = len(left_out)
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def pytest_report_collectionfinish(config):
    if count := config.stash.get(_LEFT_OUT, 0):
        return f"{count} tests are left out: they steer the emulation, which --gpu turns off"
    return None


def _needs_emulation(item):
    return (
        item.path.stem.startswith(_ONLY_EMULATED)
        or item.get_closest_marker("emulated") is not None
        or not _EMULATIONS.isdisjoint(item.fixturenames)
    )


_EMULATIONS = {"emulation", "emulated_library"}


# What a GPU has answered, for whoever runs the tests


@pytest.fixture
def tell(request):
    """A function that prints a line at the end of the test run."""
    return request.config.stash.setdefault(_TOLD, []).append


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash.get(_TOLD, [])
    if lines:
        terminalreporter.section("what the GPU answered")
        for line in lines:
            terminalreporter.write_line(line)
