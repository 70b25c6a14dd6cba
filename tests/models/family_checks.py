"""What every family of diffusers must show on a tiny checkpoint of the published layout.

Each compares a `Family` with its pipeline's own classes. `test_clip_families.py` and
`test_picture_families.py` list the families that they are for.
"""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import gymnasium as gym
import torch
from gymnasium.utils.env_checker import check_env

from unirl_env.arguments.names import MODEL_OPTIONS
from unirl_env.envs import check_vector_env
from unirl_env.models import DENOISERS
from unirl_env.models.making import make_model
from unirl_env.models.shared.judging import in_turn
from unirl_env.models.shared.recording import FRAMES
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.prompts.sources import PromptSource
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.run.agent_setup import build_agent
from unirl_env.train import settings
from unirl_env.types import Prompt

PROMPTS = [
    Prompt("a red circle at the top left", negative=""),
    Prompt("two blue squares", negative="a green triangle at the very bottom"),
    Prompt("cat", negative="dog"),
]
"""Texts of unequal length, with negatives of other lengths."""


def same(pipeline: Any, latents: torch.Tensor, denoiser: Any, prompts: Sequence[Prompt]) -> torch.Tensor:
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
        frames: Of a small clip; None of pictures.
        latents: From a pipeline, our initial latents, the denoiser and the prompts to its `latents=`.
        prepare: Changes a loaded pipeline before a comparison, for example its scheduler.
        load_adapters: Gives a loaded pipeline what `save_adapters` wrote into a folder.
        guidances: What is compared; 1 alone where the family has none.
        prompts: What is drawn.
        together: Whether its pipeline draws several prompts in one call.
        blind: Beginnings of the names of weights that no gradient can reach, such as those of a last block
            whose texts nobody reads any more.
        levels: Noise levels of the three rows that are scored, where the first one alone does not reach all
            weights.
    """

    name: str
    id: str
    build: Callable[[Path], Any]
    pipeline: str
    call: Callable[[Sequence[Prompt], float], Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    height: int = 32
    width: int = 48
    frames: int | None = None
    latents: Callable[[Any, torch.Tensor, Any, Sequence[Prompt]], torch.Tensor] = same
    prepare: Callable[[Any, Any, int], None] = nothing
    load_adapters: Callable[[Any, Path], Any] = by_the_pipeline
    guidances: tuple[float, ...] = (1.0, 3.5)
    prompts: Sequence[Prompt] = tuple(PROMPTS)
    together: bool = True
    blind: tuple[str, ...] = ()
    levels: tuple[float, float, float] | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Of a sample."""
        sides = {"height": self.height, "width": self.width}
        return sides if self.frames is None else {**sides, "num_frames": self.frames}

    @property
    def scorer(self) -> Any:
        """A reward of what it makes."""
        return "saturation" if self.frames is None else {"name": "over_frames", "scorer": "saturation"}

    def arguments(self, folder: Path) -> dict[str, Any]:
        """Arguments of the id for its tiny checkpoint in `folder`."""
        return {
            "pretrained": str(folder),
            **self.sizes,
            "num_steps": 2,
            "prompts": list(self.prompts),
            "scorer": self.scorer,
            "model_options": dict(self.options),
        }

    def denoiser(self, folder: Path, **options: Any) -> Any:
        """The family's adapter of the checkpoint in `folder`."""
        return make_model(
            DENOISERS, self.name, {"pretrained": str(folder), **self.sizes, **self.options, **options}
        )

    def load(self, folder: Path, **options: Any) -> Any:
        """The pipeline itself."""
        pipeline = getattr(diffusers, self.pipeline).from_pretrained(folder, **options)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def env(
        self, denoiser: Any, num_envs: int, num_steps: int, prompts: Sequence[Prompt], guidance: float
    ) -> Any:
        """A batch of episodes of this denoiser, as a rollout plays them."""
        return gym.make_vec(
            self.id,
            num_envs=num_envs,
            num_steps=num_steps,
            denoiser=denoiser,
            with_negative=guidance != 1.0,
            array_backend="torch",
            autoreset_mode="disabled",
            prompts=list(prompts),
            scorer=self.scorer,
        )

    def observed(self, denoiser: Any, guidance: float) -> dict[str, torch.Tensor]:
        """What a policy sees of three episodes."""
        obs, _ = self.env(denoiser, 3, 3, self.prompts, guidance).reset(seed=5)
        if self.levels is None:
            return obs
        sigma = torch.tensor(self.levels)
        return {**obs, "sigma": sigma, "sigma_next": 0.8 * sigma}

    def drawn(self, denoiser: Any, actor: Actor, num_steps: int, prompts: Sequence[Prompt]) -> tuple:
        """The ODE by environment, policy and rollout: initial latents, final latents, pictures."""
        envs, guidance = [], actor.latent_head().guidance

        def make_env(num_envs: int) -> Any:
            envs.append(self.env(denoiser, num_envs, num_steps, prompts, guidance))
            return envs[-1]

        batch = Rollout(make_env, actor).collect(RolloutRequest(list(prompts), seed=11, stochastic_steps=[]))
        final = envs[0].unwrapped.snapshot().model_state["latent"]
        start, _ = envs[0].reset(seed=11, options={"prompts": list(prompts)})
        if self.frames is None:
            return start["latent"], final, torch.stack([sample.image for sample in batch.samples])
        clips = torch.stack([sample.video for sample in batch.samples])
        with torch.no_grad():
            whole = finished(denoiser, final.float(), prompts)
            exact = [denoiser._draw(denoiser.frozen.vae, row[None]) / 2 + 0.5 for row in whole]
        exact = torch.cat(exact).clamp(0, 1).transpose(1, 2)
        assert clips.dtype == torch.uint8 and (clips - 255 * exact).abs().max() < 0.51
        return start["latent"], final, exact

    def by_pipeline(
        self, pipeline: Any, denoiser: Any, latents: torch.Tensor, guidance: float, num_steps: int,
        prompts: Sequence[Prompt], output: str = "pt",
    ) -> torch.Tensor:  # fmt: skip
        """The pipeline's own pictures `[B, 3, H, W]` or clips from these initial latents; or its latents."""
        self.prepare(pipeline, denoiser, num_steps)
        if not self.together and len(prompts) > 1:
            rows = [
                self.by_pipeline(
                    pipeline, denoiser, latents[row : row + 1], guidance, num_steps, [prompt], output
                )
                for row, prompt in enumerate(prompts)
            ]
            return torch.cat(rows)
        takes = inspect.signature(type(pipeline).__call__).parameters
        named = [] if self.frames is None else [name for name in FRAMES if name in takes]
        frames = dict.fromkeys(named, getattr(denoiser, "num_frames", None))
        with torch.no_grad():
            made = pipeline(
                **self.call(prompts, guidance),
                height=denoiser.height,
                width=denoiser.width,
                **frames,
                num_inference_steps=num_steps,
                latents=self.latents(pipeline, latents.clone(), denoiser, prompts),
                output_type=output,
            )
        return made.images if self.frames is None else made.frames


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


