"""A reward that is served gives the same bits as one that is called, alone and in company."""

import asyncio
import json

import numpy as np
import pytest
import torch
from service_cases import client, made, tensors

from unirl_env.prompts import shapes
from unirl_env.rewards import build_scorer
from unirl_env.rewards.scoring import score_safely
from unirl_env.rewards.wire import scores_from_json
from unirl_env.types import Prompt, Sample

TEXTS = ["<think>2+2</think>4", "<think>5", "five", "", "<think>a</think> 4 "]
OPTIONS = {
    "shapes": "shapes",
    "template": "template",
    "exact": "exact",
    "format": "format",
    "length": {"name": "length", "target": 3, "width": 2},
    "linear": {"name": "linear", "weights": [0.1, -0.7, 1e-3]},
    "pictures": {"name": "weighted_sum", "parts": {"shapes": 0.3, "template": 0.7}},
    "texts": {"name": "weighted_sum", "parts": {"exact": 1.0, "format": 0.1}},
}


def cases(count=11):
    made_up = torch.Generator().manual_seed(7)
    captions = shapes.all_captions("place")[: 2 * count : 2]
    drawn = shapes.draw(captions, np.random.default_rng(0), 32)
    drawn = 0.9 * drawn + 0.1 * torch.rand(drawn.shape, generator=made_up)  # 255ths and others
    drawn[::2] = (drawn[::2] * 255).round() / 255
    samples = [
        Sample(
            image=drawn[i],
            text=TEXTS[i % len(TEXTS)],
            tokens=torch.arange(i + 1),
            latent=torch.randn(3, generator=made_up),
        )
        for i in range(count)
    ]
    prompts = [Prompt(captions[i - i % 3].text, str(i), metadata={"answer": "4"}) for i in range(count)]
    return samples, prompts


def bits(column):
    return column.contiguous().view(torch.int32).tolist()


def check(scorer, samples, prompts, **changes):
    """Every sample by itself and all at once, from clients that ask at the same time."""
    app, _ = made({"it": scorer}, **changes)
    requests = [(samples, prompts), *(([one], [other]) for one, other in zip(samples, prompts, strict=True))]

    async def action():
        async with client(app) as caller:
            posts = [caller.post("/score", **tensors(*request, reward="it")) for request in requests]
            return await asyncio.gather(*posts)

    found = []
    for reply, (own, _) in zip(asyncio.run(action()), requests, strict=True):
        assert reply.status_code == 200, reply.text
        found.append(scores_from_json(json.loads(reply.text)["scores"], len(own)))
    local = score_safely(scorer, samples, prompts)
    assert local.valid.any() and local.value[local.valid].std() > 0
    assert bits(found[0].value.nan_to_num()) == bits(local.value.nan_to_num())
    assert found[0].valid.tolist() == local.valid.tolist()
    for name, part in local.parts.items():
        assert bits(found[0].parts[name].nan_to_num()) == bits(part.nan_to_num()), name
    alone = [bits(scores.value.nan_to_num())[0] for scores in found[1:]]
    assert alone == bits(local.value.nan_to_num())


@pytest.mark.parametrize("max_batch", [64, 4])
@pytest.mark.parametrize("name", OPTIONS)
def test_rules_give_the_same_bits(name, max_batch):
    check(build_scorer(OPTIONS[name]), *cases(), max_batch=max_batch)


def test_a_network_of_fixed_rows_gives_the_same_bits(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    }
    (tmp_path / "Tiny-Served.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "Tiny-Served.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("Tiny-Served").state_dict(), tmp_path / "weights.pt")
    words = {"name": "clip", "model": "Tiny-Served", "pretrained": str(tmp_path / "weights.pt")}
    check(build_scorer(words | {"rows_per_forward": 4}), *cases(), max_batch=6)
