"""Keys and values of texts: computed once while one plays, and anew wherever that would show."""

import pytest
import torch
import torch.distributed as dist
from models.family_checks import randomised
from models.pixart_cases import PIXART
from models.sana_cases import SANA
from models.stable_diffusion_cases import CASES
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from unirl_env.models.shared.texts_once import LAYERS, said_of, saying
from unirl_env.policies.actor import Actor, LoRAConfig

FAMILIES = [SANA, PIXART, *CASES.values()]


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def case(request, tmp_path_factory, quiet_models):
    folder = tmp_path_factory.mktemp(request.param.name)
    request.param.build(folder)
    return request.param, folder


def calls_of(actor, passes):
    """How often the layers that read texts alone compute something."""
    seen = []
    inner = [m for n, m in actor.network.named_modules() if n.endswith(tuple(LAYERS))]
    bases = [getattr(layer, "base_layer", layer) for layer in inner]
    hooks = [base.register_forward_hook(lambda *_: seen.append(1)) for base in bases if base is not None]
    passes()
    for hook in hooks:
        hook.remove()
    return len(seen), len(inner)


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_steps_read_texts_once_and_find_what_they_would_have_found(case, guidance):
    family, folder = case
    denoiser = family.denoiser(folder)
    actor = Actor(denoiser, lora=LoRAConfig(rank=2, alpha=4), guidance=guidance, merge_adapters=False)
    randomised(actor)
    obs, _ = family.env(denoiser, 3, 3, family.prompts, guidance).reset(seed=5)
    obs["stochastic"] = torch.zeros_like(obs["stochastic"])
    found = []

    @torch.no_grad()
    def play():
        reading = actor.read(obs)
        for _ in range(3):
            found.append(actor.act(obs, reading=reading).mean)

    called, layers = calls_of(actor, play)
    assert layers and called == layers
    with torch.no_grad():
        denoiser.rows_per_forward = len(found[0]) * (1 if guidance == 1.0 else 2)
        expected = actor.act(obs).mean
    largest = expected.abs().max()
    assert all((mean - expected).abs().max() <= 1e-5 * largest for mean in found)


def test_what_is_trained_reads_texts_with_a_gradient(case):
    family, folder = case
    denoiser = family.denoiser(folder)
    actor = Actor(denoiser)
    obs, _ = family.env(denoiser, 3, 3, family.prompts, 1.0).reset(seed=5)
    actor.score(obs, obs["latent"] * 0.9).log_prob.sum().backward()
    weights = [p for n, p in actor.network.named_parameters() if any(f"{name}." in n for name in LAYERS)]
    assert weights and all(p.grad.abs().max() > 0 for p in weights)


def test_parts_of_weights_read_texts_at_every_step(case):
    family, folder = case
    denoiser = family.denoiser(folder)
    network, context = denoiser.network(), denoiser.encode(list(family.prompts))
    latent, sigma = torch.zeros(len(family.prompts), *denoiser.latent_shape), torch.tensor([0.9, 0.5, 0.1])
    with torch.no_grad():
        expected = denoiser.velocity(network, latent, sigma, denoiser.read(network, context))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for block in [module for module in network.modules() if hasattr(module, "attn2")]:
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        with torch.no_grad():
            found = denoiser.velocity(network, latent, sigma, denoiser.read(network, context))
    finally:
        dist.destroy_process_group()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


class Reads(nn.Module):
    """Two layers that read the same, one of them late."""

    def __init__(self):
        super().__init__()
        self.first, self.other, self.last = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, given):
        return self.last(given) + self.other(self.first(given))


def test_a_pass_ends_where_texts_are_first_read_and_layers_are_themselves_again():
    network, given, passed = Reads(), torch.ones(1, 2), []
    network.other.register_forward_hook(lambda *_: passed.append(1))
    said = said_of(network, ("first", "last"), lambda: network(given))
    assert said.keys() == {"of_text:first", "of_text:last"} and not passed
    assert torch.equal(said["of_text:first"], network.first(given))
    expected = network(given)
    with pytest.raises(RuntimeError, match="halt"), saying(network, {"of_text:last": torch.zeros(1, 2)}):
        assert torch.equal(network(given), network.other(network.first(given)))
        raise RuntimeError("halt")
    assert torch.equal(network(given), expected)
    assert said_of(network, ("none",), lambda: network(given)) == {}
