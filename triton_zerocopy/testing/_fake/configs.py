"""config.pbtxt as the server completes it, and what it tells clients of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from tritonclient.grpc import model_config_pb2

from .refusals import internal
from .tensors import Shape

_pb: Any = model_config_pb2  # generated at import, so type checkers see nothing in it

ANY = -1  # a size that may vary


class ModelConfig:
    """The config of one model.

    Attributes:
        message: The config as gRPC has it.
        versions: The versions that are served.
        directory: Where the model's files are.
    """

    def __init__(self, directory: Path) -> None:
        """Read a model's directory.

        Args:
            directory: Has a config.pbtxt and version directories.

        Raises:
            Refusal: It is no model, or of a kind that is not played.
        """
        self.directory = directory
        self.message = _read(directory)
        self.versions = _versions(directory, self.message)
        _complete(self.message)
        self.inputs: dict[str, Any] = {entry.name: entry for entry in self.message.input}
        self.outputs: dict[str, Any] = {entry.name: entry for entry in self.message.output}
        self.required = [entry.name for entry in self.message.input if not entry.optional]

    @property
    def name(self) -> str:
        return str(self.message.name)

    @property
    def is_ensemble(self) -> bool:
        return bool(self.message.HasField("ensemble_scheduling"))

    @property
    def is_decoupled(self) -> bool:
        return bool(self.message.model_transaction_policy.decoupled)

    @property
    def max_batch_size(self) -> int:
        return int(self.message.max_batch_size)

    @property
    def instances(self) -> int:
        """How many requests are executed at the same time."""
        return sum(group.count for group in self.message.instance_group)

    @property
    def source(self) -> Path:
        """The model.py of the newest version."""
        return self.directory / str(self.versions[-1]) / str(self.message.default_model_filename)

    def metadata(self) -> dict[str, Any]:
        """Return what the server says of the model's tensors, in the order of HTTP's answer."""
        return {
            "name": self.name,
            "versions": [str(version) for version in self.versions],
            "platform": self.message.platform or self.message.backend,
            "inputs": [self._described(entry) for entry in self.message.input],
            "outputs": [self._described(entry) for entry in self.message.output],
        }

    def to_json(self) -> dict[str, Any]:
        """Return the config as HTTP has it: all fields, numbers as numbers."""
        return _as_json(self.message)

    def _described(self, entry: Any) -> dict[str, Any]:
        batch: Shape = (ANY,) if self.max_batch_size else ()
        return {
            "name": entry.name,
            "datatype": datatype_of(entry.data_type),
            "shape": [*batch, *entry.dims],
        }


def datatype_of(number: int) -> str:
    """Return the protocol's name of a datatype of the config, as `BYTES`."""
    name: str = _pb.DataType.Name(number).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _read(directory: Path) -> Any:
    try:
        text = (directory / "config.pbtxt").read_text("utf-8")
    except OSError as error:
        raise internal(
            f"failed to load '{directory.name}', failed to poll from model repository"
        ) from error
    message = _pb.ModelConfig()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise internal(f"failed to load '{directory.name}', config.pbtxt: {error}") from error
    message.name = message.name or directory.name
    if not (message.backend == "python" or message.HasField("ensemble_scheduling")):
        raise internal(
            f"failed to load '{directory.name}': FakeTriton plays models of the python backend and"
            f" ensembles, not of {message.backend or message.platform or 'no backend'!r}"
        )
    return message


def _versions(directory: Path, message: Any) -> list[int]:
    found = sorted(
        int(entry.name)
        for entry in directory.iterdir()
        if entry.is_dir() and entry.name.isdecimal() and int(entry.name)
    )
    policy = message.version_policy
    if policy.HasField("specific"):
        found = [version for version in found if version in policy.specific.versions]
    elif not policy.HasField("all"):
        found = found[-(policy.latest.num_versions or 1) :]
    if not found:
        raise internal(f"failed to load '{directory.name}': at least one version must be available")
    return found


def _complete(message: Any) -> None:
    """Add what the server adds (core, src/model_config_utils.cc)."""
    if message.version_policy.WhichOneof("policy_choice") is None:
        message.version_policy.latest.num_versions = 1
    batching = message.dynamic_batching
    if message.HasField("dynamic_batching") and not batching.preferred_batch_size:
        batching.preferred_batch_size.append(message.max_batch_size)
    if message.HasField("ensemble_scheduling"):
        message.platform = "ensemble"
        message.model_transaction_policy.SetInParent()
        return
    message.default_model_filename = message.default_model_filename or "model.py"
    message.optimization.input_pinned_memory.enable = True
    message.optimization.output_pinned_memory.enable = True
    if not message.instance_group:
        message.instance_group.add()
    for number, group in enumerate(message.instance_group):
        group.name = group.name or f"{message.name}_{number}"
        group.count = group.count or 1
        group.kind = _pb.ModelInstanceGroup.KIND_CPU  # there is no GPU


def _as_json(message: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for each in message.DESCRIPTOR.fields:
        value = getattr(message, each.name)
        if each.has_presence and not message.HasField(each.name):
            continue
        entry = each.message_type
        if entry is not None and entry.GetOptions().map_entry:
            inner = entry.fields_by_name["value"]
            values[each.name] = {str(key): _plain(inner, value[key]) for key in value}
        elif each.is_repeated:
            values[each.name] = [_plain(each, item) for item in value]
        else:
            values[each.name] = _plain(each, value)
    return values


def _plain(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return _as_json(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return field.enum_type.values_by_number[value].name
    return value
