"""Files from the net: resumed when broken off, verified, and either whole or absent; archives unpacked with care."""

from __future__ import annotations

import errno
import fnmatch
import glob
import json
import logging
import os
import re
import secrets
import shutil
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bench import hosts
from bench.errors import DownloadError, StorageError
from bench.files import lock, write_atomic

if TYPE_CHECKING:
    import requests
    from rich.progress import Progress

__all__ = ["extract", "extract_file", "fetch", "verify"]

log = logging.getLogger(__name__)

_PAUSE = 1.0  # seconds before the second attempt; doubles from there
_TIMEOUT = (15, 60)  # seconds to connect, and between two packets
_CHUNK = 1 << 18
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP states that may be gone at the next attempt
_PAGE_START = re.compile(r"\ufeff?(?:\s|<!--.*?-->|<\?xml.*?\?>)*<(?:!doctype\s+html|html)\b", re.I | re.S)
_LONGEST_MESSAGE = 160  # characters of a JSON answer that are shown
_PAGE_SIZE = 1 << 14  # bytes of a file that are looked at when it is a page after all


def fetch(
    url: str, target: Path, *, sha256: str = "", md5: str = "", size: int = 0, what: str = "", attempts: int = 3
) -> Path:
    """Download `url` to `target`, which is the whole, verified file or does not exist.

    A file already there is verified and returned. Bytes arrive in `target` + ".part", which a later call continues
    where the server can; a connection that breaks is taken up again within the call. Of several processes that fetch
    one file at once each has a part of its own, and whoever is last puts the same verified file in its place.

    url: of the file, or as Google Drive and Dropbox share it (see `bench.hosts`).
    sha256, md5: lower-case hex digest or its beginning, "" = unknown. size: bytes, 0 = unknown.
    what: what to call the file in messages and on the progress bar (its name when empty).
    Raises DownloadError (no connection, HTTP error, a web page in place of the file, a shared folder, wrong digest or
    size), which says what to do by hand, and StorageError (disk full or not writable; what arrived so far is kept).
    """
    job = _Job(url=url, target=target, sha256=sha256.lower(), md5=md5.lower(), size=size, what=what or target.name)
    if target.exists():
        _check(job, target, "delete it to download it again")
        return target
    if host := hosts.folder_host(url):
        raise DownloadError(
            f"{url} is a folder of {host}, which gives single files only: open it in a browser, download {target.name} "
            f"and put it at {target}"
        )
    with _storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _own_part(target) as part:
        job = replace(job, part=part)
        with _bar() as bar:
            _receive(job, attempts, bar)
        _finish(job)
    return target


@contextmanager
def _own_part(target: Path) -> Iterator[Path]:
    """A part that no other process writes to: the first of `.part`, `.part2`, … that is not locked.

    Locks end with their process, so that a part which a killed one left is continued by the next.
    """
    for number in count(1):
        part = target.with_name(f"{target.name}.part{number if number > 1 else ''}")
        with _storage_errors(part):
            file = part.open("ab")
        with file:
            if lock(file.fileno()) and _is_still(file, part):
                try:
                    yield part
                finally:
                    with suppress(OSError):
                        if _is_still(file, part) and not part.stat().st_size:
                            part.unlink()
                            _validator(part).unlink(missing_ok=True)
                return


