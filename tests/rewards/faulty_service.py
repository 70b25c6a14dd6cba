"""A stand-in for the reward service that fails on demand, in the standard library alone.

It reads requests by the specification of safetensors and not by this package's code. The score of a sample is
the number that its text says; its part `half` is the half of that. Run as a program, it can be killed.
"""

import argparse
import json
import math
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REWARD = {"name": "number", "scorer": "Number", "needs": ["text"], "pointwise": True}


def read_request(body):
    """The words of a request: its length, its JSON, and the tensor `request` in what follows."""
    (length,) = struct.unpack("<Q", body[:8])
    start, end = json.loads(body[8 : 8 + length])["request"]["data_offsets"]
    return json.loads(body[8 + length + start : 8 + length + end])


def scored(items):
    numbers = [float(item["sample"]["text"]) for item in items]
    return {
        "value": [n if math.isfinite(n) else None for n in numbers],
        "parts": {"half": [n / 2 if math.isfinite(n) else None for n in numbers]},
        "valid": [math.isfinite(n) for n in numbers],
    }


class FaultyService(ThreadingHTTPServer):
    """Listens on a free port of this machine; use it in a `with` block.

    Args:
        faults: One per request to `/score`, in the order in which they come; None is none.
        always: The fault of all requests after those.
        rewards: What is served.
        token: What clients must say.
        most_samples: Larger requests are refused by 413.
        delay: Seconds that every score takes.

    Attributes:
        asked: The ids of all requests to `/score`.
        sizes: Their numbers of samples.
        computed: How often each id was scored; a repeated one is answered from memory.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, faults=(), *, always=None, rewards=(REWARD,), token=None, most_samples=10**6, delay=0.0,
        protocol=1, port=0,
    ):  # fmt: skip
        super().__init__(("127.0.0.1", port), Handler)
        self.faults, self.always, self.rewards, self.token = list(faults), always, list(rewards), token
        self.most_samples, self.delay, self.protocol = most_samples, delay, protocol
        self.asked, self.sizes, self.computed, self.kept = [], [], Counter(), {}
        self.most_at_once = self.at_once = self.connections = 0
        self.open = set()
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is closed

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""

    def next_fault(self):
        with self.lock:
            return self.faults.pop(0) if self.faults else self.always

    def answer(self, asked):
        """The reply, scored at the first time only."""
        with self.lock:
            if asked["id"] not in self.kept:
                self.computed[asked["id"]] += 1
                self.kept[asked["id"]] = scored(asked["items"])
            return {"id": asked["id"], "reward": asked["reward"], "scores": self.kept[asked["id"]]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def setup(self):
        super().setup()
        self.server.connections += 1
        self.server.open.add(self.connection)

    def finish(self):
        self.server.open.discard(self.connection)
        super().finish()

    def do_GET(self):
        if not self.refuse_strangers():
            self.send(200, {"protocol": self.server.protocol, "rewards": self.server.rewards})

    def do_POST(self):
        asked = read_request(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.asked.append(asked["id"])
            server.sizes.append(len(asked["items"]))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.delay)
            if not self.refuse_strangers():
                fault = server.next_fault()
                if fault is None and len(asked["items"]) > server.most_samples:
                    fault = 413
                self.reply(asked, fault)
        finally:
            with server.lock:
                server.at_once -= 1

    def reply(self, asked, fault):
        if fault is None:
            self.send(200, self.server.answer(asked))
        elif callable(fault):
            self.send(200, fault(self.server.answer(asked)))
        elif isinstance(fault, int):
            self.send(fault, {"error": {"code": "no", "message": f"the stand-in says {fault}"}})
        elif isinstance(fault, tuple):
            status, wait = fault
            self.send(status, {"error": {"code": "wait", "message": "come again"}}, {"Retry-After": wait})
        elif fault == "html":
            self.send(502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", kind="text/html")
        elif fault == "no json":
            self.send(200, b'{"id": "')
        elif fault == "slow":
            time.sleep(1.6)
            self.send(200, self.server.answer(asked))
        else:
            self.break_off(asked, fault)

    def break_off(self, asked, fault):
        """Faults of the connection."""
        self.close_connection = True
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        data = json.dumps(self.server.answer(asked)).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        if fault == "cut":
            self.wfile.write(head.encode() + data[: len(data) // 2])
        elif fault == "drip":
            self.wfile.write(head.encode())
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)
        else:
            assert fault == "lost", fault  # scored, and never said
        self.connection.shutdown(socket.SHUT_RDWR)

    def refuse_strangers(self):
        wrong = self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}"
        if wrong:
            self.send(401, {"error": {"code": "unauthorized", "message": "the token is wrong"}})
        return wrong

    def send(self, status, content, headers=None, kind="application/json"):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    service = FaultyService(port=options.port, delay=options.delay)
    print(service.server_address[1], flush=True)
    service.serve_forever(0.02)
