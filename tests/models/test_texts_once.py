"""Keys and values of texts: computed once while one plays, and anew wherever that would show."""

import pytest
import torch
from models.family_checks import randomised
from models.pixart_cases import PIXART
from models.sana_cases import SANA
from models.stable_diffusion_cases import CASES
from torch import nn

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


class Twice(nn.Module):
    """A layer that is passed twice, and one that is passed once."""

    def __init__(self):
        super().__init__()
        self.often, self.once = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, given):
        return self.once(self.often(self.often(given)))


def test_a_layer_that_is_passed_twice_is_left_alone_and_all_are_themselves_again():
    network, given = Twice(), torch.ones(1, 2)
    said = said_of(network, ("often", "once"), lambda: network(given))
    assert list(said) == ["of_text:once"]
    expected = network(given)
    with pytest.raises(RuntimeError, match="halt"), saying(network, {"of_text:once": torch.zeros(1, 2)}):
        assert torch.equal(network(given), torch.zeros(1, 2))
        raise RuntimeError("halt")
    assert torch.equal(network(given), expected)
