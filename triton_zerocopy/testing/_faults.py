"""What a test can make go wrong in `FakeTriton`, as a value that travels to its process."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Point = Literal["handling", "running", "writing", "answering"]
"""Where a call is when a fault befalls it; see `Fault`."""

Garbage = Literal[
    "shape_too_large",
    "shape_too_small",
    "shape_overflows",
    "negative_dimension",
    "wrong_datatype",
    "unknown_datatype",
    "missing_output",
    "extra_output",
    "repeated_output",
    "no_outputs",
    "data_too_short",
    "data_too_long",
    "strings_past_the_end",
]
"""What can be wrong with an answer; see `Fault`."""

METHODS = (
    *("ServerLive", "ServerReady", "ServerMetadata"),
    *("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"),
    *("ModelInfer", "ModelStreamInfer"),
    *("SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "SystemSharedMemoryStatus"),
    *("CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "CudaSharedMemoryStatus"),
    *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
)
"""The calls of the protocol by their names in gRPC; those of HTTP count under the same names."""

CODES = (
    *("CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND"),
    *("ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"),
    *("ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"),
    "UNAUTHENTICATED",
)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with the next calls of a method.

        Fault("ModelInfer", before="writing", hold=True)     # the model has run, nothing is written
        Fault("ModelInfer", before="answering", drop=True)   # all is written, nobody is told
        Fault("SystemSharedMemoryRegister", fail=("INTERNAL", "no"), calls=3)
        Fault("*", hold=True, calls=None)                    # a black hole

    A call is befallen by every fault that fits it. At the point that a fault names, the call is
    held, then delayed, then the server crashes, then the connection is dropped, then the call
    fails; of these, what the fault asks for.

    Attributes:
        method: The call's name in gRPC, as `ModelInfer`, or `*` for any; the same call over HTTP
            is meant, too.
        before: How far the call gets. Before `handling` nothing is done, and nothing will be if
            it is dropped or fails there. Of ModelInfer only: before `running` the request is
            checked, refers to its regions and has an instance of the model, which has read
            nothing; before `writing` the model has run, and no output is written. Before
            `answering` all is done, and regions are still referred to.
        calls: How many calls it befalls; None for all until `FakeTriton.clear`.
        skip: How many calls go well before.
        model: Only calls of this model; empty for all.
        hold: Keep the call there until `FakeTriton.release`.
        delay: Keep it there for so many seconds.
        crash: End the server's process there and then.
        drop: Cut the connection there. What has begun goes on: a request that is dropped while
            `running` still writes its outputs. On a Unix socket all gRPC connections are cut,
            because they cannot be told apart.
        fail: A status code and a text to answer, as `("INTERNAL", "out of luck")`.
        goes_on: With `fail`, what has begun goes on, as if not the server had answered but
            something on the way to it: a request that fails so while `running` still writes.
        garble: Answer with something that is not so, of ModelInfer only. The sizes of a shape
            are made so that it needs more or less than there is (`shape_too_large`,
            `shape_too_small`), that their product passes 2^64 (`shape_overflows`), or that one
            is negative; the datatype is another one or none at all; an output is left out
            (`missing_output`, `no_outputs`), one is added, or one is there twice; inline data
            has fewer or more bytes than its shape says; the last string of a BYTES output claims
            to be longer than all there is.
        body: Answer with these bytes, as the serialised message or the HTTP body.
    """

    method: str
    before: Point = "handling"
    calls: int | None = 1
    skip: int = 0
    model: str = ""
    hold: bool = False
    delay: float = 0.0
    crash: bool = False
    drop: bool = False
    fail: tuple[str, str] | None = None
    goes_on: bool = False
    garble: Garbage | None = None
    body: bytes | None = None

    def __post_init__(self) -> None:
        """Refuse what would befall nothing.

        Raises:
            ValueError: No call can be befallen by this.
        """
        if self.method not in (*METHODS, "*"):
            raise ValueError(f"{self.method!r} is no call; those are {', '.join(METHODS)} and *.")
        if self.before not in get_args(Point):
            raise ValueError(
                f"before={self.before!r} is no point of a call; those are"
                f" {', '.join(get_args(Point))}."
            )
        only_infer = self.before in ("running", "writing") or self.garble is not None
        if only_infer and self.method != "ModelInfer":
            raise ValueError(f"Only ModelInfer comes by there, {self.method} does not.")
        if self.fail is not None and self.fail[0] not in CODES:
            raise ValueError(f"{self.fail[0]!r} is no status code of gRPC, as 'INTERNAL' is.")
        if self.garble is not None and self.garble not in get_args(Garbage):
            raise ValueError(
                f"garble={self.garble!r} is unknown; there is {', '.join(get_args(Garbage))}."
            )
        if self.drop and self.fail is not None:
            raise ValueError("A call that is dropped gets no status: leave out drop or fail.")
        if self.goes_on and (self.fail is None or self.before not in ("running", "writing")):
            raise ValueError("Only a call that fails while running or writing can go on.")
        effects = (self.hold, self.delay, self.crash, self.drop, self.fail, self.garble)
        if not any(effects) and self.body is None:
            raise ValueError("This fault does nothing; say hold, delay, crash, drop, fail, ...")

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON has."""
        body = None if self.body is None else base64.b64encode(self.body).decode("ascii")
        return {**asdict(self), "body": body}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Fault:
        """Return what `to_json` was made of."""
        fail, body = values["fail"], values["body"]
        return cls(
            **{
                **values,
                "fail": None if fail is None else (fail[0], fail[1]),
                "body": None if body is None else base64.b64decode(body),
            }
        )
