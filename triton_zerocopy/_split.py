"""A batch larger than the model takes: in parts, over several slots, in order."""

from __future__ import annotations

import math
from typing import Any

from ._calls import Call
from ._datatypes import Shape
from ._errors import InferenceError
from ._executor import Executor
from ._outliving import gather_all
from ._replies import Target
from ._results import InferResult
from ._specs import TensorSpec


async def run_split(executor: Executor, call: Call, *, slots: int) -> InferResult:
    """Run a call of too many rows as parts of at most ``max_batch_size`` rows.

    Each part is copied straight to its place in the whole output. As many parts as there
    are slots run at a time. An error in a part is raised when every part has let go of
    its slot; parts that have not begun by then are not sent.

    Cancellation: all parts are left at once.
    """
    checker = executor.checker
    rows, size = call.kind.rows, executor.spec.max_batch_size
    assert rows is not None
    starts = iter(range(0, rows, size))
    whole = _Whole(executor, rows, call.target)
    results: list[InferResult] = []
    failed = False

    async def work(*, is_first: bool) -> None:
        nonlocal failed
        # Only the first part obeys max_waiting; the caller is in line once.
        may_queue = not is_first
        for start in starts:
            if failed:
                return
            stop = min(start + size, rows)
            part = checker.part(call, start, stop, whole.part(start, stop))
            part.may_queue = may_queue
            may_queue = True
            try:
                results.append(await executor.run(part))
            except BaseException:
                failed = True
                raise

    workers = min(slots, math.ceil(rows / size))
    await gather_all([work(is_first=index == 0) for index in range(workers)])
    last = results[-1]
    return InferResult(
        {name: whole.arrays[name] for name in call.kind.outputs} | dict(call.given or {}),
        last.model_name,
        last.model_version,
        last.request_id,
        last.parameters,
        executor.to_host,
    )


class _Whole:
    """The outputs of all parts; each is made when its row shape is known."""

    def __init__(self, executor: Executor, rows: int, target: Target | None) -> None:
        self.arrays: dict[str, Any] = {}
        self._model = executor.spec.name
        self._new_array = executor.new_array
        self._rows = rows
        self._target = target

    def part(self, start: int, stop: int) -> Target:
        """Return the target of the rows from ``start`` to before ``stop``."""

        def target(spec: TensorSpec, shape: Shape) -> Any:
            if not shape or shape[0] != stop - start:
                raise InferenceError(
                    f"output {spec.name!r} of {stop - start} rows came with shape {list(shape)}",
                    model=self._model,
                )
            array = self.arrays.get(spec.name)
            if array is None:
                array = self.arrays[spec.name] = self._make(spec, (self._rows, *shape[1:]))
            if array.shape[1:] != shape[1:]:
                raise InferenceError(
                    f"output {spec.name!r}: rows of shape {list(shape[1:])} after rows of shape "
                    f"{list(array.shape[1:])}; parts of a batch must agree, send at most "
                    "max_batch_size rows",
                    model=self._model,
                )
            return array[start:stop]

        return target

    def _make(self, spec: TensorSpec, shape: Shape) -> Any:
        given = None if self._target is None else self._target(spec, shape)
        return self._new_array(spec, shape) if given is None else given
