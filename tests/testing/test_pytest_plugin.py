"""The fixtures, in a test run of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = """
import pytest
from triton_zerocopy.testing import PythonModel

pytest_plugins = ["triton_zerocopy.testing.pytest_plugin"]

def add_one(X):
    return X + 1

@pytest.fixture(scope="session")
def triton_models():
    return {"add_one": PythonModel(
        add_one, inputs={"X": ("INT32", [1])}, outputs={"Y": ("INT32", [1])}
    )}

@pytest.fixture(scope="session")
def triton_server_options():
    return {"args": ["--log-verbose=1"]}
"""
TESTS = """
import http.client

def ask(server, path):
    connection = http.client.HTTPConnection(server.http_url)
    connection.request("GET", path)
    return connection.getresponse().status

def test_model(triton_server):
    assert ask(triton_server, "/v2/models/add_one/ready") == 200

def test_same_server(triton_server):
    assert triton_server.log_text().count("Started HTTPService") == 1
    assert "/v2/models/add_one/ready" in triton_server.log_text()
"""


def test_one_server_for_a_session(tmp_path: Path) -> None:
    """With the models and options of the conftest; stopped at the end."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "2 passed" in result.stdout, result.stdout + result.stderr
    assert [path for path in temporary.iterdir() if path.name.startswith("triton_zero")] == []
