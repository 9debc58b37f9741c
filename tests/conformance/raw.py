"""Talking to a server without this library: tritonclient's raw stubs, HTTP by hand, memory."""

from __future__ import annotations

import http.client
import json
import os
import random
import secrets
import socket
import struct
import time
from pathlib import Path

import grpc
import numpy as np
from models import GATES
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

PATIENCE = 20.0  # seconds; only a failure takes that long
PAGE = 4096


def wait_until(condition):
    """Wait for a state that another process brings about."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.002)
    return found


class Refused(Exception):
    """A call failed."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.answer = (code, text)


class Memory:
    """A shared memory object, unlinked at the end of a block."""

    def __init__(self, byte_size=2 * PAGE):
        self.key = f"/tzc-conformance-{secrets.token_hex(8)}"
        self.path = f"/dev/shm{self.key}"
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.posix_fallocate(file, 0, byte_size)
        os.close(file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.unlink(self.path)

    def write(self, data, offset=0):
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, byte_size, offset=0):
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(byte_size)

    def floats(self, count, offset=0):
        return np.frombuffer(self.read(4 * count, offset), np.float32).tolist()


class Gate:
    """Holds the model `gate` until it is opened; at the end of a block it is open and passed."""

    def __init__(self):
        self.number = random.getrandbits(62)
        self._open, self._shut = (Path(f"{GATES}{self.number}.{end}") for end in ("open", "shut"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.open()
        self.wait_until_passed()
        self._open.unlink()

    @property
    def input(self):
        return tensor("GATE", "INT64", [1], data=struct.pack("<q", self.number))

    def wait_until_reached(self):
        wait_until(self._shut.exists)

    def open(self):
        self._open.touch()

    def wait_until_passed(self):
        wait_until(lambda: not self._shut.exists())


def in_use(name):
    return "INTERNAL", f"Cannot unregister shared memory region '{name}', it is currently in use."


def tensor(name="INPUT0", datatype="FP32", shape=(4,), *, data=None, at=None):
    """Describe an input: its bytes, or where they are as (region, byte size, offset)."""
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data, "at": at}


def output(name="OUTPUT0", *, at=None):
    return {"name": name, "at": at}


class Grpc:
    """The calls of gRPC; each raises Refused with the status, or returns the answer."""

    def __init__(self, url):
        # A connection of its own, which nobody has given up on yet.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(url, options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def __call__(self, method, **fields):
        return self.begin(method, **fields).result()

    def begin(self, method, *, metadata=(), deadline=None, **fields):
        request = getattr(pb, f"{method}Request")(**fields)
        return self._send(method, request, metadata, deadline)

    def refusal(self, method, **fields):
        """Return the status and the text of a call that fails."""
        try:
            answer = self(method, **fields)
        except Refused as refused:
            return refused.answer
        raise AssertionError(f"{method} was answered: {answer}")

    def infer(self, model="fixed", inputs=(), outputs=(), **rest):
        return self.begin_infer(model, inputs, outputs, **rest).result()

    def infer_refusal(self, model="fixed", inputs=(), outputs=(), **rest):
        try:
            answer = self.infer(model, inputs, outputs, **rest)
        except Refused as refused:
            return refused.answer
        raise AssertionError(f"it was answered: {answer}")

    def begin_infer(self, model="fixed", inputs=(), outputs=(), *, deadline=None, **options):
        """Begin a call; what is no option of `infer_request` becomes a parameter of it."""
        own = {name: options.pop(name) for name in _OPTIONS & options.keys()}
        request = infer_request(model, inputs, outputs, **own)
        for name, value in options.items():
            set_parameter(request.parameters[name], value)
        return self._send("ModelInfer", request, (), deadline)

    def send(self, request):
        return self._send("ModelInfer", request, ()).result()

    def stream_refusal(self):
        """Return the status and the text that a stream ends with."""
        try:
            answers = list(self._stub.ModelStreamInfer(iter(()), timeout=PATIENCE))
        except grpc.RpcError as error:
            return error.code().name, error.details()
        raise AssertionError(f"it was answered: {answers}")

    def register(self, name, memory, byte_size=2 * PAGE, offset=0):
        self(
            "SystemSharedMemoryRegister",
            name=name,
            key=memory.key,
            offset=offset,
            byte_size=byte_size,
        )

    def is_unregistered(self, name):
        """Unregister a region, if the server is done with it."""
        try:
            self("SystemSharedMemoryUnregister", name=name)
        except Refused as refused:
            if refused.answer != in_use(name):
                raise
            return False
        return True

    def unregister(self, name):
        """The same as soon as it is: that may be a moment after the last answer."""
        wait_until(lambda: self.is_unregistered(name))

    def registered(self):
        return dict(self("SystemSharedMemoryStatus").regions)

    def is_registered(self, name):
        return name in self.registered()

    def _send(self, method, request, metadata, deadline=None):
        call = getattr(self._stub, method)
        return Call(call.future(request, metadata=metadata, timeout=deadline or PATIENCE))


class Call:
    """A call under way."""

    def __init__(self, future):
        self._future = future

    def result(self):
        try:
            return self._future.result()
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details()) from None
        except grpc.FutureCancelledError:
            raise Refused("CANCELLED", "here") from None

    def refusal(self):
        try:
            answer = self.result()
        except Refused as refused:
            return refused.answer
        raise AssertionError(f"it was answered: {answer}")

    def done(self):
        return self._future.done()

    def cancel(self):
        self._future.cancel()


