"""How the documentation is built: `sphinx-build -W -n -b html docs docs/_build/html`."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole

import triton_zerocopy
from triton_zerocopy import testing

project = "triton_zerocopy"
author = "The triton_zerocopy developers"
copyright = author
version = release = triton_zerocopy.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"triton_zerocopy {release}"

# Docstrings say what arguments are; signatures are for their types and defaults.
autodoc_default_options = {"members": True, "member-order": "bysource"}
autoclass_content = "both"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False

nitpick_ignore_regex = [
    # The standard library and numpy: their documentation is not linked, so that building this
    # needs no network.
    ("py:.*", r"(asyncio|collections|enum|os|pathlib|typing|numpy)\..*"),
    (
        "py:(class|exc)",
        r"(Any|Awaitable|Callable|Generator|Iterable|Mapping|PathLike|Self|Sequence|TracebackType)",
    ),
    ("py:(class|exc)", r"(OSError|RuntimeError|TimeoutError|ValueError|KeyError)"),
    # tritonclient has no documentation to link to.
    ("py:.*", r"tritonclient\..*"),
    ("py:class", "(Http)?InferenceServerClient"),
    ("py:class", "InferenceServerException"),
]

PUBLIC = {*triton_zerocopy.__all__, *testing.__all__}


class Backticks(PyXRefRole):
    """`Name` and `Name.member` in a docstring: a link if the name is public, else code."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        if self.text.partition(".")[0] not in PUBLIC:
            return [nodes.literal(self.rawtext, self.text)], []
        self.refdomain, self.reftype = "py", "obj"
        self.classes = ["xref", "py", "py-obj"]
        return self.create_xref_node()


def tidy_signature(
    _app: Sphinx, _what: str, _name: str, _obj: object, _options: object, args: str, result: str
) -> tuple[str, str]:
    """Leave out private types, of which users see only what the text says of them."""
    if args:
        args = args.replace(" | ~triton_zerocopy._options.UseDefault", "")
    if result:
        # What can be awaited, or used in `async with`, for the one thing that users get.
        result = re.sub(r"~triton_zerocopy\._opening\.Opening\[(.*)\]", r"\1", result)
    return args, result


COLON = "\0"


def before_napoleon(
    _app: Sphinx, what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Make indented blocks code, and keep "Where: what" of a value from being a type."""
    for index in reversed(range(len(lines) - 2)):
        line, gap, block = lines[index : index + 3]
        if line[:1].strip() and not gap and block.startswith("    "):
            lines[index + 1 : index + 1] = ["", "::"]
    for index, line in enumerate(lines):
        if line == "Raises (when awaited):":
            lines[index] = "Raises:"  # a name with brackets is no section to napoleon
        elif index and lines[index - 1] == "Returns:":
            lines[index] = line.replace(":", COLON)
    if what == "property" and lines:
        lines[0] = lines[0].replace(":", COLON)


def after_napoleon(
    _app: Sphinx, _what: str, _name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    lines[:] = [
        line.replace(COLON, ":").replace(":type: Shape", ":type: tuple[int, ...]") for line in lines
    ]


def setup(app: Sphinx) -> None:
    app.add_role("backticks", Backticks())
    app.connect("autodoc-process-signature", tidy_signature)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)


default_role = "backticks"
