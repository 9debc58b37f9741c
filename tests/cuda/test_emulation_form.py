"""The emulated CUDA looks like cuda-python, and stands in its place."""

from __future__ import annotations

import importlib
import sys

import emulated_cuda as emulated
import pytest
from emulated_cuda import _shapes, driver, real
from emulated_cuda import runtime as rt
from emulated_cuda.asserting import error_of, ok
from emulated_cuda.build import CannotBuild

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def real_cuda():
    if not real.is_installed():
        pytest.skip("cuda-python is not installed")
    return real.describe()


def test_functions_constants_and_objects_are_those_of_cuda_python(real_cuda, emulation):
    emulation.install(version=12 if real_cuda["has_reserved"] else 13)
    assert _shapes.parameters(rt, driver) == real_cuda["parameters"]
    values = _shapes.values(rt, driver)
    assert {name: real_cuda["values"].get(name) for name in values} == values
    if real_cuda["has_strict_enums"]:  # older ones allow more, or handles are never equal
        assert _shapes.abilities(rt, driver) == real_cuda["abilities"]
        assert _shapes.texts(rt) == real_cuda["texts"]
    assert hasattr(rt.cudaIpcMemHandle_t(), "reserved") == real_cuda["has_reserved"]


def test_failing_calls_have_the_form_of_cuda_python(real_cuda, emulation):
    # A machine with a GPU has a driver, and then no version raises.
    raises = "raises" in real_cuda["failures"].values()
    emulation.set_driver(present=False, raises=raises)
    assert _shapes.failures(rt) == real_cuda["failures"]
    with pytest.raises(RuntimeError, match="NVIDIA driver"):
        driver.cuInit(0)
    assert ok(rt.cudaDriverGetVersion()) == 0
    emulation.set_driver(present=False)
    assert error_of(rt.cudaMalloc(1)) == "InsufficientDriver"
    emulation.set_driver(present=False, raises=True)
    for function in (rt.cudaGetDeviceCount, rt.cudaDriverGetVersion):
        with pytest.raises(RuntimeError, match="dlopen"):
            function()


def test_values_have_the_types_of_cuda_python(real_cuda, tmp_path):
    pointer = ok(rt.cudaMalloc(16))
    properties = ok(rt.cudaGetDeviceProperties(0))
    attributes = ok(rt.cudaPointerGetAttributes(pointer))
    handle = ok(rt.cudaIpcGetMemHandle(pointer))
    structures = _shapes.types_of_structures(properties, attributes, handle)
    assert structures == real_cuda["structures"]
    of_pointers = _shapes.types_of_attributes(driver, pointer)
    ok(rt.cudaFree(pointer))
    try:
        assert of_pointers == real.describe_driver(tmp_path)
    except CannotBuild as error:
        pytest.skip(str(error))


def test_install_takes_the_place_of_cuda_python_and_gives_it_back(emulation):
    for name in ("runtime", "driver"):
        assert importlib.import_module(f"cuda.bindings.{name}") is getattr(emulated, name)
    emulation.uninstall()
    before = {name: each for name, each in sys.modules.items() if name.startswith("cuda")}
    assert rt not in before.values()
    for hidden in (True, False):
        emulation.hide() if hidden else emulation.install(version=12)
        if hidden:
            with pytest.raises(ImportError):
                importlib.import_module("cuda.bindings.runtime")
        else:
            assert importlib.import_module("cuda.bindings.runtime") is rt
            assert len(rt.cudaIpcMemHandle_t().reserved) == 64
        emulation.uninstall()
        assert before == {name: m for name, m in sys.modules.items() if name.startswith("cuda")}