def finished(denoiser: Any, final: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
    """What is decoded of final latents, with the pictures that lead them."""
    leads = getattr(denoiser, "leads", False)
    return denoiser._finished(final, in_turn(denoiser, prompts, negative=False) if leads else None)


def its_latents_are_the_pipelines(family: Family, folder: Path, *, most: float = 1e-5) -> None:
    """What is decoded, beside its largest element: decoders that normalise would hide a wrong scale."""
    denoiser, pipeline, prompts = family.denoiser(folder), family.load(folder), list(family.prompts)
    start, final, _ = family.drawn(denoiser, Actor(denoiser), 4, prompts)
    expected = family.by_pipeline(pipeline, denoiser, start, 1.0, 4, prompts, output="latent")
    off = (finished(denoiser, final, prompts) - expected).abs().max() / expected.abs().max()
    assert expected.std() > 0.1 and off <= most, off


def agrees_with_itself(
    family: Family, folder: Path, *, lora: bool, exact: bool = False, **options: Any
) -> None:
    """Scores find what sampling found, alone as in a batch; gradients reach all that is trained.

    With `exact` to the last bit: stored in bfloat16, evaluated in lots.
    """
    if exact:
        options |= {"rows_per_forward": 4}
    denoiser = family.denoiser(folder, **options)
    adapters = LoRAConfig(rank=2, alpha=4) if lora else None
    stored = {"storage_dtype": "bfloat16"} if exact else {}
    actor = Actor(denoiser, lora=adapters, guidance=family.guidances[-1], merge_adapters=False, **stored)
    randomised(actor)
    obs = family.observed(denoiser, family.guidances[-1])
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
    unseen = [name for name in blind if not name.startswith(family.blind)]
    assert not unseen, f"no gradient reaches {unseen}"


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


def recomputing_changes_nothing(family: Family, folder: Path) -> None:
    """Gradients are the same where activations are computed once more instead of kept."""
    denoiser, found = family.denoiser(folder), []
    obs = family.observed(denoiser, 1.0)
    for recompute in (False, True):
        actor = Actor(denoiser, lora=LoRAConfig(rank=2, alpha=4), gradient_checkpointing=recompute)
        randomised(actor)
        actor.score(obs, obs["latent"] * 0.9).log_prob.sum().backward()
        found.append([p.grad for p in actor.network.parameters() if p.requires_grad])
    assert getattr(actor.network, "gradient_checkpointing", False)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*found, strict=True))


