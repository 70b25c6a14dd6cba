"""A directory or hub id in the published layout: what is read of it, by whom, and how it is written again."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError
from unirl_env.models.hunyuan_image3.autoencoder import Autoencoder
from unirl_env.models.hunyuan_image3.network import FROZEN, config_class, network_class
from unirl_env.models.hunyuan_image3.settings import Settings
from unirl_env.models.shared.exports import write_adapters, write_weights
from unirl_env.models.shared.loading import Source, complete
from unirl_env.models.shared.outline import on_device

KIND = "HunyuanImage 3"
ALTERNATIVE = "unirl/TinyUnified-T2I-v0"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Checkpoint:
    """The files of one model: config.json, weights in shards with an index, and a tokenizer.

    Network and decoder lie in the same shards; each is read by the names of its own weights, on its own.
    Code that lies beside the weights is not run.

    Args:
        pretrained: A hub id or a directory.
        revision: Branch, tag or commit of the hub repository.
        dtype: Of the network.
        device: Where network and decoder live.
    """

    def __init__(self, pretrained: str, *, revision: str | None, dtype: torch.dtype, device: torch.device):
        self.pretrained, self.revision, self.dtype, self.device = pretrained, revision, dtype, device
        self.source = Source(pretrained, KIND, ALTERNATIVE, {"revision": revision})
        self.settings = Settings.read(self.config, self.generation)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return self.source.json("config.json")

    @cached_property
    def generation(self) -> dict[str, Any]:
        """generation_config.json; empty where there is none."""
        return self.source.json("generation_config.json", needed=False)

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        from transformers import PreTrainedTokenizerFast

        return self.source.load(PreTrainedTokenizerFast.from_pretrained)

    def network(self) -> nn.Module:
        """The network, freshly loaded; weights of the decoder and the vision tower are passed over."""
        loader = complete(network_class().from_pretrained)
        config = config_class()(published=self.config)
        return on_device(self.source.load(loader, config=config, dtype=self.dtype), self.device).eval()

    @cached_property
    def decoder(self) -> nn.Module:
        """The autoencoder's decoder; in float32 for a network in float32 and on a CPU, else in float16."""
        with torch.device("meta"):
            decoder = Autoencoder(self.settings.vae, only_decoder=True).decoder
        half = self.dtype != torch.float32 and self.device.type == "cuda"
        dtype = torch.float16 if half else torch.float32
        state = {
            name.removeprefix("vae.decoder."): tensor.to(self.device, dtype)
            for name, tensor in self.tensors("vae.decoder.")
        }
        if absent := sorted(set(decoder.state_dict()) - set(state)):
            raise self._incomplete([f"vae.decoder.{name}" for name in absent])
        decoder.load_state_dict(state, assign=True)
        return decoder.eval().requires_grad_(False)

    def tensors(self, *prefixes: str) -> Iterator[tuple[str, Tensor]]:
        """Names and weights that begin with one of `prefixes`, file by file; no other is read."""
        from safetensors import safe_open

        shards = sorted({file for name, file in self._files.items() if name.startswith(prefixes)})
        for shard in shards:
            with safe_open(self.source.path(shard), framework="pt") as opened:
                for name in opened.keys():
                    if name.startswith(prefixes):
                        yield name, opened.get_tensor(name)

    def system_prompt(self, name: str) -> str:
        """A system prompt that is published beside the weights, read and not run.

        Raises:
            ConfigError: If the checkpoint has none of that name.
        """
        path, known = self.source.path("system_prompt.py", needed=False), {}
        if path is not None:
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                    known |= {target.id: node.value.value for target in node.targets}
        parts = set(name.split("_"))
        found = [key for key, text in known.items() if isinstance(text, str) and parts <= set(key.split("_"))]
        if found:
            return known[min(found, key=len)]
        raise ConfigError(
            f"`system` must be a text, or the name of one in the checkpoint's system_prompt.py, got "
            f"{name!r}; known are {sorted(known) or 'none, for there is no such file'}."
        )

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """Write the adapters as peft loads them onto this network."""
        write_adapters(network, directory, base=self.pretrained, revision=self.revision)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """Write the whole checkpoint again: the network with adapters merged in, and all that is frozen."""
        from safetensors.torch import save_file

        folder = Path(directory)
        write_weights(network, directory)
        trained = folder / SINGLE
        if trained.exists():  # a single file would be taken for the whole
            trained.rename(folder / "model-trained.safetensors")
            files = dict.fromkeys(network.state_dict(), "model-trained.safetensors")
            files = {_plain(name): file for name, file in files.items() if ".lora_" not in name}
        else:
            files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        frozen = {name: tensor.contiguous() for name, tensor in self.tensors(*FROZEN)}
        if frozen:
            save_file(frozen, folder / "model-frozen.safetensors", metadata={"format": "pt"})
            files |= dict.fromkeys(frozen, "model-frozen.safetensors")
        size = sum(file.stat().st_size for file in folder.glob("model-*.safetensors"))
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        if self.generation:
            (folder / "generation_config.json").write_text(json.dumps(self.generation, indent=2) + "\n")
        self.tokenizer.save_pretrained(directory)

    @cached_property
    def _files(self) -> dict[str, str]:
        """Name of a weight to the file that holds it."""
        if self.source.path(INDEX, needed=False):
            return self.source.json(INDEX)["weight_map"]
        from safetensors import safe_open

        with safe_open(self.source.path(SINGLE), framework="pt") as opened:
            return dict.fromkeys(opened.keys(), SINGLE)

    def _incomplete(self, names: list[str]) -> Exception:
        cause = f"{len(names)} of its weights are missing, such as {names[0]}"
        return self.source.not_found(cause)


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")
