"""Pictures from a frozen generator: the deterministic ODE, in batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import unirl_env.functional as F
from unirl_env.arguments.values import number, whole
from unirl_env.errors import ShapeError
from unirl_env.functional.noise import INITIAL
from unirl_env.models.denoiser import NEGATIVE, Denoiser
from unirl_env.models.shared.fixed_batches import in_fixed_batches
from unirl_env.types import Prompt


@torch.no_grad()
def draw_latents(
    denoiser: Denoiser,
    network: nn.Module,
    prompts: Sequence[Prompt],
    episode_seeds: Sequence[int],
    *,
    num_steps: int,
    guidance: float = 1.0,
    rows: int | None = None,
    contexts: Callable[[Sequence[Prompt]], dict[str, Tensor]] | None = None,
) -> Tensor:
    """Finished latents by the Euler ODE of the denoiser's own schedule, from keyed noise.

    It is what an episode of `DenoiseVectorEnv` comes to under a policy that never explores: row i is a
    function of (`prompts[i]`, `episode_seeds[i]`) and the settings. With `rows`, it is bitwise so on a CPU,
    whatever is drawn with it: each batch is read and denoised as a whole, the last one filled up.

    Args:
        denoiser: The generator's adapter.
        network: What `denoiser.network()` returned.
        prompts: What to draw, B of them; `negative` is what guidance steers away from.
        episode_seeds: `[B]`, keys of the noise.
        num_steps: Denoising steps.
        guidance: Classifier-free guidance; other than 1 evaluates the network on twice as many rows.
        rows: How many are drawn at a time, which bounds memory; None draws all at once.
        contexts: Gives the context of prompts, each tensor `[N, ...]`, and with guidance that of the negative
            prompts as `negative_...`: `Contexts.of` of `unirl_env.envs`, which remembers. None asks the
            denoiser.

    Returns:
        `[B, ...]` float32.

    Raises:
        ConfigError: If a setting is out of range.
        ShapeError: If there is not one seed per prompt.
    """
    num_steps, guidance = whole("num_steps", num_steps, 1), number("guidance", guidance)
    if rows is not None:
        rows = whole("rows", rows, 1, hint="try 16")
    if len(prompts) != len(episode_seeds):
        raise ShapeError(f"`episode_seeds` must hold {len(prompts)} seeds, got {len(episode_seeds)}.")
    sigmas = denoiser.sigmas(num_steps).float()
    device = getattr(denoiser, "device", "cpu")
    noise = F.keyed_noise(episode_seeds, INITIAL, denoiser.latent_shape, device=device)
    if not prompts:
        return noise

    def draw(noise: Tensor, row: Tensor) -> Tensor:
        batch = [prompts[i] for i in row.tolist()]
        if contexts is not None:
            found = contexts(batch)
        else:
            found = _encoded(denoiser, batch, negative=False)
            if guidance != 1.0:
                without = _encoded(denoiser, batch, negative=True)
                found |= {NEGATIVE + name: tensor for name, tensor in without.items()}
        context = {name: tensor for name, tensor in found.items() if not name.startswith(NEGATIVE)}
        if guidance != 1.0:
            context = {k: torch.cat([found[NEGATIVE + k], tensor]) for k, tensor in context.items()}
        reading = denoiser.read(network, context)
        latent = denoiser.start(noise, float(sigmas[0]))
        for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            velocity = _guided(denoiser, network, latent, sigma, reading, guidance)
            latent = F.sde_step(velocity, latent, sigma, sigma_next, eta=0.0).latent
        return latent

    return in_fixed_batches(draw, noise, torch.arange(len(prompts)), rows=rows)


def _encoded(denoiser: Denoiser, prompts: Sequence[Prompt], *, negative: bool) -> dict[str, Tensor]:
    """The context of each prompt; each distinct text is encoded once and alone, as an environment does it."""
    texts = [prompt.negative if negative else prompt.text for prompt in prompts]
    first = dict(zip(reversed(texts), reversed(prompts), strict=True))
    known = {text: denoiser.encode([prompt], negative=negative) for text, prompt in first.items()}
    names = known[texts[0]]
    return {name: torch.cat([known[text][name] for text in texts]) for name in names}


def _guided(
    denoiser: Denoiser, network: nn.Module, latent: Tensor, sigma: float, reading: object, guidance: float
) -> Tensor:
    """The velocity in float32; with guidance, both halves come of one forward."""
    level = torch.full((len(latent),), sigma, device=latent.device)
    if guidance == 1.0:
        return denoiser.velocity(network, latent, level, reading).float()
    both = denoiser.velocity(network, torch.cat([latent, latent]), torch.cat([level, level]), reading)
    without, with_prompt = both.float().chunk(2)
    return denoiser.guided(without, with_prompt, guidance, level)
