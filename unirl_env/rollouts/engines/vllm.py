"""vLLM in this process."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import unirl_env.functional as F
from unirl_env.errors import EngineError, EngineLost, MissingExtra, StaleWeights, UnirlError
from unirl_env.models.shared.exports import OfTransformers, written_state
from unirl_env.rollouts.engines.base import Request
from unirl_env.rollouts.engines.disk import DiskEngine, Made
from unirl_env.rollouts.engines.vllm_worker import EXTENSION

if TYPE_CHECKING:
    from unirl_env.policies.actor import Actor

CPU_CACHE_BYTES = 1 << 30
"""Without a GPU, vLLM would take nine tenths of the machine's memory, which is not its own."""
ADAPTER_ROOMS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM reserves room for."""


class VLLMEngine(DiskEngine):
    """An engine inside the player's own process: nothing to start or to watch, nothing to send.

    vLLM changes the process it lives in: it initialises `torch.distributed` with a world of one process, and
    replaces `torch.set_num_threads`. So it belongs into runners, not into a process that will join a group of
    learners. The random number generators are left as they were.

    All weights that are trained come from the policy's own memory, and nothing is written or held twice; vLLM
    takes a layer at a time. They go through a directory where `folder` names one, where the engine has
    further processes (`tensor_parallel_size`), and where the model writes files of its own form.

    vLLM 0.32; weights come in by its official calls only.

    Args:
        pretrained: The hub id or directory of the untrained model.
        eos_ids: Tokens that end a turn.
        cache_bytes: Memory for keys and values; None takes vLLM's own share of a GPU, and a
            gigabyte without one.
        options: Further arguments of `vllm.LLM`, which win over the ones chosen here.
        **settings: Those of `DiskEngine`.

    Raises:
        MissingExtra: If vLLM is not installed.
        EngineError: If the model cannot be served.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        eos_ids: Sequence[int],
        cache_bytes: int | None = None,
        options: Mapping[str, Any] | None = None,
        **settings: Any,
    ):
        super().__init__(pretrained, eos_ids=eos_ids, **settings)
        self._in_memory = settings.get("folder") is None
        self.cache_bytes, self.options = cache_bytes, dict(options or {})
        self._llm: Any = None
        self._adapters: dict[str, Any] = {}
        self._start()

    def _start(self) -> None:
        for name, value in vllm_variables(in_process=True).items():
            os.environ.setdefault(name, value)
        on_gpu = torch.cuda.is_available()
        with _same_draws():
            try:
                from vllm import LLM
            except ImportError as error:
                raise MissingExtra("vllm", "vllm") from error
            arguments: dict[str, Any] = {
                "dtype": self.dtype,
                "revision": self.revision,
                "tokenizer_revision": self.revision,
                "max_model_len": self.max_length,
                "kv_cache_memory_bytes": self.cache_bytes or (None if on_gpu else CPU_CACHE_BYTES),
                "logprobs_mode": "processed_logprobs",
                # Without this, the model's own file adds end tokens and sampling settings to ours.
                "generation_config": "vllm",
                "enforce_eager": not on_gpu,
                "seed": 0,
                "use_tqdm_on_load": False,
                **self.pictures.settings(),
            }
            if not on_gpu:
                arguments["worker_extension_cls"] = EXTENSION
            if self.lora_rank is not None:
                arguments |= {
                    "enable_lora": True,
                    "max_lora_rank": adapter_room(self.lora_rank),
                    "max_loras": 1,
                    # While a new adapter is loaded, the old one is still there.
                    "max_cpu_loras": 2,
                }
            try:
                self._llm = LLM(self.pretrained, **(arguments | self.options))
            except Exception as error:
                raise EngineError(
                    f"vLLM must be able to serve {self.pretrained!r}, got {type(error).__name__}: {error}. "
                    "Check that the directory or hub id is right, and that `max_length`, `cache_bytes` and "
                    "`options` fit the model and the device; vLLM says more "
                    "with VLLM_LOGGING_LEVEL=INFO."
                ) from error
        self.max_length = self._llm.llm_engine.model_config.max_model_len

    def _stop(self) -> None:
        if self._llm is None:
            return
        self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        self._adapters.clear()
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()

    # What `DiskEngine` asks for.

    def _add_adapter(self, label: str, directory: str) -> None:
        from vllm.lora.request import LoRARequest

        # vLLM knows adapters by their numbers: one that was never used before cannot answer with old weights.
        self._adapters[label] = LoRARequest(label, self._count, directory)
        with _named_errors():
            self._llm.llm_engine.add_lora(self._adapters[label])

    def _remove_adapter(self, label: str) -> None:
        with _named_errors():
            self._llm.llm_engine.remove_lora(self._adapters.pop(label).lora_int_id)

    def _reload(self, directory: str, label: str) -> None:
        self._load_by(label, weights_path=directory)

    def _take(self, label: str, actor: Actor) -> Callable[[str], None]:
        if not self._in_memory or not _alone(self._llm) or not _writes_as_transformers(actor.model):
            return super()._take(label, actor)
        self._drop_version()
        published = _prints(actor)

        def load(label: str) -> None:
            self._load_by(label, weights_iterator=iter(written_state(actor.network).items()))

        def load_again(label: str) -> None:
            if _prints(actor) != published:
                raise StaleWeights(
                    "The policy must still have the weights that were published to go back to them after the "
                    "untrained ones, got others; call `load_weights` again, or give the engine a `folder`, "
                    "where they are kept."
                )
            load(label)

        load(label)
        return load_again

    def _load_by(self, label: str, **source: Any) -> None:
        with _named_errors():
            self._llm.collective_rpc("reload_weights", kwargs=source)
            if not torch.cuda.is_available():
                self._llm.collective_rpc("repack_heads")
        self._relabel(label)

    def _relabel(self, label: str) -> None:
        with _named_errors():
            # All three: keys and values of the old weights would be reused without a word.
            if not self._llm.reset_prefix_cache():
                raise EngineError("vLLM must be idle while weights change, got requests under way.")
            self._llm.reset_mm_cache()
            self._llm.llm_engine.reset_encoder_cache()
            self._llm.update_weight_version(label)

    def _make(self, requests: Sequence[Request], temperature: float, adapter: str | None) -> list[Made]:
        from vllm import SamplingParams, TokensPrompt

        sampling = [SamplingParams(**sampling_settings(self, request, temperature)) for request in requests]
        prompts = []
        for request in requests:
            prompt = TokensPrompt(prompt_token_ids=self.pictures.shrink(request))
            if request.prompt.images:
                prompt["multi_modal_data"] = {"image": self.pictures.as_pil(request)}
            prompts.append(prompt)
        lora = None if adapter is None else self._adapters[adapter]
        with _named_errors():
            outputs = self._llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora)
        for request, output in zip(requests, outputs, strict=True):
            self.pictures.check(request, output.prompt_token_ids)
        return [_made(output.outputs[0]) for output in outputs]


