"""Downloads from servers that stall, cut, lie and err, all on this machine."""

import hashlib
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from pathlib import Path

import pytest

from minidiff.data import hosts
from minidiff.data.hosts import data_root, fetch, sha256_of

CONTENT = bytes((i * i + i // 251) % 256 for i in range(300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FLIPPED = CONTENT[:1000] + bytes([CONTENT[1000] ^ 1]) + CONTENT[1001:]


class Server:
    """`answer(handler, start)` writes a reply's body; `start` is where the client wants it from."""

    def __init__(self):
        self.asked: list[int | None] = []  # where each request wanted to start; None: no Range
        self.over = threading.Event()
        self.content, self.heeds_range, self.extra_length = CONTENT, True, 0
        self.gives = [len(CONTENT)] * 100  # how many bytes each request is given, in order
        self.then_stalls = False
        self.raw = None  # what is sent in place of a reply: chunks, each after a pause in seconds
        self.status, self.shift = None, 0
        self.answers = threading.Event()
        self.answers.set()

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = re.match(r"bytes=(\d+)-$", handler.headers.get("Range", ""))
        self.asked.append(int(wanted[1]) if wanted else None)
        limit = self.gives[len(self.asked) - 1]
        self.answers.wait(10)
        if self.status:
            return handler.send_error(self.status)
        if self.raw:
            return self.send_raw(handler.wfile)
        start = int(wanted[1]) if wanted and self.heeds_range else 0
        body = self.content[start:]
        if start and not body:
            return handler.send_error(416)
        handler.send_response(206 if wanted and self.heeds_range else 200)
        if wanted and self.heeds_range:
            first = start + self.shift
            handler.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("Content-Length", str(len(body) + self.extra_length))
        handler.end_headers()
        handler.wfile.write(body[:limit])
        if self.then_stalls and limit < len(body):
            self.over.wait(20)

    def send_raw(self, file) -> None:
        for pause, chunk in self.raw():
            if self.over.wait(pause):
                return
            try:
                file.write(chunk)
            except OSError:  # the client has left
                return


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.handle(self)

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}/folder/file.bin"
    yield state
    state.over.set()
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "file.bin"


def left(path) -> list[str]:
    """What lies in the folder, but for locks."""
    return sorted(p.name for p in path.parent.iterdir() if p.suffix != ".lock")


def test_a_file_is_downloaded_once(server, path):
    assert fetch(server.url, path, SHA256) == path
    assert path.read_bytes() == CONTENT
    assert fetch(server.url, str(path), SHA256) == path
    assert server.asked == [None]
    assert left(path) == ["file.bin"]


def test_a_file_that_lies_there_is_checked(server, path):
    path.parent.mkdir()
    path.write_bytes(FLIPPED)
    with pytest.raises(ValueError, match=f"file.bin has the SHA-256 .*, expected {SHA256}: delete"):
        fetch(server.url, path, SHA256)
    assert server.asked == []
    assert path.read_bytes() == FLIPPED


@pytest.mark.parametrize("then_stalls", [False, True])
def test_a_broken_line_is_taken_up_where_it_broke(server, path, then_stalls, monkeypatch):
    monkeypatch.setattr(hosts, "TIMEOUT", 2.0 if then_stalls else hosts.TIMEOUT)
    server.gives, server.then_stalls = [100_000, 50_000, len(CONTENT)], then_stalls
    fetch(server.url, path, SHA256)
    assert server.asked == [None, 100_000, 150_000]
    assert path.read_bytes() == CONTENT


def test_the_next_call_goes_on_after_an_interruption(server, path):
    server.gives = [1000, 0, 0, 0, len(CONTENT)]
    with pytest.raises(OSError, match="stopped after 0 of 299000 bytes .the 1000 bytes .* kept"):
        fetch(server.url, path, SHA256)
    assert left(path) == ["file.bin.part"]
    fetch(server.url, path, SHA256)
    assert server.asked == [None, 1000, 1000, 1000, 1000]
    assert left(path) == ["file.bin"]


def test_a_server_that_ignores_range_is_heard_from_the_start(server, path):
    server.gives, server.heeds_range = [1000, len(CONTENT)], False
    fetch(server.url, path, SHA256)
    assert server.asked == [None, 1000]
    assert path.read_bytes() == CONTENT


def test_a_server_that_always_breaks_at_the_same_place_is_given_up(server, path):
    server.gives, server.heeds_range = [1000] * 100, False
    with pytest.raises(OSError, match="stopped after 1000"):
        fetch(server.url, path, SHA256)
    assert len(server.asked) == 1 + hosts.TRIES


def test_a_server_that_sends_one_byte_a_connection_is_given_up(server, path):
    server.gives = [1] * 100
    with pytest.raises(OSError, match=r"30 requests, .*stopped after 1 of .*\(the 30 bytes"):
        fetch(server.url, path, SHA256)
    assert len(server.asked) == hosts.REQUESTS == 30


def test_a_wrong_part_is_thrown_away(server, path):
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(FLIPPED[:2000])
    fetch(server.url, path, SHA256)
    assert server.asked == [2000, None]
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_thrown_away(server, path):
    path.parent.mkdir()
    path.with_name("file.bin.part").write_bytes(CONTENT + b"more")
    fetch(server.url, path, SHA256)
    assert server.asked == [len(CONTENT) + 4, None]


def test_another_part_than_asked_for_is_not_appended(server, path):
    server.gives, server.shift = [1000, len(CONTENT), len(CONTENT)], 5
    fetch(server.url, path, SHA256)
    assert server.asked == [None, 1000, None]
    assert path.read_bytes() == CONTENT


def test_a_flipped_byte_is_refused(server, path):
    server.content = FLIPPED
    with pytest.raises(
        ValueError, match=f"file.bin has the SHA-256 .*, expected {SHA256}: refused"
    ):
        fetch(server.url, path, SHA256)
    assert server.asked == [None]
    assert left(path) == []


def test_a_flipped_byte_is_refused_though_the_line_breaks_too(server, path):
    server.content, server.gives = FLIPPED, [1000, 100_000] * 50
    with pytest.raises(ValueError, match="refused"):
        fetch(server.url, path, SHA256)
    assert left(path) == []


def test_a_length_that_is_too_large_does_no_harm(server, path):
    server.extra_length = 1000
    fetch(server.url, path, SHA256)
    assert server.asked == [None]


def test_a_length_that_is_too_small_is_refused(server, path):
    server.extra_length = -1000
    with pytest.raises(ValueError, match="refused"):
        fetch(server.url, path, SHA256)
    assert left(path) == []


def test_a_server_that_refuses_is_asked_once(server, path):
    server.status = 404
    with pytest.raises(OSError, match="could not download .*: 404 Not Found$"):
        fetch(server.url, path, SHA256)
    assert server.asked == [None] and left(path) == []


# --- servers that never end ----------------------------------------------------------------------


def test_a_body_that_never_ends_does_not_fill_the_disk(server, path, monkeypatch):
    monkeypatch.setattr(hosts, "LARGEST", 1_000_000)
    server.raw = lambda: chain([(0, b"HTTP/1.1 200 OK\r\n\r\n")], repeat((0, bytes(50_000))))
    with pytest.raises(OSError, match="sends more than the 1000000 bytes expected$"):
        fetch(server.url, path, SHA256)
    assert server.asked == [None] and left(path) == []
    # the control: a body of just this size is received, and then refused by its hash
    server.raw = None
    monkeypatch.setattr(hosts, "LARGEST", len(CONTENT))
    fetch(server.url, path, SHA256)


def test_a_length_beyond_the_limit_is_refused_before_the_body(server, path):
    server.raw = lambda: [(0, b"HTTP/1.1 200 OK\r\nContent-Length: 2000000001\r\n\r\n"), (9, b"x")]
    start = time.monotonic()
    with pytest.raises(OSError, match="sends more than the 2000000000 bytes expected$"):
        fetch(server.url, path, SHA256)
    assert time.monotonic() - start < 5 and server.asked == [None] and left(path) == []


OK = b"HTTP/1.1 200 OK\r\n"
TRICKLES = {
    "headers": (OK + b"X: ", b"y"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": (OK + b"Content-Length: 300000\r\n\r\n", b"y"),
    "chunk lengths": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("where", TRICKLES)
def test_a_server_that_is_never_silent_and_never_done_is_given_up(server, path, where, monkeypatch):
    monkeypatch.setattr(hosts, "TIMEOUT", 0.5)
    first, then = TRICKLES[where]
    server.raw = lambda: chain([(0, first)], repeat((0.1, then)))
    start = time.monotonic()
    with pytest.raises(OSError, match="could not download .*: too slow, 0 kB/s"):
        fetch(server.url, path, SHA256)
    assert len(server.asked) <= hosts.TRIES  # a busy machine may be silent for TIMEOUT
    assert 1 <= time.monotonic() - start < 8  # one window of 2 * TIMEOUT


def test_a_download_ends_at_its_deadline_at_any_speed(server, path, monkeypatch):
    monkeypatch.setattr(hosts, "TIMEOUT", 0.25)
    monkeypatch.setattr(hosts, "DEADLINE", 1.0)
    monkeypatch.setattr(hosts, "SLOWEST", 0)
    length = f"Content-Length: {len(CONTENT)}\r\n\r\n".encode()
    pieces = [(0.05, CONTENT[i : i + 500]) for i in range(0, len(CONTENT), 500)]  # 10 kB/s: 30 s
    server.raw = lambda: chain([(0, OK + length)], pieces)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"not complete after .* hours \(the \d+ bytes .* are kept"):
        fetch(server.url, path, SHA256)
    assert time.monotonic() - start < 8
    server.raw = None
    fetch(server.url, path, SHA256)
    assert server.asked[0] is None and server.asked[1] > 500


@pytest.mark.parametrize("length", [b"abc", b"-5", b"1e3", b"9" * 5000])
def test_a_length_that_is_no_number_does_no_harm(server, path, length):
    server.raw = lambda: [(0, OK + b"Content-Length: " + length + b"\r\n\r\n"), (0, CONTENT)]
    fetch(server.url, path, SHA256)
    assert server.asked == [None] and path.read_bytes() == CONTENT


# --- no server, two processes --------------------------------------------------------------------


def test_no_server(path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # held, but nothing listens there
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/x"
        with pytest.raises(OSError, match="could not download .*refused"):
            fetch(url, path, SHA256)


def test_of_two_processes_one_downloads(server, path):
    assert fetch_twice_at_once(server, path, 1) == [0, 0]
    assert server.asked == [None]
    # the control: without the lock both ask
    path.unlink()
    no_lock = "import contextlib; hosts.FileLock = lambda path: contextlib.nullcontext()"
    fetch_twice_at_once(server, path, 3, no_lock)
    assert len(server.asked) > 2


def fetch_twice_at_once(server, path, requests: int, change: str = "") -> list[int]:
    """The exit codes of two processes that fetch the same file, which the server gives only when
    both are there and it has been asked so often (in 10 seconds), and a moment later."""
    code = f"""
import sys
sys.path.append({str(Path(hosts.__file__).parent)!r})  # without torch, to start fast
import hosts
{change}
print("here", flush=True)
hosts.fetch({server.url!r}, {str(path)!r}, {SHA256!r})
"""
    command = [sys.executable, "-c", code]
    server.answers.clear()
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    workers = [subprocess.Popen(command, **quiet) for _ in range(2)]
    for worker in workers:
        worker.stdout.readline()
    patience = time.monotonic() + 10
    while len(server.asked) < requests and time.monotonic() < patience:
        time.sleep(0.02)
    time.sleep(0.5)
    server.answers.set()
    for worker in workers:
        worker.communicate()
    return [worker.returncode for worker in workers]


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x").startswith("ba7816bf8f01cfea")


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDIFF_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("MINIDIFF_DATA")
    clone, installed = tmp_path / "clone", tmp_path / "site-packages"
    for place in (clone, installed):
        (place / "minidiff").mkdir(parents=True)
    (clone / "pyproject.toml").touch()
    monkeypatch.setattr(hosts, "__file__", str(clone / "minidiff" / "data" / "hosts.py"))
    assert data_root() == clone / "data" / "downloads"
    monkeypatch.setattr(hosts, "__file__", str(installed / "minidiff" / "data" / "hosts.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root() == tmp_path / "cache" / "minidiff"
