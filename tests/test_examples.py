"""Each example runs by itself, says what it should, and leaves nothing behind.

The FastAPI service is started with uvicorn and called over HTTP.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from models import has_strings

from triton_zerocopy.testing import PythonModel, TritonServer

EXAMPLES = Path(__file__).parents[1] / "examples"
SHM = Path("/dev/shm")
PATIENCE = 30.0  # seconds until a state that must come has come
MARK = "TRITON_ZEROCOPY_TEST_MARK"
"""An environment variable that all processes of one example inherit."""

SAYS = {
    "demo": "every byte was checked",
    "quickstart": "tensors are in system memory",
    "zero_copy": "the slot is free again",
    "batching": "10 rows in parts of 4",
    "strings": "['HELLO!', 'WORLD!']",
    "dynamic_shapes": "the call was repeated with more room",
    "one_program_three_memories": "9 results, the same in wire, system",
}


def test_no_example_is_forgotten():
    others = {"fastapi_app", "torch_pipeline"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAYS, *others}


def test_each_runs_by_itself_and_leaves_nothing():
    def run(name):
        with Program(EXAMPLES / f"{name}.py") as program:
            return name, program, *program.wait()

    # Several at a time: most of the time of each is spent waiting for its server.
    with ThreadPoolExecutor(3) as threads:
        names = [name for name in SAYS if name != "strings" or has_strings()]
        for name, program, status, output in threads.map(run, names):
            assert status == 0, f"{name}: {output}"
            assert SAYS[name] in output, name
            assert_nothing_is_left_of(program)


def test_what_needs_a_gpu_says_so():
    """Whether or not torch is installed, and whether or not there is a GPU."""
    with Program(EXAMPLES / "torch_pipeline.py", CUDA_VISIBLE_DEVICES="") as program:
        status, output = program.wait()
    assert status == 1
    assert re.fullmatch(r"this example needs (torch|a GPU)\b.*\n", output)


class Program:
    """A Python process with warnings as errors, killed at the end if it still runs."""

    def __init__(self, *arguments, **environment):
        self.mark = secrets.token_hex(8)
        self._command = [sys.executable, "-W", "error", *map(str, arguments)]
        self._environment = {**os.environ, MARK: self.mark, **environment}

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = self._process.pid
        return self

    def __exit__(self, *exc_info):
        self._process.kill()
        self._process.communicate()

    def read_until(self, pattern):
        """Read what it says until a line matches, or until it has ended."""
        said = ""
        for line in self._process.stdout:
            said += line
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"it ended before it said {pattern!r}:\n{said}")

    def wait(self):
        """Return the exit status, and what it said."""
        output, _ = self._process.communicate(timeout=PATIENCE)
        return self._process.returncode, output

    def stop(self, number):
        """Send a signal, and wait as above."""
        self._process.send_signal(number)
        return self.wait()

    def regions(self):
        """The shared memory of the library that it has mapped now."""
        maps = Path(f"/proc/{self.pid}/maps").read_text()
        return {Path(path) for path in re.findall(r"/dev/shm/tzc-\S+", maps)}

    def relatives(self):
        """All processes that have its mark: itself and what it started."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdecimal()
                    and self.mark.encode() in (entry / "environ").read_bytes()
                ):
                    found.append((int(entry.name), (entry / "cmdline").read_bytes()))
            except OSError:
                pass  # it ended meanwhile, or belongs to somebody else
        return found


def assert_nothing_is_left_of(program):
    # That no region of it is left is seen to by the guard of all tests.
    assert program.relatives() == []
    assert list(SHM.glob(f"triton_zerocopy_server_{program.pid}_*")) == []


# The web service


def norm_when_open(VECTOR):
    """Wait for as long as the test holds the gate shut."""
    import os
    import pathlib
    import time

    while pathlib.Path(os.environ["TEST_GATE"]).exists():
        time.sleep(0.01)
    return (VECTOR**2).sum(axis=1, keepdims=True)


MODEL = PythonModel(
    norm_when_open,
    inputs={"VECTOR": ("FP32", [3])},
    outputs={"NORM": ("FP32", [1])},
    max_batch_size=4,
)


class Service(Program):
    """The service, ready to be called."""

    def __enter__(self):
        super().__enter__()
        try:
            self.url = self.read_until(r"Uvicorn running on (http://\S+)")[1]
        except BaseException:
            self.__exit__()
            raise
        return self

    def get(self, path):
        return httpx.get(f"{self.url}{path}", trust_env=False)

    def post(self, path, json):
        return httpx.post(f"{self.url}{path}", json=json, trust_env=False)


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    """While this file is there, the model of ``norm_server`` does not answer."""
    return tmp_path_factory.mktemp("gate") / "shut"


@pytest.fixture(scope="module")
def norm_server(gate):
    with TritonServer(models={"norm": MODEL}, env={"TEST_GATE": str(gate)}) as server:
        yield server


@pytest.fixture
def service(norm_server, gate):
    arguments = "-m", "uvicorn", "--app-dir", EXAMPLES, "--port", "0", "fastapi_app:app"
    with Service(*arguments, TRITON_URL=norm_server.grpc_url, TRITON_TIMEOUT="3") as service:
        try:
            yield service
        finally:
            gate.unlink(missing_ok=True)


def test_service_answers_and_refuses_and_ends_cleanly(service):
    reply = service.post("/norm", [[3, 4, 0], [1, 2, 2]] * 5)  # more rows than the model takes
    assert (reply.status_code, reply.json()) == (200, [25, 9] * 5)

    reply = service.post("/norm", [[3, 4]])
    assert reply.status_code == 422
    assert "expected shape [-1, 3] (-1 is any), got [1, 2]" in reply.json()["detail"]
    assert service.post("/norm", [[1, 2, 3], [1]]).status_code == 422
    assert service.post("/norm", "words").status_code == 422  # FastAPI's own check

    regions = service.regions()
    assert regions
    status, output = service.stop(signal.SIGTERM)
    assert status in (0, -signal.SIGTERM)
    assert "Application shutdown complete" in output
    assert "Traceback" not in output
    assert not any(path.exists() for path in regions)
    assert_nothing_is_left_of(service)


def test_service_when_overloaded(service, gate):
    """12 callers wait for a model that does not answer: the 13th is refused, they time out."""

    async def overload():
        async with httpx.AsyncClient(
            base_url=service.url, timeout=PATIENCE, trust_env=False
        ) as http:

            async def call():
                return (await http.post("/norm", json=[[3, 4, 0]])).status_code

            async def until(**wanted):
                async with asyncio.timeout(PATIENCE):
                    while wanted.items() - (await http.get("/health")).json().items():
                        await asyncio.sleep(0.01)

            gate.touch()
            calls = [asyncio.create_task(call()) for _ in range(12)]
            await until(in_flight=4, waiting=8)
            assert await call() == 503
            assert await asyncio.gather(*calls) == [504] * 12

            # The callers are released, their slots are not before the server has answered.
            await until(in_flight=4, waiting=0)
            gate.unlink()
            await until(available=4)
            assert await call() == 200

    asyncio.run(overload())
    status, output = service.stop(signal.SIGINT)
    assert "Application shutdown complete" in output, status
    assert "Traceback" not in output


def test_service_with_a_server_of_its_own():
    with Service(EXAMPLES / "fastapi_app.py", PORT="0") as service:
        reply = service.post("/norm", [[3, 4, 0]])
        assert (reply.status_code, reply.json()) == (200, [25])
        status, output = service.stop(signal.SIGINT)
        assert "Traceback" not in output, status
    assert_nothing_is_left_of(service)
