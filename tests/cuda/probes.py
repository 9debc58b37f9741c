"""What CUDA answers where its documentation leaves room, asked in the same words of the emulation.

As a program it prints the answers as JSON: ``python probes.py [--emulated] [name ...]``. Each name
is a function here. What may end the process is asked in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

from real_memory import GRANULE, Memory, driver, is_emulated, ok, runtime

HERE = Path(__file__).parent
KIB, MIB = 1 << 10, 1 << 20
_OPEN = "--open"
_NOT_EMULATED = "not emulated"
_BUSY = 0.1  # seconds
_PATIENCE = 120.0

ALONE = []
"""Names of those that may end the process."""
REAL = []
"""Names of those that the emulation has no answer to."""
TOGETHER = []
"""Names of the others."""


def probe(*lists):
    """Note a function that returns a dict of questions and answers."""

    def note(function):
        for names in lists or (TOGETHER,):
            names.append(function.__name__)
        return function

    return note


# How it is asked


def ask_all(*, emulated):
    """Return all answers, by question."""
    answers = _ask(TOGETHER, emulated=emulated)
    for name in (*ALONE, *(() if emulated else REAL)):
        answers |= _ask([name], emulated=emulated)
    return answers


def table():
    """Return a table in Markdown of what CUDA answers, and what the emulation does."""
    emulated, real = ask_all(emulated=True), ask_all(emulated=False)
    yield "| question | CUDA | the emulation |"
    yield "|---|---|---|"
    for question, answer in real.items():
        claimed = emulated.get(question, "")
        yield f"| {question} | {answer} | {'the same' if claimed == answer else claimed} |"


def _ask(names, *, emulated):
    done = _run([*(["--emulated"] if emulated else []), *names])
    if done.returncode == 0:
        return json.loads(done.stdout)
    if len(names) == 1:
        question = names[0].removeprefix(_CALL).replace("_", " ")
        return {question: _ended(done)}
    answers = {}  # one of them ended the process: each by itself
    for name in names:
        answers |= _ask([name], emulated=emulated)
    return answers


def _ended(done):
    reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return f"the process ended ({done.returncode}): {reason}"


def _run(arguments):
    environment = dict(os.environ)
    path = [str(HERE), str(HERE.parent), *filter(None, [environment.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, str(HERE / "probes.py"), *arguments],
        env={**environment, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )


def main():
    arguments = sys.argv[1:]
    if emulated := "--emulated" in arguments:
        arguments.remove("--emulated")
        import emulated_cuda

        emulated_cuda.install()
    ok(runtime().cudaSetDevice(0))
    if arguments[:1] == [_OPEN]:
        print(json.dumps([_opened(bytes.fromhex(each)) for each in arguments[1:]]))  # noqa: T201
        return
    answers = {}
    for name in arguments:
        try:
            if name.startswith(_CALL):
                answers |= _call(name.removeprefix(_CALL))
            else:
                answers |= globals()[name]()
        except AttributeError as error:
            if not emulated:
                raise
            answers[name] = f"{_NOT_EMULATED}: {error}"
    print(json.dumps(answers), flush=True)  # noqa: T201
    if any(name in ALONE for name in arguments):
        os._exit(0)  # the GPU may be in no state to be left in order


def status_of(result):
    """Return the name and the number of a call's status."""
    status = result[0]
    name = status.name.removeprefix("cudaError").removeprefix("CUDA_ERROR_")
    return "ok" if status == 0 else f"{name} ({int(status)})"


def attribute(name, address):
    """Return what the driver says of an address, or its error."""
    key = getattr(driver().CUpointer_attribute, f"CU_POINTER_ATTRIBUTE_{name}")
    result = driver().cuPointerGetAttribute(key, address)
    if result[0] != 0:
        return status_of(result)
    return 0 if result[1] is None else int(result[1])


def handle_of(address):
    """Return the bytes of an allocation's handle, or the error."""
    result = runtime().cudaIpcGetMemHandle(address)
    return status_of(result) if result[0] != 0 else ctypes.string_at(result[1].getPtr(), 64)


def open_handle(raw):
    handle = runtime().cudaIpcMemHandle_t()
    ctypes.memmove(handle.getPtr(), raw, 64)
    return runtime().cudaIpcOpenMemHandle(handle, runtime().cudaIpcMemLazyEnablePeerAccess)


def new_stream():
    return ok(runtime().cudaStreamCreateWithFlags(runtime().cudaStreamNonBlocking))


# Allocations


