"""Headers in which a program names its own origin."""

from __future__ import annotations

import pytest

from apps.api.web.origins import Origin

PREFIX, BASE = "/preview/s/3000/~t", "https://api.example"
ORIGIN = Origin(3000, "/dir/page?a=b", PREFIX, BASE, ["10.0.0.5", "box"])


def outside(name: str, value: str) -> str:
    [(told, made)] = ORIGIN.outside([(name.encode(), value.encode("latin-1"))])
    assert told == name.encode()
    return made.decode("latin-1")


OWN = [
    "http://127.0.0.1:3000/login?x=1#y",
    "http://localhost:3000/login?x=1#y",
    "HTTP://LOCALHOST:3000/login?x=1#y",
    "https://localhost:3000/login?x=1#y",
    "//localhost:3000/login?x=1#y",
    "//127.0.0.1:03000/login?x=1#y",
    "http:\\\\localhost:3000\\login?x=1#y",
    "http:/login?x=1#y",
    "http://127.1:3000/login?x=1#y",
    "http://0x7f000001:3000/login?x=1#y",
    "http://2130706433:3000/login?x=1#y",
    "http://127.0.0.7:3000/login?x=1#y",
    "http://0.0.0.0:3000/login?x=1#y",
    "http://[::1]:3000/login?x=1#y",
    "http://[0:0:0:0:0:0:0:1]:3000/login?x=1#y",
    "http://[::ffff:127.0.0.1]:3000/login?x=1#y",
    "http://[::]:3000/login?x=1#y",
    "http://localhost.:3000/login?x=1#y",
    "http://app.localhost:3000/login?x=1#y",
    "http://%6cocalhost:3000/login?x=1#y",
    "http://user:password@localhost:3000/login?x=1#y",
    "http://10.0.0.5:3000/login?x=1#y",
    "http://BOX:3000/login?x=1#y",
    "  http://localhost:30\t00/login?x=1#y ",
    "/login?x=1#y",
    "../login?x=1#y",
    "../../../login?x=1#y",
    "./../login?x=1#y",
]


@pytest.mark.parametrize("name", ["Location", "location", "Content-Location", "HX-Redirect"])
@pytest.mark.parametrize("value", OWN)
def test_a_reference_to_the_own_origin_is_a_path_of_ours(name: str, value: str) -> None:
    assert outside(name, value) == f"{PREFIX}/login?x=1#y"


@pytest.mark.parametrize(
    ("value", "path"),
    [("next", "/dir/next"), ("?q", "/dir/page?q"), ("#z", "/dir/page?a=b#z"), ("/a b\xc3\xa4", "/a%20b%C3%A4")],
)
def test_a_relative_reference_is_relative_to_what_was_asked_for(value: str, path: str) -> None:
    assert outside("Location", value) == PREFIX + path


@pytest.mark.parametrize(
    "value",
    [
        "http://localhost:3001/",
        "http://localhost/",
        "http://127.0.0.1.example:3000/",
        "http://localhost.example:3000/",
        "http://example.com/?to=http://localhost:3000/",
        "//example.com/login",
        "/\\example.com/login",
        "http://localhost:3000@example.com/",
        "http://10.0.0.6:3000/",
        "mailto:a@localhost:3000",
        "data:text/plain,http://x",
        "http://localhost:99999/",
        "http://[::1",
        "",
        " ",
    ],
)
def test_what_leads_elsewhere_or_nowhere_stays_as_it_is(value: str) -> None:
    assert outside("Location", value) == value


def test_a_parameter_that_is_for_the_program_stays_as_it_is() -> None:
    value = "/login?next=http://localhost:3000/a"
    assert outside("Location", value) == PREFIX + value


@pytest.mark.parametrize(
    ("value", "made"),
    [
        ("0; url=http://127.0.0.1:3000/a", f"0; url={PREFIX}/a"),
        ("0;URL='/a'", f"0;URL='{PREFIX}/a'"),
        ('5, url = "/a"; more', f'5, url = "{PREFIX}/a"'),
        ("0;/a", f"0;{PREFIX}/a"),
        ("5", "5"),
        ("0; url=https://example.com/", "0; url=https://example.com/"),
    ],
)
def test_a_refresh_leads_to_a_path_of_ours(value: str, made: str) -> None:
    assert outside("Refresh", value) == made


@pytest.mark.parametrize(
    ("name", "value", "made"),
    [
        (
            "Link",
            '</app.js>; rel=preload, <http://LOCALHOST:3000/b>; rel="next"; anchor="http://[::1]:3000/c", <https://e.com/>',
            f'<{PREFIX}/app.js>; rel=preload, <{PREFIX}/b>; rel="next"; anchor="{BASE}{PREFIX}/c", <https://e.com/>',
        ),
        (
            "Content-Security-Policy",
            "default-src http://localhost:3000; connect-src ws://127.0.0.1:3000/live localhost:3000 data: e:3000",
            f"default-src {BASE}{PREFIX}/; connect-src wss://api.example{PREFIX}/live {BASE}{PREFIX}/ data: e:3000",
        ),
        ("Reporting-Endpoints", 'a="http://localhost:3000/r"', f'a="{BASE}{PREFIX}/r"'),
        ("X-Frame-Options", "ALLOW-FROM http://localhost:3000/", f"ALLOW-FROM {BASE}{PREFIX}/"),
        ("HX-Location", '{"path":"http://localhost:3000/x"}', f'{{"path":"{BASE}{PREFIX}/x"}}'),
        ("X-Text", "localhost:3000 \xe4 http://e.com:3000/", "localhost:3000 \xe4 http://e.com:3000/"),
    ],
)
def test_other_headers_name_the_origin_as_it_is_outside(name: str, value: str, made: str) -> None:
    assert outside(name, value) == made


@pytest.mark.parametrize("name", ["Link", "Refresh", "Location", "Content-Security-Policy", "X-Any"])
@pytest.mark.parametrize("part", ["<", "http://", " ", "1", "localhost:3000 ", "\\", "'", "%", "//"])
def test_no_header_takes_long(name: str, part: str) -> None:
    outside(name, part * (100_000 // len(part)))
