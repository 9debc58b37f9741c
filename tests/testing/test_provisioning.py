"""Fetching a server, and finding an interpreter for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from triton_zerocopy.testing import (
    InterpreterNotFound,
    NotEnoughSpace,
    ProvisionError,
    TritonServer,
    UnsupportedPlatform,
    _installer,
    _provision,
)
from triton_zerocopy.testing._errors import Aborted
from triton_zerocopy.testing._interpreter import (
    ENVIRONMENT_VARIABLE,
    ServerPython,
    find_interpreter,
    inspect_interpreter,
)

from .conftest import wait_until

PYTHON = ServerPython((3, 12), Path("/usr/bin/python3.12"), Path("/usr/lib"), dlpack_only=False)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    directory = tmp_path / "cache"
    monkeypatch.setenv(_provision.CACHE_VARIABLE, str(directory))
    return directory


def contents(directory: Path) -> set[str]:
    """Return what is in the cache, apart from the locks."""
    return {path.name for path in directory.iterdir() if path.suffix != ".lock"}


def test_too_little_space(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It says how much is wanted, how much there is, and how to use another place."""
    usage = shutil.disk_usage(tmp_path)._replace(free=5_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    with (
        pytest.raises(NotEnoughSpace, match=r"350 MB .* 5 MB .*TRITON_ZEROCOPY_CACHE") as caught,
        TritonServer(),
    ):
        pass

    assert (caught.value.wanted, caught.value.free) == (350_000_000, 5_000_000)
    assert contents(cache) == set()


def test_a_failing_installer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its output is shown, with what can be done."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_RETRIES", "0")

    with (
        pytest.raises(ProvisionError, match=r"No matching distribution") as caught,
        TritonServer(),
    ):
        pass

    assert "Check the network" in str(caught.value)
    assert "TRITON_ZEROCOPY_TRITONSERVER" in str(caught.value)
    assert contents(cache) == set()


def test_no_installer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pip nor uv."""
    monkeypatch.setattr(_installer.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ProvisionError, match=r"Neither pip .* nor uv is here"):
        _provision.provision_server(threading.Event())


def test_uv_is_used_without_pip(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the same requirements."""
    monkeypatch.setattr(_installer.importlib.util, "find_spec", lambda _: None)
    uv = tmp_path / "uv"
    uv.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments; exit 1\n')
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    with pytest.raises(ProvisionError, match=r"exit status 1"):
        _provision.provision_numpy(PYTHON, threading.Event())

    arguments = (tmp_path / "arguments").read_text()
    assert arguments.startswith("pip install ")
    assert arguments.endswith(" numpy<2\n")
    assert "--python-version 3.12" in arguments
    assert "--no-deps --only-binary :all: --target" in arguments


class FakeInstaller:
    """Stands in for pip, which needs a network."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None]] = []
        self.may_finish = threading.Event()

    def __call__(
        self, requirement: str, *, target: Path, python: str | None, abort: Any, **_: Any
    ) -> None:
        self.calls.append((requirement, python))
        while not self.may_finish.wait(0.001):
            if abort.is_set():
                raise Aborted
        (target / "numpy").mkdir(parents=True)
        (target / "numpy" / "__init__.py").touch()


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> FakeInstaller:
    """The installer that is called instead."""
    fake = FakeInstaller()
    monkeypatch.setattr(_provision, "install", fake)
    return fake


def test_parallel_users_fetch_once(cache: Path, installer: FakeInstaller) -> None:
    """The others wait for the first; what the dead left behind is removed."""
    leftover = cache / "numpy1-cp312.building-dead"
    leftover.mkdir(parents=True)
    (cache / "numpy1-cp312").mkdir()  # damaged: empty
    with ThreadPoolExecutor() as threads:
        jobs = [
            threads.submit(_provision.provision_numpy, PYTHON, threading.Event()) for _ in range(4)
        ]
        wait_until(lambda: installer.calls)
        installer.may_finish.set()
        found = {job.result() for job in jobs}

    assert found == {cache / "numpy1-cp312"}
    assert installer.calls == [("numpy<2", "3.12")]
    assert contents(cache) == {"numpy1-cp312"}
    assert _provision.provision_numpy(PYTHON, threading.Event()) in found


def test_giving_up(cache: Path, installer: FakeInstaller) -> None:
    """Both while fetching and while waiting for another."""
    first, second = threading.Event(), threading.Event()
    with ThreadPoolExecutor() as threads:
        fetching = threads.submit(_provision.provision_numpy, PYTHON, first)
        wait_until(lambda: installer.calls)
        waiting = threads.submit(_provision.provision_numpy, PYTHON, second)
        second.set()
        with pytest.raises(Aborted):
            waiting.result()
        first.set()
        with pytest.raises(Aborted):
            fetching.result()

    assert contents(cache) == set()


def test_a_package_that_is_something_else(cache: Path, installer: FakeInstaller) -> None:
    """As an index may serve under the same name."""
    installer.may_finish.set()
    with pytest.raises(ProvisionError, match=r"has no pytriton/tritonserver/bin/tritonserver"):
        _provision.provision_server(threading.Event())


def test_a_cache_that_cannot_be_used(cache: Path) -> None:
    """It says how to use another one."""
    cache.touch()
    with pytest.raises(ProvisionError, match=r"cannot be used.*TRITON_ZEROCOPY_CACHE"):
        _provision.provision_server(threading.Event())


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG specification has it, unless told otherwise."""
    monkeypatch.delenv(_provision.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert _provision.cache_directory() == Path("/xdg/triton_zerocopy")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert _provision.cache_directory() == Path("/home/me/.cache/triton_zerocopy")


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        ("machine", "aarch64", "Linux x86_64 only, this is Linux aarch64"),
        ("libc_ver", ("glibc", "2.31"), "glibc 2.35 or newer .*, this is glibc 2.31"),
        ("libc_ver", ("", ""), "this is another C library"),
    ],
)
def test_platforms_without_a_server(
    cache: Path, monkeypatch: pytest.MonkeyPatch, function: str, value: Any, message: str
) -> None:
    """The way out is a server of one's own."""
    monkeypatch.setattr(_provision.platform, function, lambda: value)
    with pytest.raises(UnsupportedPlatform, match=f"{message}.*TRITON_ZEROCOPY_TRITONSERVER"):
        _provision.provision_server(threading.Event())