def another_size_is_the_pipelines(family: Family, folder: Path, height: int, width: int) -> None:
    """`sized` draws the pipeline's pictures, whatever the adapter has drawn at its own size before."""
    denoiser, pipeline, prompts = family.denoiser(folder), family.load(folder), list(family.prompts)
    family.drawn(denoiser, Actor(denoiser), 2, prompts)
    other = denoiser.sized(height, width)
    start, _, pictures = family.drawn(other, Actor(other), 3, prompts)
    expected = family.by_pipeline(pipeline, other, start, 1.0, 3, prompts)
    assert pictures.shape[-2:] == (height, width)
    assert (pictures - expected).abs().max() <= 1e-5, (pictures - expected).abs().max()


def draws_for_texts(family: Family, folder: Path) -> None:
    """It is a frozen generator behind a writer, and the painter of a model that writes and draws."""
    model = {"denoiser": family.name, "pretrained": str(folder), **family.sizes, **family.options}
    words = {"max_new_tokens": 4, "vectorization_mode": "vector_entry_point"}
    enhanced = gym.make_vec(
        "unirl/TinyPromptEnhancer-T2I-v0", num_envs=2, generator={**model, "num_steps": 2}, **words
    )
    check_vector_env(enhanced)
    enhanced.close()
    both = {"writer": {"language_model": "tiny_enhancer"}, "painter": model}
    composed = gym.make_vec(
        "unirl/TinyEnhancerAndSD3-T2I-v0", num_envs=2, num_steps=2, model_options=both, **words
    )
    check_vector_env(composed)
    composed.close()


def edited_copy(folder: Path, out: Path, file: str, **changes: Any) -> Path:
    """A copy of a checkpoint with some settings of one of its JSON files changed."""
    shutil.copytree(folder, out)
    path = out / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return out


def keeps_the_contract(family: Family, folder: Path) -> None:
    """Gymnasium's checker and the library's own find nothing, of one episode and of a batch."""
    single = gym.make(family.id, **family.arguments(folder))
    check_env(single.unwrapped, skip_render_check=True)
    single.close()
    batch = gym.make_vec(
        family.id, num_envs=4, vectorization_mode="vector_entry_point", **family.arguments(folder)
    )
    check_vector_env(batch)
    batch.close()


def trains(family: Family, folder: Path, recipe: str, agent: str, *overrides: str) -> None:
    """One iteration of a recipe on the tiny checkpoint begins at ratio one and moves the weights."""
    place = {name: "" if name in MODEL_OPTIONS else "model_options." for name in family.options}
    cfg = settings(
        recipe,
        [
            f"agent={agent}",
            f"model.pretrained={folder}",
            f"model.height={family.height}",
            f"model.width={family.width}",
            f"model.num_frames={'null' if family.frames is None else family.frames}",
            "model.num_steps=6",
            "model.eval_num_steps=null",
            "model.dtype=float32",
            "model.device=cpu",
            *(f"++model.options.{place[name]}{name}={value}" for name, value in family.options.items()),
            "policy.lora_rank=2",
            "policy.lora_alpha=4",
            "policy.storage_dtype=float32",
            "prompts.heldout=null",
            f"reward.train={_in_hydra(family.scorer)}",
            "reward.heldout=null",
            "rollout.num_prompts=2",
            "rollout.group_size=4",
            "rollout.batch_size=null",
            "agent.micro_batch_size=8",
            *overrides,
        ],
    )
    trained = build_agent(cfg, PromptSource.of(list(family.prompts)))
    try:
        learner = trained.learner_group._learner
        before = _weights(learner)
        trained.train()
        after, said = _weights(learner), trained.iteration_metrics
    finally:
        trained.stop()
    # An agent that looks at finished latents alone scores no step.
    assert said.get("self_check/ratio", 0.0) <= 1e-4 and said["grad_norm"] > 0, said
    assert after.isfinite().all() and not torch.equal(before, after)


def _in_hydra(scorer: Any) -> str:
    """A reward as an override names it."""
    inner = scorer if isinstance(scorer, str) else ",".join(f"{k}:{v}" for k, v in scorer.items())
    return inner if isinstance(scorer, str) else "{" + inner + "}"


def _weights(learner: Any) -> torch.Tensor:
    state = learner.policy.actor.trainable_state()
    return torch.cat([tensor.float().flatten().clone() for tensor in state.values()])
