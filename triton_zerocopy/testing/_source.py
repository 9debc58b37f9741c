"""Turning a plain function into source text that another interpreter can run."""

from __future__ import annotations

import ast
import builtins
import dis
import inspect
import math
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_IMPLICIT = frozenset({"__name__", "__qualname__", "__module__", "__annotations__"})


@dataclass(frozen=True)
class FunctionSource:
    """A function as text.

    Attributes:
        name: The function's name.
        text: What it needs (imports, constants), then its definition.
    """

    name: str
    text: str


def extract(function: Callable[..., Any]) -> FunctionSource:
    """Return the source of a function with the imports and constants that it uses.

    Args:
        function: A function defined with `def`, without decorators or closure.

    Raises:
        ValueError: It is something else, or it uses what cannot be written down as text.
    """
    if not isinstance(function, types.FunctionType):
        raise ValueError(  # noqa: TRY004
            f"A model is a plain function; {function!r} is a {type(function).__name__}."
        )
    name = function.__name__
    if name == "<lambda>":
        raise ValueError(
            "A lambda cannot be a model, because its source cannot be told from the line it stands"
            " in. Write it as a def."
        )
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ValueError(f"{name} is async; the server calls its models synchronously.")
    if function.__code__.co_freevars:
        raise ValueError(
            f"{name} uses {_listed(function.__code__.co_freevars)} of an enclosing function."
            " A model runs in another process and has no access to it: make it a constant of the"
            " module, or compute it inside the function."
        )
    source = _definition(function)
    header = [
        _written_down(name, used, function.__globals__) for used in _globals_used(source, name)
    ]
    return FunctionSource(name, "\n".join([*header, "", "", source]))


def _definition(function: types.FunctionType) -> str:
    name = function.__name__
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError) as error:
        raise ValueError(
            f"The source of {name} is not available ({error}). Define it in a file, or use"
            " PythonModel.from_source()."
        ) from error
    if source[:1].isspace():
        # Indented as a whole. Removing the indentation could change strings that span lines.
        source = f"if True:\n{source}"
    (node,) = ast.parse(source).body
    if isinstance(node, ast.If):
        (node,) = node.body
    if not isinstance(node, ast.FunctionDef) or node.name != name:
        raise ValueError(f"{name} is not defined by a def of that name.")
    if node.decorator_list:
        raise ValueError(
            f"{name} is decorated. The decorator would not exist in the server: pass the bare"
            " function."
        )
    return source


def _globals_used(source: str, name: str) -> list[str]:
    """Return the names that the source takes from its module, in order of first use."""
    # Compiled anew, not read off the function: pytest rewrites assert statements in test modules.
    code = compile(f"from __future__ import annotations\n{source}", name, "exec")
    used: dict[str, None] = {}
    for part in _code_objects(code):
        for instruction in dis.get_instructions(part):
            if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                used[str(instruction.argval)] = None
    return [each for each in used if each != name and each not in _IMPLICIT]


def _code_objects(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_objects(constant)


def _written_down(function: str, name: str, namespace: dict[str, Any]) -> str:
    if name not in namespace:
        if hasattr(builtins, name):
            return ""
        raise ValueError(f"{function} uses {name}, which its module does not define.")
    value = namespace[name]
    if isinstance(value, types.ModuleType):
        return f"import {value.__name__} as {name}"
    text = _literal(value)
    if text is None:
        raise ValueError(
            f"{function} uses {name}, a {type(value).__name__}. A model's function may use modules"
            " and constants (numbers, strings, bytes, booleans, None, tuples of them) of its"
            f" module. Import or define {name} inside the function, or use"
            " PythonModel.from_source()."
        )
    return f"{name} = {text}"


def _literal(value: object) -> str | None:
    kind = type(value)
    if isinstance(value, float) and kind is float:
        return repr(value) if math.isfinite(value) else f"float({str(value)!r})"
    if value is None or kind in (int, str, bytes, bool, complex):
        return repr(value)
    if isinstance(value, tuple) and kind is tuple:
        items = [_literal(item) for item in value]
        texts = [item for item in items if item is not None]
        if len(texts) == len(items):
            return "(" + "".join(f"{text}, " for text in texts) + ")"
    return None


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(names)