def _alone(llm: Any) -> bool:
    """Whether vLLM has no further processes, to which tensors would have to be sent."""
    from vllm.v1.engine.core_client import InprocClient

    parallel = llm.llm_engine.vllm_config.parallel_config
    inside = isinstance(llm.llm_engine.engine_core, InprocClient)
    return inside and parallel.world_size == 1 and parallel.distributed_executor_backend == "uni"


def _writes_as_transformers(model: Any) -> bool:
    """Whether its files are what `written_state` says."""
    return getattr(type(model), "save_weights", None) is OfTransformers.save_weights


def _prints(actor: Actor) -> dict[str, int]:
    """What tells trained weights from others of the same names."""
    state = {name: tensor for name, tensor in actor.trainable_state().items() if tensor.numel()}
    return {name: int(torch.hash_tensor(tensor).view(torch.int64)) for name, tensor in state.items()}


def sampling_settings(engine: DiskEngine, request: Request, temperature: float) -> dict[str, Any]:
    """VLLM's sampling parameters of one request."""
    return {
        "temperature": temperature,
        "top_p": engine.top_p if temperature else 1.0,
        "top_k": engine.top_k if temperature else 0,
        # One seed per turn: after a tool's reply the draws must not begin again.
        "seed": F.derive_seed(request.seed, request.position),
        "max_tokens": request.max_new_tokens,
        # The only end tokens are ours, whatever the model's configuration says.
        "ignore_eos": True,
        "stop_token_ids": list(engine.eos_ids),
        "logprobs": 0,
        "detokenize": False,
    }


def vllm_variables(*, in_process: bool) -> dict[str, str]:
    """Environment variables under which vLLM is run; those that are set already are left alone.

    Args:
        in_process: For `VLLMEngine` rather than for a server.
    """
    variables = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING" if in_process else "INFO"}
    if in_process:
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if not torch.cuda.is_available():
        # Compiling for a CPU takes a minute and gains nothing; pinned threads starve their neighbours.
        variables |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return variables


def adapter_room(rank: int) -> int:
    """The smallest rank that vLLM reserves room for and that holds `rank`.

    Raises:
        EngineError: If there is none.
    """
    for room in ADAPTER_ROOMS:
        if rank <= room:
            return room
    raise EngineError(f"`lora_rank` must be at most {ADAPTER_ROOMS[-1]} for vLLM, got {rank}.")


def _made(output: Any) -> Made:
    log_probs = [at[token].logprob for token, at in zip(output.token_ids, output.logprobs, strict=True)]
    return Made(output.token_ids, log_probs, {span.version for span in output.weight_versions})


@contextmanager
def _named_errors() -> Iterator[None]:
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineLost("vLLM's engine died in this process; the lines above this one tell why.") from error
    except UnirlError:
        raise
    except Exception as error:
        raise EngineError(f"vLLM refused: {type(error).__name__}: {error}") from error


@contextmanager
def _same_draws() -> Iterator[None]:
    """Leave the generators as they are: vLLM seeds all of them as it starts."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
