"""Downloads from a local server that can break off, lie and forget; archives made by hand, good and bad."""

from __future__ import annotations

import errno
import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import download
from bench.errors import DownloadError, StorageError

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """breaks: after how many bytes the next answers break off; states: HTTP errors of the next answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"
        self.content, self.kind, self.etag, self.ranges = CONTENT, "application/octet-stream", '"v1"', True
        self.breaks: list[int] = []
        self.states: list[int] = []
        self.asked: list[dict[str, str]] = []

    def handle_error(self, request, client_address):
        """Clients of these tests hang up; the default would print that to stderr."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server = self.server
        server.asked.append(dict(self.headers))
        if server.states:
            return self.send_error(server.states.pop(0))
        start = self._start()
        body = server.content[start:]
        if start > len(server.content) or (start and not body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Type", server.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)
        self.close_connection = True
        return None

    def _start(self):
        wanted = self.headers.get("Range", "")
        condition = self.headers.get("If-Range")
        if not self.server.ranges or not wanted or (condition is not None and condition != self.server.etag):
            return 0
        return int(wanted.removeprefix("bytes=").rstrip("-"))

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def left(folder: Path):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_alone(server, tmp_path):
    target = tmp_path / "deep" / "file.bin"
    assert download.fetch(server.url, target, sha256=SHA256, md5=MD5, size=len(CONTENT)) == target
    assert target.read_bytes() == CONTENT
    assert left(target.parent) == ["file.bin"]


def test_the_beginning_of_a_digest_is_enough(server, tmp_path):
    download.fetch(server.url, tmp_path / "a", sha256=SHA256[:8].upper())
    download.fetch(server.url, tmp_path / "b", md5=MD5[:6])
    assert left(tmp_path) == ["a", "b"]


def test_a_file_already_there_is_not_fetched_again(server, tmp_path):
    target = tmp_path / "file.bin"
    target.write_bytes(CONTENT)
    download.fetch(server.url, target, sha256=SHA256)
    assert server.asked == []
    target.write_bytes(b"other")
    with pytest.raises(DownloadError, match=r"file\.bin is not the file.*expected sha256 .*got .*delete it"):
        download.fetch(server.url, target, sha256=SHA256)
    assert target.read_bytes() == b"other"  # perhaps put there by hand: never removed


def test_a_broken_connection_is_taken_up(server, tmp_path):
    server.breaks = [300_000, 200_000]
    download.fetch(server.url, tmp_path / "file.bin", sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert [asked.get("Range") for asked in server.asked] == [None, "bytes=300000-", "bytes=500000-"]
    assert server.asked[1]["If-Range"] == '"v1"'


def test_a_later_call_continues(server, tmp_path):
    server.breaks = [300_000]
    with pytest.raises(DownloadError, match=r"broke off 1 times.*run the command again"):
        download.fetch(server.url, tmp_path / "file.bin", attempts=1)
    assert (tmp_path / "file.bin.part").stat().st_size == 300_000
    download.fetch(server.url, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked[-1]["Range"] == "bytes=300000-"
    assert left(tmp_path) == ["file.bin"]


def test_a_changed_file_starts_again(server, tmp_path):
    server.breaks = [300_000]
    with pytest.raises(DownloadError):
        download.fetch(server.url, tmp_path / "file.bin", attempts=1)
    server.content, server.etag = CONTENT[::-1], '"v2"'
    download.fetch(server.url, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[::-1]


def test_without_version_and_digest_nothing_is_continued(server, tmp_path):
    server.etag, server.breaks = "", [300_000]
    download.fetch(server.url, tmp_path / "a")
    assert [asked.get("Range") for asked in server.asked] == [None, None]
    server.breaks, server.asked = [300_000], []
    download.fetch(server.url, tmp_path / "b", md5=MD5)  # the digest will tell
    assert [asked.get("Range") for asked in server.asked] == [None, "bytes=300000-"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges, server.breaks = False, [300_000]
    download.fetch(server.url, tmp_path / "file.bin", sha256=SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_part_that_is_complete_or_too_long(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    download.fetch(server.url, tmp_path / "file.bin", sha256=SHA256)
    assert len(server.asked) == 1
    (tmp_path / "long.part").write_bytes(CONTENT + b"more")
    download.fetch(server.url, tmp_path / "long", sha256=SHA256)
    assert (tmp_path / "long").read_bytes() == CONTENT


def test_a_wrong_digest_is_said_and_the_file_removed(server, tmp_path):
    with pytest.raises(DownloadError, match=rf"expected sha256 abcd1234, got {SHA256[:8]}") as caught:
        download.fetch(server.url, tmp_path / "file.bin", sha256="abcd1234")
    assert "\n" not in str(caught.value)
    with pytest.raises(DownloadError, match=rf"expected md5 {'0' * 32}, got {MD5}"):
        download.fetch(server.url, tmp_path / "file.bin", md5="0" * 32)
    with pytest.raises(DownloadError, match=rf"expected 7 bytes, got {len(CONTENT)}"):
        download.fetch(server.url, tmp_path / "file.bin", size=7)
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_not_the_file(server, tmp_path, kind):
    server.kind, server.content = kind, b"\n<!DOCTYPE html><html>Sign in</html>"
    with pytest.raises(DownloadError, match="serves a web page, not the file"):
        download.fetch(server.url, tmp_path / "file.bin")
    assert left(tmp_path) == []


def test_http_errors(server, tmp_path):
    server.states = [503, 429]  # passing: tried again
    download.fetch(server.url, tmp_path / "a", sha256=SHA256)
    server.states, server.asked = [404], []
    with pytest.raises(DownloadError, match=r"HTTP 404.*by hand and put it at .*b"):
        download.fetch(server.url, tmp_path / "b")
    assert len(server.asked) == 1
    server.states = [503] * 3
    with pytest.raises(DownloadError, match=r"answers HTTP 503, 3 times"):
        download.fetch(server.url, tmp_path / "b")


def test_offline_says_what_to_do_by_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/w.pth"
    with pytest.raises(DownloadError) as caught:
        download.fetch(url, tmp_path / "w.pth", attempts=2)
    assert str(caught.value) == f"cannot reach 127.0.0.1: download {url} by hand and put it at {tmp_path / 'w.pth'}"


def test_a_full_disk_keeps_the_part(server, tmp_path, monkeypatch):
    server.breaks = [300_000]
    with pytest.raises(DownloadError):
        download.fetch(server.url, tmp_path / "file.bin", attempts=1)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("bench.download.os.fsync", full)
        with pytest.raises(StorageError, match=r"full; free some space"):
            download.fetch(server.url, tmp_path / "file.bin")
    assert (tmp_path / "file.bin.part").exists()
    monkeypatch.setattr("bench.download.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(StorageError, match=r"needs 1 MB more.* has 0 MB left"):
        download.fetch(server.url, tmp_path / "other")


def test_nothing_is_written_to_a_pipe(server, tmp_path, capsys):
    download.fetch(server.url, tmp_path / "file.bin")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def make_tar(path: Path, entries, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, kind, value in entries:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value))
            else:
                info.linkname = value
                archive.addfile(info)
    return path


FILE = tarfile.REGTYPE


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_tars_are_unpacked(tmp_path, mode):
    archive = make_tar(
        tmp_path / "a.tar",
        [
            ("top/a.txt", FILE, b"A"),
            ("top/sub/b.txt", FILE, b"B"),
            ("top/l", tarfile.SYMTYPE, "sub/b.txt"),
            ("top/h", tarfile.LNKTYPE, "top/a.txt"),
        ],
        mode,
    )
    out = download.extract(archive, tmp_path / "out")
    assert {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()} == {
        "top/a.txt": b"A",
        "top/sub/b.txt": b"B",
        "top/l": b"B",
        "top/h": b"A",
    }
    assert left(tmp_path) == ["a.tar", "out"]


def test_zips_and_chosen_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("top/a.txt", "A")
        archive.writestr("top/sub/b.txt", "B")
        archive.writestr("other/c.txt", "C")
    download.extract(tmp_path / "a.zip", tmp_path / "all")
    assert (tmp_path / "all" / "other" / "c.txt").read_text() == "C"
    download.extract(tmp_path / "a.zip", tmp_path / "some", members=["top/sub/*", "other/*"])
    assert sorted(p.name for p in (tmp_path / "some").rglob("*.txt")) == ["b.txt", "c.txt"]


@pytest.mark.parametrize(
    "entry",
    [
        ("/abs.txt", FILE, b"x"),
        ("../up.txt", FILE, b"x"),
        ("a/../../up.txt", FILE, b"x"),
        ("..\\up.txt", FILE, b"x"),
        ("C:\\up.txt", FILE, b"x"),
        ("link", tarfile.SYMTYPE, "../outside"),
        ("link", tarfile.SYMTYPE, "/etc/passwd"),
        ("hard", tarfile.LNKTYPE, "../outside"),
        ("device", tarfile.CHRTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""),
    ],
)
def test_unsafe_members_are_refused_by_name(tmp_path, entry):
    folder = tmp_path / "deep"
    folder.mkdir()
    archive = make_tar(folder / "a.tar", [("good.txt", FILE, b"A"), entry])
    with pytest.raises(DownloadError) as caught:
        download.extract(archive, folder / "out")
    assert repr(entry[0]) in str(caught.value)
    assert left(folder) == ["a.tar"]
    assert left(tmp_path) == ["deep"]


def test_nothing_is_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = make_tar(tmp_path / "a.tar", [("l", tarfile.SYMTYPE, str(outside)), ("l/x.txt", FILE, b"x")])
    with pytest.raises(DownloadError, match="unsafe member 'l'"):
        download.extract(archive, tmp_path / "out")
    assert left(outside) == []
    assert left(tmp_path) == ["a.tar", "outside"]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "zip"])
def test_damaged_archives_leave_nothing(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", b"A" * 5000)
    else:
        make_tar(path, [(f"{i}.txt", FILE, bytes([i]) * 5000) for i in range(9)], "w" if suffix == "tar" else "w:gz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DownloadError, match="download it again"):
        download.extract(path, tmp_path / "out")
    assert left(tmp_path) == [path.name]
    path.write_bytes(b"<html>")
    with pytest.raises(DownloadError, match="download it again"):
        download.extract(path, tmp_path / "out")


def test_an_unpacked_folder_is_returned_as_it_is(tmp_path):
    (tmp_path / "out").mkdir()
    assert download.extract(tmp_path / "absent.tar", tmp_path / "out") == tmp_path / "out"
