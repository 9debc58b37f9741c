"""The model under fire. What is imported here travels to the server's Python."""

from __future__ import annotations

import time

from triton_zerocopy.testing import PythonModel


def work(INPUT0):
    """Take as many seconds as the first value says, then write: all values plus one."""
    seconds = float(INPUT0.flat[0])
    if seconds > 0:
        time.sleep(seconds)
    return INPUT0 + 1


def work_model(instances=4):
    FP32 = ("FP32", [-1])
    return PythonModel(
        work, inputs={"INPUT0": FP32}, outputs={"OUTPUT0": FP32}, instances=instances
    )