@probe()
def small_allocations():
    with Memory("device", 100) as first, Memory("device", 100) as second:
        one, other = handle_of(first.address), handle_of(second.address)
        inside = second.address + 50
        base, size = ok(driver().cuMemGetAddressRange(inside))
        return {
            "two cudaMalloc(100) lie apart": f"{abs(second.address - first.address)} bytes",
            "their handles": "the same" if one == other else "different",
            "the range of such a one": f"{attribute('RANGE_SIZE', inside)} bytes",
            "it begins": _where(attribute("RANGE_START_ADDR", inside), second.address),
            "cuMemGetAddressRange of it": f"{size} bytes, {_where(int(base), second.address)}",
            "their buffer ids": _are(
                attribute("BUFFER_ID", first.address), attribute("BUFFER_ID", second.address)
            ),
        }


def _where(address, expected):
    return "where it was allocated" if address == expected else f"{expected - address} bytes before"


def _are(one, other):
    return "the same" if one == other else "different"


@probe()
def sizes():
    answers = {}
    for size in (512 * KIB, MIB, MIB + 512, 2 * MIB - 512, 2 * MIB, 3 * MIB, 5 * MIB):
        before = ok(runtime().cudaMemGetInfo())[0]
        with Memory("device", size) as memory:
            taken = before - ok(runtime().cudaMemGetInfo())[0]
            answers[f"cudaMalloc({size / MIB:g} MiB)"] = (
                f"range {attribute('RANGE_SIZE', memory.address) / MIB:g} MiB, "
                f"{memory.address % GRANULE} bytes after a multiple of 2 MiB, "
                f"takes {taken / MIB:g} MiB"
            )
    return answers


@probe()
def two_of_one_size():
    with Memory("device", MIB + 512) as first, Memory("device", MIB + 512) as second:
        return {
            "handles of two cudaMalloc(1 MiB + 512)": _are(
                handle_of(first.address), handle_of(second.address)
            )
        }


@probe()
def inside_an_allocation():
    with Memory("device", 4 * MIB) as memory:
        own, inner = handle_of(memory.address), handle_of(memory.address + 512)
        found = inner if isinstance(inner, str) else _are(own, inner)
        return {"handle of the middle of an allocation": found}


@probe()
def kinds_of_memory():
    answers = {}
    for kind in ("device", "pool", "vmm", "managed", "pinned"):
        with Memory(kind, 4 * MIB) as memory:
            address = memory.address
            facts = ok(runtime().cudaPointerGetAttributes(address))
            handle = handle_of(address)
            about = {
                "pointer attributes": f"{_name(facts.type)}, device {facts.device}",
                "IS_LEGACY_CUDA_IPC_CAPABLE": _yes(
                    attribute("IS_LEGACY_CUDA_IPC_CAPABLE", address)
                ),
                "IS_MANAGED": _yes(attribute("IS_MANAGED", address)),
                "MEMPOOL_HANDLE": _there(attribute("MEMPOOL_HANDLE", address)),
                "cudaIpcGetMemHandle": handle if isinstance(handle, str) else "ok",
                "cuMemGetAddressRange": status_of(driver().cuMemGetAddressRange(address)),
            }
            answers |= {f"{kind} memory: {question}": said for question, said in about.items()}
    return answers


def _name(kind):
    return getattr(kind, "name", str(kind)).removeprefix("cudaMemoryType")


def _yes(value):
    return value if isinstance(value, str) else "yes" if value else "no"


def _there(value):
    return value if isinstance(value, str) else "one" if value else "none"


@probe()
def unknown_addresses():
    with Memory("device", 4 * MIB) as memory:
        freed = memory.address
    own = ctypes.create_string_buffer(64)
    answers = {}
    for label, address in (("freed", freed), ("the host's", ctypes.addressof(own))):
        facts = ok(runtime().cudaPointerGetAttributes(address))
        answers |= {
            f"{label} address: pointer attributes": f"{_name(facts.type)}, device {facts.device}",
            f"{label} address: BUFFER_ID": _known(attribute("BUFFER_ID", address)),
            f"{label} address: cuMemGetAddressRange": status_of(
                driver().cuMemGetAddressRange(address)
            ),
        }
    return answers


def _known(value):
    return value if isinstance(value, str) else "a number"


@probe()
def addresses_that_come_back():
    seen = {}
    came_back = changed = 0
    for _ in range(20):
        with Memory("device", 4 * MIB) as memory:
            number = attribute("BUFFER_ID", memory.address)
            came_back += memory.address in seen
            changed += seen.get(memory.address, number) != number
            seen[memory.address] = number
    return {
        "cudaMalloc gives a freed address again": "yes" if came_back else "no",
        "its buffer id then": "another" if changed == came_back else "the same",
    }


