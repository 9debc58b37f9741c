"""The server that is measured: the user's, or one of our own for as long as it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from .arguments import Options
from .failures import BenchError

_MODEL: Final = "identity"


@dataclass(frozen=True, slots=True)
class Target:
    """A model of a server.

    Attributes:
        url: of the server.
        model: the model's name.
        is_own: whether the server is ours.
    """

    url: str
    model: str
    is_own: bool


def identity(INPUT0: object) -> object:  # noqa: N803
    """Give back what came; its source is carried to the server."""
    return INPUT0


@contextmanager
def open_target(options: Options) -> Iterator[Target]:
    """Name the user's server, or start one.

    Raises:
        BenchError: no server could be started.
    """
    if options.model is not None:
        yield Target(options.url, options.model, is_own=False)
        return
    # Only here: a user's own server needs none of it.
    from ..testing import PythonModel, ServerError, TritonServer

    sys.stderr.write("starting a Triton server (the first time, it is downloaded) ...\n")
    model = PythonModel(
        identity, inputs={"INPUT0": ("FP32", [-1])}, outputs={"OUTPUT0": ("FP32", [-1])}
    )
    try:
        with TritonServer(models={_MODEL: model}) as server:
            yield Target(server.grpc_url, _MODEL, is_own=True)
    except ServerError as error:
        raise BenchError(
            f"no server could be started: {error}\nTo measure a server that runs: -m MODEL -u URL"
        ) from error
