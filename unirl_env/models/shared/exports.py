"""What a trained network of transformers leaves behind: adapters for peft, or whole weights for anyone."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.errors.quiet import quiet_loading
from unirl_env.models.shared.loading import Source
from unirl_env.models.shared.output_layer import output_weight

LORA_FILE = "pytorch_lora_weights.safetensors"
"""What diffusers' loaders of adapters look for."""
PEFT_PREFIX = "base_model.model."
"""What peft puts before the names of a model that it wraps; ours has its adapters injected."""


class OfTransformers:
    """A model whose files and network are those of transformers, as they are loaded and left behind.

    Attributes:
        pretrained: A hub id or a directory.
        revision: Branch, tag or commit of the hub repository.
        source: What loads them.
    """

    pretrained: str
    revision: str | None
    source: Source

    @cached_property
    def config(self) -> Any:
        """Transformers' configuration of the whole model."""
        from transformers import AutoConfig

        return self.source.load(AutoConfig.from_pretrained)

    @cached_property
    def tokenizer(self) -> Any:
        """Transformers' tokenizer."""
        from transformers import AutoTokenizer

        return self.source.load(AutoTokenizer.from_pretrained)

    @property
    def reader(self) -> Any:
        """What of transformers reads prompts, and is saved beside the weights."""
        return self.tokenizer

    def head(self, network: nn.Module) -> Tensor:
        """The output layer's weight `[V, D]`, with columns for what it adds (`models.output_layer`)."""
        return output_weight(network.get_output_embeddings())

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """`adapter_config.json` and `adapter_model.safetensors`, for peft, transformers and vLLM."""
        write_adapters(network, directory, base=self.pretrained, revision=self.revision)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """A directory that transformers' own classes load, adapters merged in."""
        write_weights(network, directory)
        self.reader.save_pretrained(directory)


def write_layers(network: nn.Module, directory: str) -> None:
    """Write injected adapters as `load_lora_adapter` of diffusers' networks reads them.

    For families whose pipeline has no loader; the network's own writer leaves its settings in any order.
    """
    from diffusers.loaders.lora_base import LoraBaseMixin
    from peft import get_peft_model_state_dict

    layers, config = get_peft_model_state_dict(network), network.peft_config["default"].to_dict()
    LoraBaseMixin.write_lora_layers(
        layers, directory, True, LORA_FILE, None, True, lora_adapter_metadata=in_order(config)
    )
    settle_header(Path(directory) / LORA_FILE)


def write_adapters(
    network: nn.Module,
    directory: str,
    *,
    base: str,
    revision: str | None = None,
    task: str | None = "CAUSAL_LM",
) -> None:
    """Write injected adapters as `PeftModel.from_pretrained` and vLLM load them.

    Args:
        network: A transformers model with adapters.
        directory: Where to write; made if it does not exist.
        base: Hub id or directory of the model that they belong to.
        revision: Its revision.
        task: What peft calls such a model; None for one that transformers has no class for.

    Raises:
        ConfigError: If the network has no adapters.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    if not getattr(network, "peft_config", None):
        raise ConfigError("There are no adapters to export: this network has none.")
    config = copy.copy(network.peft_config["default"])
    config.base_model_name_or_path, config.revision = base, revision
    config.task_type, config.inference_mode = task, True
    for name, value in in_order(vars(config)).items():
        setattr(config, name, value)
    config.save_pretrained(directory)
    weights = {
        PEFT_PREFIX + name: tensor.detach().cpu().contiguous()
        for name, tensor in get_peft_model_state_dict(network, save_embedding_layers=False).items()
    }
    save_file(weights, Path(directory) / "adapter_model.safetensors", metadata={"format": "pt"})


def in_order(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with lists in place of sets, whose order differs from one process to the next."""
    return {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}


def settle_header(path: Path) -> None:
    """Write the metadata of a safetensors file in the order of its names, where safetensors takes any order.

    Equal runs leave equal files then, byte by byte.
    """
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.pop("__metadata__", None)
    if metadata is None:
        return
    whole = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # Tensors begin at multiples of eight bytes.
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def write_weights(network: nn.Module, directory: str) -> None:
    """Write weights, config and generation settings by `save_pretrained`, adapters merged in.

    Where embeddings and output layer share a weight and an adapter sits on one of them, they are written
    apart: merged, they are no longer the same.
    """
    layers = (network.get_input_embeddings(), network.get_output_embeddings())
    apart = any(hasattr(layer, "base_layer") for layer in layers)
    with _untied(network) if apart else nullcontext(), quiet_loading():
        network.save_pretrained(directory, state_dict=merged_state(network))


def written_state(network: nn.Module) -> dict[str, Tensor]:
    """What `write_weights` writes of a network without adapters, by its names there, and nothing written.

    The tensors are the network's own, but for those that files have in another form, such as experts.
    """
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    model: Any = network
    unwanted = set(model._keys_to_ignore_on_save or ())
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in unwanted}
    found: dict[str, Tensor] = revert_weight_conversion(
        model, remove_tied_weights_from_state_dict(state, model)
    )
    return found


@contextmanager
def _untied(network: nn.Module) -> Iterator[None]:
    """Within it, the configuration says that embeddings and output layer have a weight each."""
    config = network.config
    parts = [config] if (text := config.get_text_config()) is config else [config, text]
    own = [part.tie_word_embeddings for part in parts]
    try:
        for part in parts:
            part.tie_word_embeddings = False
        yield
    finally:
        for part, before in zip(parts, own, strict=True):
            part.tie_word_embeddings = before


@torch.no_grad()
def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's weights by the names that they have without adapters, those added in.

    The network stays as it is; only merged weights are copies.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in network.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in network.named_modules():
        if isinstance(module, BaseTunerLayer):
            weight = module.get_base_layer().weight
            # Summed in float32: the adapters are small beside the weights.
            merged = weight.float() + sum(module.get_delta_weight(a).float() for a in module.active_adapters)
            state[f"{name}.weight"] = merged.to(weight.dtype)
    return state
