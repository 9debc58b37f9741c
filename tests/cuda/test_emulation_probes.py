"""The questions that a real GPU is asked, see test_on_a_gpu.py, put to the emulation."""

from __future__ import annotations

import probes
import pytest

pytestmark = pytest.mark.once


def test_the_emulation_answers_them_all():
    """It shows that the program works; whether the answers are CUDA's only a GPU can tell."""
    answers = probes.ask_all(emulated=True)
    assert not [answer for answer in answers.values() if "the process ended" in answer]
    assert not [answer for answer in answers.values() if "not emulated" in answer]
    assert answers["device memory: IS_LEGACY_CUDA_IPC_CAPABLE"] == "yes"
    assert answers["cudaMemcpy2DAsync with a small pitch"] == "InvalidPitchValue (12)"
    assert answers["opened, the large one: first byte"] == "0x33"
