"""The text view of Janus: its chat template, its Llama, and where its weights come from and go to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError, PromptError
from unirl_env.models.backbone import ForwardOptions
from unirl_env.models.shared import packed
from unirl_env.models.shared.chat import ANSWER, ChatWords, after_answer
from unirl_env.models.shared.exports import merged_state, write_adapters
from unirl_env.models.shared.faithful import hold
from unirl_env.models.shared.loading import Source, complete
from unirl_env.models.shared.output_layer import output_states, output_weight
from unirl_env.models.shared.spelling import Spelling
from unirl_env.models.shared.templates import turn_borders
from unirl_env.models.words import Encoded, LanguageModel
from unirl_env.types import Prompt

__all__ = ["JanusText", "read_states"]

ADAPTED = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
UNREAD = ("vision_model", "aligner", "vqmodel")
"""Parts of transformers' model that neither text nor picture tokens go through."""


class JanusText(LanguageModel):
    """Janus as a language model: it reads and writes text.

    A chat is what the published template makes of it, behind a begin-of-text token. Adapters go to the
    language layers, which text and pictures share.

    Args:
        pretrained: A hub id or a directory, in transformers' own form.
        dtype: Of weights and activations.
        device: Where the network is loaded.
        revision: Branch, tag or commit of the hub repository.
        system: Stands before the chat, and a blank line after it, as the published default does; None is
            nothing, as the model is published to draw.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If the model is of another family.
    """

    KIND = "Janus in transformers' own form (deepseek-community/Janus-Pro-1B)"
    ALTERNATIVE = "unirl/TinyUnified-T2I-v0"
    position_axes = 1
    input_spaces: Mapping[str, tuple[tuple[int, ...], str]] = {}

    def __init__(
        self,
        pretrained: str,
        *,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        system: str | None = None,
    ):
        self.pretrained, self.revision, self.system = str(pretrained), revision, system
        self.source = Source(self.pretrained, self.KIND, self.ALTERNATIVE, {"revision": revision})
        config = self.config
        if config.model_type != "janus":
            raise ConfigError(
                f"`pretrained` must be a model of the family 'janus', got {config.model_type!r} in "
                f"{self.pretrained!r}; try 'deepseek-community/Janus-Pro-1B'."
            )
        # Words are read and written as by any language model; only the chats have a form of their own.
        self._words = ChatWords(self.pretrained, dtype=dtype, device=device, revision=revision, chat=False)
        self.dtype, self.device = self._words.dtype, self._words.device
        self.vocab_size, self.max_context = self._words.vocab_size, self._words.max_context
        tokenizer = self.processor.tokenizer
        self.begin_of_text = tokenizer.bos_token_id
        self.begin_of_image = tokenizer.convert_tokens_to_ids(self.processor.image_start_token)
        self.end_of_text, self.pad_id = self._words.eos_ids, self._words.pad_id
        self.eos_ids = (*self.end_of_text, self.begin_of_image)
        self.num_tokens = config.vq_config.num_patches**2
        layers = range(config.text_config.num_hidden_layers)
        # The vision tower of the published model has layers of the same names; full names leave it out.
        self.lora_targets = tuple(f"language_model.layers.{i}.{name}" for i in layers for name in ADAPTED)

    def encode(self, prompt: Prompt) -> Encoded:
        """`tokens` `[L]` of the chat by the model's template.

        Raises:
            PromptError: If the prompt holds what this model cannot read, or leaves no room for a picture.
        """
        turns = self._spelling.quoted_turns(self._turns(prompt))
        tokens = self._spelling.begun(self._render(turns))
        self._words.check_open(tokens, prompt)
        most = self.max_context - 1 - self.num_tokens
        if len(tokens) > most:
            raise PromptError(
                f"A prompt must have at most {most} tokens, so that a picture of {self.num_tokens} tokens "
                f"fits behind it, got {len(tokens)} for prompt {prompt.id[:60]!r}; try a shorter prompt."
            )
        return Encoded(torch.tensor(tokens, dtype=torch.int64))

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`; see `LanguageModel.decode`."""
        return self._spelling.text(tokens)

    def reply(self, text: str) -> list[int]:
        """The template's turn of the user, up to the beginning of the next answer."""
        said = [("user", "?"), ("assistant", ANSWER), ("user", self._spelling.quoted(text))]
        chat = self._render([_turn(role, content) for role, content in said])
        return after_answer(chat, self._spelling, self.end_of_text)

    def network(self) -> nn.Module:
        """Transformers' own model, freshly loaded, without what reads pictures and what paints them."""
        network = self._whole(attn_implementation={"text_config": packed.register()})
        for name in UNREAD:
            delattr(network.model, name)
        return hold(self, network.to(self.device).eval())

    def hidden(
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """The transformer's last hidden states `[1, L, D]` packed, `[B, t, D]` with a cache."""
        embedded = network.get_input_embeddings()(tokens)
        states = read_states(network, embedded, positions, how)
        return output_states(network.get_output_embeddings(), states)

    def head(self, network: nn.Module) -> Tensor:
        """The output layer's weight `[V, D]`, with columns for what it adds (`models.output_layer`)."""
        return output_weight(network.get_output_embeddings())

    def save_adapters(self, network: nn.Module, directory: str) -> None:
        """`adapter_config.json` and `adapter_model.safetensors`, for peft and transformers."""
        write_adapters(network, directory, base=self.pretrained, revision=self.revision)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """A directory that `JanusForConditionalGeneration` and `AutoProcessor` load, adapters merged in.

        What the policy's network has not, the vision tower and the VQ model, is that of `pretrained`.
        """
        whole = self._whole()
        whole.load_state_dict(whole.state_dict() | merged_state(network))
        whole.save_pretrained(directory)
        self.processor.save_pretrained(directory)

    @cached_property
    def _spelling(self) -> Spelling:
        """That of the words, with the marks of pictures, which end texts or stand for pieces."""
        tokenizer = self.processor.tokenizer
        names = (self.processor.image_token, self.processor.image_start_token, self.processor.image_end_token)
        places = [tokenizer.convert_tokens_to_ids(name) for name in names]
        bare = Spelling(tokenizer, frames=(*self._words.spelling.frames, *self.eos_ids), places=places)
        borders = turn_borders(
            bare, lambda turns: self._render([_turn(t["role"], t["content"]) for t in turns])
        )
        return Spelling(tokenizer, frames=(*bare.frames, *borders), places=places)

    @cached_property
    def config(self) -> Any:
        """Transformers' configuration of the whole model."""
        from transformers import AutoConfig

        return self.source.load(AutoConfig.from_pretrained)

    @cached_property
    def processor(self) -> Any:
        """Transformers' tokenizer, chat template and picture processor."""
        from transformers import AutoProcessor

        return self.source.load(AutoProcessor.from_pretrained)

    def _whole(self, **options: Any) -> nn.Module:
        from transformers import JanusForConditionalGeneration

        return self.source.load(
            complete(JanusForConditionalGeneration.from_pretrained), dtype=self.dtype, **options
        )

    def _turns(self, prompt: Prompt) -> list[dict[str, Any]]:
        """The chat of a prompt, contents as parts, which is how the template reads them."""
        turns = []
        for turn in prompt.messages or ({"role": "user", "content": prompt.text},):
            content = turn.get("content") or ""
            if not isinstance(content, str):
                if prompt.images or any(part.get("type") != "text" for part in content):
                    raise self._no_pictures(prompt)
                content = "".join(part["text"] for part in content)
            turns.append(_turn(turn["role"], content))
        if prompt.images:
            raise self._no_pictures(prompt)
        return turns

    def _no_pictures(self, prompt: Prompt) -> PromptError:
        return PromptError(
            f"Prompts must be text for Janus, which draws from text alone, got {prompt.id[:60]!r} with "
            "pictures; try a unified model that edits pictures."
        )

    def _render(self, turns: Sequence[Mapping[str, Any]]) -> str:
        """The chat as text, up to the beginning of the next answer."""
        rendered = self.processor.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
        return rendered if self.system is None else f"{self.system}\n\n{rendered}"


def read_states(network: nn.Module, embedded: Tensor, positions: Tensor, how: ForwardOptions) -> Tensor:
    """The language model's last hidden states of embedded tokens.

    Args:
        network: What `network()` returned, adapters included.
        embedded: `[1, L, D]` packed, or `[B, t, D]` with a cache.
        positions: `[1, 1, L]`, or `[1, B, t]`.
        how: As in `TokenBackbone.hidden`.
    """
    options = packed.reading_keywords(how, embedded.device)
    backbone = network.base_model.language_model
    return backbone(inputs_embeds=embedded, position_ids=positions[0], **options).last_hidden_state


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
