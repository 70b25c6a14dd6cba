"""SGLang on a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import unirl_env.functional as F
from unirl_env.errors import ConfigError, EngineError
from unirl_env.rollouts.engines.base import Request
from unirl_env.rollouts.engines.disk import Made
from unirl_env.rollouts.engines.served import ServedEngine


class SGLangServer(ServedEngine):
    """An engine in processes of its own, through SGLang's HTTP routes alone.

    SGLang's log-probabilities are those of the whole tempered distribution, not renormalised over what top-k
    and top-p left. With a truncation, those of the sampling mask are taken instead. Both truncations together
    are refused: SGLang applies them at once, the policy one after the other, and the sets differ.

    Seeds need SGLang's own sampler (`--sampling-backend pytorch`, which a server started here has).

    Written for SGLang 0.5.23, against recorded exchanges with a real server of that version; its routes for
    adapters were read in the source only and never run. The arguments are those of `ServedEngine`.
    """

    NAME = "SGLang"

    def _command(self, port: int, key: str) -> list[str]:
        settings = {
            "model-path": self.pretrained,
            "revision": self.revision,
            "host": "127.0.0.1",
            "port": port,
            "api-key": key,
            "dtype": self.dtype,
            "context-length": self.max_length,
            "sampling-backend": "pytorch",
            "random-seed": 0,
        }
        command = ["-m", "sglang.launch_server"]
        if self.lora_rank is not None:
            command.append("--enable-lora")
            settings |= {"max-lora-rank": self.lora_rank, "lora-target-modules": "all"}
        for name, value in settings.items():
            command += [f"--{name}", str(value)] if value is not None else []
        return command

    def _environment(self, key: str) -> tuple[dict[str, str], dict[str, str]]:
        return {}, {}

    def _start(self) -> None:
        if self.top_p < 1 and self.top_k > 0:
            raise ConfigError(
                f"`top_p` and `top_k` must not both truncate with SGLang, got {self.top_p} and {self.top_k}: "
                "it samples from another set than the policy scores; try `top_p=1`, `top_k=0`, or vLLM."
            )
        if self.pictures.max_images:
            raise ConfigError(
                f"`max_images` must be 0 with SGLang, got {self.pictures.max_images}: pictures beside token "
                "ids were never tried with it; take vLLM."
            )
        if self.url is None:
            from importlib.util import find_spec

            if find_spec("sglang") is None:
                raise EngineError(
                    "SGLang must be installed to be started here, got no module `sglang`; start it elsewhere "
                    "and give its `url`, or install it (it needs an environment of its own)."
                )
        super()._start()

    def _greet(self) -> None:
        info = self._server.get("/model_info")
        if "weight_version" not in info:
            raise EngineError(
                f"SGLang at {self._server.url} must report the version of its weights, got "
                f"{sorted(info)}; try SGLang 0.5.23."
            )
        lengths = [model.get("max_model_len") for model in self._server.get("/v1/models")["data"]]
        self.max_length = lengths[0] if lengths and lengths[0] else self.max_length

    # What `DiskEngine` asks for.

    def _add_adapter(self, label: str, directory: str) -> None:
        self._successfully("/load_lora_adapter", {"lora_name": label, "lora_path": directory})

    def _remove_adapter(self, label: str) -> None:
        self._successfully("/unload_lora_adapter", {"lora_name": label})

    def _reload(self, directory: str, label: str) -> None:
        self._server.post("/pause_generation", {"mode": "abort"})
        try:
            self._successfully(
                "/update_weights_from_disk",
                {"model_path": directory, "flush_cache": True, "weight_version": label},
            )
        finally:
            self._server.post("/continue_generation", {})

    def _relabel(self, label: str) -> None:
        self._server.post("/flush_cache")
        self._successfully("/update_weight_version", {"new_version": label, "abort_all_requests": False})

    def _make(self, requests: Sequence[Request], temperature: float, adapter: str | None) -> list[Made]:
        truncated = bool(temperature) and (self.top_p < 1 or self.top_k > 0)
        bodies = [
            {
                "input_ids": list(request.tokens),
                "sampling_params": {
                    "temperature": temperature,
                    "top_p": self.top_p if temperature else 1.0,
                    "top_k": self.top_k if temperature and self.top_k else -1,
                    "sampling_seed": F.derive_seed(request.seed, request.position),
                    "max_new_tokens": request.max_new_tokens,
                    "stop_token_ids": list(self.eos_ids),
                },
                "return_logprob": True,
                **({"return_sampling_mask": True} if truncated else {}),
                **({"lora_path": adapter} if adapter is not None else {}),
            }
            for request in requests
        ]
        return [self._made(answer, truncated) for answer in self._server.post_each("/generate", bodies)]

    def _made(self, answer: Mapping[str, Any], truncated: bool) -> Made:
        tokens, meta = answer["output_ids"], answer["meta_info"]
        reason = meta.get("finish_reason") or {}
        # SGLang also knows the model's own end tokens, and would end there.
        ended = reason.get("type") == "stop" and tokens and tokens[-1] in self.eos_ids
        if not ended and reason.get("type") != "length":
            raise EngineError(
                f"SGLang must end an answer at one of the tokens {list(self.eos_ids)} or at its limit, got "
                f"{reason} after the tokens {tokens[-3:]}; name all end tokens of the model in `eos_ids`."
            )
        log_probs = (
            meta.get("output_token_sampling_logprobs")
            if truncated
            else [entry[0] for entry in meta["output_token_logprobs"]]
        )
        if log_probs is None or len(log_probs) != len(tokens):
            raise EngineError(
                f"SGLang must give a log-probability for each of {len(tokens)} tokens"
                f"{' from its sampling mask' if truncated else ''}, got {log_probs}; try SGLang 0.5.23, or "
                "no truncation."
            )
        spans = meta.get("weight_versions") or [{"version": meta.get("weight_version")}]
        return Made(tokens, log_probs, {str(span["version"]) for span in spans})

    def _successfully(self, path: str, body: Mapping[str, Any]) -> None:
        answer = self._server.post(path, body)
        if not isinstance(answer, Mapping) or not answer.get("success"):
            raise EngineError(f"SGLang at {self._server.url} must accept {path}, got {answer}.")
