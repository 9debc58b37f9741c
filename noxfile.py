"""Everything that is run on this project, each in an environment of its own.

``nox -s demo`` shows the library at work, ``nox -s tests`` runs the tests on every Python
that is there.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import runpy
import shutil
import site
import subprocess
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "typing", "tests", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")
# Each Python and each numpy once; numpy 1.26 has no wheels for Python 3.13.
PAIRS = [("3.11", "1.26"), ("3.12", "2"), ("3.13", "2")]
OTHER_PAIRS = [("3.11", "2"), ("3.12", "1.26")]
# What says the same everywhere runs on the middle Python only. There what is for both event loops
# runs on uvloop, and on the others on asyncio's, which is another one in each of them.
ONE_OF_MANY = "not on_asyncio"
THE_OTHERS = "not once and not on_uvloop"


def groups(name: str) -> list[str]:
    return nox.project.dependency_groups(PROJECT, name)


@nox.session
def demo(session: nox.Session) -> None:
    """Start a real Triton, call it inline, by infer and by lease, check every byte."""
    session.install(".")
    session.run("python", "examples/demo.py", *session.posargs)


def chosen_tests(pair: tuple[str, str]) -> str:
    """Return which tests a pair runs, as a marker expression. One that is alone runs all."""

    def is_here(python: str) -> bool:
        path = shutil.which(f"python{python}")
        # pyenv has names for Pythons that are not activated; these do not run.
        return bool(path) and not subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL)

    here = [each for each in (PAIRS[1], *PAIRS) if is_here(each[0])]
    if here and pair == here[0]:
        return ONE_OF_MANY if len(set(here)) > 1 else ""
    return THE_OTHERS


def run_tests(session: nox.Session, numpy: str) -> None:
    session.install(".", *groups("tests"), f"numpy=={numpy}.*")
    # Servers side by side: much of the time goes into waiting for them.
    workers = () if "-n" in session.posargs else ("-n", "3", "--dist", "loadfile")
    chosen = ("-m", chosen_tests((str(session.python), numpy)))
    session.run("python", "-I", "-m", "pytest", *workers, *chosen, *session.posargs)


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
def soak(session: nox.Session) -> None:
    """200,000 calls while a real server, and the way to it, come and go: ``-- --calls N``."""
    session.install(".", *groups("tests"))
    session.run("python", "tests/soak.py", *session.posargs)


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
    """Measure side by side against the peers, in one run; needs gcc, and has wrk if it is there.

    ``-- --docs docs/benchmarks.md --plot docs/benchmarks.svg`` puts it into the documentation.
    """
    session.install(".", *groups("bench"))
    results = Path("build/benchmarks")
    results.mkdir(parents=True, exist_ok=True)
    files = ("--json", f"{results}/results.json", "--plot", f"{results}/results.svg")
    session.run("python", "-m", "benchmarks", *files, *session.posargs)  # the last one counts


# On a real GPU


GPU_TESTS = ("pytest", "pytest-timeout", "hypothesis")
"""Of the tests' needs those that tests/cuda has; trustme, FastAPI and the like are for others."""
WHEELHOUSE = "TRITON_ZEROCOPY_WHEELHOUSE"


def gpu_needs() -> list[str]:
    needs = [each for each in groups("tests") if re.split("[<>=]", each)[0] in GPU_TESTS]
    return [*needs, "cuda-bindings>=12.6"]


def why_no_gpu() -> str | None:
    """Ask the driver, without any package."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is here (libcuda.so.1)"
    count = ctypes.c_int()
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return f"the NVIDIA driver answers with error {status}"
    return None if count.value else "no GPU is visible"


@nox.session
def gpu(session: nox.Session) -> None:
    """Run tests/cuda on the GPU of this machine, without a network if there is a wheelhouse.

    ``--wheelhouse DIR`` (or TRITON_ZEROCOPY_WHEELHOUSE) is what ``gpu_wheelhouse`` has filled;
    ``--system-site-packages`` has the packages of the Python that runs nox used, as torch, CuPy
    and JAX. All else goes to pytest.
    """
    if reason := why_no_gpu():
        session.skip(reason)
    parser = argparse.ArgumentParser(prog="nox -s gpu --")
    parser.add_argument("--wheelhouse", type=Path, default=os.environ.get(WHEELHOUSE))
    parser.add_argument("--system-site-packages", action="store_true")
    options, rest = parser.parse_known_args(session.posargs)
    if options.system_site_packages:
        # Not by virtualenv: what runs nox may be a virtual environment itself.
        where = "import sysconfig; print(sysconfig.get_path('purelib'))"
        packages = session.run("python", "-c", where, silent=True)
        Path(packages.strip(), "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    environment = {}
    if options.wheelhouse is None:
        session.install(".", *gpu_needs())
    else:
        wheelhouse = Path(options.wheelhouse).absolute()
        session.install("--no-index", f"--find-links={wheelhouse}", "triton-zerocopy", *gpu_needs())
        cache = Path(session.create_tmp(), "cache")
        unpack = runpy.run_path("tests/cuda/wheelhouse.py")["unpack"]
        environment = unpack(wheelhouse, cache)
    session.run("python", "-I", "-m", "pytest", "tests/cuda", "--gpu", *rest, env=environment)


@nox.session
def gpu_wheelhouse(session: nox.Session) -> None:
    """Fill a directory with what ``gpu`` needs: ``-- DIR [--without NAME ...]``."""
    session.install(".")
    session.run("python", "tests/cuda/wheelhouse.py", *session.posargs, "--needs", *gpu_needs())