def _is_still(file: IO[bytes], path: Path) -> bool:
    """Whether the name still leads to the file that was opened: whoever had it may have finished meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _validator(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def verify(path: Path, *, sha256: str = "", md5: str = "", size: int = 0) -> str:
    """What is wrong with a file, as "expected …, got …", or "" when digests (or their beginnings) and size agree."""
    import pooch

    found = path.stat().st_size
    if size and found != size:
        return f"expected {size} bytes, got {found}"
    for algorithm, expected in (("sha256", sha256), ("md5", md5)):
        if expected:
            digest = pooch.file_hash(str(path), alg=algorithm)
            if not digest.startswith(expected.lower()):
                return f"expected {algorithm} {expected}, got {digest[: max(len(expected), 8)]}"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    url: str
    target: Path
    sha256: str
    md5: str
    size: int
    what: str
    part: Path = Path()
    """What arrived so far."""

    @property
    def validator(self) -> Path:
        """Which version of the file `part` is the beginning of: the URL and its ETag or date, a line each."""
        return _validator(self.part)

    @property
    def by_hand(self) -> str:
        return f"download {self.url} by hand and put it at {self.target}"


class _BrokenOff(Exception):
    """The connection ended early; another attempt may help."""


def _receive(job: _Job, attempts: int, bar: Progress) -> None:
    """Fill `job.part`, taking up broken connections."""
    import requests

    task = bar.add_task(job.what, total=job.size or None)
    reason = ""
    with requests.Session() as session:
        # pages of hosts are read by their English words
        session.headers.update({"Accept-Encoding": "identity", "Accept-Language": "en"})
        for attempt in range(attempts):
            if attempt:
                time.sleep(_PAUSE * 2 ** (attempt - 1))
            try:
                _receive_once(job, session, lambda done, total: bar.update(task, completed=done, total=total))
                return
            except _BrokenOff as error:
                log.info("%s: %s (attempt %d of %d)", job.what, error, attempt + 1, attempts)
                reason = str(error)
    host = urlsplit(job.url).hostname or job.url
    if job.part.exists() and job.part.stat().st_size:
        raise DownloadError(
            f"the connection to {host} broke off {attempts} times ({reason}): run the command again to continue, or "
            f"{job.by_hand}"
        )
    if reason.startswith("HTTP"):
        raise DownloadError(f"{job.url} answers {reason}, {attempts} times: try again later, or {job.by_hand}")
    raise DownloadError(f"cannot reach {host}: {job.by_hand}")


def _receive_once(job: _Job, session: requests.Session, report: Callable[[int, int | None], None]) -> None:
    import requests
    import urllib3

    try:
        address = hosts.direct(job.url, session, _TIMEOUT)
        with session.get(address, headers=_resume_headers(job), stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == 416:
                if not _all_arrived(job, response):
                    _forget(job)
                    raise _BrokenOff("the server has a shorter file than the part that was kept")
                return
            _refuse_answer(job, response)
            _refuse_coding(job, response)
            start = _start(job, response)
            total = _total(response, start)
            with _storage_errors(job.part):
                _refuse_small_disk(job, start, total)
                _note_validator(job, response)
                done = _append(job.part, start, response.raw, lambda done: report(done, total))
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _BrokenOff(type(error).__name__) from error
    if total is not None and done != total:
        if done > total:
            _forget(job)
        raise _BrokenOff(f"{done} of {total} bytes arrived")


def _resume_headers(job: _Job) -> dict[str, str]:
    """Ask for the rest only where it is sure to fit: the same version, or a digest that will tell."""
    have = job.part.stat().st_size if job.part.exists() else 0
    if not have:
        return {}
    url, tag = _noted(job)
    if url == job.url and tag:
        return {"Range": f"bytes={have}-", "If-Range": tag}
    return {"Range": f"bytes={have}-"} if job.sha256 or job.md5 else {}


def _noted(job: _Job) -> tuple[str, str]:
    """The address and the version that the part is the beginning of."""
    url, _, tag = job.validator.read_text("utf-8").partition("\n") if job.validator.exists() else ("", "", "")
    return url, tag


def _version(response: requests.Response) -> str:
    """What names the version of an answer; weak ETags do not promise equal bytes and are left out."""
    tag = response.headers.get("ETag", "")
    return response.headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag


def _start(job: _Job, response: requests.Response) -> int:
    """The byte at which the answer begins: where the part ends, or 0."""
    if response.status_code != 206:
        return 0
    have = job.part.stat().st_size if job.part.exists() else 0
    tag, now = _noted(job)[1], _version(response)
    if tag and now and tag != now:  # a server that does not read If-Range
        _forget(job)
        raise _BrokenOff("the server has another version of the file by now")
    if response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
        return have
    _forget(job)
    raise _BrokenOff("the server sent another range than was asked for")


def _total(response: requests.Response, start: int) -> int | None:
    """The length of the whole file, where the server tells it."""
    whole = response.headers.get("Content-Range", "").rpartition("/")[2] if response.status_code == 206 else ""
    if whole.isdecimal() and whole.isascii():
        return int(whole)
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() and length.isascii() else None


def _refuse_coding(job: _Job, response: requests.Response) -> None:
    """What was packed for the transfer alone would be kept packed: it was asked for as it is."""
    transfer = [word.strip().lower() for word in response.headers.get("Transfer-Encoding", "").split(",")]
    packed = [word for word in transfer if word not in ("", "identity", "chunked")]
    content = response.headers.get("Content-Encoding", "").strip().lower()
    # servers say of a .tar.gz that its content is packed, and mean the file itself
    if content not in ("", "identity") and job.target.suffix.lower() not in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
        packed.append(content)
    if packed:
        raise DownloadError(f"{job.url} is sent packed ({', '.join(packed)}), not as it is: {job.by_hand}")


def _all_arrived(job: _Job, response: requests.Response) -> bool:
    return response.headers.get("Content-Range", "") == f"bytes */{job.part.stat().st_size}"


def _refuse_answer(job: _Job, response: requests.Response) -> None:
    page = hosts.page_text(response) if hosts.is_page(response) and not _may_be_page(job) else None
    if page and hosts.is_quota(page):  # whatever the state that comes with it
        raise _page_instead(job, page)
    if response.status_code in _PASSING:
        raise _BrokenOff(f"HTTP {response.status_code}")
    if response.status_code not in (200, 206):
        raise DownloadError(f"{job.url} answers HTTP {response.status_code} ({response.reason}): {job.by_hand}")
    if page is not None:
        raise _page_instead(job, page, response.url)


def _may_be_page(job: _Job) -> bool:
    return job.target.suffix.lower() in (".html", ".htm")


def _page_instead(job: _Job, page: str, landed: str = "") -> DownloadError:
    why, first = hosts.refusal(job.url, page, landed)
    return DownloadError(f"{why}: {first}{job.by_hand}")


def _refuse_small_disk(job: _Job, start: int, total: int | None) -> None:
    free = shutil.disk_usage(job.part.parent).free
    if total is not None and total - start > free:
        raise StorageError(
            f"{job.what} needs {_megabytes(total - start)} more, {job.part.parent} has {_megabytes(free)} left: free "
            "some space or choose another folder"
        )


def _note_validator(job: _Job, response: requests.Response) -> None:
    """Remember which version is arriving."""
    write_atomic(job.validator, f"{job.url}\n{_version(response)}".encode())


def _append(part: Path, start: int, raw: Any, report: Callable[[int], None]) -> int:
    """Write what arrives after byte `start`; returns the length of the file."""
    done = start
    with part.open("r+b") as file:
        file.truncate(start)
        file.seek(start)
        # the raw stream: a server that marks a .tar.gz as gzip-encoded must not have it unpacked on the way
        for chunk in raw.stream(_CHUNK, decode_content=False):
            file.write(chunk)
            done += len(chunk)
            report(done)
        file.flush()
        os.fsync(file.fileno())
    return done


def _finish(job: _Job) -> None:
    """Give the verified part its name."""
    with _storage_errors(job.target):
        with job.part.open("rb") as file:
            start = file.read(_PAGE_SIZE).decode("utf-8", "replace")
        if _PAGE_START.match(start) and not _may_be_page(job):
            _forget(job)
            raise _page_instead(job, start)
        if _is_message(start) and job.target.suffix.lower() not in (".json", ".txt"):
            _forget(job)
            raise DownloadError(f"{job.url} answers {_shown(start)} in place of the file: {job.by_hand}")
        try:
            _check(job, job.part, f"it was removed; try again, or {job.by_hand}")
        except DownloadError:
            _forget(job)
            raise
        job.part.replace(job.target)
        job.validator.unlink(missing_ok=True)


def _is_message(start: str) -> bool:
    """Whether a file is nothing but a short JSON object, which services answer in place of a file."""
    try:
        return isinstance(json.loads(start), dict)
    except ValueError:
        return False


def _shown(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[:_LONGEST_MESSAGE]}…"


def _check(job: _Job, path: Path, fix: str) -> None:
    with _storage_errors(path):
        wrong = verify(path, sha256=job.sha256, md5=job.md5, size=job.size)
    if wrong:
        name = path if path == job.target else job.url
        raise DownloadError(f"{name} is not the file that was promised, {wrong}: {fix}")


def _forget(job: _Job) -> None:
    """Empty the part, which stays this process's own."""
    os.truncate(job.part, 0)
    job.validator.unlink(missing_ok=True)


