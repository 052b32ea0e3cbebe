"""Files that appear whole or not at all, and what is said when the disk does not take them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from judging.errors import InfrastructureError

_NO_SYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP)  # some network file systems


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises InfrastructureError, with the path and the cause, where the disk refuses."""
    try:
        yield
    except OSError as error:
        raise InfrastructureError(
            f"cannot write {path}: {error.strerror or error}; what is committed is kept: mend "
            "this, and go on with --resume"
        ) from error


@contextmanager
def atomic_writer(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """A file, text or bytes, that appears under its name whole and for good, or not at all.

    Raises InfrastructureError if the disk does not take it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # A lone surrogate, which text out of JSON may hold, becomes the escape JSON has for it.
    encoding, errors = ("utf-8", "backslashreplace") if mode == "w" else (None, None)
    try:
        with writing(path):
            with temporary.open(mode, encoding=encoding, errors=errors) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):  # of a disk that takes nothing, not even this
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Has the folder's entries on disk; without it a rename may be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC_OF_FOLDERS:
            raise
    finally:
        os.close(descriptor)
