"""What a CUDA error means and what to do about it.

Names are CUDA's own (``cudaError_t``), with the remedies that this library's users need: most
failures come from how two processes see the GPUs, not from the GPU.
"""

from __future__ import annotations

from typing import Final

from .._errors import CudaError

_VISIBLE: Final = (
    "check nvidia-smi, CUDA_VISIBLE_DEVICES, and that the container has the GPU (docker run --gpus)"
)
_HINTS: Final = {
    "cudaErrorInsufficientDriver": (
        "there is no NVIDIA driver here, or it is older than the installed cuda-python; install "
        "one, or a cuda-python of its CUDA version (pip install 'cuda-python==12.*')"
    ),
    "cudaErrorNoDevice": f"no GPU is visible to this process; {_VISIBLE}",
    "cudaErrorInvalidDevice": f"this process does not see that GPU; {_VISIBLE}",
    "cudaErrorDevicesUnavailable": "another process holds the GPU exclusively (nvidia-smi -c 0)",
    "cudaErrorSystemDriverMismatch": "the driver's parts have different versions; reboot, or "
    "restart the container after a driver update",
    "cudaErrorNotSupported": (
        "this GPU or system cannot do it: CUDA IPC does not exist on Jetson and Windows and is "
        "limited on WSL, and MIG instances share memory only within one; use memory='system'"
    ),
    "cudaErrorMemoryAllocation": "use fewer slots or smaller shapes, or free memory of other users",
    "cudaErrorIllegalAddress": (
        "a kernel of this process read or wrote outside of its memory; the CUDA context is lost, "
        "restart the process"
    ),
    "cudaErrorInvalidResourceHandle": (
        "a stream or event was destroyed while it was still needed, or belongs to another GPU"
    ),
    "cudaErrorPeerAccessUnsupported": "these two GPUs cannot reach each other's memory",
}


def cuda_error(name: str, text: str, code: int, doing: str) -> CudaError:
    """Return the error for a failed CUDA call.

    Args:
        name: CUDA's name of it, as ``cudaErrorInvalidDevice``.
        text: CUDA's explanation.
        code: its number.
        doing: what was being done, for the message.
    """
    hint = _HINTS.get(name)
    message = f"{doing}: {text} ({name})"
    return CudaError(f"{message}; {hint}" if hint else message, name=name, code=code)
