from __future__ import annotations

import pytest
import requests

from bench import hosts


@pytest.mark.parametrize(
    ("shared", "direct"),
    [
        ("https://example.org/a.pth?dl=0", "https://example.org/a.pth?dl=0"),
        (
            "https://www.dropbox.com/sh/87d24jqsl6ra7t2/AAAzMTynP3Qc8mIE4XWkgILUa/InfoMin_800.pth",
            "https://www.dropbox.com/sh/87d24jqsl6ra7t2/AAAzMTynP3Qc8mIE4XWkgILUa/InfoMin_800.pth?dl=1",
        ),
        (
            "https://www.dropbox.com/scl/fi/abc/w.pth?rlkey=k&dl=0",
            "https://www.dropbox.com/scl/fi/abc/w.pth?rlkey=k&dl=1",
        ),
        ("https://drive.google.com/drive/my-drive", "https://drive.google.com/drive/my-drive"),
    ],
)
def test_addresses_that_need_no_question(shared, direct):
    assert hosts.direct(shared, requests.Session(), (1, 1)) == direct


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://drive.google.com/drive/u/0/folders/1Kx-OIcr2U44p9mlpV-SbhANQdtbn2rJR", "Google Drive"),
        ("https://drive.google.com/file/d/1Ukz/view", ""),
        ("https://www.dropbox.com/sh/87d24jqsl6ra7t2/AABdDXZZBTnMQCBrg1yrQKVCa?dl=0", "Dropbox"),
        ("https://www.dropbox.com/sh/87d24jqsl6ra7t2/AAAzMTynP3Qc8mIE4XWkgILUa/InfoMin_800.pth", ""),
        ("https://www.dropbox.com/scl/fi/abc/w.pth", ""),
        ("https://example.org/sh/a/b", ""),
    ],
)
def test_folders(url, host):
    assert hosts.folder_host(url) == host


def test_a_sign_in_is_known_by_where_it_lies():
    why, first = hosts.refusal("https://x", "<html>Anmelden</html>", "https://accounts.google.com/v3/signin/identifier")
    assert why == "https://x is not public"
    assert first == "with an account that may see it, "
