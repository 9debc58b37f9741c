"""Plain functions as source text."""

from __future__ import annotations

import json as renamed
import os.path
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triton_zerocopy.testing._source import extract

NUMBER = 3
NESTED = (1, ("a", b"b"), None, True, ())
INFINITE = float("inf")
LIST = [1, 2]


def run(function: Callable[..., Any], *args: Any) -> Any:
    """Call the function that the extracted text defines."""
    namespace: dict[str, Any] = {}
    exec(extract(function).text, namespace)
    return namespace[function.__name__](*args)


def uses_module_level_names(x: Path) -> Any:
    return renamed.dumps([NUMBER, os.path.sep]), NESTED, INFINITE, x


def has_inner_scopes(values: list[int]) -> list[int]:
    def scaled(value: int) -> int:
        return value * NUMBER

    return [scaled(value) for value in values]


def has_defaults(value: int, factor: int = NUMBER) -> int:
    return value * factor


def asserts(value: int) -> int:
    assert value < NUMBER, renamed.dumps("too large")
    return value


def recursive(value: int) -> int:
    return 1 if value == 0 else value * recursive(value - 1)


def uses_a_list() -> Any:
    return LIST


def uses_a_helper() -> Any:
    return has_defaults(1)


def uses_an_unknown_name() -> Any:
    return not_defined_anywhere  # noqa: F821 # pyright: ignore[reportUndefinedVariable]


async def asynchronous() -> None:
    """Nothing that a server can call."""


def test_modules_and_constants_come_along() -> None:
    """Imports keep their alias; annotations need nothing."""
    assert run(uses_module_level_names, 1) == ('[3, "/"]', NESTED, INFINITE, 1)


def test_inner_scopes_are_looked_into() -> None:
    """A constant used in a nested function comes along."""
    assert run(has_inner_scopes, [1, 2]) == [3, 6]


def test_defaults_come_along() -> None:
    """A constant used as a default comes along."""
    assert run(has_defaults, 2) == 6


def test_an_assert_that_pytest_rewrote_is_carried_as_written() -> None:
    """The function is compiled from its source, not from what runs here."""
    assert run(asserts, 1) == 1
    with pytest.raises(AssertionError, match="too large"):
        run(asserts, 3)


def test_a_recursive_function_finds_itself() -> None:
    """Its own name is no global that it lacks."""
    assert run(recursive, 4) == 24


def test_an_indented_function_keeps_its_strings() -> None:
    """Text that spans lines is not dedented with the code."""

    def local() -> str:
        return """one
    two
three"""

    assert run(local) == local() == "one\n    two\nthree"


def closure() -> Callable[[], int]:
    value = 1

    def inner() -> int:
        return value

    return inner


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, "lambda"),
        (print, "plain function"),
        (closure(), "uses value of an enclosing function"),
        (uses_a_list, "uses LIST, a list"),
        (uses_a_helper, "uses has_defaults, a function"),
        (uses_an_unknown_name, "not_defined_anywhere, which its module does not define"),
        (asynchronous, "is async"),
        (eval("lambda: 0"), "lambda"),
    ],
)
def test_what_cannot_be_carried_is_refused(function: Callable[..., Any], message: str) -> None:
    """The message names the offender."""
    with pytest.raises(ValueError, match=message):
        extract(function)


def test_a_decorated_function_is_refused() -> None:
    """Its decorator would be missing in the server."""

    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    @keep
    def model() -> None:
        """Nothing."""

    with pytest.raises(ValueError, match="model is decorated"):
        extract(model)


def test_a_function_without_source_is_refused() -> None:
    """As one typed into a prompt."""
    namespace: dict[str, Any] = {}
    # A name of its own: Python 3.13 remembers the source of "<string>" for `python -c`.
    exec(compile("def typed(): pass", "<typed>", "exec"), namespace)

    with pytest.raises(ValueError, match="source of typed is not available"):
        extract(namespace["typed"])
