"""Everything that is run on this project, each in an environment of its own.

``nox -s demo`` shows the library at work, ``nox -s tests`` runs the tests on every Python
that is there.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "typing", "tests", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
# numpy 1.26 has no wheels for Python 3.13.
NUMPYS = {"3.11": ["1.26", "2"], "3.12": ["2"], "3.13": ["2"]}


def groups(name: str) -> list[str]:
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def demo(session: nox.Session) -> None:
    """Start a real Triton, call it inline, by infer and by lease, check every byte."""
    session.install(".")
    session.run("python", "examples/demo.py", *session.posargs)


@nox.session
@nox.parametrize(
    ("python", "numpy"), [(python, numpy) for python in PYTHONS for numpy in NUMPYS[python]]
)
def tests(session: nox.Session, numpy: str) -> None:
    """Run the tests against the installed wheel and a real Triton."""
    session.install(".", *groups("tests"), f"numpy=={numpy}.*")
    session.run("python", "-I", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, and that imports go one way."""
    session.install("-e.", *groups("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types, of the package and of how it is used."""
    session.install("-e.", *groups("typing"))
    session.run("mypy")
    session.run("mypy", "tests/typing/api.py")
    session.run("pyright", "--pythonpath", f"{session.virtualenv.location}/bin/python")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation; a warning is an error."""
    session.install("-e.", *groups("docs"))
    session.run("sphinx-build", "-W", "-n", "-b", "html", "docs", "docs/_build/html")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure side by side against the peers, in one run; needs gcc."""
    session.install(".", *groups("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)
