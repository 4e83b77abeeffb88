"""Downloads from a local server that can break off, lie and forget; archives made by hand, good and bad."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import socket
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import download
from bench.adapters import iic
from bench.errors import DownloadError, StorageError
from bench.estimators import u2net

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """breaks: after how many bytes the next answers break off; states: HTTP errors of the next answers.

    pages: path -> (HTTP state, page), where another path is the file.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"
        self.content, self.kind, self.etag, self.ranges = CONTENT, "application/octet-stream", '"v1"', True
        self.breaks: list[int] = []
        self.states: list[int] = []
        self.pages: dict[str, tuple[int, str]] = {}
        self.paths: list[str] = []
        self.asked: list[dict[str, str]] = []

    def handle_error(self, request, client_address):
        """Clients of these tests hang up; the default would print that to stderr."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server = self.server
        server.asked.append(dict(self.headers))
        server.paths.append(self.path)
        if page := server.pages.get(self.path.partition("?")[0]):
            return self._page(*page)
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

    def _page(self, state, text):
        self.send_response(state)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode())))
        self.send_header("Set-Cookie", "seen=page")
        self.end_headers()
        self.wfile.write(text.encode())
        self.close_connection = True

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


def test_another_version_of_the_rest_starts_again(server, tmp_path, monkeypatch):
    """A server that does not read If-Range sends the rest of another file: its ETag tells."""
    server.breaks = [300_000]
    target = tmp_path / "file.bin"
    with pytest.raises(DownloadError):
        download.fetch(server.url, target, attempts=1)
    server.content, server.etag = CONTENT[::-1], '"v2"'
    monkeypatch.setattr(Handler, "_start", lambda self: int(self.headers.get("Range", "bytes=0-")[6:-1]))
    download.fetch(server.url, target)
    assert target.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("etag", ['"v1"', ""])
def test_processes_that_fetch_one_file_do_not_meet(server, tmp_path, etag):
    """Each has a part of its own; all end with the whole file, and nothing is left beside it."""
    server.etag = etag
    target, seen, hold = tmp_path / "file.bin", [], threading.Event()
    original = Handler.do_GET

    def slowly(self):
        seen.append(left(tmp_path))
        if len(seen) < 3:
            hold.wait(5)
        else:
            hold.set()
        original(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Handler, "do_GET", slowly)
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda _: download.fetch(server.url, target).read_bytes() == CONTENT, range(3)))
    assert found == [True] * 3
    assert [name for name in seen[-1] if not name.endswith(".etag")] == [
        "file.bin.part",
        "file.bin.part2",
        "file.bin.part3",
    ]
    assert [name for name in left(tmp_path) if not name.endswith(".etag")] == ["file.bin"]


def test_the_part_of_a_process_that_is_gone_is_continued(server, tmp_path):
    server.breaks = [300_000]
    with pytest.raises(DownloadError):
        download.fetch(server.url, tmp_path / "file.bin", attempts=1)
    download.fetch(server.url, tmp_path / "file.bin")
    assert server.asked[-1]["Range"] == "bytes=300000-"


def test_a_file_that_is_sent_packed_is_refused(server, tmp_path, monkeypatch):
    send = Handler.send_header
    for name, value in (("Content-Encoding", "gzip"), ("Transfer-Encoding", "gzip, chunked")):
        with monkeypatch.context() as patched:
            patched.setattr(
                Handler,
                "send_header",
                lambda self, k, v, n=name, w=value: send(self, *((n, w) if k == "ETag" else (k, v))),
            )
            with pytest.raises(DownloadError, match=r"is sent packed \(gzip"):
                download.fetch(server.url, tmp_path / "weights.pth")
            if name == "Content-Encoding":  # what is packed itself is often announced so
                assert download.fetch(server.url, tmp_path / "file.tar.gz").read_bytes() == CONTENT
    assert left(tmp_path) == ["file.tar.gz"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xef\xbb\xbf<!DOCTYPE html><title>Sign in</title>", "is not public"),
        (b"<!-- generated -->\n<?xml version='1.0'?>\n <html><title>Gone</title>", 'web page, not the file ("Gone")'),
        (b'{"error": "access denied",\n "code": 403}', 'answers {"error": "access denied", "code": 403} in place'),
    ],
    ids=["mark", "comment", "json"],
)
def test_messages_are_not_the_file(server, tmp_path, content, says):
    server.content = content
    with pytest.raises(DownloadError) as refused:
        download.fetch(server.url, tmp_path / "weights.pth")
    assert says in str(refused.value)
    assert left(tmp_path) == []


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


# --- Google Drive and Dropbox ----------------------------------------------------------------------------------------

SHARED = "https://drive.google.com/file/d/1UkzAZMBG1U8kTqO3yhO2nTtoRNtEvyRq/view?usp=sharing"
QUOTA = (
    "<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>"
    '<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>'
    '<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try '
    "accessing the file again later. It may take up to 24 hours.</p></body></html>"
)
SIGN_IN = "<!doctype html><html><head><title>Google Drive: Sign-in</title></head><body>Sign in</body></html>"
OTHER = "<html><head><title>Google Drive - Oops &amp; more</title></head><body></body></html>"


def confirm(action: str) -> str:
    """The page before files that are too large for the search for viruses."""
    return (
        "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>"
        f'<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>'
        '<input type="hidden" name="id" value="1Ukz"><input type="hidden" name="export" value="download">'
        '<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="4-2">'
        "</form></body></html>"
    )


@pytest.fixture
def drive(server, monkeypatch):
    """Google Drive, as far as `bench.hosts` can tell."""
    monkeypatch.setattr("bench.hosts._DRIVE_FILE", f"{server.url.removesuffix('/file.bin')}/uc?export=download&id={{}}")
    return server


def test_a_file_that_drive_gives_at_once(drive, tmp_path):
    download.fetch(SHARED, tmp_path / "w.pth", md5=MD5)
    assert set(drive.paths) == {"/uc?export=download&id=1UkzAZMBG1U8kTqO3yhO2nTtoRNtEvyRq"}
    assert left(tmp_path) == ["w.pth"]


def test_drives_question_is_answered_and_the_transfer_continued(drive, tmp_path):
    drive.pages["/uc"] = (200, confirm(drive.url))
    drive.breaks = [300_000]
    with pytest.raises(DownloadError, match=r"run the command again to continue, or download https://drive\.google"):
        download.fetch(SHARED, tmp_path / "w.pth", attempts=1)
    assert drive.paths[-1] == "/file.bin?id=1Ukz&export=download&confirm=t&uuid=4-2"
    drive.pages["/uc"] = (200, confirm(f"{drive.url}?at=another"))  # the address changes from call to call
    download.fetch(SHARED, tmp_path / "w.pth")
    assert drive.paths[-1].startswith("/file.bin?at=another&id=1Ukz")
    assert drive.asked[-1]["Range"] == "bytes=300000-"
    assert drive.asked[-1]["Cookie"] == "seen=page"
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ((200, QUOTA), 'was downloaded too often ("Too many users have viewed or downloaded this file recently"): try'),
        ((403, QUOTA), "try again in 24 hours, or sign in there and download"),
        ((429, QUOTA), "was downloaded too often"),
        ((200, SIGN_IN), 'is not public ("Google Drive: Sign-in"): with an account that may see it, download'),
        ((200, OTHER), 'serves a web page, not the file ("Google Drive - Oops & more"): open it in a browser'),
        ((200, ""), "serves a web page, not the file: open it in a browser"),
        ((404, OTHER), "answers HTTP 404 (Not Found): download"),
    ],
)
@pytest.mark.parametrize("confirmed", [False, True])
def test_drives_pages_are_told_apart(drive, tmp_path, page, message, confirmed):
    """Before and after the question on viruses."""
    drive.pages = {"/uc": (200, confirm(drive.url)), "/file.bin": page} if confirmed else {"/uc": page}
    with pytest.raises(DownloadError) as caught:
        download.fetch(SHARED, tmp_path / "w.pth")
    text = str(caught.value)
    assert message in text
    assert text.startswith(SHARED)
    assert text.endswith(f"download {SHARED} by hand and put it at {tmp_path / 'w.pth'}")
    assert "\n" not in text
    assert left(tmp_path) == []


def test_a_question_that_is_asked_again(drive, tmp_path):
    drive.pages = {"/uc": (200, confirm(drive.url)), "/file.bin": (200, confirm(drive.url))}
    with pytest.raises(DownloadError, match=r'not the file \("Google Drive - Virus scan warning"\): open it'):
        download.fetch(SHARED, tmp_path / "w.pth")
    drive.pages = {"/uc": (200, '<html><form id="download-form"></form></html>')}  # a form that leads nowhere
    with pytest.raises(DownloadError, match="serves a web page"):
        download.fetch(SHARED, tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("shared", "host"),
    [
        ("https://drive.google.com/drive/folders/1Kx-OIcr2U44p9mlpV-SbhANQdtbn2rJR?usp=sharing", "Google Drive"),
        ("https://www.dropbox.com/sh/87d24jqsl6ra7t2/AABdDXZZBTnMQCBrg1yrQKVCa?dl=0", "Dropbox"),
        ("https://www.dropbox.com/scl/fo/abc/def?rlkey=x&dl=0", "Dropbox"),
    ],
)
def test_shared_folders_are_left_to_the_user(tmp_path, shared, host):
    with pytest.raises(DownloadError) as caught:
        download.fetch(shared, tmp_path / "w.pth")
    assert f"is a folder of {host}" in str(caught.value)
    assert f"download w.pth and put it at {tmp_path / 'w.pth'}" in str(caught.value)


@pytest.mark.parametrize(
    ("page", "message"),
    [(QUOTA, "too often"), (SIGN_IN, "is not public"), (OTHER, "serves a web page")],
    ids=["quota", "sign in", "other"],
)
def test_bench_fetch(drive, tmp_path, bench, page, message):
    place = tmp_path / "data" / "weights" / "maskcontrast_supervised_saliency.pth.tar"
    drive.pages["/uc"] = (200, page)
    status, out, err = bench("fetch", "maskcontrast@supervised-saliency")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert message in err
    assert err.endswith(f"by hand and put it at {place}\n")
    drive.pages["/uc"] = (200, confirm(drive.url))
    status, out, _ = bench("fetch", "maskcontrast")
    assert (status, out) == (0, f"{place}\n")
    assert left(place.parent) == [place.name]


@pytest.mark.parametrize("page", [QUOTA, SIGN_IN, OTHER], ids=["quota", "sign in", "other"])
def test_bench_fetch_of_an_estimator(drive, tmp_path, bench, page):
    place = tmp_path / "data" / "weights" / "basnet_unsupervised.pth"
    drive.pages["/uc"] = (200, page)
    status, out, err = bench("fetch", "basnet@unsupervised")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.endswith(f"14qsoXU-NE63jKzuGPTJd8DRDnpnP4w6j/view by hand and put it at {place}\n")
    drive.pages["/uc"] = (200, confirm(drive.url))
    assert bench("fetch", "basnet@unsupervised")[:2] == (0, f"{place}\n")
    assert bench("fetch", "u2net")[:2] == (0, f"{place.with_name('u2net.pth')}\n")
    assert left(place.parent) == ["basnet_unsupervised.pth", "u2net.pth"]


def test_bench_fetch_goes_on_where_it_broke_off(drive, tmp_path, bench):
    place = tmp_path / "data" / "weights" / "u2netp.pth"
    drive.pages["/uc"] = (200, confirm(drive.url))
    drive.breaks = [300_000, 100_000, 0]
    status, out, err = bench("fetch", "u2net@u2netp")
    assert (status, out) == (2, "")
    line = err.splitlines()[-1]
    assert "broke off 3 times" in line
    assert f"run the command again to continue, or download {u2net.CARD.checkpoints[1].url} by hand" in line
    assert left(place.parent) == ["u2netp.pth.part", "u2netp.pth.part.etag"]
    assert bench("fetch", "u2net@u2netp")[:2] == (0, f"{place}\n")
    assert drive.asked[-1]["Range"] == "bytes=400000-"
    assert place.read_bytes() == CONTENT


def test_bench_fetch_out_of_an_archive(server, tmp_path, bench, monkeypatch):
    """IIC's networks lie in one archive: it is fetched once, and kept for the others."""
    (place := tmp_path / "data" / "weights").mkdir(parents=True)
    url = server.url.replace("file.bin", "models.tar.gz")
    released = tuple(dataclasses.replace(one, url=url) for one in iic.CARD.checkpoints)
    monkeypatch.setattr(iic, "CARD", dataclasses.replace(iic.CARD, checkpoints=released))
    entries = [(f"models/{model}/best.pytorch", FILE, b"W%d" % model) for model in (512, 555)]
    server.content = make_tar(tmp_path / "good.tgz", entries).read_bytes()
    for name, model in (("iic", 512), ("iic@coco-stuff-3", 555)):
        assert bench("fetch", name)[:2] == (0, f"{place / f'iic_{model}.pytorch'}\n")
        assert (place / f"iic_{model}.pytorch").read_bytes() == b"W%d" % model
    assert server.paths == ["/models.tar.gz"]
    status, _, err = bench("fetch", "iic@coco-stuff-3-over")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "iic_models.tar.gz holds no file '496/best.pytorch'" in err
    assert "delete it and download it again" in err