# Two processes


@probe()
def in_another_process():
    with (
        Memory("device", 100) as first,
        Memory("device", 100) as second,
        Memory("device", 4 * MIB) as large,
    ):
        for byte, memory in ((0x11, first), (0x22, second), (0x33, large)):
            memory.fill(byte)
        exported = [handle_of(memory.address) for memory in (first, second, large)]
        opened = _open_elsewhere(*exported)
    gone = _open_elsewhere(exported[2])[0]
    answers = {}
    for label, facts in zip(("1st small", "2nd small", "large"), opened, strict=True):
        answers |= {
            f"opened, the {label} one: {question}": said for question, said in facts.items()
        }
    return answers | {"opening the handle of freed memory": gone["status"]}


def _open_elsewhere(*handles):
    done = _run(
        [*(["--emulated"] if is_emulated() else []), _OPEN, *(raw.hex() for raw in handles)]
    )
    if done.returncode:
        return [{"status": _ended(done)}] * len(handles)
    return json.loads(done.stdout)


def _opened(raw):
    """In the other process: open a handle and look at what it is."""
    result = open_handle(raw)
    if result[0] != 0:
        return {"status": status_of(result)}
    address = int(result[1])
    again = open_handle(raw)
    first = Memory("device", 1)
    first.address = address
    facts = {
        "status": "ok",
        "first byte": f"{first.numpy(1)[0]:#x}",
        "range": _size(attribute("RANGE_SIZE", address)),
        "IS_LEGACY_CUDA_IPC_CAPABLE": _yes(attribute("IS_LEGACY_CUDA_IPC_CAPABLE", address)),
        "opened twice": "the same address" if int(again[1] or 0) == address else status_of(again),
        "its own handle": _given(handle_of(address)),
    }
    for _ in range(2):
        runtime().cudaIpcCloseMemHandle(address)
    return facts | {"closed once more": status_of(runtime().cudaIpcCloseMemHandle(address))}


def _size(value):
    return value if isinstance(value, str) else f"{value} bytes"


def _given(handle):
    return handle if isinstance(handle, str) else "given"


@probe(ALONE)
def own_handle():
    with Memory("device", 4 * MIB) as memory:
        return {"opening one's own handle": status_of(open_handle(handle_of(memory.address)))}


@probe(ALONE)
def handle_of_zeros():
    return {"opening a handle of zeros": status_of(open_handle(bytes(64)))}


@probe(ALONE)
def handle_of_nonsense():
    return {"opening a handle of nonsense": status_of(open_handle(bytes(range(64))))}


# Calls that cannot succeed


@probe()
def impossible_calls():
    rt = runtime()
    host = ctypes.create_string_buffer(64)
    with Memory("device", 4 * MIB) as memory:
        answers = {
            "cudaSetDevice(99)": rt.cudaSetDevice(99),
            "cudaMalloc of 2**60 bytes": rt.cudaMalloc(1 << 60),
            "cudaHostAlloc of 2**60 bytes": rt.cudaHostAlloc(1 << 60, 0),
            "cudaFree of an inner address": rt.cudaFree(memory.address + 512),
            "cudaFree of a host address": rt.cudaFree(ctypes.addressof(host)),
            "cudaFreeHost of device memory": rt.cudaFreeHost(memory.address),
        }
        freed = memory.address
    answers["cudaFree again"] = rt.cudaFree(freed)
    answers["cudaFree(0)"] = rt.cudaFree(0)
    return {call: status_of(result) for call, result in answers.items()}


_DEFAULT, _WRONG = "cudaMemcpyDefault", "cudaMemcpyDeviceToHost"
_COPIES = {
    "beyond the end, to it": lambda at: (at.end - 8, at.host, 64, _DEFAULT),
    "beyond the end, from it": lambda at: (at.host, at.end - 8, 64, _DEFAULT),
    "beyond the end of pinned memory": lambda at: (at.pinned_end - 8, at.start, 64, _DEFAULT),
    "with the wrong direction": lambda at: (at.start, at.host, 8, _WRONG),
    "from NULL": lambda at: (at.start, 0, 8, _DEFAULT),
    "to a freed address": lambda at: (at.freed, at.host, 8, _DEFAULT),
    "from a freed address": lambda at: (at.host, at.freed, 8, _DEFAULT),
}
_FILLS = {
    "beyond the end": lambda at: (at.end - 8, 0, 64),
    "of a host address": lambda at: (at.host, 0, 8),
    "of a freed address": lambda at: (at.freed, 0, 8),
}
_CALL = "call:"


