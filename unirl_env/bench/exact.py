"""What a trained network achieves in the worlds whose optimum is known: exactly, without drawing a sample.

`line`, `mixture` and `tokens` take the settings of a run and its network, as `network_of` rebuilds it from a
checkpoint, and return by name

- `objective`: `reward - beta * kl`, what an agent with a KL to the untrained model climbs;
- `reward`, and `kl` in nats of whole episodes;
- `optimum`: the largest objective of all policies whatever; `gaussian_optimum`, that of all whose steps are
  Gaussian as those of a denoiser are, and `class_optimum`, that of all which the network can be, where they
  are known;
- `fixed_point`, where it is known: the objective at which the agents' loss comes to rest among all policies
  of these steps. With `agent.kl_in=loss` it is less than the best of these, because the gradient of the loss
  does not see that a step changes the KL of later ones (`unirl_env.functional.paths`);
- `base`, the objective of the untrained network, and `regret`, `optimum - objective`.

With `reward.heldout` there is `heldout`, too: its expectation. The measures `..._heldout` say all of the
above of the held-out reward, as if it had been trained on.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from torch import nn

from unirl_env.bench._worlds import Line, Plane, Words, model_of, watched, world
from unirl_env.errors import CheckpointError, ConfigError
from unirl_env.run.record import checkpoint as checkpoints
from unirl_env.settings import RunConfig

POLICY = "policy/"
"""What the names of a policy's weights begin with in a checkpoint."""


def network_of(cfg: RunConfig, checkpoint: Path | None = None) -> nn.Module:
    """The network of a run's model: untrained, or with the weights of a checkpoint.

    Args:
        cfg: The settings of the run.
        checkpoint: One of the folders in its `checkpoints/`; None is the untrained network.

    Raises:
        ConfigError: If adapters are trained.
        CheckpointError: If the checkpoint is damaged, or its weights are not this model's.
    """
    if cfg.policy.lora_rank is not None:
        raise ConfigError(
            f"`policy.lora_rank` must be null where all weights are read from a checkpoint, got "
            f"{cfg.policy.lora_rank}; try null."
        )
    network = cast(nn.Module, model_of(cfg).network())
    if checkpoint is None:
        return network
    tensors, _ = checkpoints.read(Path(checkpoint))
    if isinstance(tensors, Path):
        from unirl_env.agents.parallel.stored import read

        tensors = read(tensors, {})
    state = {name.removeprefix(POLICY): t for name, t in tensors.items() if name.startswith(POLICY)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint} must hold the weights of {cfg.model.env}, got others: {error}; try the settings "
            "of the run that wrote it."
        ) from error
    return network


def line(cfg: RunConfig, network: nn.Module) -> dict[str, float]:
    """Points on a line under any reward: the very steps that are trained, by dynamic programming.

    `steps.kind` must be all, so that every step but the last is stochastic; the last one is deterministic and
    costs no KL, as in the learner.

    Args:
        cfg: Settings of a `gaussian_mixture` in one dimension.
        network: Its network, trained.

    Raises:
        ConfigError: If the settings are of another world, or of an objective that is no single number.
    """
    return world(Line, cfg).measure(network)


def mixture(cfg: RunConfig, network: nn.Module) -> dict[str, float]:
    """Points in one or two dimensions under any reward: what the network's own flow leads to in many steps.

    That is a mixture, too, and its divergence from the untrained one is the KL here: at most what an agent
    pays on its way, and with `policy.eta` sqrt(2) and many steps no less at the optimum, which is the tilt
    (`unirl_env.models.gaussian_mixture.tilted_mixture`, if the reward is linear). At T steps both are missed
    by about 1 / T.

    Args:
        cfg: Settings of a `gaussian_mixture`.
        network: Its network, trained.

    Raises:
        ConfigError: If the settings are of another world, or of an objective that is no single number.
    """
    return world(Plane, cfg).measure(network)


def tokens(cfg: RunConfig, network: nn.Module) -> dict[str, float]:
    """Words of tabular tokens under any reward, all of them added up; the training prompts count alike.

    Args:
        cfg: Settings of `tabular_tokens`.
        network: Its network, trained.

    Raises:
        ConfigError: If the settings are of another world, or of an objective that is no single number.
    """
    return world(Words, cfg).measure(network)


def line_heldout(cfg: RunConfig, network: nn.Module) -> dict[str, float]:
    """`line`, of the held-out reward."""
    return line(watched(cfg), network)


def mixture_heldout(cfg: RunConfig, network: nn.Module) -> dict[str, float]:
    """`mixture`, of the held-out reward."""
    return mixture(watched(cfg), network)


def tokens_heldout(cfg: RunConfig, network: nn.Module) -> dict[str, float]:
    """`tokens`, of the held-out reward."""
    return tokens(watched(cfg), network)
