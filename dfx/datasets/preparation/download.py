"""Files from the web: resumed where they broke off, and checked before they get their name."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from dfx.errors import UserError

ATTEMPTS = 4
"""How often in a row a server may give nothing before we give up."""

WAIT_SECONDS = 1.0
"""Before the next attempt; twice as long after each that gave nothing."""

TIMEOUT_SECONDS = 60.0

_BLOCK = 1 << 20

T = TypeVar("T")


class DownloadError(UserError):
    """A file that a server does not give.

    Args:
        message: one line that names the address, what is wrong, and the way out.
        status: of HTTP, where the server answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RemoteFile(NamedTuple):
    """A file of a server, with what its publisher says of it.

    Args:
        url: its address.
        size: in bytes, where known.
        checksum: ``algorithm:hexadecimal``, as ``md5:0cc1...``, where known.
    """

    url: str
    size: int | None = None
    checksum: str | None = None


def zenodo_file(record: str, name: str) -> RemoteFile:
    """Asks Zenodo for the address, the size and the checksum of a file of a record.

    Args:
        record: the address of the record in Zenodo's API, ``https://zenodo.org/api/records/NUMBER``
            (https://developers.zenodo.org).
        name: of the file.

    Raises:
        DownloadError: if the record cannot be had, or has no such file.
    """

    def attempt() -> bytes:
        with _open(record) as response:
            return b"".join(_blocks(response))

    answer = _persist(record, attempt)
    try:
        files = {file["key"]: file for file in json.loads(answer)["files"]}
        if name not in files:
            raise DownloadError(f"{record} has no file {name}; it has {', '.join(sorted(files)) or 'none'}")
        file = files[name]
        return RemoteFile(str(file["links"]["self"]), int(file["size"]), file.get("checksum"))
    except (ValueError, KeyError, TypeError):
        raise DownloadError(f"{record} does not answer as Zenodo's API does: check the address") from None


def download(file: RemoteFile, path: Path) -> None:
    """Downloads a file; one that exists is left as it is.

    What has come is kept in ``path`` with ``.partial`` added, and gone on with after a broken connection, in
    this call or a later one. The file gets its name when size and checksum are right.

    Raises:
        DownloadError: if the server cannot be reached, refuses, or gives another file than was published.
        UserError: if the disk is too small.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    way_out = f"check the network and run this again to go on, or save the file with a browser as {path}"
    _persist(file.url, lambda: _receive(file, partial), lambda: _size(partial), way_out)
    fault = _fault(file, partial)
    if fault:
        partial.unlink()
        raise DownloadError(f"{file.url} came damaged ({fault}) and was removed: run this again")
    partial.replace(path)


def require_space(folder: Path, size: int) -> None:
    """Checks the free space of a disk.

    Args:
        folder: an existing one, on that disk.
        size: how much is about to be written, in bytes.

    Raises:
        UserError: if there is less.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{folder} has {free / 1e9:.2f} GB free where {size / 1e9:.2f} GB are needed: "
            "make room, or choose another disk with --output"
        )


class _Interrupted(Exception):
    """The network, or the server for a while, is at fault: it is worth another attempt."""


def _persist(
    url: str, attempt: Callable[[], T], reached: Callable[[], int] = lambda: 0, way_out: str = "check the network"
) -> T:
    failures, best = 0, reached()
    while True:
        try:
            return attempt()
        except _Interrupted as error:
            # A server without Range begins anew each time: only what was never reached before is progress.
            failures = 0 if reached() > best else failures + 1
            best = max(best, reached())
            if failures == ATTEMPTS:
                raise DownloadError(f"{url} cannot be downloaded ({error}): {way_out}") from None
            time.sleep(WAIT_SECONDS * 2**failures)


def _receive(file: RemoteFile, partial: Path) -> None:
    """Adds what one connection gives."""
    start = _size(partial)
    if file.size is not None and start >= file.size:
        return
    with _open(file.url, start) as response:
        offset = 0
        if response.status == 206:
            given = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            offset = int(given[1]) if given else -1
            if offset != start:
                raise DownloadError(f"{file.url} answers with another part of the file than was asked for")
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length else file.size
        if total:
            require_space(partial.parent, total - offset)
        bar = tqdm(desc=partial.stem, total=total, initial=offset, unit="B", unit_scale=True, unit_divisor=1000)
        with partial.open("r+b" if offset else "wb") as out, bar:
            out.seek(offset)
            for block in _blocks(response):
                out.write(block)
                bar.update(len(block))
    if total and _size(partial) < total:
        raise _Interrupted("the connection broke off")


def _open(url: str, start: int = 0) -> Any:
    headers = {"User-Agent": "dfx", **({"Range": f"bytes={start}-"} if start else {})}
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("it should start with http:// or https://")
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # there is nothing after what we have
            return _open(url)
        if error.code == 429 or error.code >= 500:
            raise _Interrupted(f"HTTP {error.code} {error.reason}") from None
        raise DownloadError(f"{url} is refused: HTTP {error.code} {error.reason}", error.code) from None
    except urllib.error.URLError as error:
        raise _Interrupted(str(error.reason)) from None
    except (ValueError, http.client.InvalidURL) as error:
        raise DownloadError(f"'{url}' is not an address: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from None


def _blocks(response: Any) -> Iterator[bytes]:
    while True:
        try:
            block = response.read(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(str(error) or type(error).__name__) from None
        if not block:
            return
        yield block


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fault(file: RemoteFile, path: Path) -> str:
    if file.size is not None and _size(path) != file.size:
        return f"{_size(path)} bytes where {file.size} were published"
    if file.checksum is None:
        return ""
    algorithm, _, published = file.checksum.partition(":")
    try:
        digest = hashlib.new(algorithm)
    except ValueError:
        raise DownloadError(f"{file.url}: its checksum {file.checksum} is of a kind that we cannot compute") from None
    bar = tqdm(desc=f"Checking {path.stem}", total=_size(path), unit="B", unit_scale=True, leave=False)
    with path.open("rb") as content, bar:
        while block := content.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != published.lower():
        return f"{algorithm} {digest.hexdigest()} where {published} was published"
    return ""