def _call(question):
    """Make one of these calls; what the GPU does about it later is left to the process's end."""
    rt = runtime()
    with Memory("device", 4 * MIB) as memory:
        freed = memory.address
    memory, pinned = Memory("device", 4 * MIB).__enter__(), Memory("pinned", 4 * KIB).__enter__()
    host = ctypes.create_string_buffer(4 * KIB)
    at = SimpleNamespace(
        start=memory.address,
        end=memory.address + memory.byte_size,
        pinned_end=pinned.address + pinned.byte_size,
        host=ctypes.addressof(host),
        freed=freed,
    )
    if at.freed == at.start:
        at.freed += 4 * MIB  # the address came back; nothing is behind it
    function, _, what = question.partition(" ")
    if function == "cudaMemcpyAsync":
        target, source, size, kind = _COPIES[what](at)
        kind = getattr(rt.cudaMemcpyKind, kind)
        result = rt.cudaMemcpyAsync(target, source, size, kind, new_stream())
    elif function == "cudaMemsetAsync":
        result = rt.cudaMemsetAsync(*_FILLS[what](at), new_stream())
    else:
        result = rt.cudaMemcpy2DAsync(
            at.start, 1, at.host, 4, 2, 3, getattr(rt.cudaMemcpyKind, _DEFAULT), new_stream()
        )
    return {question: status_of(result)}


ALONE += [f"{_CALL}cudaMemcpyAsync {what}" for what in _COPIES]
ALONE += [f"{_CALL}cudaMemsetAsync {what}" for what in _FILLS]
ALONE += [f"{_CALL}cudaMemcpy2DAsync with a small pitch"]


def _destroyed_stream():
    stream = new_stream()
    ok(runtime().cudaStreamDestroy(stream))
    return stream


@probe(ALONE)
def record_on_a_destroyed_stream():
    event = ok(runtime().cudaEventCreateWithFlags(runtime().cudaEventDisableTiming))
    result = runtime().cudaEventRecord(event, _destroyed_stream())
    return {"cudaEventRecord on a destroyed stream": status_of(result)}


@probe(ALONE)
def record_on_a_destroyed_stream_that_was_busy():
    event = ok(runtime().cudaEventCreateWithFlags(runtime().cudaEventDisableTiming))
    with Memory("device", 256 * MIB) as memory:
        stream = new_stream()
        for _ in range(50):
            ok(runtime().cudaMemsetAsync(memory.address, 1, memory.byte_size, stream))
        ok(runtime().cudaStreamDestroy(stream))
        result = runtime().cudaEventRecord(event, stream)
        runtime().cudaGetLastError()
        ok(runtime().cudaDeviceSynchronize())
    return {"cudaEventRecord on a destroyed stream that was busy": status_of(result)}


@probe(ALONE)
def wait_for_a_destroyed_stream():
    result = runtime().cudaStreamSynchronize(_destroyed_stream())
    return {"cudaStreamSynchronize of a destroyed stream": status_of(result)}


@probe(ALONE)
def record_on_no_stream():
    event = ok(runtime().cudaEventCreateWithFlags(runtime().cudaEventDisableTiming))
    return {"cudaEventRecord on handle 4096": status_of(runtime().cudaEventRecord(event, 4096))}


@probe(ALONE)
def ask_a_destroyed_event():
    event = ok(runtime().cudaEventCreateWithFlags(runtime().cudaEventDisableTiming))
    ok(runtime().cudaEventDestroy(event))
    return {"cudaEventQuery of a destroyed event": status_of(runtime().cudaEventQuery(event))}


@probe(ALONE)
def without_a_context():
    """In a thread that never called cudaSetDevice."""
    answers = {}
    with Memory("device", 4 * MIB) as memory:
        address = memory.address

        def work():
            answers["without a context: cuMemGetAddressRange"] = status_of(
                driver().cuMemGetAddressRange(address)
            )
            answers["without a context: BUFFER_ID"] = _known(attribute("BUFFER_ID", address))
            facts = ok(runtime().cudaPointerGetAttributes(address))
            answers["without a context: pointer attributes"] = _name(facts.type)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    return answers


# Who waits for whom. The emulation has no time.