@pytest.mark.parametrize(
    "entry",
    [("../up", tarfile.REGTYPE, b"x"), ("models/512/best.pytorch", tarfile.SYMTYPE, "../../../outside")],
    ids=["climbing path", "link outside"],
)
def test_bench_fetch_out_of_an_unsafe_archive(server, tmp_path, bench, monkeypatch, entry):
    place = tmp_path / "data" / "weights"
    released = (dataclasses.replace(iic.CARD.checkpoints[0], url=server.url),)
    monkeypatch.setattr(iic, "CARD", dataclasses.replace(iic.CARD, checkpoints=released))
    good = ("models/555/best.pytorch", FILE, b"W")
    server.content = make_tar(tmp_path / "bad.tgz", [good, entry]).read_bytes()
    status, out, err = bench("fetch", "iic")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert f"holds the unsafe member {entry[0]!r}" in err
    assert "do not trust this archive" in err
    assert left(place) == ["iic_file.bin"]
    assert not (place.parent / "up").exists()


# --- archives --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["models/555/best.pytorch", "./models/555/best.pytorch"])
def test_one_file_is_taken_out(tmp_path, name):
    archive = make_tar(tmp_path / "m.tgz", [(name, FILE, b"W"), ("models/544/best.pytorch", FILE, b"V")])
    target = tmp_path / "weights.pth"
    assert download.extract_file(archive, "models/555/best.pytorch", target) == target
    assert target.read_bytes() == b"W"
    assert left(tmp_path) == ["m.tgz", "weights.pth"]
    archive.unlink()
    assert download.extract_file(archive, "models/555/best.pytorch", target) == target


