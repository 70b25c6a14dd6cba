"""A small HTTP server that answers as SGLang 0.5.23 does, from recorded exchanges with a real one.

What it generates is a function of the context, the weights it was told to load and the sampling seed; the
forms of requests, answers and errors are the recorded ones.
"""

import hashlib
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SAMPLING = {
    "max_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature", "top_p", "top_k", "min_p",
    "frequency_penalty", "presence_penalty", "repetition_penalty", "min_new_tokens", "n", "json_schema",
    "regex", "ebnf", "structural_tag", "ignore_eos", "skip_special_tokens", "spaces_between_special_tokens",
    "no_stop_trim", "stream_interval", "logit_bias", "sampling_seed", "custom_params", "beam_width",
    "watermark", "choice",
}  # fmt: skip
MAX_LENGTH = 256


class StandIn:
    """Starts serving at once.

    Attributes:
        faults: Path to what happens there next instead of an answer: `"reset"` cuts the connection, anything
            else is `(status, content)`.
        version: What it reports as the version of its weights; tests may tamper with it.
        seen: Paths and bodies, in the order of their arrival.
    """

    def __init__(self, key=None):
        self.key, self.faults, self.seen = key, {}, []
        self.weights, self.version, self.adapters, self.paused = "untrained", "default", {}, False
        self.lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                stand_in.answer(self, None)

            def do_POST(self):
                size = int(self.headers.get("Content-Length") or 0)
                stand_in.answer(self, json.loads(self.rfile.read(size)) if size else None)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, body):
        with self.lock:
            self.seen.append((handler.path, body))
            fault = self.faults.pop(handler.path, None)
            if fault == "reset":
                handler.close_connection = True
                handler.connection.close()
                return
            known = handler.headers.get("Authorization") == f"Bearer {self.key}"
            if self.key and not known and handler.path != "/health":
                fault = (401, {"error": "Unauthorized"})
            status, content = fault or self.route(handler.path, body)
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        handler.send_response(status)
        if not isinstance(content, str):
            handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def route(self, path, body):
        name = path.strip("/").replace("/", "_")
        return getattr(self, name)(body) if hasattr(self, name) else (404, {"detail": "Not Found"})

    def health(self, body):
        return 200, ""

    def model_info(self, body):
        return 200, {"model_path": self.weights, "weight_version": self.version, "model_type": "qwen3"}

    def v1_models(self, body):
        model = {"id": "policy", "object": "model", "owned_by": "sglang", "parent": None}
        return 200, {"object": "list", "data": [model | {"max_model_len": MAX_LENGTH}]}

    def pause_generation(self, body):
        self.paused = True
        return 200, {"message": "Generation paused successfully.", "status": "ok"}

    def continue_generation(self, body):
        self.paused = False
        return 200, {"message": "Generation continued successfully.", "status": "ok"}

    def update_weights_from_disk(self, body):
        path, version = body["model_path"], body.get("weight_version")
        if not os.path.isdir(path):
            message = f"Failed to get weights iterator: Repo id must use alphanumeric chars: '{path}'.."
            return 400, {"success": False, "message": message, "num_paused_requests": 0}
        self.weights = open(os.path.join(path, "weights.txt")).read()
        self.version = version or self.version
        message = f"Succeeded to update model weights. Weight version updated to {version}."
        return 200, {"success": True, "message": message, "num_paused_requests": 0}

    def update_weight_version(self, body):
        self.version = body["new_version"]
        message = f"Weight version updated to {self.version}"
        return 200, {"success": True, "message": message, "new_version": self.version}

    def flush_cache(self, body):
        return 200, "Cache flushed.\nPlease check backend logs for more details.\n"

    def load_lora_adapter(self, body):
        name = body["lora_name"]
        if name in self.adapters:
            return 400, {"error": {"message": f"LoRA adapter with name {name} already exists"}}
        self.adapters[name] = open(os.path.join(body["lora_path"], "weights.txt")).read()
        return 200, {"success": True, "loaded_adapters": self.adapters}

    def unload_lora_adapter(self, body):
        del self.adapters[body["lora_name"]]
        return 200, {"success": True, "loaded_adapters": self.adapters}

    def generate(self, body):
        sampling = body.get("sampling_params", {})
        unknown = sorted(set(sampling) - SAMPLING)
        if unknown:
            return 400, {"error": f"unknown field `{unknown[0]}`, expected one of `max_new_tokens`"}
        if not body.get("input_ids"):
            return 400, {"error": {"message": "Either text, input_ids or input_embeds should be provided."}}
        adapter = body.get("lora_path")
        if adapter is not None and adapter not in self.adapters:
            return 400, {"error": {"message": f"LoRA adapters are not loaded: {adapter}"}}
        weights = self.weights + self.adapters.get(adapter, "")
        seed = sampling.get("sampling_seed") if sampling["temperature"] else None
        tokens, reason = self.tokens(weights, body["input_ids"], seed, sampling)
        meta = {
            "id": "0123",
            "finish_reason": reason,
            "prompt_tokens": len(body["input_ids"]),
            "weight_version": self.version,
            "completion_tokens": len(tokens),
            "cached_tokens": 0,
            "weight_versions": [{"version": self.version, "start": 0, "end": len(tokens)}],
        }
        if body.get("return_logprob"):
            meta["output_token_logprobs"] = [[-2.0 - token / 256, token, None] for token in tokens]
        if body.get("return_sampling_mask"):
            meta["output_token_sampling_mask"] = [[token, 0] for token in tokens]
            meta["output_token_sampling_logprobs"] = [-0.5 - token / 256 for token in tokens]
        return 200, {"text": "", "output_ids": tokens, "meta_info": meta}

    def tokens(self, weights, context, seed, sampling):
        """Bytes of a hash; token 7 ends the text, as does the model's own end token 9."""
        made = []
        while len(made) < sampling["max_new_tokens"]:
            key = json.dumps([weights, context + made, seed]).encode()
            made.append(hashlib.blake2b(key, digest_size=1).digest()[0] % 32)
            if made[-1] in (*sampling.get("stop_token_ids", ()), 9):
                return made, {"type": "stop", "matched": made[-1]}
        return made, {"type": "length", "length": len(made)}