@probe(REAL)
def waiting():
    """How long calls take while a stream is busy, and whether pageable memory is read at once."""
    rt = runtime()
    kind = rt.cudaMemcpyKind.cudaMemcpyDefault
    busy, idle = new_stream(), new_stream()
    event = ok(rt.cudaEventCreateWithFlags(rt.cudaEventDisableTiming))
    answers = {}
    with (
        Memory("device", 1 << 30) as large,
        Memory("device", 8 * MIB) as target,
        Memory("pinned", 8 * MIB) as pinned,
    ):
        start = time.perf_counter()
        for _ in range(50):
            ok(rt.cudaMemsetAsync(large.address, 1, large.byte_size, busy))
        ok(rt.cudaStreamSynchronize(busy))
        count = min(900, max(50, round(50 * _BUSY / (time.perf_counter() - start))))

        def timed(question, call):
            for _ in range(count):
                ok(rt.cudaMemsetAsync(large.address, 1, large.byte_size, busy))
            begun = time.perf_counter()
            result = ok(call())
            took = time.perf_counter() - begun
            is_busy = rt.cudaStreamQuery(busy)[0] != 0
            until = "the stream is still busy then" if is_busy else "the stream is done then"
            answers[f"{question}, beside a busy stream"] = f"{took * 1e3:.2f} ms, {until}"
            ok(rt.cudaDeviceSynchronize())
            return result

        address = timed("cudaMalloc(4 MiB)", lambda: rt.cudaMalloc(4 * MIB))
        timed("cudaFree(4 MiB)", lambda: rt.cudaFree(address))
        host = timed("cudaHostAlloc(4 MiB)", lambda: rt.cudaHostAlloc(4 * MIB, 1))
        timed("cudaFreeHost(4 MiB)", lambda: rt.cudaFreeHost(host))
        timed("cudaEventRecord on it", lambda: rt.cudaEventRecord(event, busy))
        timed("cudaStreamCreate", lambda: rt.cudaStreamCreateWithFlags(1))
        timed("cudaIpcGetMemHandle", lambda: rt.cudaIpcGetMemHandle(target.address))
        for size in (4 * KIB, 64 * KIB, 128 * KIB, 4 * MIB):
            source = (ctypes.c_uint8 * size)()
            place = ctypes.addressof(source)
            for label, stream in (("on it", busy), ("on another", idle)):
                question = f"cudaMemcpyAsync({size // KIB} KiB) from pageable memory {label}"
                arguments = (target.address, place, size, kind, stream)
                ctypes.memset(source, 5, size)
                ok(rt.cudaMemsetAsync(target.address, 0, size, 1))
                ok(rt.cudaStreamSynchronize(1))

                def copy(arguments=arguments, source=source, size=size):
                    result = rt.cudaMemcpyAsync(*arguments)
                    ctypes.memset(source, 9, size)  # too early, unless it was read
                    return result

                timed(question, copy)
                was_read = set(target.numpy(size)) == {5}
                answers[f"{question}: read when it returned"] = "yes" if was_read else "no"
        source = (ctypes.c_uint8 * (64 * KIB))()
        place = ctypes.addressof(source)
        timed(
            "cudaMemcpy2DAsync(64 x 512 B) from pageable memory on it",
            lambda: rt.cudaMemcpy2DAsync(target.address, 1024, place, 512, 512, 64, kind, busy),
        )
        timed(
            "cudaMemcpyAsync(4 MiB) from pinned memory on it",
            lambda: rt.cudaMemcpyAsync(target.address, pinned.address, 4 * MIB, kind, busy),
        )
        timed(
            "cudaMemcpyAsync(4 MiB) to pinned memory on another",
            lambda: rt.cudaMemcpyAsync(pinned.address, target.address, 4 * MIB, kind, idle),
        )
    return answers


def _context():
    return int(ok(driver().cuCtxGetCurrent()) or 0)


@probe(REAL)
def contexts():
    """Which calls make the GPU's primary context."""
    cu, rt = driver(), runtime()
    device = ok(cu.cuDeviceGet(0))
    answers = {}

    def is_active(after):
        answers[f"primary context after {after}"] = _yes(
            ok(cu.cuDevicePrimaryCtxGetState(device))[1]
        )
        answers[f"current context after {after}"] = _there(_context())

    is_active("cudaSetDevice(0)")

    def work():
        ok(rt.cudaGetDeviceCount())
        ok(rt.cudaGetDeviceProperties(0))
        answers["another thread: current context after cudaGetDeviceProperties"] = _there(
            _context()
        )
        ok(rt.cudaPointerGetAttributes(4096))
        answers["another thread: current context after cudaPointerGetAttributes"] = _there(
            _context()
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return answers


if __name__ == "__main__":
    main()
