"""Answers that are not so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .._faults import Garbage
from .tensors import ITEM_SIZE, Answer, Output, Shape

_BEYOND = 2**31 - 1  # length of a string that is in no message


def garble(answer: Answer, kind: Garbage) -> None:
    """Change an answer so that it is wrong in one way.

    Args:
        answer: The true answer, already written to shared memory where that was asked for.
        kind: What is to be wrong.
    """
    _KINDS[kind](answer)


def _reshape(change: Callable[[Shape], Shape]) -> Callable[[Answer], None]:
    def apply(answer: Answer) -> None:
        for output in answer.outputs:
            output.shape = change(output.shape)

    return apply


def _wrong_datatype(answer: Answer) -> None:
    for output in answer.outputs:
        size = ITEM_SIZE.get(output.datatype)
        # One of the same item size, if there is one: nothing else about it is wrong.
        others = [name for name in ITEM_SIZE if name != output.datatype]
        output.datatype = next((name for name in others if ITEM_SIZE[name] == size), others[0])


def _unknown_datatype(answer: Answer) -> None:
    for output in answer.outputs:
        output.datatype = "FP4"


def _missing_output(answer: Answer) -> None:
    del answer.outputs[-1:]


def _extra_output(answer: Answer) -> None:
    answer.outputs.append(Output("SURPRISE", "FP32", (1,), bytes(4)))


def _repeated_output(answer: Answer) -> None:
    answer.outputs += [replace(output) for output in answer.outputs[:1]]


def _no_outputs(answer: Answer) -> None:
    answer.outputs.clear()


def _too_short(answer: Answer) -> None:
    for output in answer.outputs:
        output.data = output.data[:-1]


def _too_long(answer: Answer) -> None:
    for output in answer.outputs:
        output.data += b"\0"


def _strings_past_the_end(answer: Answer) -> None:
    for output in answer.outputs:
        if output.datatype != "BYTES" or not output.data:
            continue
        starts = [0]
        while (end := starts[-1] + 4 + _length(output.data, starts[-1])) < len(output.data):
            starts.append(end)
        last = starts[-1]
        output.data = output.data[:last] + _BEYOND.to_bytes(4, "little") + output.data[last + 4 :]
        if output.target is not None:
            output.target.write(output.data)


def _length(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 4], "little")


def _first(change: Callable[[int], int]) -> Callable[[Shape], Shape]:
    """Change the first size of a shape; one without dimensions gets one, so that it shows."""
    return lambda shape: (change(shape[0] if shape else 1), *shape[1:])


_KINDS: dict[Garbage, Callable[[Answer], None]] = {
    "shape_too_large": _reshape(_first(lambda size: 1000 * max(size, 1))),
    "shape_too_small": _reshape(_first(lambda size: max(size - 1, 0))),
    "shape_overflows": _reshape(_first(lambda _: 2**62)),
    "negative_dimension": _reshape(_first(lambda _: -1)),
    "wrong_datatype": _wrong_datatype,
    "unknown_datatype": _unknown_datatype,
    "missing_output": _missing_output,
    "extra_output": _extra_output,
    "repeated_output": _repeated_output,
    "no_outputs": _no_outputs,
    "data_too_short": _too_short,
    "data_too_long": _too_long,
    "strings_past_the_end": _strings_past_the_end,
}
