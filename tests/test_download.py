import hashlib
import shutil
import socket
from collections import namedtuple

import pytest

from dfx.datasets.preparation import download as module
from dfx.datasets.preparation.download import DownloadError, RemoteFile, download, require_space, zenodo_file
from dfx.errors import UserError
from tests.loopback import Loopback

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    loopback = Loopback()
    loopback.files["a.zip"] = CONTENT
    yield loopback
    loopback.close()


def test_a_file_of_a_record_is_downloaded_and_verified(server, tmp_path):
    file = zenodo_file(server.record, "a.zip")
    assert (file.size, file.checksum) == (len(CONTENT), f"md5:{hashlib.md5(CONTENT).hexdigest()}")
    path = tmp_path / "new" / "a.zip"
    download(file, path)
    assert path.read_bytes() == CONTENT
    assert [f.name for f in path.parent.iterdir()] == ["a.zip"]


def test_an_existing_file_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "a.zip").write_text("mine")
    download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_text() == "mine" and server.requests == []


def test_an_interrupted_download_resumes_where_it_was(server, tmp_path):
    server.breaks_after = 3000
    download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]


def test_a_download_resumes_in_another_run(server, tmp_path):
    (tmp_path / "a.zip.partial").write_bytes(CONTENT[:5000])
    download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert server.requests == [("a.zip", "bytes=5000-")]


def test_a_complete_partial_file_is_renamed_without_a_request(server, tmp_path):
    (tmp_path / "a.zip.partial").write_bytes(CONTENT)
    download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT and server.requests == []


def test_a_server_without_ranges_sends_the_file_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.zip.partial").write_bytes(b"x" * 5000)
    download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_server_without_ranges_that_always_disconnects_is_given_up(server, tmp_path):
    server.ranges, server.breaks_after = False, 3000
    with pytest.raises(DownloadError, match="a.zip/content cannot be downloaded .*broke off.*run this again"):
        download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip.partial").read_bytes() == CONTENT[:3000]
    assert len(server.requests) == module.ATTEMPTS + 1


def test_another_part_than_was_requested_is_not_added(server, tmp_path):
    server.misplaced = 100
    (tmp_path / "a.zip.partial").write_bytes(CONTENT[:5000])
    with pytest.raises(DownloadError, match="a.zip/content answers with another part of the file"):
        download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip.partial").read_bytes() == CONTENT[:5000]


def test_without_a_published_size_or_checksum_the_length_of_the_server_counts(server, tmp_path):
    server.breaks_after = 6000
    download(RemoteFile(f"{server.url}/a.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_partial_file_that_is_too_long_is_downloaded_again(server, tmp_path):
    (tmp_path / "a.zip.partial").write_bytes(CONTENT + b"more")
    download(RemoteFile(f"{server.url}/a.zip"), tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "published, message",
    [
        ({"checksum": "md5:" + "0" * 32}, "md5 .* where 0+ was published"),
        ({"size": len(CONTENT) + 1}, "10240 bytes where 10241 were published"),
        ({"size": 100}, "10240 bytes where 100 were published"),
    ],
)
def test_a_file_that_is_not_what_was_published_is_removed(server, tmp_path, published, message):
    server.published["a.zip"] = published
    with pytest.raises(DownloadError, match=f"a.zip/content came damaged .*{message}.*run this again"):
        download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_start_is_found_by_the_checksum_and_the_next_run_repairs_it(server, tmp_path):
    (tmp_path / "a.zip.partial").write_bytes(b"x" * 5000)
    file = zenodo_file(server.record, "a.zip")
    with pytest.raises(DownloadError, match="came damaged"):
        download(file, tmp_path / "a.zip")
    download(file, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_checksum_of_another_kind_is_computed_or_refused(server, tmp_path):
    server.published["a.zip"] = {"checksum": f"sha256:{hashlib.sha256(CONTENT).hexdigest().upper()}"}
    download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    server.published["a.zip"] = {"checksum": "crc:1"}
    with pytest.raises(DownloadError, match="crc:1 is of a kind that we cannot compute"):
        download(zenodo_file(server.record, "a.zip"), tmp_path / "b.zip")


def test_a_busy_server_is_tried_again_and_one_that_refuses_is_not(server, tmp_path):
    server.status["a.zip"] = [503, 429]
    download(RemoteFile(f"{server.url}/a.zip"), tmp_path / "a.zip")
    assert len(server.requests) == 3
    server.status["a.zip"] = [403]
    with pytest.raises(DownloadError, match="a.zip is refused: HTTP 403") as error:
        download(RemoteFile(f"{server.url}/a.zip"), tmp_path / "b.zip")
    assert error.value.status == 403


def test_a_record_without_the_file_lists_its_files(server):
    with pytest.raises(DownloadError, match="has no file b.zip; it has a.zip"):
        zenodo_file(server.record, "b.zip")


@pytest.mark.parametrize("content", [b"<html>", b"{}", b"[]", b'{"files": [{"key": "a.zip"}]}', b"null"])
def test_an_address_that_is_not_a_record_is_named(server, content):
    server.files["page"] = content
    with pytest.raises(DownloadError, match="page does not answer as Zenodo's API does"):
        zenodo_file(f"{server.url}/page", "a.zip")


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://a/b", "a.zip", "", "http://", "http://[", "http://a:b/", "http://a b"]
)
def test_invalid_addresses_are_refused(url):
    with pytest.raises(DownloadError, match="address"):
        zenodo_file(url, "a.zip")


def test_without_a_network_the_error_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        with pytest.raises(DownloadError, match=f"{url} cannot be downloaded .*refused.*: check the net") as error:
            zenodo_file(url, "a.zip")
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_respond_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DownloadError, match="timed out"):
        zenodo_file(f"http://127.0.0.1:{silent.getsockname()[1]}/", "a.zip")


def test_a_disk_that_is_too_small_is_found_before_anything_is_written(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 10_000))
    with pytest.raises(UserError, match="0.00 GB free where 0.00 GB are needed"):
        download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.zip.partial").write_bytes(CONTENT[:5000])  # the rest has room
    download(zenodo_file(server.record, "a.zip"), tmp_path / "a.zip")
    require_space(tmp_path, 10_000)
