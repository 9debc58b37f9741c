"""The models of a server, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from .configs import ModelConfig
from .models import Model
from .refusals import Refusal, internal

LATEST = -1


class Repository:
    """Loads models from directories, and finds them.

    Attributes:
        is_exiting: Whether the server ends, and has no models any more.
    """

    def __init__(self, directories: Sequence[Path], *, is_explicit: bool) -> None:
        """Start without models.

        Args:
            directories: Each has a subdirectory for each model.
            is_explicit: Whether clients may load and unload.
        """
        self._directories = directories
        self._is_explicit = is_explicit
        self._models: dict[str, Model] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        self._outgoing: set[Model] = set()
        self.is_exiting = False

    def names(self) -> list[str]:
        """Return the models there are on disk or in memory."""
        found = {
            entry.name
            for directory in self._directories
            for entry in directory.iterdir()
            if (entry / "config.pbtxt").is_file()
        }
        return sorted(found | self._models.keys())

    def loaded(self) -> list[Model]:
        """Return the models that were loaded and not yet unloaded, by name."""
        return [model for _, model in sorted(self._models.items()) if model.state != "UNAVAILABLE"]

    def find(self, name: str, version: int = LATEST) -> Model:
        """Return a model that takes requests.

        Raises:
            Refusal: There is none of that name or version now.
        """
        unknown = f"Request for unknown model: '{name}'"
        model = self._models.get(name)
        if model is None:
            raise Refusal("NOT_FOUND", f"{unknown} is not found")
        if version != LATEST and version not in model.config.versions:
            raise Refusal("NOT_FOUND", f"{unknown} version {version} is not found")
        if model.state == "READY" and not self.is_exiting:
            return model
        if version == LATEST:
            raise Refusal("NOT_FOUND", f"{unknown} has no available versions")
        raise Refusal("UNAVAILABLE", f"{unknown} version {version} is not at ready state")

    def load(self, name: str) -> None:
        """Load a model, or load it again from what its directory has now.

        Raises:
            Refusal: It cannot be loaded; the one that was loaded goes on.
        """
        for directory in self._directories:
            if (directory / name / "config.pbtxt").is_file():
                config = ModelConfig(directory / name)
                break
        else:
            raise internal(f"failed to load '{name}', failed to poll from model repository")
        for step in config.message.ensemble_scheduling.step:
            if step.model_name not in self._models:
                raise internal(
                    f"failed to load '{name}': ensemble '{name}' depends on"
                    f" '{step.model_name}' which has no loaded version."
                )
        old = self._models.get(name)
        self._models[name] = Model(config, self.find)
        if old is not None and old.state == "READY":
            self._retire(old)

    def in_order(self) -> list[str]:
        """Return the models on disk: ensembles after what they are made of."""
        return sorted(self.names(), key=self._is_ensemble)

    def unload(self, name: str) -> None:
        """Take a model out of service; its requests are finished. An unknown one is no error."""
        model = self._models.get(name)
        if model is not None and model.state == "READY":
            self._retire(model)

    def check_control(self) -> None:
        """Raise Refusal if clients may not load and unload."""
        if not self._is_explicit:
            raise Refusal(
                "UNAVAILABLE", "explicit model load / unload is not allowed if polling is enabled"
            )

    def index(self, *, only_ready: bool) -> list[dict[str, str]]:
        """Return what there is, and in which state."""
        entries: list[dict[str, str]] = []
        for name in self.names():
            model = self._models.get(name)
            if only_ready and (model is None or model.state != "READY"):
                continue
            entry = {"name": name}
            if model is not None:
                entry |= {"version": str(model.config.versions[-1]), "state": model.state}
                if model.state == "UNAVAILABLE":
                    entry["reason"] = "unloaded"
            entries.append(entry)
        return entries

    def busy(self) -> tuple[int, int]:
        """Return how many requests wait and how many run, on all models."""
        models = {*self._models.values(), *self._outgoing}
        return sum(each.queued for each in models), sum(each.running for each in models)

    def _retire(self, model: Model) -> None:
        self._outgoing.add(model)
        model.state = "UNLOADING"
        task = asyncio.create_task(model.unload())
        self._unloading.add(task)

        def unloaded(task: asyncio.Task[None]) -> None:
            self._unloading.discard(task)
            self._outgoing.discard(model)

        task.add_done_callback(unloaded)

    def _is_ensemble(self, name: str) -> bool:
        return any(
            "ensemble_scheduling" in path.read_text("utf-8")
            for directory in self._directories
            if (path := directory / name / "config.pbtxt").is_file()
        )
