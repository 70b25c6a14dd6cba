"""An untrained Janus of the real classes, small enough to draw and to train on in a blink; what it draws."""

import json
from pathlib import Path

import torch

import unirl_env.functional as F
from unirl_env.rollouts.engines import Request
from unirl_env.types import Prompt

PROMPTS = [Prompt("a red cat"), Prompt("two blue squares above a circle"), Prompt("?")]
BEGIN, END, PAD = "<begin>", "<end>", "<pad>"
MARKS = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
ROLES = ("<|User|>", "<|Assistant|>")
MAX_CONTEXT = 256
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- set asked = message.role == 'user' %}
    {{- '<|User|>: ' if asked else '<|Assistant|>: ' }}
    {%- for part in message.content if part.type == 'text' %}
        {{- part.text | trim }}
    {%- endfor %}
    {{- '\\n\\n' if asked else '<end>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|Assistant|>:' }}
{%- endif %}
"""
"""The published form of turns: contents are lists of parts, and nothing else is read."""


def tiny_tokenizer():
    """256 bytes and the published marks; begin-of-text stands before every text, as it does there."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [BEGIN, END, PAD, *ROLES, *MARKS.values()]
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=MARKS,
        padding_side="left",
        model_max_length=MAX_CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def write_tiny_janus(path, *, seed=0, width=32, pieces=64, tied=False):
    """Write a checkpoint whose pictures are 16 x 16 pixels, 16 tokens out of `pieces`; returns its path.

    Weights are large enough that tokens, places and biases matter.
    """
    import transformers as t

    tokenizer = tiny_tokenizer()
    begin, end, pad = (tokenizer.convert_tokens_to_ids(mark) for mark in (BEGIN, END, PAD))
    text = t.LlamaConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=MAX_CONTEXT,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        **{"bos_token_id": begin, "eos_token_id": end, "pad_token_id": pad},
    )
    vision = t.JanusVisionConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        projection_dim=width,
        num_image_tokens=16,
    )
    vq = t.JanusVQVAEConfig(
        embed_dim=4,
        num_embeddings=pieces,
        latent_channels=8,
        base_channels=32,
        channel_multiplier=[1, 1, 1],
        num_res_blocks=1,
        projection_dim=width,
        image_token_embed_dim=width,
    )
    image_token = tokenizer.convert_tokens_to_ids(MARKS["image_token"])
    config = t.JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq,
        image_token_id=image_token,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = t.JanusForConditionalGeneration(config).eval()
        base = network.model
        with torch.no_grad():
            for part in (base.generation_embeddings, base.generation_aligner, base.generation_head):
                for weight in part.parameters():
                    weight.normal_(0, 0.3)
            for weight in base.vqmodel.decoder.parameters():
                if weight.ndim > 1:
                    weight.mul_(2)
    network.generation_config = t.GenerationConfig(
        guidance_scale=5,
        generation_kwargs={"boi_token_id": tokenizer.convert_tokens_to_ids(MARKS["boi_token"])},
        **{"bos_token_id": begin, "eos_token_id": end, "pad_token_id": pad},
    )
    network.save_pretrained(path)
    reader = t.JanusImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    made = t.JanusProcessor(reader, tokenizer, chat_template=CHAT_TEMPLATE, num_image_tokens=16)
    made.save_pretrained(path)
    return str(path)


def rename(path, **entries):
    """Change entries of a checkpoint's config.json."""
    config = Path(path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **entries}))


def begun(model, prompt):
    """The tokens of a prompt up to its picture, where no text comes before it."""
    tokens = model.text.encode(prompt).tokens
    return torch.cat([tokens, tokens.new_tensor(model.opening(None))])


def ask(model, prompts=PROMPTS, group=3, before=(), tokens=16):
    """Groups of requests for pictures, behind texts where `before` has some; of a view, for texts."""
    requests = []
    for prompt in prompts:
        for sample in range(group):
            context = (
                begun(model, prompt) if hasattr(model, "opening") else model.encode(prompt).tokens
            ).tolist()
            said = list(before[sample]) if before else []
            requests.append(
                Request(
                    tokens=(*context[:-1], *said, context[-1]),
                    prompt=prompt,
                    seed=F.episode_seed(0, prompt.id, sample),
                    position=len(said),
                    max_new_tokens=tokens,
                )
            )
    return requests


def packed(requests, answers):
    """Contexts and answers as one row, and the tokens to score."""
    rows = [
        torch.tensor(request.tokens + answer.tokens)[:-1]
        for request, answer in zip(requests, answers, strict=True)
    ]
    lengths = torch.tensor([len(row) for row in rows])
    first = lengths.cumsum(0) - lengths
    sources = [
        torch.arange(int(start) + len(request.tokens) - 1, int(start) + len(row))
        for start, request, row in zip(first, requests, rows, strict=True)
    ]
    obs = {
        "tokens": torch.cat(rows),
        "lengths": lengths,
        "positions": torch.cat([torch.arange(len(row)) for row in rows])[None],
        "source": torch.cat(sources),
    }
    return obs, torch.tensor([token for answer in answers for token in answer.tokens])
