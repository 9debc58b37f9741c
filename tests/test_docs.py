"""What the documentation says is so: every name is there, and its programs run."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import needs_strings

import triton_zerocopy
import triton_zerocopy.testing

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int

    def compile(self, path):
        """Compile it as what may stand in an async function, with the page's line numbers."""
        source = "\n" * self.line + self.text
        return compile(source, str(path), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def blocks(page):
    text = page.read_text()
    return [
        Block(found[1], found[2], text.count("\n", 0, found.start()) + 1)
        for found in FENCE.finditer(text)
    ]


@pytest.mark.parametrize(
    "module", [triton_zerocopy, triton_zerocopy.testing], ids=["top", "testing"]
)
def test_every_public_name_is_in_the_api_page(module):
    page = (DOCS / "api.md").read_text()
    name = re.escape(module.__name__)
    documented = re.findall(rf"^\.\. auto\w+:: {name}\.(\w+)(?:\(\))?$", page, re.MULTILINE)
    assert sorted(documented) == sorted(module.__all__)


def test_every_error_is_explained():
    page = (DOCS / "errors.md").read_text()
    for name in triton_zerocopy.__all__:
        value = getattr(triton_zerocopy, name)
        if issubclass(value, triton_zerocopy.ZeroCopyError):
            assert f"`{name}`" in page, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_programs_compile(page):
    for block in blocks(page):
        if block.language == "python":
            block.compile(page)


@needs_strings
def test_the_tutorial_runs(tmp_path):
    """Its first block is the program, the others go into it, in order."""
    page = DOCS / "tutorial.md"
    program, *rest = [block for block in blocks(page) if block.language in ("python", "text")]
    # A file, because the server gets the source of the models.
    path = tmp_path / "tutorial.py"
    path.write_text(program.text)
    namespace = {"__name__": "tutorial"}
    exec(compile(program.text, str(path), "exec"), namespace)
    ran = 0

    async def tutorial(client):
        nonlocal ran
        namespace["client"] = client
        printed = ""
        for block in rest:
            if block.language == "text":
                assert printed == block.text, f"tutorial.md, line {block.line}"
                continue
            with contextlib.redirect_stdout(io.StringIO()) as output:
                result = eval(block.compile(page), namespace)
                if inspect.iscoroutine(result):
                    await result
            printed = output.getvalue()
            ran += 1
        del namespace["kept"]

    namespace["tutorial"] = tutorial
    asyncio.run(namespace["main"]())
    assert ran >= 10
