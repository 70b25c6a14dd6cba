"""The settings of a run by their dotted names, and what somebody may have meant by another name."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Any, get_type_hints

from unirl_env.settings import RunConfig

GROUPS = ("model", "reward", "agent", "rollout", "prompts")
"""Sections that are chosen by one word, too."""

SPELLINGS = {"rewards": "reward", "rewards.async": "reward.overlap", "reward.async": "reward.overlap"}
"""What people type, to the setting's own name; `async` is a word of Python, so no setting is called so."""

ELSEWHERE = {
    "adam_beta1": "agent.betas",
    "algorithm": "agent",
    "batch_size": "rollout.num_prompts",
    "beta": "agent.reference_kl",
    "bf16": "model.dtype",
    "cfg": "policy.guidance",
    "checkpoint_frequency": "logging.checkpoint_every",
    "clip_grad": "agent.grad_clip",
    "dataset": "prompts.train",
    "ent_coef": "agent.entropy_bonus",
    "entropy_coeff": "agent.entropy_bonus",
    "env": "model.env",
    "episodes": "rollout.group_size",
    "epochs": "iterations",
    "epsilon": "agent.options.token_clip_low",
    "eval_dataset": "prompts.heldout",
    "eval_steps": "logging.eval_every",
    "evaluation_interval": "logging.eval_every",
    "experiment_name": "name",
    "fp16": "model.dtype",
    "gpus": "rollout.num_gpus_per_learner",
    "gradient_accumulation_steps": "agent.micro_batch_size",
    "gradient_checkpointing": "policy.gradient_checkpointing",
    "guidance_scale": "policy.guidance",
    "importance_sampling": "agent.correction",
    "kl_coef": "agent.reference_kl",
    "kl_coeff": "agent.reference_kl",
    "learning_rate": "agent.lr",
    "load_checkpoint": "resume",
    "logging_dir": "logging.folder",
    "logging_steps": "logging.eval_every",
    "lora_r": "policy.lora_rank",
    "lr_scheduler": "agent.lr_schedule",
    "lr_scheduler_type": "agent.lr_schedule",
    "max_completion_length": "model.max_new_tokens",
    "max_grad_norm": "agent.grad_clip",
    "max_iterations": "iterations",
    "max_length": "model.max_new_tokens",
    "max_prompt_length": "model.max_prompt_tokens",
    "max_steps": "iterations",
    "max_tokens": "model.max_new_tokens",
    "mini_batch_size": "agent.minibatch_size",
    "model_id": "model.pretrained",
    "model_name": "model.pretrained",
    "model_name_or_path": "model.pretrained",
    "num_generations": "rollout.group_size",
    "num_gpus": "rollout.num_gpus_per_learner",
    "num_inference_steps": "model.num_steps",
    "num_iterations": "iterations",
    "num_train_epochs": "iterations",
    "num_workers": "rollout.num_env_runners",
    "optim": "agent.optimizer",
    "optimizer_type": "agent.optimizer",
    "output_dir": "logging.folder",
    "per_device_train_batch_size": "rollout.num_prompts",
    "ppo_epochs": "agent.num_epochs",
    "project_name": "name",
    "random_state": "seed",
    "report_to": "logging.wandb",
    "resolution": "model.height",
    "resume_from_checkpoint": "resume",
    "reward_fn": "reward.train",
    "reward_funcs": "reward.train",
    "run_name": "name",
    "save_steps": "logging.checkpoint_every",
    "steps_per_epoch": "rollout.num_prompts",
    "target_modules": "policy.lora_targets",
    "torch_dtype": "model.dtype",
    "total_epochs": "iterations",
    "total_timesteps": "iterations",
    "train_batch_size": "rollout.num_prompts",
    "train_dataset": "prompts.train",
    "use_wandb": "logging.wandb",
    "warmup_ratio": "agent.warmup_iterations",
    "warmup_steps": "agent.warmup_iterations",
}
"""Words of other libraries for what is set here."""


def _types() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(RunConfig).items():
        inner = get_type_hints(kind) if dataclasses.is_dataclass(kind) else None
        found |= {name: kind} if inner is None else {f"{name}.{key}": own for key, own in inner.items()}
    return found


def _is_text(kind: Any) -> bool:
    choices = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return set(choices) <= {str, type(None)}


TYPES = _types()
"""The type of every setting that is not a section."""

SECTIONS = tuple(name for name, kind in get_type_hints(RunConfig).items() if dataclasses.is_dataclass(kind))
"""Names that only hold settings."""

TEXTS = frozenset(name for name, kind in TYPES.items() if _is_text(kind))
"""Settings that are a text, and so read as it is typed: `name=007` is no number."""

WHOLE = frozenset(name for name, kind in TYPES.items() if kind is Any)
"""Settings that are a word or a mapping, such as a reward: a new one takes the place of the old one."""

OPEN = WHOLE | {name for name, kind in TYPES.items() if str(kind).startswith("dict[")}
"""Settings below which any name may stand."""


def respelled(name: str) -> str:
    """The setting's own name."""
    if name in SPELLINGS:
        return SPELLINGS[name]
    first, dot, rest = name.partition(".")
    return f"{SPELLINGS.get(first, first)}{dot}{rest}"


def below(name: str) -> str | None:
    """The open setting below which a name stands; None where there is none."""
    return next((setting for setting in OPEN if name.startswith(f"{setting}.")), None)


def unknown_name(name: str, source: str = "") -> str:
    """What is said of a name that no setting has, with the nearest that there is."""
    section, _, last = name.rpartition(".")
    said = f"`{name}`{f' of {source}' if source else ''} must be one of the settings of a run, got an unknown"
    if name.startswith("hydra"):
        return f"{said} name: Hydra only composes the settings here; try `logging.folder` for where runs go."
    meant = _meant(name, section, last)
    return f"{said} name; " + (
        f"did you mean `{meant}`?" if meant else "try `--show`, which prints them all."
    )


def _meant(name: str, section: str, last: str) -> str | None:
    if last in ELSEWHERE and f"{section}.{last}" not in TYPES:
        return ELSEWHERE[last]
    if same := [known for known in TYPES if known.rpartition(".")[2] == last]:
        return same[0]
    named = [*TYPES, *GROUPS, *SPELLINGS]
    short = {known.rpartition(".")[2]: known for known in reversed(TYPES)}
    near = difflib.get_close_matches(name, named, n=1, cutoff=0.85)
    near = near or [short[found] for found in difflib.get_close_matches(last, short, n=1, cutoff=0.85)]
    if not near and section in ("", "agent", "algorithm", "agent.option"):
        near = [f"agent.options.{knob}" for knob in difflib.get_close_matches(last, _knobs(), 1, cutoff=0.8)]
    near = near or difflib.get_close_matches(name, named, n=1, cutoff=0.7)
    return near[0] if near else None


def _knobs() -> list[str]:
    """The algorithms' own settings."""
    # Imports RLlib, and only who erred waits for it.
    from unirl_env.agents import AGENTS
    from unirl_env.agents.attributes import knob_names

    return sorted({knob for name in AGENTS for knob in knob_names(AGENTS.get(name))})
