"""Reading in a server's log why it did not start."""

from __future__ import annotations

import re

from ._errors import ModelLoadError, PortInUse, ServerError, ServerExited

_TAIL = 25  # lines
_MODEL = re.compile(
    r"failed to load '([^']+)'|Poll failed for model directory '([^']+)'|ensemble (\S+) contains"
)
_NO_MODELS = "failed to load all models"
_SERVICE = re.compile(r"failed to start (?:GRPC|HTTP) service|already in use", re.IGNORECASE)
_PORT = re.compile(r"(?:\.\d+|localhost|::1?\]):(\d{2,5})\b")
_LOADER = re.compile(r"error while loading shared libraries: (\S+):.*")
_ERROR_LINE = re.compile(r"^E\d{4} |ERROR|failed|error:", re.IGNORECASE)
_NOISE = re.compile(
    r"^[|+]"  # tables
    r"|CudaDriverHelper has not been initialized|Unable to allocate pinned system memory"
    r"|<frozen importlib"
)


def explain_exit(log: str, returncode: int) -> ServerError:
    """Return the error for a server that ended before it was ready.

    Args:
        log: What this server wrote.
        returncode: Its exit status.
    """
    names = ["".join(groups) for groups in _MODEL.findall(log)]
    if names or _NO_MODELS in log:
        models = tuple(dict.fromkeys(names))
        return ModelLoadError(
            f"The server could not load {', '.join(models) or 'its models'}. Its log says:\n"
            f"{_relevant(log)}",
            models=models,
        )
    service = next((line for line in log.splitlines() if _SERVICE.search(line)), None)
    if service is not None:
        port = _PORT.search(service)
        where = f"on port {port[1]}, which is taken" if port else f"({service.strip()})"
        return PortInUse(
            f"The server could not listen {where}. Choose other ports, or none to have free ones"
            " chosen.",
            port=int(port[1]) if port else None,
        )
    missing = _LOADER.search(log)
    if missing:
        return ServerExited(
            f"The server cannot run here, because {missing[1]} is missing ({missing[0]}). Install"
            " it, or add its directory to LD_LIBRARY_PATH with env=.",
            returncode=returncode,
        )
    before, usage, after = log.partition("Usage: tritonserver")
    if usage:
        refusal = before.strip() or after.strip().splitlines()[-1]
        return ServerExited(
            f"The server does not understand its arguments: {refusal}. Correct args=.",
            returncode=returncode,
        )
    return ServerExited(
        f"The server ended with exit status {returncode} before it was ready. Its log ends"
        f" with:\n{tail(log)}",
        returncode=returncode,
    )


def tail(log: str) -> str:
    """Return the last lines of a log, without the tables."""
    return _indented(log.splitlines()[-4 * _TAIL :], last=True)


def _relevant(log: str) -> str:
    """Return the lines of a log that speak of an error, with escaped line breaks undone."""
    lines = [line for line in log.splitlines() if _ERROR_LINE.search(line)]
    return _indented("\n".join(dict.fromkeys(lines)).replace("\\n", "\n").splitlines())


def _indented(lines: list[str], *, last: bool = False) -> str:
    kept = [line for line in lines if line.strip(' "') and not _NOISE.search(line)]
    kept = kept[-_TAIL:] if last else kept[:_TAIL]
    return "\n".join(f"  {line}" for line in kept) or "  (nothing)"
