"""TLS for a client, from certificates as bytes."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def client_context(
    root_certificates: bytes | None, private_key: bytes | None, certificate_chain: bytes | None
) -> ssl.SSLContext:
    """Return a context that checks the server's certificate and host name.

    Args:
        root_certificates: authorities to trust; None for those of the system.
        private_key: this client's key, if it has one.
        certificate_chain: this client's certificates.
    """
    roots = None if root_certificates is None else root_certificates.decode("ascii")
    context = ssl.create_default_context(cadata=roots)
    context.set_alpn_protocols(["http/1.1"])
    if certificate_chain is not None:
        # OpenSSL through Python reads them from files only.
        with _as_file(certificate_chain) as chain:
            if private_key is None:
                context.load_cert_chain(chain)
            else:
                with _as_file(private_key) as key:
                    context.load_cert_chain(chain, key)
    return context


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Have bytes under a path, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("pem"), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory() as directory:  # of mode 0700
            path = os.path.join(directory, "pem")
            with open(path, "wb") as file:
                file.write(data)
            yield path
