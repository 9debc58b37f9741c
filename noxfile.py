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
# Each Python and each numpy once; numpy 1.26 has no wheels for Python 3.13.
PAIRS = [("3.11", "1.26"), ("3.12", "2"), ("3.13", "2")]
OTHER_PAIRS = [("3.11", "2"), ("3.12", "1.26")]


def groups(name: str) -> list[str]:
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def demo(session: nox.Session) -> None:
    """Start a real Triton, call it inline, by infer and by lease, check every byte."""
    session.install(".")
    session.run("python", "examples/demo.py", *session.posargs)


def run_tests(session: nox.Session, numpy: str) -> None:
    session.install(".", *groups("tests"), f"numpy=={numpy}.*")
    # Two servers side by side: much of the time goes into waiting for them.
    workers = () if "-n" in session.posargs else ("-n", "2", "--dist", "loadfile")
    session.run("python", "-I", "-m", "pytest", *workers, *session.posargs)


@nox.session
@nox.parametrize(("python", "numpy"), PAIRS)
def tests(session: nox.Session, numpy: str) -> None:
    """Run the tests against the installed wheel and a real Triton."""
    run_tests(session, numpy)


@nox.session
@nox.parametrize(("python", "numpy"), OTHER_PAIRS)
def tests_more(session: nox.Session, numpy: str) -> None:
    """Run the tests on the other pairs of Python and numpy."""
    run_tests(session, numpy)


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
    session.run("sphinx-build", "-E", "-W", "-n", "-b", "html", "docs", "docs/_build/html")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure side by side against the peers, in one run; needs gcc."""
    session.install(".", *groups("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)