_OPTIONS = {"version", "request_id", "raw"}


def infer_request(model, inputs=(), outputs=(), *, version="", request_id="", raw=None):
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for each in inputs:
        entry = request.inputs.add(
            name=each["name"], datatype=each["datatype"], shape=each["shape"]
        )
        _place(entry.parameters, each["at"])
        if each["data"] is not None and raw is None:
            request.raw_input_contents.append(each["data"])
    request.raw_input_contents.extend(raw or ())
    for each in outputs:
        _place(request.outputs.add(name=each["name"]).parameters, each["at"])
    return request


def _place(parameters, at):
    if at is not None:
        region, byte_size, offset = at
        set_parameter(parameters["shared_memory_region"], region)
        set_parameter(parameters["shared_memory_byte_size"], byte_size)
        if offset:
            set_parameter(parameters["shared_memory_offset"], offset)


def set_parameter(parameter, value):
    kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    setattr(parameter, kind[type(value)], value)


class Http:
    """One HTTP connection, on TCP or a Unix socket."""

    def __init__(self, url):
        if url.startswith("unix:"):
            self._connection = http.client.HTTPConnection("localhost", timeout=PATIENCE)
            self._connection.sock = socket.socket(socket.AF_UNIX)
            self._connection.sock.connect(url.removeprefix("unix:"))
        else:
            self._connection = http.client.HTTPConnection(url, timeout=PATIENCE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()

    def __call__(self, verb, path, body=None, **headers):
        """Return (status, headers in order, body)."""
        if isinstance(body, dict):
            body = json.dumps(body)
        self.send(verb, path, body, **headers)
        return self.receive()

    def send(self, verb, path, body=None, **headers):
        named = {name.replace("_", "-"): str(value) for name, value in headers.items()}
        self._connection.request(verb, path, body, named)

    def receive(self):
        answer = self._connection.getresponse()
        return answer.status, answer.getheaders(), answer.read()

    def get(self, path):
        """Return the JSON of an answer."""
        return json.loads(self("GET", path)[2])

    def refusal(self, verb, path, body=None):
        """Return the status and the text of an error."""
        status, _, content = self(verb, path, body)
        return status, json.loads(content)["error"]

    def infer(self, body, binary=b"", model="fixed"):
        document = json.dumps(body).encode()
        return self(
            "POST",
            f"/v2/models/{model}/infer",
            document + binary,
            Inference_Header_Content_Length=len(document),
        )


def placed(region, byte_size=16, offset=0):
    """Return the parameters of a tensor in shared memory, as HTTP has them."""
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": byte_size}
    return parameters | ({"shared_memory_offset": offset} if offset else {})


def floats(*values):
    return np.array(values, np.float32).tobytes()


def strings(*values):
    return b"".join(struct.pack("<I", len(value)) + value for value in values)