def _bar() -> Progress:
    """Size, speed and ETA on stderr; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # requests' errors are OSErrors too; they concern the net, not the disk
        if type(error).__module__.startswith("requests"):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"the disk of {path.parent} is full; free some space and run the command again (it continues where it "
                "stopped), or choose another folder"
            ) from error
        raise StorageError(f"{path} cannot be written or read: {error.strerror or error}; choose another folder") from (
            error
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


@dataclass(frozen=True, slots=True)
class _Member:
    """One entry of an archive; `open` gives the bytes of a file (and follows a hard link)."""

    name: str
    kind: str  # "file", "folder", "link" or what else it is called
    link: str
    size: int
    open: Callable[[], IO[bytes] | None]


def extract(archive: Path, target: Path, *, members: Sequence[str] | None = None) -> Path:
    """Unpack a tar (compressed or not) or zip archive into the new folder `target`, which is whole or absent.

    The members are unpacked into a sibling folder that gets its name last, so a `target` that exists is complete; it
    is returned as it is.

    members: shell patterns of the names to unpack; all when None.
    Raises DownloadError for archives that are damaged or hold a member that is unsafe (absolute or climbing paths,
    links that lead outside, devices), naming it, and StorageError when the disk is full or not writable.
    """
    if target.exists():
        return target
    with _storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        try:
            temporary.mkdir()
            _unpack(archive, temporary, members)
            if not target.exists():  # another process may have been faster
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def extract_file(archive: Path, member: str, target: Path) -> Path:
    """Take one file out of a tar or zip archive; `target` is whole or absent.

    member: its name in the archive, or the end of its path ("555/best.pth") where one file alone ends so.
    A `target` that exists is returned as it is. Raises as `extract`, and DownloadError when there is no such file, or
    when there are several.
    """
    if target.exists():
        return target
    name = glob.escape(member)
    folder = extract(archive, target.with_name(f".{target.name}.unpacked"), members=(name, f"*/{name}"))
    try:
        found = _files_called(member, folder)
        if not found:
            raise DownloadError(
                f"{archive} holds no file {member!r}: it is another archive than was expected; delete it and download "
                "it again"
            )
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found)
            raise DownloadError(
                f"{archive} holds {len(found)} files {member!r} ({names}): take the right one out and put it at "
                f"{target}"
            )
        with _storage_errors(target):
            found[0].replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _files_called(member: str, folder: Path) -> list[Path]:
    """The file of this name below a folder, else those whose path ends so."""
    wanted = PurePosixPath(member).parts
    # a link would lead out of the folder that is about to go
    files = [path for path in sorted(folder.rglob(glob.escape(wanted[-1]))) if path.is_file() and not path.is_symlink()]
    ends = [path for path in files if path.relative_to(folder).parts[-len(wanted) :] == wanted]
    exact = folder.joinpath(*wanted)
    return [exact] if exact in ends else ends


def _unpack(archive: Path, root: Path, patterns: Sequence[str] | None) -> None:
    damaged = (
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError),
        *(ValueError, OverflowError, LookupError, MemoryError),
    )
    links: list[_Member] = []
    try:
        with _bar() as bar, bar.open(archive, "rb", description=f"unpacking {archive.name}") as file:
            for member in _members(archive, file):
                path = _inside(archive, member, root)
                if patterns is not None and not any(fnmatch.fnmatchcase(member.name, p) for p in patterns):
                    continue
                if member.kind == "link":
                    links.append(member)
                elif member.kind == "folder":
                    path.mkdir(parents=True, exist_ok=True)
                else:
                    _copy(archive, member, path)
        # last, so that nothing is ever written through a link
        made = [_link(archive, member, root) for member in links]
        # and looked at again when all are there: one may lead through another that came later
        for member, path in zip(links, made, strict=True):
            if not path.resolve().is_relative_to(root.resolve()):
                raise _unsafe(archive, member, f" (link to {member.link!r})")
    except damaged as error:
        raise DownloadError(_damaged(archive, error)) from error
    except OSError as error:
        # gzip, bz2 and lzma report bad data as OSErrors without a number
        if error.errno is None:
            raise DownloadError(_damaged(archive, error)) from error
        raise


def _damaged(archive: Path, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{archive} is not a whole tar or zip archive ({reason}): delete it and download it again"


def _members(archive: Path, file: Any) -> Iterator[_Member]:
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as opened:
            yield from (_zip_member(opened, info) for info in opened.infolist())
    else:
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:*") as opened_tar:
            yield from (_tar_member(opened_tar, info) for info in opened_tar)


def _zip_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    link = (info.external_attr >> 16) & 0o170000 == 0o120000
    kind = "symbolic link in a zip" if link else "folder" if info.is_dir() else "file"
    return _Member(info.filename, kind, "", info.file_size, lambda: opened.open(info))


def _tar_member(opened: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    if info.issym():
        kind = "link"
    elif info.isdir():
        kind = "folder"
    else:
        kind = "file" if info.isfile() or info.islnk() else "device"
    return _Member(info.name, kind, info.linkname, info.size, lambda: opened.extractfile(info))


def _inside(archive: Path, member: _Member, root: Path) -> Path:
    """Where a member goes; refuses everything that could leave `root`."""
    pure = PurePosixPath(member.name.replace("\\", "/"))
    unsafe = pure.is_absolute() or ".." in pure.parts or ":" in (pure.parts[:1] or ("",))[0]
    unsafe = unsafe or "\0" in member.name + member.link or (not pure.parts and member.kind != "folder")
    if unsafe or member.kind not in ("file", "folder", "link"):
        raise _unsafe(archive, member, "" if unsafe else f" ({member.kind})")
    return root / pure


def _unsafe(archive: Path, member: _Member, why: str) -> DownloadError:
    return DownloadError(f"{archive} holds the unsafe member {member.name!r}{why}: do not trust this archive")


def _copy(archive: Path, member: _Member, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if member.size > free:
        raise StorageError(
            f"{archive} says that its member {member.name!r} has {_megabytes(member.size)}, the disk has "
            f"{_megabytes(free)} left: free some space, or do not trust this archive"
        )
    try:
        source = member.open()
    except KeyError:
        source = None
    if source is None:
        raise _unsafe(archive, member, f" (link to {member.link!r})")
    with source, path.open("wb") as copy:
        shutil.copyfileobj(source, copy, _CHUNK)


def _link(archive: Path, member: _Member, root: Path) -> Path:
    path = _inside(archive, member, root)
    home = root.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    goal = (path.parent / member.link).resolve()
    stays = goal.is_relative_to(home) and path.parent.resolve().is_relative_to(home)
    if PurePosixPath(member.link).is_absolute() or not stays:
        raise _unsafe(archive, member, f" (link to {member.link!r})")
    path.symlink_to(member.link)
    return path