def test_a_file_is_found_by_the_end_of_its_path(tmp_path):
    entries = [("all/models/555/best.pth", FILE, b"W"), ("all/models/1555/best.pth", FILE, b"V")]
    archive = make_tar(tmp_path / "m.tgz", entries)
    assert download.extract_file(archive, "555/best.pth", tmp_path / "w.pth").read_bytes() == b"W"
    with pytest.raises(DownloadError, match=r"holds 2 files 'best\.pth' \(all/models/1555/best\.pth, .*put it at"):
        download.extract_file(archive, "best.pth", tmp_path / "v.pth")
    archive = make_tar(tmp_path / "n.tgz", [("best.pth", FILE, b"W"), ("old/best.pth", FILE, b"V")])
    assert download.extract_file(archive, "best.pth", tmp_path / "v.pth").read_bytes() == b"W"
    assert left(tmp_path) == ["m.tgz", "n.tgz", "v.pth", "w.pth"]


def test_a_file_whose_name_holds_a_pattern_is_taken_out_of_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a[1].pth", "W")
        archive.writestr("a1.pth", "V")
    assert download.extract_file(tmp_path / "a.zip", "a[1].pth", tmp_path / "w").read_text() == "W"


@pytest.mark.parametrize("member", ["absent.pth", "top", "link"])
def test_what_is_no_file_is_not_taken_out(tmp_path, member):
    entries = [("top/a", FILE, b"A"), ("top", tarfile.DIRTYPE, ""), ("link", tarfile.SYMTYPE, "top/a")]
    archive = make_tar(tmp_path / "m.tgz", entries)
    with pytest.raises(DownloadError, match=f"holds no file '{member}'"):
        download.extract_file(archive, member, tmp_path / "w")
    assert left(tmp_path) == ["m.tgz"]


