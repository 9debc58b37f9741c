"""What a request must be like before it is queued (core, src/infer_request.cc, Normalize)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .configs import ANY, ModelConfig, datatype_of
from .refusals import Refusal, invalid
from .tensors import ITEM_SIZE, Input, Shape, byte_size_of

_LENGTH = 4  # bytes before each string
_BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be"
    " prepended to each input shape. If you want to specify the full shape including the batch dim"
    " in your input dims config, try setting max_batch_size to zero. See the model configuration"
    " docs for more info on max_batch_size."
)


class Checks:
    """The checks of one request.

    Args:
        config: Of the model.
        request_id: The client's, which messages name.
    """

    def __init__(self, config: ModelConfig, request_id: str) -> None:
        self._config = config
        self._model = config.name
        self._id = f"[request id: {request_id or '<id_unknown>'}] "

    def check_names_differ(self, kind: str, names: Iterable[str]) -> None:
        """Raise Refusal if a name comes twice."""
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise invalid(f"{self._id}{kind} '{name}' already exists in request")
            seen.add(name)

    def check(self, inputs: Sequence[Input], outputs: Sequence[str]) -> list[str]:
        """Check a request, and give its inputs the shapes that the model sees.

        Args:
            inputs: Its inputs.
            outputs: The outputs it asks for; none for all.

        Returns:
            The names of the outputs that are answered.

        Raises:
            Refusal: The model cannot be run with this.
        """
        for name in outputs:
            if name not in self._config.outputs:
                raise invalid(f"unexpected inference output '{name}' for model '{self._model}'")
        self._check_input_names(inputs)
        batch = self._batch_size(inputs)
        for entry in inputs:
            self._check_input(entry, batch)
        return list(outputs) or list(self._config.outputs)

    def _refusal(self, text: str) -> Refusal:
        return invalid(f"{self._id}{text}")

    def _check_input_names(self, inputs: Sequence[Input]) -> None:
        config = self._config
        given = [entry.name for entry in inputs]
        least, most = len(config.required), len(config.inputs)
        if not least <= len(given) <= most:
            missing = "".join(f"'{name}'," for name in config.required if name not in given)
            # The server cuts off the last character, be it a comma or the opening bracket.
            lacking = f"[{missing}"[:-1] + "]"
            expected = f"{most} inputs" if least == most else ""
            expected = expected or f"number of inputs between {least} and {most}"
            got = ",".join(f"'{name}'" for name in given)
            raise self._refusal(
                f"expected {expected} but got {len(given)} inputs for model '{self._model}'. Got"
                f" input(s) [{got}], but missing required input(s) {lacking}. Please provide all"
                " required input(s)."
            )
        for name in given:
            if name not in config.inputs:
                raise invalid(f"unexpected inference input '{name}' for model '{self._model}'")

    def _batch_size(self, inputs: Sequence[Input]) -> int:
        if not self._config.max_batch_size:
            return 0
        batch = 0
        for entry in inputs:
            if not entry.shape:
                raise self._refusal(
                    f"input '{entry.name}' has no shape but model requires batch dimension for"
                    f" '{self._model}'"
                )
            if batch == 0:
                batch = entry.shape[0] % 2**32  # unsigned in the server
            elif entry.shape[0] != batch:
                raise self._refusal(
                    f"input '{entry.name}' batch size does not match other inputs for"
                    f" '{self._model}'"
                )
        if self._config.max_batch_size < batch < 2**31:
            raise self._refusal(
                f"inference request batch-size must be <= {self._config.max_batch_size} for"
                f" '{self._model}'"
            )
        return batch

    def _check_input(self, entry: Input, batch: int) -> None:
        config = self._config.inputs[entry.name]
        expected = datatype_of(config.data_type)
        if entry.datatype != expected:
            known = entry.datatype in (*ITEM_SIZE, "BYTES")
            raise self._refusal(
                f"inference input '{entry.name}' data-type is"
                f" '{entry.datatype if known else '<invalid>'}', but model '{self._model}' expects"
                f" '{expected}'"
            )
        own = entry.shape[1:] if self._config.max_batch_size else entry.shape
        self._check_shape(entry, tuple(config.dims), own)
        if config.HasField("reshape"):
            varying = [size for size, dim in zip(own, config.dims, strict=True) if dim == ANY]
            own = tuple(varying.pop(0) if size == ANY else size for size in config.reshape.shape)
        entry.shape = (batch, *own) if batch else own
        if entry.datatype == "BYTES":
            self._check_strings(entry)
            return
        needed = byte_size_of(entry.shape, entry.datatype)
        if entry.source.byte_size != needed:
            raise self._refusal(
                f"input byte size mismatch for input '{entry.name}' for model '{self._model}'."
                f" Expected {needed}, got {entry.source.byte_size}"
            )

    def _check_shape(self, entry: Input, dims: Shape, own: Shape) -> None:
        fits = len(dims) == len(own)
        for dim, size in zip(dims, own, strict=False) if fits else ():
            if size == ANY:
                raise self._refusal(
                    f"All input dimensions should be specified for input '{entry.name}' for model"
                    f" '{self._model}', got {_listed(entry.shape)}"
                )
            if dim not in (ANY, size):
                fits = False
                break
        if not fits:
            batched = self._config.max_batch_size > 0
            full = (ANY, *dims) if batched else dims
            raise self._refusal(
                f"unexpected shape for input '{entry.name}' for model '{self._model}'. Expected"
                f" {_listed(full)}, got {_listed(entry.shape)}. {_BATCH_NOTE if batched else ''}"
            )

    def _check_strings(self, entry: Input) -> None:
        """Walk the lengths; what the last one claims is left to the backend, as Triton does."""
        if entry.source.on_device:
            return
        data = entry.source.read()
        where = f"for inference input '{entry.name}' for model '{self._model}'"
        expected = 1
        for size in entry.shape:
            expected *= size
        position = found = 0
        while position < len(data):
            if position + _LENGTH > len(data):
                raise self._refusal(
                    f"incomplete string length indicator {where}, expecting {_LENGTH} bytes but"
                    f" only {len(data) - position} bytes available. Please make sure the string"
                    " length indicator is in one buffer."
                )
            found += 1
            if found > expected:
                raise self._refusal(
                    f"unexpected number of string elements {found} {where}, expecting {expected}"
                )
            length = int.from_bytes(data[position : position + _LENGTH], "little")
            position += _LENGTH + length
        if found != expected:
            raise self._refusal(f"expected {expected} string elements {where}, got {found}")


def _listed(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"