def fake_python(path: Path, **facts: Any) -> Path:
    """Write a program that describes itself as an interpreter."""
    facts = {
        "version": [3, 12],
        "implementation": "cpython",
        "base_prefix": str(path.parent),
        "library": "libpython3.12.so.1.0",
        "libdir": str(path.parent / "lib"),
        "multiarch": "no-such-architecture",
        **facts,
    }
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    path.chmod(0o755)
    return path


def test_an_interpreter_without_shared_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package that has it is named, and how to build one."""
    python = fake_python(tmp_path / "python3.12")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(python))

    with (
        pytest.raises(InterpreterNotFound, match=r"libpython3.12.so.1.0 is missing") as caught,
        TritonServer(),
    ):
        pass

    assert f"{ENVIRONMENT_VARIABLE}={python}" in str(caught.value)
    assert "apt install libpython3.12" in str(caught.value)
    assert "--enable-shared" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("#!/bin/sh\necho 'pyenv: not installed' >&2; exit 127\n", "127: pyenv: not installed"),
        ("#!/bin/sh\necho hello\n", "does not behave like a Python interpreter"),
        ("#!/no/such/interpreter\n", "no such file"),
        ("\0", "does not run"),
    ],
)
def test_what_is_no_interpreter(tmp_path: Path, text: str, reason: str) -> None:
    """As a shim of pyenv for a version that is not activated."""
    path = tmp_path / "python3.12"
    path.write_text(text)
    path.chmod(0o755)

    found = inspect_interpreter(path)

    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize("facts", [{"version": [3, 8]}, {"implementation": "pypy"}])
def test_interpreters_that_the_server_cannot_embed(tmp_path: Path, facts: dict[str, Any]) -> None:
    """It says which ones it can."""
    found = inspect_interpreter(fake_python(tmp_path / "python3.12", **facts))

    assert "CPython 3.9 to 3.13" in str(found)


def test_a_relocated_interpreter(tmp_path: Path) -> None:
    """Its library is looked for beside it, whatever it believes."""
    python = fake_python(tmp_path / "bin" / "python3.12", base_prefix=str(tmp_path), libdir="/no")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libpython3.12.so.1.0").touch()

    assert inspect_interpreter(python) == ServerPython(
        (3, 12), python, tmp_path / "lib", dlpack_only=False
    )


def test_the_search_for_an_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running one, else PATH, pyenv and uv; 3.13 only when there is nothing else."""
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    environment = {"PATH": "", "HOME": str(tmp_path)}

    def install(root: Path, version: str) -> Path:
        minor = int(version.rpartition(".")[2])
        library = f"libpython{version}.so.1.0"
        python = root / "bin" / f"python{version}"
        fake_python(
            python, version=[3, minor], base_prefix=str(root), library=library, libdir=str(root)
        )
        (root / library).touch()
        return python

    with pytest.raises(InterpreterNotFound, match=r"no interpreter was found at all"):
        find_interpreter(environment)

    latest = install(tmp_path / ".pyenv" / "versions" / "3.13.0", "3.13")
    assert find_interpreter(environment) == ServerPython(
        (3, 13), latest, tmp_path / ".pyenv" / "versions" / "3.13.0", dlpack_only=True
    )

    uv = install(tmp_path / ".local" / "share" / "uv" / "python" / "cpython-3.10", "3.10")
    assert find_interpreter(environment).executable == uv

    shim = tmp_path / "shims" / "python3.12"
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\nexit 1\n")
    shim.chmod(0o755)
    pyenv = install(tmp_path / ".pyenv" / "versions" / "3.11.7", "3.11")
    environment["PATH"] = f"{shim.parent}:/usr/bin:/bin"
    if shutil.which("python3.11", path=environment["PATH"]) is None:
        assert find_interpreter(environment).executable == pyenv
    assert find_interpreter(environment).version == (3, 11)


def test_progress_is_told(cache: Path, installer: FakeInstaller, capfd: Any) -> None:
    """On stderr, in whole lines when it is no terminal."""
    program = (
        "import pathlib, sys; from triton_zerocopy.testing._progress import Progress;"
        "p = Progress('fetching', pathlib.Path(sys.argv[1])); p.update(); p.update();"
        "p.update(last=True)"
    )
    cache.mkdir()
    (cache / "file").write_bytes(bytes(3_000_000))
    subprocess.run(
        [sys.executable, "-c", program, cache],
        check=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )

    assert capfd.readouterr().err == (
        "triton_zerocopy.testing: fetching: 0 s, 3 MB\n"
        "triton_zerocopy.testing: fetching: 0 s, 3 MB; done\n"
    )