def test_a_file_is_not_taken_out_of_an_unsafe_archive(tmp_path):
    archive = make_tar(tmp_path / "m.tgz", [("w.pth", FILE, b"W"), ("../up", FILE, b"x")])
    with pytest.raises(DownloadError, match=r"unsafe member '\.\./up'"):
        download.extract_file(archive, "w.pth", tmp_path / "w.pth")
    assert left(tmp_path) == ["m.tgz"]


def test_a_full_disk_while_unpacking_leaves_nothing(tmp_path, monkeypatch):
    archive = make_tar(tmp_path / "m.tgz", [("w.pth", FILE, b"W")])

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("bench.download.shutil.copyfileobj", full)
    with pytest.raises(StorageError, match=r"full; free some space"):
        download.extract_file(archive, "w.pth", tmp_path / "w.pth")
    assert left(tmp_path) == ["m.tgz"]


def test_links_that_lead_out_together_are_refused(tmp_path):
    """Each link looks as if it stayed inside as long as the one that it goes through is not there."""
    archive = tmp_path / "a.tar"
    (tmp_path / "secret.txt").write_text("outside")
    with tarfile.open(archive, "w") as tar:
        for name, goal in (("leak", "p/secret.txt"), ("p", "q/.."), ("q", ".")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, goal
            tar.addfile(info)
    with pytest.raises(DownloadError, match="unsafe member 'leak'"):
        download.extract(archive, tmp_path / "target")
    assert left(tmp_path) == ["a.tar", "secret.txt"]


@pytest.mark.parametrize("name", ["", "/"], ids=["empty", "root"])
def test_names_that_are_none_are_refused(tmp_path, name):
    archive = tmp_path / "a.zip"
    info = zipfile.ZipInfo("x")
    info.filename = name
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(info, b"content")
    with pytest.raises(DownloadError):
        download.extract(archive, tmp_path / "target")
    assert left(tmp_path) == ["a.zip"]


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"path": "a\0b"}
        tar.addfile(info)
    with pytest.raises(DownloadError, match="unsafe member"):
        download.extract(archive, tmp_path / "target")
    assert left(tmp_path) == ["a.tar"]


def test_a_member_larger_than_the_disk_is_refused(tmp_path):
    archive = tmp_path / "a.tar"
    info = tarfile.TarInfo("huge.bin")
    info.size = 1 << 60
    archive.write_bytes(info.tobuf(format=tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(StorageError, match=r"huge\.bin"):
        download.extract(archive, tmp_path / "target")
    assert left(tmp_path) == ["a.tar"]
