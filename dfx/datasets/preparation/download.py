"""Download files: interrupted downloads are resumed, and files are verified before they get their name."""

import hashlib
import http.client
import json
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

ATTEMPTS = 4  # consecutive ones without progress, after which a download fails
WAIT_SECONDS = 1.0  # pause before the next attempt, doubled after each one without progress
TIMEOUT_SECONDS = 60.0  # longest wait for a response
_BLOCK = 1 << 20

T = TypeVar("T")


class DownloadError(UserError):
    """A file cannot be downloaded; ``status`` is that of HTTP, if the server refused."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RemoteFile(NamedTuple):
    """A file on a server, with its published size in bytes and checksum, such as ``md5:0cc1...``, where known."""

    url: str
    size: int | None = None
    checksum: str | None = None


def zenodo_file(record: str, name: str) -> RemoteFile:
    """Look up a file of a record, ``https://zenodo.org/api/records/NUMBER``, in Zenodo's API (developers.zenodo.org).

    Raises:
        DownloadError: if the record cannot be read, or has no such file.
    """

    def attempt() -> bytes:
        with _open(record) as response:
            return b"".join(_blocks(response))

    answer = _retry(record, attempt)
    try:
        files = {file["key"]: file for file in json.loads(answer)["files"]}
        if name not in files:
            raise DownloadError(f"{record} has no file {name}; it has {', '.join(sorted(files)) or 'none'}")
        file = files[name]
        return RemoteFile(str(file["links"]["self"]), int(file["size"]), file.get("checksum"))
    except (ValueError, KeyError, TypeError):
        raise DownloadError(f"{record} does not answer as Zenodo's API does: check the address") from None


def download(file: RemoteFile, path: Path) -> None:
    """Download a file, unless it exists.

    The data are collected in ``path`` with ``.partial`` appended, from which this call or a later one resumes. The
    file is renamed to ``path`` when size and checksum are right.

    Raises:
        DownloadError: if the server cannot be reached, refuses, or sends another file than was published.
        UserError: if the disk is full.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    remedy = f"check the network and run this again to resume, or save the file with a browser as {path}"
    _retry(file.url, lambda: _receive(file, partial), partial, remedy)
    fault = _fault(file, partial)
    if fault:
        partial.unlink()
        raise DownloadError(f"{file.url} came damaged ({fault}) and was removed: run this again")
    partial.replace(path)


def require_space(folder: Path, size: int) -> None:
    """Raise a :class:`UserError` if the disk of an existing folder has less free space than ``size`` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(
            f"{folder} has {free / 1e9:.2f} GB free where {size / 1e9:.2f} GB are needed: "
            "make room, or choose another disk with --output"
        )


class _Interrupted(Exception):
    """A temporary fault of the network or the server, after which another attempt may succeed."""


def _retry(url: str, attempt: Callable[[], T], partial: Path | None = None, remedy: str = "check the network") -> T:
    failures, best = 0, _size(partial)
    while True:
        try:
            return attempt()
        except _Interrupted as error:
            # A server without Range starts from 0 each time: only a new maximum is progress.
            failures = 0 if _size(partial) > best else failures + 1
            best = max(best, _size(partial))
            if failures == ATTEMPTS:
                raise DownloadError(f"{url} cannot be downloaded ({error}): {remedy}") from None
            time.sleep(WAIT_SECONDS * 2**failures)


def _receive(file: RemoteFile, partial: Path) -> None:
    """Append the data of one connection."""
    start = _size(partial)
    if file.size is not None and start >= file.size:
        return
    with _open(file.url, start) as response:
        is_part = response.status == 206
        if is_part and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise DownloadError(f"{file.url} answers with another part of the file than was requested")
        offset = start if is_part else 0
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
        if error.code == 416 and start:  # the file ends before `start`
            return _open(url)
        if error.code == 429 or error.code >= 500:
            raise _Interrupted(f"HTTP {error.code} {error.reason}") from None
        raise DownloadError(f"{url} is refused: HTTP {error.code} {error.reason}", error.code) from None
    except (ValueError, http.client.InvalidURL) as error:
        raise DownloadError(f"'{url}' is not an address: {error}") from None
    except (OSError, http.client.HTTPException) as error:  # a URLError has the cause as its reason
        raise _Interrupted(str(getattr(error, "reason", error)) or type(error).__name__) from None


def _blocks(response: Any) -> Iterator[bytes]:
    try:
        while block := response.read(_BLOCK):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(str(error) or type(error).__name__) from None


def _size(path: Path | None) -> int:
    return path.stat().st_size if path and path.exists() else 0


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
    bar = {"desc": f"Checking {path.stem}", "unit": "B", "unit_scale": True, "leave": False}
    with path.open("rb") as raw, tqdm.wrapattr(raw, "read", _size(path), bytes=False, **bar) as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != published.lower():
        return f"{algorithm} {digest.hexdigest()} where {published} was published"
    return ""
