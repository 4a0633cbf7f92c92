"""Metadata of audio files, which outputs lack: read in order to name it."""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import soundfile

_STRUCTURE = {"fmt", "data", "fact", "ds64", "JUNK", "PAD", "FLLR", "PEAK", "LIST", "COMM", "SSND", "FVER"}
_LARGEST_CHUNK = 2**12  # bytes that are read of a chunk
_DEFAULT_MASKS = {1: 0x4, 2: 0x3, 4: 0x33, 6: 0x3F, 8: 0xFF}  # that libsndfile writes, by channels
_FLAC_BLOCKS = {2: "application data", 5: "cue sheet", 6: "picture"}


def lost_metadata(path: str, output_format: str) -> list[str]:
    """Return descriptions of the metadata of a file that an output of a format, in soundfile's terms, lacks.

    These are the chunks of WAV and AIFF (``bext`` with its time reference, ``iXML``, cue points), the blocks of FLAC,
    tags, and the channel mask of a WAV. There are none for a file that cannot be read.
    """
    lost = []
    try:
        with open(path, "rb") as file:
            start = file.read(12)
            if start[:4] in (b"RIFF", b"RF64", b"FORM"):
                order = ">" if start[:4] == b"FORM" else "<"
                for name, content in _chunks(file, order):
                    lost += _describe(name, content, output_format)
            elif start[:4] == b"fLaC":
                file.seek(4)
                lost += [_FLAC_BLOCKS[kind] for kind in _flac_blocks(file) if kind in _FLAC_BLOCKS]
            elif start[:3] == b"ID3":
                lost.append("ID3")
        with soundfile.SoundFile(path) as audio:
            tags = sorted(audio.copy_metadata())
    except (OSError, soundfile.LibsndfileError, struct.error):
        return lost
    return [*dict.fromkeys(lost), *([f"tags ({', '.join(tags)})"] if tags else [])]


def _chunks(file: BinaryIO, order: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and the beginnings of the chunks from here on."""
    while len(header := file.read(8)) == 8:
        size: int = struct.unpack(f"{order}I", header[4:])[0]
        position = file.tell()
        yield header[:4].decode("latin-1").strip(), file.read(min(size, _LARGEST_CHUNK))
        file.seek(position + size + size % 2)


def _describe(name: str, content: bytes, output_format: str) -> list[str]:
    if name == "fmt" and content[:2] == b"\xfe\xff":
        channels, mask = struct.unpack_from("<H", content, 2)[0], struct.unpack_from("<I", content, 20)[0]
        kept = _DEFAULT_MASKS.get(channels, 0)
        # Formats without a mask have the usual order of channels.
        is_kept = mask == kept if output_format == "WAVEX" else mask in (0, kept)
        return [] if is_kept else [f"channel mask 0x{mask:X}"]
    if name == "bext" and len(content) >= 346:
        return [f"bext (time reference {struct.unpack_from('<Q', content, 338)[0]} samples)"]
    if name == "LIST" and content[:4] == b"adtl":
        return ["labels of cue points"]
    return [] if name in _STRUCTURE or not name.isprintable() else [name]


def _flac_blocks(file: BinaryIO) -> Iterator[int]:
    """Yield the types of the metadata blocks from here on."""
    is_last = False
    while not is_last and len(header := file.read(4)) == 4:
        is_last = header[0] >= 128
        yield header[0] & 127
        file.seek(int.from_bytes(header[1:], "big"), 1)


def soundfile_path(path: str) -> str | bytes:
    """Return a path as soundfile opens it also if it is not UTF-8."""
    return os.fsencode(path) if os.name == "posix" else path
