"""Hosts that put a page of their own before a shared file: Google Drive and Dropbox.

gdown knows what Drive's pages look like, and is asked for that alone. The transfer stays with `bench.download`: gdown
joins what an earlier call left to whatever the host holds now, and knows neither digests nor how much room there is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

if TYPE_CHECKING:
    import requests

__all__ = ["direct", "folder_host", "is_page", "is_quota", "page_text", "refusal"]

_DRIVE_FILE = "https://drive.google.com/uc?export=download&id={}"
_DRIVE, _DROPBOX = "drive.google.com", "dropbox.com"
_LONGEST_PAGE = 1 << 18
_QUOTA = ("too many users have viewed", "quota exceeded", "download quota")


def direct(url: str, session: requests.Session, timeout: tuple[float, float]) -> str:
    """The address that gives the bytes of a shared file; other addresses as they are.

    url: as people share it (`https://drive.google.com/file/d/ID/view`, `https://www.dropbox.com/…?dl=0`).
    Drive is asked first, with the cookies of `session`: before files that it cannot scan for viruses it has a page with
    a form, which is answered. Where Drive gives neither file nor form, its address is returned all the same, and
    whoever asks there learns the reason (`refusal`).
    """
    host = _host(url)
    if host == _DROPBOX:
        parts = urlsplit(url)
        return parts._replace(query=urlencode(dict(parse_qsl(parts.query)) | {"dl": "1"})).geturl()
    if host != _DRIVE:
        return url
    from gdown.parse_url import parse_url

    name, _ = parse_url(url)
    if name is None:
        return url
    address = _DRIVE_FILE.format(name)
    with session.get(address, stream=True, timeout=timeout) as response:
        if response.ok and is_page(response):
            return _confirmed(page_text(response)) or address
    return address


def _confirmed(page: str) -> str:
    """Where the form on Drive's page leads, "" where there is none."""
    from gdown.download import get_url_from_gdrive_confirmation

    try:
        return str(get_url_from_gdrive_confirmation(page))
    except Exception:  # its own error for pages without a form, and what not for forms that it does not know
        return ""


def folder_host(url: str) -> str:
    """The name of the host when an address is a shared folder, else ""."""
    parts = [part for part in urlsplit(url).path.split("/") if part]
    host = _host(url)
    if host == _DRIVE and "folders" in parts:
        return "Google Drive"
    # a file in a folder has its name after the two keys
    is_folder = (parts[:1] == ["sh"] and len(parts) == 3) or (parts[:2] == ["scl", "fo"] and len(parts) == 4)
    return "Dropbox" if host == _DROPBOX and is_folder else ""


def is_page(response: requests.Response) -> bool:
    """Whether an answer says that it is a web page."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml")


def page_text(response: requests.Response) -> str:
    """The beginning of a page, 256 kB at most."""
    content: bytes = next(response.iter_content(_LONGEST_PAGE), b"")
    return content.decode("utf-8", "replace")


def is_quota(page: str) -> bool:
    """Whether a page says that a file was downloaded too often."""
    return any(sign in page.lower() for sign in _QUOTA)


def refusal(url: str, page: str, landed: str = "") -> tuple[str, str]:
    """Why there is a page in place of the file at `url`, and what comes before downloading it by hand.

    landed: the address that gave the page, after all redirections.
    Told apart: a used-up quota, a file that asks for a sign-in, another message of Drive's, and any other page.
    """
    said = _said(page)
    if is_quota(page):
        return f"{url} was downloaded too often{said}", "try again in 24 hours, or sign in there and "
    if _host(landed) == "accounts.google.com" or re.search(r"<title>[^<]*sign.in", page, re.I):
        return f"{url} is not public{said}", "with an account that may see it, "
    return f"{url} serves a web page, not the file{said}", "open it in a browser, "


def _said(page: str) -> str:
    """The sentence on a page of Drive's, else the title of a page, in brackets and quotes; "" where it has none."""
    from html import unescape

    for pattern in (r'class="uc-error-subcaption"[^>]*>(.*?)</p>', r"<title[^>]*>(.*?)</title>"):
        found = re.search(pattern, page, re.S | re.I)
        text = " ".join(unescape(re.sub(r"<[^>]*>", " ", found[1])).split()) if found else ""
        if text:
            sentence = text.partition(". ")[0].rstrip(".")
            return f' ("{sentence[:120]}")'
    return ""


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").removeprefix("www.")
