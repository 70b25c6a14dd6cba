"""What every family of diffusers must show on a tiny checkpoint of the published layout.

A family's test module makes a `Family` and calls these; each compares with the pipeline's own classes.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import gymnasium as gym
import torch

from unirl_env.models import DENOISERS
from unirl_env.models.making import make_model
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt

PROMPTS = [
    Prompt("a red circle at the top left", negative=""),
    Prompt("two blue squares", negative="a green triangle at the very bottom"),
    Prompt("cat", negative="dog"),
]
"""Texts of unequal length, with negatives of other lengths."""


def same(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """Initial latents that `latents=` takes as they are."""
    return latents


def nothing(pipeline: Any, denoiser: Any, num_steps: int) -> None:
    """A pipeline that needs no preparation."""


def by_the_pipeline(pipeline: Any, folder: Path) -> None:
    """The pipeline's own loader of adapters."""
    pipeline.load_lora_weights(folder)


@dataclass(frozen=True)
class Family:
    """One id, its tiny checkpoint, and how its pipeline is called.

    Attributes:
        name: In `DENOISERS`.
        id: The environment's.
        build: Writes the checkpoint into a folder.
        pipeline: Its class in diffusers.
        call: From prompts and guidance (1 is none) to arguments of the pipeline's `__call__`: the prompts,
            the guidance in the pipeline's own terms, lengths. Sizes, steps, latents and output are set here.
        options: Of the denoiser, beside sizes.
        height: Pixels of a small picture.
        width: Likewise, another number.
        latents: From a pipeline and our initial latents to its `latents=`.
        prepare: Changes a loaded pipeline before a comparison, for example its scheduler.
        load_adapters: Gives a loaded pipeline what `save_adapters` wrote into a folder.
        guidances: What is compared; 1 alone where the family has none.
        prompts: What is drawn.
    """

    name: str
    id: str
    build: Callable[[Path], Any]
    pipeline: str
    call: Callable[[Sequence[Prompt], float], Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    height: int = 32
    width: int = 48
    latents: Callable[[Any, torch.Tensor], torch.Tensor] = same
    prepare: Callable[[Any, Any, int], None] = nothing
    load_adapters: Callable[[Any, Path], Any] = by_the_pipeline
    guidances: tuple[float, ...] = (1.0, 3.5)
    prompts: Sequence[Prompt] = tuple(PROMPTS)

    def arguments(self, folder: Path) -> dict[str, Any]:
        """Arguments of the id for its tiny checkpoint in `folder`."""
        return {
            "pretrained": str(folder),
            "height": self.height,
            "width": self.width,
            "num_steps": 2,
            "prompts": list(self.prompts),
            "scorer": "saturation",
            "model_options": dict(self.options),
        }

    def denoiser(self, folder: Path, **options: Any) -> Any:
        """The family's adapter of the checkpoint in `folder`."""
        sizes = {"height": self.height, "width": self.width}
        return make_model(
            DENOISERS, self.name, {"pretrained": str(folder), **sizes, **self.options, **options}
        )

    def load(self, folder: Path, **options: Any) -> Any:
        """The pipeline itself."""
        pipeline = getattr(diffusers, self.pipeline).from_pretrained(folder, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def drawn(self, denoiser: Any, actor: Actor, num_steps: int, prompts: Sequence[Prompt]) -> tuple:
        """The ODE by environment, policy and rollout: initial latents, final latents, pictures."""
        envs = []

        def make_env(num_envs: int, num_steps: int | None = num_steps) -> Any:
            envs.append(
                gym.make_vec(
                    self.id,
                    num_envs=num_envs,
                    num_steps=num_steps,
                    denoiser=denoiser,
                    with_negative=actor.latent_head().guidance != 1.0,
                    array_backend="torch",
                    autoreset_mode="disabled",
                    prompts=list(prompts),
                    scorer="saturation",
                )
            )
            return envs[-1]

        batch = Rollout(make_env, actor).collect(RolloutRequest(list(prompts), seed=11, stochastic_steps=[]))
        final = envs[0].unwrapped.snapshot().model_state["latent"]
        start, _ = envs[0].reset(seed=11, options={"prompts": list(prompts)})
        return start["latent"], final, torch.stack([sample.image for sample in batch.samples])

    def by_pipeline(
        self, pipeline: Any, denoiser: Any, latents: torch.Tensor, guidance: float, num_steps: int,
        prompts: Sequence[Prompt], output: str = "pt",
    ) -> torch.Tensor:  # fmt: skip
        """The pipeline's own pictures `[B, 3, H, W]` from these initial latents; or its latents."""
        self.prepare(pipeline, denoiser, num_steps)
        with torch.no_grad():
            return pipeline(
                **self.call(prompts, guidance),
                height=denoiser.height,
                width=denoiser.width,
                num_inference_steps=num_steps,
                latents=self.latents(pipeline, latents.clone()),
                output_type=output,
            ).images


def equals_the_pipeline(
    family: Family, folder: Path, *, guidance: float, num_steps: int = 4, most: float = 1e-5, **options: Any
) -> None:
    """Episodes at eta 0 show the pipeline's own pictures, alone and beside others."""
    denoiser, pipeline = family.denoiser(folder, **options), family.load(folder)
    actor = Actor(denoiser, guidance=guidance)
    for prompts in (list(family.prompts[1:2]), list(family.prompts)):
        start, final, pictures = family.drawn(denoiser, actor, num_steps, prompts)
        expected = family.by_pipeline(pipeline, denoiser, start, guidance, num_steps, prompts)
        assert (final - start).abs().max() > 0.1, "the network must have done something"
        assert pictures.shape == expected.shape and expected.std() > 1e-2, "the pictures must show something"
        assert (pictures - expected).abs().max() <= most, (pictures - expected).abs().max()
    if guidance != 1.0:
        plain = family.drawn(denoiser, Actor(denoiser), num_steps, list(family.prompts))[1]
        assert (plain - final).abs().max() > 1e-3, "guidance must matter"


def its_latents_are_the_pipelines(family: Family, folder: Path, *, most: float = 1e-5) -> None:
    """What is decoded, beside its largest element: decoders that normalise would hide a wrong scale."""
    denoiser, pipeline, prompts = family.denoiser(folder), family.load(folder), list(family.prompts)
    start, final, _ = family.drawn(denoiser, Actor(denoiser), 4, prompts)
    expected = family.by_pipeline(pipeline, denoiser, start, 1.0, 4, prompts, output="latent")
    off = (denoiser.data(final) - expected).abs().max() / expected.abs().max()
    assert expected.std() > 0.1 and off <= most, off


def agrees_with_itself(
    family: Family, folder: Path, *, lora: bool, exact: bool = False, **options: Any
) -> None:
    """Scores find what sampling found, alone as in a batch; gradients reach all that is trained."""
    if exact:
        options |= {"rows_per_forward": 4}
    denoiser = family.denoiser(folder, **options)
    adapters = LoRAConfig(rank=2, alpha=4) if lora else None
    stored = {"storage_dtype": "bfloat16"} if exact else {}
    actor = Actor(denoiser, lora=adapters, guidance=family.guidances[-1], merge_adapters=False, **stored)
    randomised(actor)
    prompts = list(family.prompts)

    def make_env(num_envs: int, num_steps: int | None = 3) -> Any:
        return gym.make_vec(
            family.id, num_envs=num_envs, num_steps=3, denoiser=denoiser, array_backend="torch",
            autoreset_mode="disabled", prompts=prompts, scorer="saturation",
            with_negative=family.guidances[-1] != 1.0,
        )  # fmt: skip

    whole = make_env(3)
    obs, _ = whole.reset(seed=5)
    noise = torch.randn(obs["latent"].shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        step = actor.act(obs, noise)
        alone = actor.act({name: value[1:2] for name, value in obs.items()}, noise[1:2])
    bound = 0.0 if exact else 1e-5
    assert (alone.log_prob - step.log_prob[1:2]).abs().max() <= bound
    largest = max(1.0, float(step.latent.abs().max()))
    assert (alone.latent.float() - step.latent[1:2].float()).abs().max() <= bound * largest
    scored = actor.score(obs, step.latent)
    ratio = (scored.log_prob - step.log_prob).exp()
    assert (ratio - 1).abs().max() <= bound, (ratio - 1).abs().max()
    scored.log_prob.sum().backward()
    blind = [n for n, p in actor.network.named_parameters() if p.requires_grad and _unreached(p)]
    assert not blind, f"no gradient reaches {blind}"


def _unreached(parameter: torch.Tensor) -> bool:
    return parameter.grad is None or not bool(parameter.grad.abs().max() > 0)


def randomised(actor: Actor, scale: float = 0.3) -> None:
    """Adapters that matter; all weights are left as they are."""
    if actor.lora is None:
        return
    generator = torch.Generator().manual_seed(3)
    for tensor in actor.trainable_state().values():
        tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))


def adapters_load_in_the_pipeline(family: Family, folder: Path, out: Path, *, scale: float = 0.3) -> None:
    """Exported adapters, whose alpha is not their rank, give the pipeline the policy's pictures."""
    denoiser, prompts = family.denoiser(folder), list(family.prompts)
    guidance = family.guidances[-1]
    actor = Actor(denoiser, lora=LoRAConfig(rank=2, alpha=4), guidance=guidance)
    randomised(actor, scale)
    actor.save_adapters(str(out))
    start, final, pictures = family.drawn(denoiser, actor, 3, prompts)
    base = family.drawn(denoiser, Actor(denoiser, guidance=guidance), 3, prompts)[1]
    assert (final - base).abs().max() > 0.01, "the adapters must matter"
    pipeline = family.load(folder)
    family.load_adapters(pipeline, out)
    expected = family.by_pipeline(pipeline, denoiser, start, guidance, 3, prompts)
    assert (pictures - expected).abs().max() <= 1e-5, (pictures - expected).abs().max()


def whole_weights_load(family: Family, folder: Path, out: Path) -> None:
    """Exported weights are the network's, by its own class's `from_pretrained`."""
    denoiser = family.denoiser(folder)
    actor = Actor(denoiser)
    with torch.no_grad():
        for parameter in actor.network.parameters():
            parameter.add_(0.01)
    actor.save_weights(str(out))
    loaded = type(actor.network).from_pretrained(out).state_dict()
    own = actor.network.state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in own.items())


