"""A small HTTP server that answers as a chat endpoint or a scorer does, and fails on demand."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def chat(content, usage=(100, 10), **message):
    """A reply of a chat endpoint that says `content`."""
    reply = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content, **message}}]}
    if usage:
        reply["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return reply


def verdict(score=7, reason="fine"):
    """What a judge says who keeps to the form."""
    return json.dumps({"reason": reason, "score": score})


class ChatStandIn:
    """Starts serving at once; use as a context manager.

    Attributes:
        answer: `(body) -> reply`, for requests that no fault meets.
        faults: What happens to the next requests, in their order, instead of an answer: None for nothing,
            `"reset"`, `"cut"` (half a reply), `"drip"` (a byte now and then), a number (seconds to wait
            before the answer), bytes (sent as they are, status 200), or `(status, content, headers)`.
        seen: Bodies in the order of their arrival.
        heads: The requests' headers, by lower-case names.
        most: The most requests that were under way at the same time.
    """

    def __init__(self, answer=None, faults=(), seconds=0.0):
        self.answer = answer or (lambda body: chat(verdict()))
        self.faults, self.seconds = list(faults), seconds
        self.seen, self.heads, self.under_way, self.most = [], [], 0, 0
        self.lock, self.over = threading.Lock(), threading.Event()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                stand_in.serve(self)

            def log_message(self, *arguments):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 64

            def handle_error(self, request, client_address):
                pass  # clients that give up

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()

    def serve(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.seen.append(body)
            self.heads.append({name.lower(): value for name, value in handler.headers.items()})
            fault = self.faults.pop(0) if self.faults else None
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        self.over.wait(self.seconds + (fault if isinstance(fault, int | float) else 0))
        status, content, headers = fault if isinstance(fault, tuple) else (200, None, {})
        content = fault if isinstance(fault, bytes) else self.answer(body) if content is None else content
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        with self.lock:
            self.under_way -= 1  # before the answer: a client that has it asks the next at once
        if fault == "reset":
            handler.close_connection = True
            handler.connection.close()
        elif fault == "drip":
            self.drip(handler)
        else:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
            handler.close_connection = handler.close_connection or fault == "cut"

    def drip(self, handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not self.over.is_set():
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
