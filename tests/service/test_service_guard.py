"""Connections that say nothing, too little or too much, against a server that listens."""

import json
import resource
import socket
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import httpx
import pytest
from service_cases import Counting, body, made

from unirl_env.errors import ConfigError
from unirl_env.service import server as guards
from unirl_env.service.server import ANSWER, BODY, HEAD, Guard, Server, bound_socket
from unirl_env.service.service_settings import ServiceSettings

HEADERS = b"POST /score HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


class Slow(Counting):
    """Takes longer than a connection may be silent."""

    def __call__(self, samples, prompts):
        time.sleep(1.0)
        return super().__call__(samples, prompts)


@pytest.fixture(scope="module")
def server():
    """Short times, few places."""
    app, _ = made(
        {"count": Counting(), "slow": Slow()}, head_seconds=0.5, read_seconds=1.5, max_connections=8
    )
    opened, ready = bound_socket("127.0.0.1", 0), threading.Event()
    found = Server(app, 1.0, lambda text: None, ready.set)
    thread = threading.Thread(target=found.run, kwargs={"sockets": [opened]}, daemon=True)
    thread.start()
    assert ready.wait(30)
    found.port = opened.getsockname()[1]
    yield found
    found.should_exit = True
    thread.join(30)


def said(server, *pieces, pause=0.0):
    """All that the server answers until it closes, and how long that took."""
    began = time.monotonic()
    with closing(socket.create_connection(("127.0.0.1", server.port), 20)) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:
                break
            time.sleep(pause)
        heard = b""
        try:
            while piece := connection.recv(65536):
                heard += piece
        except OSError:
            pass
    return heard, time.monotonic() - began


def code(heard):
    head, _, content = heard.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)["error"]["code"]


def good(server, reward="count"):
    reply = httpx.post(f"http://127.0.0.1:{server.port}/score", json=body(["four"], reward), timeout=20)
    return reply.status_code, reply.json()["scores"]["value"]


def test_a_connection_that_says_nothing_is_closed(server):
    heard, seconds = said(server)
    assert heard == b"" and 0.4 < seconds < 5


def test_a_head_that_trickles_is_told_so_and_closed(server):
    heard, seconds = said(server, *([b"GET /health HTTP/1.1\r\n"] + [b"X"] * 400), pause=0.05)
    assert code(heard) == (408, "too_slow") and seconds < 25


def test_a_head_without_an_end_is_refused_before_it_fills_memory(server):
    line = b"X-Filler: " + b"a" * 8000 + b"\r\n"
    heard, _ = said(server, b"GET /health HTTP/1.1\r\n", *([line] * 1000))
    assert heard == b"" or code(heard) == (431, "too_large")  # a reset may overtake the answer
    heard, _ = said(server, b"GET /health HTTP/1.1\r\nX: ", *([b"a" * 8000] * 30))
    assert code(heard) == (431, "too_large")


def test_what_stands_between_the_chunks_of_a_body_is_bounded_too(server):
    begun = HEADERS + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
    for filler in (b"0\r\n" + b"X: ", b"1;"):
        heard, _ = said(server, begun + filler, *([b"a" * 8000] * 30))
        assert code(heard) == (431, "too_large")


def test_a_body_that_trickles_has_its_own_time(server):
    heard, seconds = said(server, HEADERS + b"Content-Length: 999\r\n\r\n", *([b" "] * 60), pause=0.1)
    assert code(heard) == (408, "too_slow") and seconds > 1


def test_time_that_a_scorer_takes_is_nobodys_fault(server):
    assert good(server, "slow") == (200, [4.0])


def test_a_connection_may_be_used_again_and_then_say_nothing(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as caller:
        for _ in range(3):
            assert caller.post("/score", json=body(["four"])).status_code == 200
            time.sleep(0.3)


def test_whoever_comes_takes_the_place_of_the_longest_silent(server):
    began = time.monotonic()
    crowd = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
    assert good(server) == (200, [4.0])
    assert time.monotonic() - began < 20 and len(server.guard) <= 8
    for one in crowd:
        one.close()
    assert server.guard.closed["full"] > 0


def test_an_upgrade_does_not_leave_the_guard(server):
    asked = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    heard, seconds = said(server, asked)
    assert b"101" not in heard.split(b"\r\n")[0] and seconds < 10


class Transport:
    """What a guard asks of one."""

    def __init__(self):
        self.unsent, self.closed, self.written = 0, "", b""

    def get_write_buffer_size(self):
        return self.unsent

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = "closed"

    def abort(self):
        self.closed = "aborted"


def watched(**options):
    now = SimpleNamespace(time=0.0)
    found = Guard(**{"head_seconds": 10, "body_seconds": 60, "most": 2} | options, clock=lambda: now.time)
    return found, now


class Silent:
    """A connection that has said nothing."""

    begun = False

    def __init__(self):
        self.transport = Transport()


def test_each_phase_has_its_time():
    for phase, seconds in ((HEAD, 10), (BODY, 60), (ANSWER, None)):
        found, now = watched()
        one = Silent()
        found.enter(one)
        now.time = 5.0
        found.turn(one, phase)
        now.time = 5.0 + (seconds or 1e6)
        found.sweep()
        assert not one.transport.closed
        now.time += 0.1
        found.sweep()
        assert bool(one.transport.closed) == (seconds is not None) and len(found) == (seconds is None)


def test_an_answer_that_is_not_taken_ends_the_Silent():
    found, now = watched()
    one = Silent()
    found.enter(one)
    found.turn(one, ANSWER)
    one.transport.unsent = 900
    for now.time in (0.0, 50.0):
        found.sweep()
    one.transport.unsent = 800  # some of it was taken
    for now.time in (55.0, 110.0):
        found.sweep()
    assert not one.transport.closed
    now.time = 116.0
    found.sweep()
    assert one.transport.closed == "aborted" and found.closed[ANSWER] == 1


def test_without_a_silent_one_the_newcomer_is_told_to_come_again():
    found, _ = watched()
    first, second, third, fourth = (Silent() for _ in range(4))
    for one in (first, second):
        found.enter(one)
    found.turn(first, BODY)
    found.enter(third)
    assert second.transport.closed == "aborted" and not third.transport.closed
    found.turn(third, ANSWER)
    found.enter(fourth)
    assert (
        fourth.transport.written.startswith(b"HTTP/1.1 503 ")
        and b"retry-after: 1" in fourth.transport.written
    )
    assert not first.transport.closed and len(found) == 2


def test_no_more_connections_are_promised_than_files_may_be_open(monkeypatch):
    limits = [(100, 100)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: limits.append(both))
    assert guards.room_for(512) == 36
    limits.append((100, 4096))
    assert guards.room_for(512) == 512 and limits[-1] == (576, 4096)


@pytest.mark.parametrize("name", ["head_seconds", "read_seconds", "max_connections"])
def test_times_and_places_must_be_some(name):
    with pytest.raises(ConfigError, match=f"`{name}` must be"):
        ServiceSettings(**{name: 0}).check()
