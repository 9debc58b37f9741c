"""Everything that can go wrong between asking for a server and having one.

```
ServerError                 (RuntimeError)
├── UnsupportedPlatform     no server can be provisioned on this machine
├── ServerNotFound          the named executable does not exist or cannot be run
├── InterpreterNotFound     no Python that the server's python backend could embed
├── ProvisionError          the server could not be downloaded or unpacked
│   └── NotEnoughSpace      the cache directory's file system is too full
├── PortInUse               a port that was asked for is taken
├── ModelLoadError          the server refused a model, or a model cannot run on it
├── StartupTimeout          (TimeoutError) alive, but not ready in time
└── ServerExited            the server ended by itself
```

Each message says what to do next.
"""

from __future__ import annotations


class ServerError(RuntimeError):
    """Base class of the errors raised by `triton_zerocopy.testing`."""


class UnsupportedPlatform(ServerError):
    """No server binary exists for this operating system, processor or C library."""


class ServerNotFound(ServerError):
    """The server executable that was named does not exist or cannot be run."""


class InterpreterNotFound(ServerError):
    """No interpreter here can be embedded by the server's python backend."""


class ProvisionError(ServerError):
    """Downloading or unpacking the server failed."""


class NotEnoughSpace(ProvisionError):
    """The file system that holds the cache directory is too full.

    Attributes:
        wanted: Bytes needed.
        free: Bytes available.
    """

    def __init__(self, message: str, *, wanted: int, free: int) -> None:
        super().__init__(message)
        self.wanted = wanted
        self.free = free


class PortInUse(ServerError):
    """A port is held by another program.

    Attributes:
        port: The port, or None when the server's log does not name it.
    """

    def __init__(self, message: str, *, port: int | None) -> None:
        super().__init__(message)
        self.port = port


class ModelLoadError(ServerError):
    """The server refused to load a model, or the model cannot run on this server.

    Attributes:
        models: The names of the models concerned.
    """

    def __init__(self, message: str, *, models: tuple[str, ...]) -> None:
        super().__init__(message)
        self.models = models


class StartupTimeout(ServerError, TimeoutError):
    """The server is alive but did not become ready in time."""


class ServerExited(ServerError):
    """The server process ended although nobody asked it to.

    Attributes:
        returncode: Exit status, negative for the signal that ended it.
    """

    def __init__(self, message: str, *, returncode: int) -> None:
        super().__init__(message)
        self.returncode = returncode


class Aborted(Exception):
    """Private: the thread that starts a server was told to give up."""
