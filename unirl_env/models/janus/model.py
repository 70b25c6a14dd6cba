"""Janus-Pro: one transformer that writes text and then draws a picture, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from unirl_env.errors import ConfigError, ContractError, PromptError, ShapeError
from unirl_env.models.backbone import ForwardOptions
from unirl_env.models.shared import packed
from unirl_env.models.shared.chat import ANSWER, ChatWords, after_answer
from unirl_env.models.shared.exports import OfTransformers, merged_state
from unirl_env.models.shared.faithful import hold
from unirl_env.models.shared.fixed_batches import painted
from unirl_env.models.shared.loading import Source, complete
from unirl_env.models.shared.outline import on_device
from unirl_env.models.shared.output_layer import output_states, output_weight
from unirl_env.models.shared.spelling import Spelling
from unirl_env.models.shared.templates import turn_borders
from unirl_env.models.unified import PictureTokens, SharedBackbone, UnifiedModel
from unirl_env.models.words import Encoded, LanguageModel
from unirl_env.types import Prompt, Sample

ADAPTED = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
UNREAD = ("vision_model", "aligner", "vqmodel")
"""Parts of transformers' model that neither text nor picture tokens go through."""


class JanusPictures(SharedBackbone, PictureTokens):
    """Janus as a language model whose words are the `num_tokens` pieces of a picture, row by row.

    Text and picture share the transformer; pieces have embeddings and an output layer of their own. A token
    below `first_id` is a word, any other a piece. The VQ model, which paints, is frozen: it is loaded on
    first use, and apart from the policy's network.

    Under guidance each sequence is read twice, the second time with its words blanked out, and both readings
    are mixed before the last layer. That layer is linear, so these are the logits
    `w * conditional + (1 - w) * unconditional`, whether a token is drawn or scored.

    Args:
        text: The view of the text.
        guidance: w; 1 reads each sequence once.

    Raises:
        ConfigError: If `guidance` is no number from 1, or the parts of the checkpoint do not fit together.
    """

    eos_ids: tuple[int, ...] = ()

    def __init__(self, text: JanusText, *, guidance: float = 1.0):
        if not 1 <= guidance < float("inf"):
            raise ConfigError(f"`guidance` must be a number from 1, got {guidance}; try 5.0.")
        self.text = self.whole = text
        self.guidance = float(guidance)
        self.streams = 1 if guidance == 1 else 2
        self.pretrained, self.revision = text.pretrained, text.revision
        self.dtype, self.device = text.dtype, text.device
        self.max_context, self.pad_id, self.lora_targets = text.max_context, text.pad_id, text.lora_targets
        vq = text.config.vq_config
        self.first_id, self.vocab_size = text.vocab_size, vq.num_embeddings
        self.num_tokens = text.num_tokens
        width = text.config.text_config.hidden_size
        if not vq.projection_dim == vq.image_token_embed_dim == width:
            raise ConfigError(
                f"The embeddings of picture tokens must be as wide as those of words ({width}), got "
                f"`projection_dim` {vq.projection_dim} and `image_token_embed_dim` "
                f"{vq.image_token_embed_dim} in {self.pretrained!r}; try a published checkpoint."
            )
        self._side = vq.num_patches * 2 ** (len(vq.channel_multiplier) - 1)

    def hidden(
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """What the generation head's last layer reads, `[1, L, D]` packed or `[B, t, D]` with a cache."""
        along = (
            0 if how.get("lengths") is None else 1
        )  # a stream is more rows, or more sequences in the one row
        if self.streams > 1:
            tokens = torch.cat([tokens, self._blanked(tokens)], along)
            positions = torch.cat([positions, positions], along + 1)
            for name in ("lengths", "mask"):
                if how.get(name) is not None:
                    how[name] = torch.cat([how[name], how[name]])
        embedded = self._embedded(network, tokens)
        states = read_states(network, embedded, positions, how)
        head = network.base_model.generation_head
        states = head.activation_fn(head.proj_out(states))
        if self.streams > 1:
            # In float32: in half precision the difference of two near numbers is mostly rounding.
            said, blank = states.float().chunk(2, along)
            states = (blank + self.guidance * (said - blank)).to(states.dtype)
        return output_states(head.vision_head, states)

    def branches(self, network: nn.Module) -> bool:
        """Never: each picture stands behind a text of its own."""
        return False

    def head(self, network: nn.Module) -> Tensor:
        """The generation head's last layer `[V, D]`, its bias as one more column (`models.output_layer`)."""
        return output_weight(network.base_model.generation_head.vision_head)

    @torch.no_grad()
    def pictures(self, tokens: Tensor) -> list[Sample]:
        """Finished pictures `[B, num_tokens]` int64 (ids from `first_id`) painted, `[3, H, W]` in [0, 1].

        Raises:
            ShapeError: If `tokens` are not whole pictures.
            ContractError: If one of them is no piece of a picture.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.num_tokens:
            raise ShapeError(
                f"`tokens` must be whole pictures [B, {self.num_tokens}], got {list(tokens.shape)}."
            )
        pieces = tokens - self.first_id
        if bool(((pieces < 0) | (pieces >= self.vocab_size)).any()):
            raise ContractError(
                f"`tokens` must be pieces of a picture, {self.first_id} to "
                f"{self.first_id + self.vocab_size - 1}, got {int(tokens.min())} to {int(tokens.max())}; "
                "try adding `first_id`."
            )

        return painted(
            lambda some: self._painter.decode(some.to(self.device)), pieces, self._side, self._side
        )

    def _blanked(self, tokens: Tensor) -> Tensor:
        """`tokens` without what the words say: padding for all but the marks before text and picture."""
        kept = (tokens == self.text.begin_of_text) | (tokens == self.text.begin_of_image)
        return torch.where(kept | (tokens >= self.first_id), tokens, self.pad_id)

    def _embedded(self, network: nn.Module, tokens: Tensor) -> Tensor:
        """Words and pieces, each by its own embeddings."""
        base, first = network.base_model, self.first_id
        words = network.get_input_embeddings()(tokens.clamp_max(first - 1))
        pieces = base.generation_aligner(base.generation_embeddings((tokens - first).clamp_min(0)))
        return torch.where((tokens < first)[..., None], words, pieces)

    @cached_property
    def _painter(self) -> nn.Module:
        """The checkpoint's VQ model alone."""
        from transformers import JanusVQVAE

        class Painter(JanusVQVAE):
            # The checkpoint's other weights are not wanted here.
            _keys_to_ignore_on_load_unexpected = [r"."]

        painter, found = self.text.source.load(
            Painter.from_pretrained,
            config=self.text.config.vq_config,
            key_mapping={r"^model\.vqmodel\.": ""},
            dtype=self.dtype,
            output_loading_info=True,
        )
        if missing := sorted(found["missing_keys"]):
            cause = f"its VQ model lacks {len(missing)} weights, {missing[0]} among them"
            raise self.text.source.not_found(cause)
        return painter.to(self.device).eval().requires_grad_(False)


class JanusText(OfTransformers, LanguageModel):
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
        tokenizer = self.reader.tokenizer
        self.begin_of_text = tokenizer.bos_token_id
        self.begin_of_image = tokenizer.convert_tokens_to_ids(self.reader.image_start_token)
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
        return hold(self, on_device(network, self.device).eval())

    def hidden(
        self, network: nn.Module, tokens: Tensor, positions: Tensor, **how: Unpack[ForwardOptions]
    ) -> Tensor:
        """The transformer's last hidden states `[1, L, D]` packed, `[B, t, D]` with a cache."""
        embedded = network.get_input_embeddings()(tokens)
        states = read_states(network, embedded, positions, how)
        return output_states(network.get_output_embeddings(), states)

    def save_weights(self, network: nn.Module, directory: str) -> None:
        """A directory that `JanusForConditionalGeneration` and `AutoProcessor` load, adapters merged in.

        What the policy's network has not, the vision tower and the VQ model, is that of `pretrained`.
        """
        whole = self._whole()
        whole.load_state_dict(whole.state_dict() | merged_state(network))
        whole.save_pretrained(directory)
        self.reader.save_pretrained(directory)

    @cached_property
    def _spelling(self) -> Spelling:
        """That of the words, with the marks of pictures, which end texts or stand for pieces."""
        tokenizer = self.reader.tokenizer
        names = (self.reader.image_token, self.reader.image_start_token, self.reader.image_end_token)
        places = [tokenizer.convert_tokens_to_ids(name) for name in names]
        bare = Spelling(tokenizer, frames=(*self._words.spelling.frames, *self.eos_ids), places=places)
        borders = turn_borders(
            bare, lambda turns: self._render([_turn(t["role"], t["content"]) for t in turns])
        )
        return Spelling(tokenizer, frames=(*bare.frames, *borders), places=places)

    @cached_property
    def reader(self) -> Any:
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
        rendered = self.reader.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
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


class Janus(SharedBackbone, UnifiedModel):
    """Janus and Janus-Pro as transformers loads them; pictures are discrete tokens.

    A text that ends with the begin-of-image token is followed by a picture of `image.num_tokens` tokens. The
    published checkpoints end their texts with the end-of-text token instead, and are told when to draw:
    with `eos_opens` the world then writes begin-of-image behind it. Prompts bring no pictures.

    Published pictures are drawn at guidance 5. It is part of the distribution that samples and that is
    trained, and reads every picture twice.

    Args:
        pretrained: A hub id or a directory, in transformers' own form.
        dtype: Of weights and activations.
        device: Where the network and the VQ model are loaded.
        revision: Branch, tag or commit of the hub repository.
        system: Stands before the chat; None is nothing, as the model is published to draw.
        eos_opens: Whether a picture also follows a text that ends with the end-of-text token.
        guidance: Scale of classifier-free guidance over picture tokens; 1 is without.

    Raises:
        ModelNotFound: If the model cannot be loaded; names the id, the cause and the embedded alternative.
        ConfigError: If the model is of another family, its parts do not fit together, or `guidance` is no
            number from 1.

    Reference:
        Chen et al., Janus-Pro: Unified Multimodal Understanding and Generation with Data and Model Scaling
        (arXiv 2501.17811).
    """

    discrete = True
    context_keys = ("tokens", "length")
    max_images = 0

    def __init__(
        self,
        pretrained: str,
        *,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        revision: str | None = None,
        system: str | None = None,
        eos_opens: bool = False,
        guidance: float = 1.0,
    ):
        self.text = self.whole = JanusText(
            pretrained, dtype=dtype, device=device, revision=revision, system=system
        )
        self.image = JanusPictures(self.text, guidance=guidance)
        self.pretrained, self.lora_targets = self.text.pretrained, self.text.lora_targets
        begin = self.text.begin_of_image
        self.opens = (begin, *self.text.end_of_text) if eos_opens else (begin,)

    def opening(self, ended_by: int | None) -> list[int]:
        """The begin-of-image token, unless the text itself ended with it.

        Raises:
            ContractError: If no picture follows `ended_by`.
        """
        if ended_by is not None and ended_by not in self.opens:
            raise ContractError(
                f"`ended_by` must be one of {self.opens}, after which a picture follows, got {ended_by}; try "
                "`eos_opens=True`, with which one follows every text that ends."
            )
        begin = self.text.begin_of_image
        return [] if ended_by == begin else [begin]

    def private(self, network: nn.Module, phase: str) -> Iterable[nn.Parameter]:
        """Text: the output layer, unless it is the embeddings. Picture: its embeddings and its head."""
        if phase == "text":
            embedded = network.get_input_embeddings().weight
            return tuple(w for w in network.get_output_embeddings().parameters() if w is not embedded)
        base = network.base_model
        own = (base.generation_embeddings, base.generation_aligner, base.generation_head)
        return tuple(weight for module in own for weight in module.parameters())
