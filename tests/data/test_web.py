"""A web server can't make a command wait without end, take all memory or disk, or ask elsewhere."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO

import pytest
from dhkd.data.patience import Patience
from dhkd.data.web import WebError, fetch, size_at
from dhkd.data.web_answers import is_public, redirected, seconds_asked

# Quick to ask again, but not so impatient that a busy machine is taken for a server that stalls.
QUICK = Patience(retries=1, total_s=60, first_wait_s=0.01, longest_wait_s=0.01, connect_s=10, stall_s=20)
IMPATIENT = replace(QUICK, stall_s=0.4)
BODY = b"x" * 3000
OK = b"HTTP/1.1 200 OK\r\n"

Script = Callable[[socket.socket], None]


def answers(content: bytes, *, then: Script = lambda connection: None) -> Script:
    def script(connection: socket.socket) -> None:
        connection.sendall(content)
        then(connection)

    return script


def drips(content: bytes, each: bytes) -> Script:
    """Send one byte or one line every 50 ms, without an end."""

    def script(connection: socket.socket) -> None:
        connection.sendall(content)
        while True:
            time.sleep(0.05)
            connection.sendall(each)

    return script


def floods(content: bytes, each: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        connection.sendall(content)
        while True:
            connection.sendall(each)

    return script


def resets(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def stalls(connection: socket.socket) -> None:
    time.sleep(1.2)


@contextmanager
def serving(*scripts: Script) -> Iterator[tuple[str, list[bytes]]]:
    """A server that treats each connection by the next script, the last one for ever; and the requests so far."""
    listener, requests = socket.create_server(("127.0.0.1", 0)), list[bytes]()

    def serve(connection: socket.socket, script: Script) -> None:
        with connection:
            try:
                requests.append(connection.recv(65536))
                script(connection)
            except OSError:
                return  # the client hung up

    def accept() -> None:
        number = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(
                target=serve, args=(connection, scripts[min(number, len(scripts) - 1)]), daemon=True
            ).start()
            number += 1

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def whole(body: bytes, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return OK + f"Content-Length: {len(body)}\r\n{lines}\r\n".encode() + body


def chunked(*pieces: bytes) -> bytes:
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in pieces)


def got(url: str, largest: int = 10_000, patience: Patience = QUICK) -> bytes:
    out = BytesIO(b"left over from an earlier attempt, and longer than any body of these tests" * 1000)
    fetch(url, out, largest, patience)
    return out.getvalue()


@pytest.mark.parametrize(
    "answer",
    [
        whole(BODY),
        chunked(BODY[:1000], BODY[1000:], b""),
        whole(BODY) + b"more than was announced",
        OK + b"Connection: close\r\n\r\n" + BODY,
    ],
    ids=["whole", "chunked", "with more behind it", "of unknown length"],
)
def test_a_file_is_fetched(answer: bytes) -> None:
    with serving(answers(answer)) as (url, _):
        assert got(url) == BODY


def test_a_failure_that_passes_is_tried_again() -> None:
    with serving(answers(OK + b"Content-Length: 3000\r\n\r\nbroken off"), answers(whole(BODY))) as (url, requests):
        assert got(url) == BODY
        assert len(requests) == 2


STALLED = ("nothing received for 0.4 s", "bytes came in")


@pytest.mark.parametrize(
    ("script", "reason", "attempts"),
    [
        (answers(b"", then=stalls), "nothing received for 0.4 s", 2),
        (answers(OK, then=stalls), "nothing received for 0.4 s", 2),
        (answers(OK + b"Content-Length: 3000\r\n\r\nxx", then=stalls), "nothing received for 0.4 s", 2),
        (drips(OK, b"X: y\r\n"), "nothing received for 0.4 s", 2),
        (drips(OK + b"Content-Length: 9000\r\n\r\n", b"x"), "bytes came in", 2),
        (drips(chunked(BODY) + b"0\r\n", b"X: y\r\n"), "nothing received for 0.4 s", 2),
        (answers(OK + b"Content-Length: 3000\r\n\r\nxx"), "it broke off after 2 of 3,000 bytes", 2),
        (answers(chunked(BODY)), "the connection was lost", 2),
        (answers(b"", then=resets), "", 2),
        (answers(b"HTTP/1.1 503 \x1b[31mgone\r\n\r\n"), "503 Service Unavailable", 2),
        (answers(b"HTTP/1.1 500 No\r\n\r\n"), "500 Internal Server Error", 2),
        (answers(b"HTTP/1.1 404 No\r\n\r\n"), "404 Not Found", 1),
        (answers(b"HTTP/1.1 403 No\r\n\r\n"), "403 Forbidden", 1),
        (answers(b"HTTP/1.1 206 Part\r\nContent-Length: 2\r\n\r\nxx"), "206 Partial Content", 1),
        (answers(b"\x1b]0;owned\x07 not HTTP\r\n\r\n"), "BadStatusLine", 2),
        (answers(OK + b"Content-Length: %d\r\n\r\nxx" % 2**50), f"announces {2**50:,} bytes, expected at most", 1),
        (floods(chunked(BODY), b"fff\r\n" + b"x" * 0xFFF + b"\r\n"), "more than 10,000", 1),
        (floods(OK + b"\r\n", b"x" * 4096), "more than 10,000 bytes", 1),
        (floods(chunked(BODY) + b"0\r\n", b"X: y\r\n" * 100), "nothing received for 0.4 s", 2),
        (floods(OK, b"X: y\r\n"), "HTTPException", 2),
        (answers(whole(b"<html>Log in", "Content-Type: text/html; charset=utf-8")), "a web page", 1),
        (answers(b"HTTP/1.1 302 To\r\nLocation: http://:80/x\r\n\r\n"), "an address without a host", 1),
        (answers(b"HTTP/1.1 302 To\r\nLocation: http://[::1/x\r\n\r\n"), "Invalid IPv6 URL", 1),
        (answers(b"HTTP/1.1 302 To\r\nLocation: file:///etc/passwd\r\n\r\n"), "redirects to file://", 1),
        (answers(b"HTTP/1.1 302 To\r\nLocation: ftp://127.0.0.1/x\r\n\r\n"), "redirects to ftp://", 1),
        (answers(b"HTTP/1.1 302 To\r\nLocation: http://127.0.0.1:1/x\r\n\r\n"), "Connection refused", 2),
        (answers(b"HTTP/1.1 429 No\r\nRetry-After: 7200\r\n\r\n"), "it asks to wait 7,200 s", 1),
        (answers(b"HTTP/1.1 429 No\r\nRetry-After: \x1b[1m\r\n\r\n"), "429 Too Many Requests, asked 2", 2),
        (answers(b"HTTP/1.1 302 To\r\nLocation: /again\r\n\r\n"), "redirects more than 5 times", 6),
        (answers(b"HTTP/1.1 302 To\r\n\r\n"), "redirects more than 5 times", 6),
    ],
    ids=lambda value: "answer" if callable(value) else str(value),  # equal in all processes of the tests
)  # fmt: skip
def test_a_server_that_misbehaves_is_named_and_left(script: Script, reason: str, attempts: int) -> None:
    with serving(script) as (url, requests), pytest.raises(WebError) as caught:
        got(f"{url}/shard.tar", patience=IMPATIENT if reason in STALLED else QUICK)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(requests) == attempts


def test_a_redirection_on_the_same_host_is_followed() -> None:
    with serving(answers(b"HTTP/1.1 301 To\r\nLocation: /there?x=1\r\n\r\n"), answers(whole(BODY))) as (url, requests):
        assert got(f"{url}/here") == BODY
        assert requests[1].startswith(b"GET /there?x=1 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("before", "location", "after"),
    [
        ("http://u:p@h/a", "/b", "http://u:p@h/b"),
        ("http://u:p@h/a", "https://h/b", "https://u:p@h/b"),
        ("https://u:p@h/a", "https://other/b?s=1", "https://other/b?s=1"),
        ("https://u:p@h/a", "https://x:y@other/b", "https://other/b"),
        ("https://u:p@h/a", "https://h:8443/b", "https://h:8443/b"),
        ("http://u:p@h/a", "//other/b", "http://other/b"),
    ],
)
def test_a_redirection_keeps_a_password_on_its_host(before: str, location: str, after: str) -> None:
    assert redirected(before, location) == (after, "other" in after or "8443" in after)


def test_a_redirection_never_leaves_https() -> None:
    with pytest.raises(ValueError, match="redirects to http://, expected https://"):
        redirected("https://h/a", "http://h/b")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        *(
            (address, False)
            for address in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "::1", "fe80::1%2")
        ),
        ("", False),
    ],
)
def test_addresses_of_private_networks_are_known(address: str, public: bool) -> None:
    # A server on the internet may not redirect to them; no test can be such a server.
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "55"}, 55),
        ({"Retry-After": "0", "RateLimit": '"resolvers";r=0;t=55'}, 0),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 55),
        ({"RateLimit": '"api" ; r = 0 ; t = 7'}, 7),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"Retry-After": "soon", "RateLimit": '"api";r=0;t=3'}, 3),
        ({"Retry-After": "-5"}, 0),
        ({}, 0),
    ],
)
def test_a_server_says_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    assert seconds_asked(headers.get) == seconds


def test_what_broke_off_is_asked_for_from_there_on() -> None:
    begun = OK + b'Content-Length: 3000\r\nAccept-Ranges: bytes\r\nETag: "a"\r\n\r\n' + BODY[:1000]
    rest = b"HTTP/1.1 206 Part\r\nContent-Range: bytes 1000-2999/3000\r\nContent-Length: 2000\r\n\r\n" + BODY[1000:]
    with serving(answers(begun), answers(rest)) as (url, requests):
        assert got(url) == BODY
    assert b'Range: bytes=1000-\r\nIf-Range: "a"\r\n' in requests[1]
    assert b"Range" not in requests[0]


@pytest.mark.parametrize(
    "second",
    [
        whole(b"another file"),
        b"HTTP/1.1 206 Part\r\nContent-Range: bytes 10-2999/3000\r\nContent-Length: 2\r\n\r\nxx",
        b'HTTP/1.1 206 Part\r\nContent-Range: bytes 1000-2999/3000\r\nETag: "b"\r\nContent-Length: 2\r\n\r\nxx',
        b"HTTP/1.1 206 Part\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 416 No\r\n\r\n",
    ],
    ids=["whole", "another part", "part of another", "unknown part", "no part"],
)
def test_a_file_that_changed_is_fetched_anew(second: bytes) -> None:
    begun = OK + b'Content-Length: 3000\r\nAccept-Ranges: bytes\r\nETag: "a"\r\n\r\n' + BODY[:1000]
    twice = replace(QUICK, retries=2)
    with serving(answers(begun), answers(second), answers(whole(b"another file"))) as (url, requests):
        assert got(url, patience=twice) == b"another file"
    assert all(b"Range" not in request for request in requests[2:])


def test_a_user_and_a_password_go_to_their_host_and_into_no_message() -> None:
    denied = b"HTTP/1.1 403 No\r\n\r\n"
    with serving(answers(b"HTTP/1.1 307 To\r\nLocation: /b\r\n\r\n"), answers(denied)) as (url, requests):
        address = url.replace("//", "//user:pass%20word@")
        with pytest.raises(WebError) as caught:
            got(f"{address}/a b?signature=hidden")
    assert str(caught.value) == "403 Forbidden"
    assert all(b"Authorization: Basic dXNlcjpwYXNzIHdvcmQ=\r\n" in request for request in requests)
    assert requests[0].startswith(b"GET /a%20b?signature=hidden HTTP/1.1\r\n")
    assert b"user" not in requests[0]


def test_a_proxy_from_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(answers(whole(BODY))) as (proxy, requests):
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert got("http://data.example/x.tar") == BODY
    assert requests[0].startswith(b"GET http://data.example/x.tar HTTP/1.1\r\nHost: data.example\r\n")


def test_a_size_is_asked_for() -> None:
    with serving(answers(OK + b"Content-Length: 77\r\n\r\n"), answers(OK + b"\r\n")) as (url, requests):
        assert size_at(url, QUICK) == 77
        with pytest.raises(WebError, match="doesn't say how long"):
            size_at(url, QUICK)
    assert requests[0].startswith(b"HEAD / ")


@pytest.mark.parametrize("url", ["ftp://h/a", "http:///a", "http://[::1/a", "http://h:port/a", "http://h/\x1b a", "a"])
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(WebError) as caught:
        got(url)
    assert str(caught.value).isprintable()
