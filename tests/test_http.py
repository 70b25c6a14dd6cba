"""The one HTTP client, against a server of the standard library."""

import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unirl_env.errors import ConfigError
from unirl_env.http import CallFailed, Client, Deadline, Reply, together, try_again


class Echo(BaseHTTPRequestHandler):
    """Answers with what was sent; `/large`, `/moved` and `/ill` do what they are called."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, body = {"/large": (200, b"x" * 5000), "/moved": (302, b""), "/ill": (503, b"")}.get(
            self.path, (200, body)
        )
        self.server.seen.append((self.path, dict(self.headers)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Location", "/elsewhere")
        self.send_header("Retry-After", "3")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    found.seen = []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def made(server, **options):
    url = f"http://127.0.0.1:{server.server_address[1]}"
    return Client([url], extra="remote", seconds=5.0, **options), url


def test_an_answer_comes_as_it_is_with_the_headers_of_the_process(server):
    client, url = made(server, headers=lambda: {"Authorization": "Bearer of-this-process"})
    reply = client.send("POST", f"{url}/a?b=1", b'{"n": 1}')
    assert (reply.status, reply.content, reply.passing) == (200, {"n": 1}, False)
    path, headers = server.seen[0]
    assert path == "/a?b=1" and headers["Authorization"] == "Bearer of-this-process"
    assert headers["Content-Type"] == "application/json"
    client.close()
    assert client.send("POST", f"{url}/again", b"words").content == "words"


def test_no_answer_is_larger_than_it_may_be_and_none_leads_elsewhere(server):
    client, url = made(server, most_bytes=4000)
    with pytest.raises(CallFailed, match="too large a reply: more than 4000 bytes") as failed:
        client.send("POST", f"{url}/large", b"")
    assert not failed.value.passing
    assert client.send("POST", f"{url}/moved", b"").status == 302 and len(server.seen) == 2
    ill = client.send("POST", f"{url}/ill", b"")
    assert ill.passing and ill.rest == 3


def test_proxies_of_the_environment_count_only_where_they_may(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    for any_proxy in (False, True):  # this machine is asked without one in either case
        client, url = made(server, any_proxy=any_proxy)
        assert client.send("POST", url, b"x").status == 200
    with pytest.raises(ConfigError, match="the proxy must be addresses"):
        made(server, proxy="no address")[0].open()


def test_a_copy_opens_connections_of_its_own(server):
    client, url = made(server)
    client.open()
    twin = pickle.loads(pickle.dumps(client))
    assert twin.open() is not client.open() and twin.send("POST", url, b"1").content == 1


def test_attempts_end_with_the_first_failure_that_does_not_pass():
    failures = [CallFailed("status 503", passing=True, after=2.0), CallFailed("status 400")]
    pauses = []

    def attempt():
        raise failures.pop(0)

    with pytest.raises(CallFailed, match="status 400"):
        try_again(
            attempt,
            over=lambda made, pause: made >= 9,
            sleep=pauses.append,
            first=0.5,
            longest=1.0,
            extra="x",
        )
    assert pauses == [2.0] and not failures


def test_several_at_once_keep_their_order_and_an_error_of_ours_ends_them():
    def work(n):
        if n == 1:
            raise CallFailed("status 500")
        return n

    found = together(work, range(3), 2, Deadline(5.0))
    assert found[::2] == [0, 2] and found[1].kind == "status 500"

    def broken(n):
        raise ConfigError("`url` must be another one.")

    deadline = Deadline()
    with pytest.raises(ConfigError):
        together(broken, range(3), 2, deadline)
    assert deadline.over()


def test_what_a_server_says_of_an_error_is_found_under_its_names():
    said = {
        b'{"error": {"message": "no"}}': "no",
        b'{"detail": "x"}': "x",
        b"<html>": "<html>",
        b"[1]": "[1]",
    }
    assert all(Reply(400, {}, body).message == words for body, words in said.items())
