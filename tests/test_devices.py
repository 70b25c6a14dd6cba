"""What must hold on every device: scoring agrees with sampling, and small steps add up in half precision."""

import pytest
import torch

import unirl_env.functional as F
from unirl_env.agents.optimizer import Masters
from unirl_env.models.tiny import TinyQwen3, TinySD3Denoiser
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.engines.base import Request
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.types import Prompt

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])]
WORDS = ("3 + 4 =", "12 + 30 =", "7 + 7 =")


@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_latents_in_bfloat16_score_what_they_were_sampled_with(device):
    denoiser = TinySD3Denoiser(dtype="bfloat16", device=device, rows_per_forward=4)
    actor = Actor(denoiser, storage_dtype="bfloat16").to(device)
    sigmas, shape = denoiser.sigmas(8).to(device), denoiser.latent_shape
    obs = {
        "latent": F.keyed_noise(range(8), -1, shape, device=device).bfloat16(),
        "sigma": sigmas[1].expand(8),
        "sigma_next": sigmas[2].expand(8),
        **denoiser.encode([Prompt(f"a red circle {i}") for i in range(8)]),
    }
    step = actor.act(obs, F.keyed_noise(range(8), 1, shape, device=device))
    parts = [actor.score({k: v[i : i + 4] for k, v in obs.items()}, step.latent[i : i + 4]) for i in (0, 4)]
    assert torch.equal(torch.cat([part.log_prob for part in parts]), step.log_prob)
    assert float(F.gaussian_kl(torch.cat([part.mean for part in parts]), step.mean, step.std).max()) == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-4), ("bfloat16", 0.5)])
@torch.no_grad()
def test_tokens_score_what_they_were_sampled_with(device, dtype, most):
    model = TinyQwen3(dtype=dtype, device=device)
    actor = Actor(model).to(device)
    prompts = [Prompt(text) for text in WORDS]
    requests = [
        Request(tuple(model.encode(prompt).tokens.tolist()), prompt, seed=i, max_new_tokens=6)
        for i, prompt in enumerate(prompts)
    ]
    answers = LocalEngine(actor).generate(requests)
    texts = [[*request.tokens, *answer.tokens] for request, answer in zip(requests, answers, strict=True)]
    starts = torch.tensor([0, *(len(text) for text in texts)]).cumsum(0).tolist()
    source = [
        start + len(request.tokens) - 1 + t
        for start, request, answer in zip(starts, requests, answers, strict=False)
        for t in range(len(answer.tokens))
    ]
    obs = {
        "tokens": torch.tensor([token for text in texts for token in text], device=device),
        "positions": torch.cat([torch.arange(len(text)) for text in texts])[None].to(device),
        "lengths": torch.tensor([len(text) for text in texts]),
        "source": torch.tensor(source, device=device),
    }
    said = torch.tensor([token for answer in answers for token in answer.tokens], device=device)
    recorded = torch.tensor([value for answer in answers for value in answer.log_probs])
    assert (actor.score(obs, said).log_prob.cpu() - recorded).abs().max() <= most


@pytest.mark.parametrize("device", DEVICES)
def test_small_steps_add_up_in_masters(device):
    weight = torch.nn.Parameter(torch.ones(64, device=device, dtype=torch.bfloat16))
    masters = Masters({"weight": weight})
    optimizer = torch.optim.SGD(masters.weights, lr=1e-4)
    for _ in range(200):
        masters.weights[0].grad = torch.zeros_like(masters.weights[0])
        weight.sum().backward()
        optimizer.step()
        masters.cast()
    assert torch.allclose(masters.weights[0], torch.tensor(0.98, device=device), atol=1e-5)
    assert torch.equal(weight, masters.weights[0].bfloat16())
