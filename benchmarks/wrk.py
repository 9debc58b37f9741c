"""The limit: wrk, a load generator in C, which sends one HTTP request again and again.

The request names a region that was registered before, so no tensor travels, and nothing is
copied, checked or looked at: no client in any language does less.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tritonclient.http.aio import InferenceServerClient

from .callers import Caller, Turn
from .handmade import HTTP, ShmRequest
from .workloads import Tensors, Workload

_SECONDS = 1  # the shortest turn that wrk knows
_MARK = "TURN"
_LUA = """\
wrk.method = "POST"
wrk.path = "{path}"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[{body}]==]

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("{mark} %d %d %d\\n", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def is_here() -> bool:
    """Tell whether wrk is installed."""
    return shutil.which("wrk") is not None


class Wrk(Caller):
    """One wrk with as many connections as there are to be callers."""

    def __init__(
        self, inputs: Tensors, request: ShmRequest, url: str, model: str, script: Path, count: int
    ) -> None:
        super().__init__(inputs)
        self._request = request
        self._url = url
        self._path = f"/v2/models/{model}/infer"
        self._body = _body(request)
        self._command = [
            *("wrk", "-t1", f"-c{count}", f"-d{_SECONDS}s", "-s", str(script), f"http://{url}")
        ]
        script.write_text(_LUA.format(path=self._path, body=self._body, mark=_MARK), "utf-8")

    async def call(self) -> None:
        await asyncio.to_thread(self._post)

    async def outputs(self) -> Tensors:
        self._request.fill()
        await self.call()
        return {"OUTPUT0": self._request.read()}

    async def turn(self, deadline: float) -> Turn:
        """Have wrk call for a second, however long a turn is meant to be."""
        del deadline
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = await asyncio.to_thread(
            subprocess.run, self._command, capture_output=True, text=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        told = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
        calls, microseconds, errors = map(int, told[0].split()[1:]) if told else (0, 0, 0)
        if done.returncode or errors or not calls:
            sys.exit(f"wrk failed ({errors} errors):\n{done.stdout}{done.stderr}")
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Turn(calls, microseconds / 1e6, cpu)

    def _post(self) -> None:
        connection = http.client.HTTPConnection(self._url, timeout=10)
        try:
            connection.request("POST", self._path, self._body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            sys.exit(f"the request for wrk was refused: {text.decode('utf-8', 'replace')}")


def _body(request: ShmRequest) -> str:
    def placed(offset: int) -> dict[str, object]:
        return {
            "shared_memory_region": request.region,
            "shared_memory_offset": offset,
            "shared_memory_byte_size": request.size,
        }

    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": request.shape}
    return json.dumps(
        {
            "inputs": [{**tensor, "parameters": placed(0)}],
            "outputs": [{"name": "OUTPUT0", "parameters": placed(request.size)}],
        }
    )


@asynccontextmanager
async def post(
    url: str, name: str, workload: Workload, count: int
) -> AsyncIterator[Sequence[Caller]]:
    """One wrk, whose connections all name the same region."""
    inputs = workload.inputs(0)
    request = ShmRequest(inputs, HTTP)
    try:
        async with InferenceServerClient(url) as client:
            await client.register_system_shared_memory(*request.registration)
            try:
                with tempfile.TemporaryDirectory(prefix="triton_zerocopy_wrk-") as directory:
                    script = Path(directory, "post.lua")
                    yield [Wrk(inputs, request, url, name, script, count)]
            finally:
                await client.unregister_system_shared_memory(request.region)
    finally:
        request.close()
