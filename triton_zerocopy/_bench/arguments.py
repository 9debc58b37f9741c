"""What the command line says, checked."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

Item = TypeVar("Item")

DEFAULT_URL: Final = "localhost:8001"
PLOT_KINDS: Final = (".png", ".svg")

_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS_BINARY: Final = {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_EPILOG: Final = """\
Without a model, a server of its own is started (downloaded the first time, some 70 MB) with a
model that gives back what it gets, at several sizes.

examples:
  triton-zerocopy bench
  triton-zerocopy bench -m resnet50 --shape INPUT0:8,3,224,224 --concurrency 1,4,32
  triton-zerocopy bench -m resnet50 -u gpu-box:8001 --shared-memory none --json before.json
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be measured, and how.

    Attributes:
        model: name of the model; None for the server and the model of our own.
        version: the model's version; empty for the server's choice.
        url: of the server; not used without a model.
        memories: as `Client.model` takes them; empty for the usual ones.
        ways: ``infer``, ``lease``; empty for the usual ones.
        concurrency: how many callers there are at a time.
        shapes: full shapes of inputs by name.
        sizes: bytes of an input with one variable dimension, which they determine.
        batch: rows of inputs whose shape is not given.
        data: ``random`` or ``zeros``.
        seconds: how long each measurement takes, if ``calls`` is None.
        calls: how many calls each measurement makes.
        warm_up: seconds of calls before each measurement, which are not counted.
        timeout: seconds for one call.
        json: file for the results, if any.
        plot: file for a picture, if any.
        uses_uvloop: whether the event loop is uvloop's.
    """

    model: str | None
    version: str
    url: str
    memories: tuple[str, ...]
    ways: tuple[str, ...]
    concurrency: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]
    sizes: tuple[int, ...]
    batch: int | None
    data: str
    seconds: float
    calls: int | None
    warm_up: float
    timeout: float
    json: Path | None
    plot: Path | None
    uses_uvloop: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tell a parser what the command takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Measure calls of a model: latency, throughput, client CPU, loop stalls."
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("-m", "--model", metavar="MODEL", help="the model; by default one of our own")
    add("--model-version", default="", metavar="V", help="its version; the server's choice")
    add("-u", "--url", metavar="URL", help=f"the server ({DEFAULT_URL})")
    add(
        "--shared-memory",
        type=_list_of(_memory),
        default=(),
        metavar="KINDS",
        help="none (inside the messages), system, cuda or cuda:N; several with commas (system; "
        "without a model none,system)",
    )
    add(
        "--way",
        type=_list_of(_one_of("infer", "lease")),
        default=(),
        metavar="WAYS",
        help="infer (copies in and out), lease (in place); several with commas (infer; without a "
        "model infer,lease)",
    )
    add(
        "--concurrency",
        type=_list_of(_count),
        default=(1,),
        metavar="N,...",
        help="callers at a time, each with a slot (1)",
    )
    add(
        "--shape",
        type=_shape,
        action="append",
        default=[],
        metavar="INPUT:N,N,...",
        help="full shape of an input, batch dimension included; may be repeated",
    )
    add(
        "--sizes",
        type=_list_of(_size),
        default=(),
        metavar="SIZE,...",
        help="bytes of an input with one variable dimension, as 64,4KB,1.5MB,1MiB",
    )
    add("-b", "--batch", type=_count, metavar="ROWS", help="rows, where no shape is given (1)")
    add(
        "--data",
        choices=("random", "zeros"),
        default="random",
        help="contents of the inputs (random)",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds", type=_positive, default=2.0, metavar="N", help="of each measurement (2)"
    )
    length.add_argument("--calls", type=_count, metavar="N", help="instead: calls of each")
    add(
        "--warm-up",
        type=_not_negative,
        default=0.5,
        metavar="SECONDS",
        help="calls before each that do not count (0.5)",
    )
    add("--timeout", type=_positive, default=60.0, metavar="SECONDS", help="for one call (60)")
    add("--json", type=_file, metavar="FILE", help="write the results there")
    add("--plot", type=_picture, metavar="FILE", help="draw them, as .png or .svg")
    add("--uvloop", action="store_true", help="use uvloop's event loop")


def checked(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Options:
    """Return the options, or exit with status 2 saying what is wrong."""
    if given.model is None:
        for name, value in (
            ("-u", given.url),
            ("--shape", given.shape),
            ("-b", given.batch),
            ("--model-version", given.model_version),
        ):
            if value:
                parser.error(f"{name} is about a model of yours: name it with -m MODEL")
    shapes = dict(given.shape)
    if len(shapes) != len(given.shape):
        parser.error("--shape names an input twice; the sizes of one shape belong together")
    ways, memories = given.way, given.shared_memory
    if ways == ("lease",) and memories and set(memories) == {"wire"}:
        parser.error(
            "a lease is a place in shared memory, so --way lease cannot be measured with "
            "--shared-memory none; use --shared-memory system or cuda"
        )
    return Options(
        model=given.model,
        version=given.model_version,
        url=given.url or DEFAULT_URL,
        memories=memories,
        ways=ways,
        concurrency=given.concurrency,
        shapes=shapes,
        sizes=given.sizes,
        batch=given.batch,
        data=given.data,
        seconds=given.seconds,
        calls=given.calls,
        warm_up=given.warm_up,
        timeout=given.timeout,
        json=given.json,
        plot=given.plot,
        uses_uvloop=given.uvloop,
    )


# Types of arguments. argparse prints what an ArgumentTypeError says.


def _list_of(parse: Callable[[str], Item]) -> Callable[[str], tuple[Item, ...]]:
    def parse_list(text: str) -> tuple[Item, ...]:
        # Of what is named twice, once is enough.
        return tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",")))

    return parse_list


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(choices)}")
        return text

    return parse


def _memory(text: str) -> str:
    if text == "none":
        return "wire"
    if text == "cuda":
        return "cuda:0"
    if text == "system" or re.fullmatch(r"cuda:\d+", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is none of none, system, cuda, cuda:N")


def _number(text: str, kind: Callable[[str], Any]) -> Any:
    try:
        number = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def _count(text: str) -> int:
    count: int = _number(text, int)
    if count < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {text}")
    return count


def _positive(text: str) -> float:
    number: float = _number(text, float)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"more than 0, got {text}")
    return number


def _not_negative(text: str) -> float:
    number: float = _number(text, float)
    if number < 0:
        raise argparse.ArgumentTypeError(f"at least 0, got {text}")
    return number


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text)
    unit = ({**_UNITS, **_UNITS_BINARY}).get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 64, 4KB, 1.5MB or 1MiB")
    return int(float(found[1]) * unit)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, colon, sizes = text.rpartition(":")
    if not (colon and name and re.fullmatch(r"\d+(,\d+)*", sizes)):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:N,N,... as in INPUT0:8,3,224,224")
    return name, tuple(int(size) for size in sizes.split(","))


def _file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: no such directory, or one")
    return path


def _picture(text: str) -> Path:
    if Path(text).suffix not in PLOT_KINDS:
        raise argparse.ArgumentTypeError(f"{text!r} must end in {' or '.join(PLOT_KINDS)}")
    return _file(text)
