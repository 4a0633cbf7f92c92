"""Files that are written whole: a process that is killed, or a full disk, leaves the old file or the new one."""

import contextlib
import csv
import json
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from dfx.errors import UserError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows has no such module.


@contextlib.contextmanager
def replacing(path: Path, sync: bool = False) -> Iterator[Path]:
    """Yield a path in the same folder to write to; on success it replaces ``path``, after an error it is removed.

    With ``sync``, file and folder entry are written through to the disk, to survive a power cut.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        if sync:
            sync_to_disk(partial)
        partial.replace(path)
        if sync and os.name == "posix":  # elsewhere folders cannot be opened
            sync_to_disk(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def write_text(path: Path, content: str) -> None:
    """Write a text file in UTF-8."""
    with replacing(path) as partial:
        partial.write_text(content, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] | None = None) -> None:
    """Write a CSV file: a line of the columns, by default those of the first row, and one line for each row.

    Bytes of file names that are not UTF-8 are written as they are, for :func:`dfx.datasets.manifest.read_manifest`.
    """
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def file_stem(name: str, taken: Iterable[str]) -> str:
    """Return a file name without suffix for a name, unlike those that are taken also where case is ignored."""
    # File systems allow 255 bytes, of which a suffix needs some.
    first = re.sub(r"[/\\]", "_", name).encode()[:200].decode(errors="ignore")
    used = {stem.casefold() for stem in taken}
    stems = (first, *(f"{first}-{number}" for number in range(2, len(used) + 2)))
    return next(stem for stem in stems if stem.casefold() not in used)


def lock(path: Path, fault: str) -> IO[str]:
    """Lock a file until it is closed or this process ends, in whatever way.

    Raises:
        UserError: with ``fault``, if another process has locked it.
    """
    file = path.open("a", encoding="utf-8")
    if fcntl is not None:
        try:
            # Unlike flock, lockf is not inherited by forked processes, which may live on for a while.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise UserError(fault) from None
        except OSError as error:
            warnings.warn(f"{path} cannot be locked ({error.strerror}): start no other process there", stacklevel=2)
    return file


def sync_to_disk(path: Path) -> None:
    """Wait until the disk has a file or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
