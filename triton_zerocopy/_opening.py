"""`Opening`: what is awaited, or entered, to have something opened."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, Protocol, TypeVar


class _Closable(Protocol):
    async def aclose(self) -> None: ...


Resource = TypeVar("Resource", bound=_Closable)


class Opening(Generic[Resource]):
    """Opens a resource: ``await`` it, or use it in ``async with`` to have it closed."""

    def __init__(self, opened: Callable[[], Awaitable[Resource]]) -> None:
        self._open = opened
        self._resource: Resource | None = None

    def __await__(self) -> Generator[Any, Any, Resource]:
        return self._open().__await__()

    async def __aenter__(self) -> Resource:
        self._resource = await self._open()
        return self._resource

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._resource is not None
        await self._resource.aclose()
