"""An ensemble of which one branch fails while another works."""

from __future__ import annotations

import pytest
from models import MODELS, TORN

from triton_zerocopy.testing import FakeTriton, TritonServer

from .conftest import VERSION
from .raw import PAGE, Gate, Memory, floats, output, tensor

OWN = {"gate": MODELS["gate"], "fail": MODELS["fail"], "torn": TORN}
X, DONE = floats(1, 2), [2.0, 3.0]


@pytest.fixture(scope="module", params=["real", "fake"])
def own(request):
    with (TritonServer if request.param == "real" else FakeTriton)(OWN) as server:
        if server.version != VERSION:
            pytest.skip(f"the real server here is {server.version}")
        yield server
        # The real one would wait for the request that failed, which it never counts as ended.
        server.kill()


@pytest.fixture
def asked(own):
    return own


@pytest.fixture
def memory():
    with Memory() as memory:
        memory.write(X)
        yield memory


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


def test_an_ensemble_that_fails_uses_memory_that_nobody_sees(rpc, memory, gate):
    """The answer comes while a branch still works; its region is no longer counted as in use.

    (Here that branch has read its input already. If not, the server would crash now.)
    """
    rpc.register("r", memory)
    inputs = [tensor(shape=(2,), at=("r", 8, 0)), gate.input]
    outputs = [output("OUTPUT0", at=("r", 8, 64)), output("OUTPUT1")]
    call = rpc.begin_infer("torn", inputs, outputs)
    gate.wait_until_reached()
    assert call.refusal() == ("INTERNAL", "in ensemble 'torn', ValueError: this model never works")
    rpc.unregister("r")
    assert not rpc.is_registered("r")
    gate.open()
    gate.wait_until_passed()
    assert memory.read(PAGE, 64) == bytes(PAGE)


def test_steps_of_an_ensemble_that_nobody_asked_for_do_not_run(rpc, memory, gate):
    """Here the one that would fail."""
    rpc.register("r", memory)
    inputs = [tensor(shape=(2,), at=("r", 8, 0)), gate.input]
    call = rpc.begin_infer("torn", inputs, [output("OUTPUT0", at=("r", 8, 64))])
    gate.open()
    assert call.result().raw_output_contents == [b""]
    assert memory.floats(2, 64) == DONE
    rpc.unregister("r")
