"""Certificates that a command line names: what is wrong with a file is said with its name."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["load_identity", "trusting"]


def trusting(file: str | None) -> ssl.SSLContext:
    """Return a client's context that trusts the authorities of a file, without one the system's.

    Raises:
        ValueError: the file cannot be read, or has none.
    """
    with _expecting(f"certificates (PEM) in {file}"):
        return ssl.create_default_context(cafile=file)


def load_identity(context: ssl.SSLContext, file: str, key_file: str | None) -> None:
    """Have a context show a certificate; its private key is in the same file or in another.

    Raises:
        ValueError: one of them cannot be read, or they do not belong together.
    """
    place = file if key_file is None else f"{file} and {key_file}"
    with _expecting(f"a certificate and its private key (PEM) in {place}"):
        context.load_cert_chain(file, key_file)


@contextmanager
def _expecting(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        # Neither it nor an SSLError, which is one, says which file it is about.
        raise ValueError(f"expected {what}: {exc.strerror or exc}") from None