def trains(family: Family, folder: Path, recipe: str, agent: str, *words: str) -> None:
    """One iteration of a recipe under an agent, in this process: ratio one, then other weights."""
    from unirl_env import train
    from unirl_env.run.agent_setup import agent_config

    options = [f"model.options.{name}={value}" for name, value in family.options.items()]
    cfg = train.settings(
        recipe,
        [
            *(f"agent={agent}", f"model.pretrained={folder}", "model.dtype=float32", "model.num_steps=3"),
            *(f"model.height={family.height}", f"model.width={family.width}", *options),
            *("rollout.num_prompts=2", "rollout.group_size=2", "rollout.batch_size=4"),
            *("reward.train=saturation", "reward.heldout=null", "policy.storage_dtype=float32"),
            *("agent.anchor=rollout", "agent.micro_batch_size=2", "agent.warmup_iterations=0", *words),
        ],
    )
    assert cfg.model.env == family.id
    algorithm = agent_config(cfg).build_algo()
    try:
        before = {name: value.clone() for name, value in weights_of(algorithm).items()}
        algorithm.train()
        told, after = algorithm.iteration_metrics, weights_of(algorithm)
    finally:
        algorithm.stop()
    # An agent that looks at finished latents alone scores no step.
    assert told.get("self_check/ratio", 0.0) <= 1e-4 and told["grad_norm"] > 0, told
    assert any(not torch.equal(torch.as_tensor(after[name]), value) for name, value in before.items())


def weights_of(algorithm: Any) -> dict[str, torch.Tensor]:
    """The trained weights of an algorithm."""
    state = algorithm.learner_group.get_weights()["default_policy"]
    return {name: torch.as_tensor(value) for name, value in state.items()}


def edited(folder: Path, copy: Path, file: str, **changes: Any) -> Path:
    """A copy of a checkpoint with other settings in one of its JSON files; None takes a setting out."""
    shutil.copytree(folder, copy)
    settings = json.loads((copy / file).read_text()) | changes
    kept = {name: value for name, value in settings.items() if value is not None}
    (copy / file).write_text(json.dumps(kept))
    return copy


def is_accepted_by_the_checkers(family: Family, folder: Path) -> None:
    """By ours, Gymnasium's and Stable-Baselines3's."""
    from gymnasium.utils.env_checker import check_env
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    from unirl_env.envs import check_vector_env

    arguments = family.arguments(folder)
    check_vector_env(gym.make_vec(family.id, num_envs=4, group_size=2, **arguments), seed=3)
    env = gym.make(family.id, render_mode="rgb_array", **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(infinity|symmetric and normalized).*")
        check_env(env.unwrapped)
    sb3_check_env(env, warn=False)
    env.close()
