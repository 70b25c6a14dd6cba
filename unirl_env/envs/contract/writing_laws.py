"""The laws of environments that write, and of those that write and then draw, beside those of every mode."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from unirl_env.arguments.indices import as_numpy
from unirl_env.envs.contract import env_attr
from unirl_env.envs.contract.comparing import (
    Act,
    check_branches,
    check_place,
    copied,
    ended,
    law,
    like,
    played,
    present,
    same,
    some_rows,
)
from unirl_env.envs.contract.laws import check_latents
from unirl_env.envs.token_rows import WAIT
from unirl_env.errors import UnirlError

WRITTEN = ("tokens", "length", "prompt_length", "is_action")
DRAWN = ("latent", "step", "image_tokens", "image_length")
TEXT, IMAGE = 0, 1


def check_tokens(env: VectorEnv, act: Act, seed: int, max_steps: int = 100_000) -> None:
    """Play a batch and compare what is said with what is observed.

    Args:
        env: A generative vector environment whose actions are tokens.
        act: `act(obs) -> actions`.
        seed: Key of the episodes.
        max_steps: Where to stop looking.

    Raises:
        ContractError: With the law that was broken.
    """
    seen: Any = env.single_observation_space
    law(
        isinstance(env.single_action_space, spaces.Discrete),
        f"`single_action_space` must be Discrete where actions are tokens, got {env.single_action_space}.",
    )
    missing = [name for name in WRITTEN if name not in seen.spaces]
    law(not missing, f"Observations of tokens must have {list(WRITTEN)}, got none of {missing}.")
    obs, _ = env.reset(seed=seed)
    now = copied(obs)
    law(
        (now["length"] == now["prompt_length"]).all() and not now["is_action"].any(),
        "An episode must begin with its prompt alone: `length` is `prompt_length`, and nothing an action.",
    )
    _check_token_refusals(env, obs, now)
    for step in played(env, act, obs, max_steps):
        before, now = now, copied(step.obs)
        for row in step.rows:
            was, has = some_rows(before, row), some_rows(now, row)
            law(has["length"] > was["length"], "An action must lengthen the conversation.")
            law(
                _says(was, has, step.actions[row]),
                "The action must be the next token of the conversation, and marked as an action.",
            )
            _check_text(was, has)
        for row in step.due:
            _check_written(some_rows(now, row), env_attr(env, "finished")[row], bool(step.cut[row]))


def _check_token_refusals(env: VectorEnv, obs: dict[str, Any], now: dict[str, Any]) -> None:
    vocabulary: Any = env.single_action_space
    if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED:
        after, _, terminated, truncated, _ = env.step(like(obs, np.full(env.num_envs, WAIT)))
        law(
            same(copied(after), now) and not ended(terminated, truncated).any(),
            "An episode that waits must stay as it is.",
        )
    try:
        env.step(like(obs, np.full(env.num_envs, int(vocabulary.n))))
    except (UnirlError, ValueError):
        return
    law(False, "A token that the vocabulary lacks must be refused.")


def check_hybrid(env: VectorEnv, act: Act, seed: int, max_steps: int = 100_000) -> None:
    """Play a few batches, and compare what is written and drawn with what is observed.

    Args:
        env: A generative vector environment of two phases.
        act: `act(obs) -> actions`.
        seed: Key of the episodes.
        max_steps: Where to stop looking.

    Raises:
        ContractError: With the law that was broken.
    """
    seen: Any = env.single_observation_space
    law(
        isinstance(env.single_action_space, spaces.Dict),
        f"`single_action_space` must be a Dict where there are two phases, got {env.single_action_space}.",
    )
    missing = [name for name in ("phase", *WRITTEN) if name not in seen.spaces]
    law(not missing, f"Observations of two phases must have {['phase', *WRITTEN]}, got none of {missing}.")
    if "latent" in seen.spaces:
        check_latents(env, act, seed)
    _check_hybrid_refusals(env, seed)
    _check_episodes(env, act, seed, max_steps)
    check_place(env, act, seed, max_steps)
    for phase in (TEXT, IMAGE):
        _check_middle(env, act, seed, max_steps, phase)


def _check_hybrid_refusals(env: VectorEnv, seed: int) -> None:
    """Malformed actions are refused, and change nothing."""
    before = copied(env.reset(seed=seed)[0])
    env.action_space.seed(seed)
    space: Any = env.single_action_space
    good, parts = env.action_space.sample(), list(space)
    bad = [[good[name] for name in parts], {**good, "no_such_part": good[parts[0]]}, {}]
    if "token" in good:
        bad.append({**good, "token": np.full(env.num_envs, space["token"].n)})
    if env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP and len(parts) > 1:
        bad += [{name: good[name]} for name in parts]
    for actions in bad:
        try:
            env.step(actions)
        except (UnirlError, ValueError):
            continue
        law(False, "Actions that are no mapping of the phases' parts, or no tokens, must be refused.")
    law(same(before, copied(present(env))), "A refused action must change nothing.")


def _check_episodes(env: VectorEnv, act: Act, seed: int, max_steps: int) -> None:
    """Every step of a batch, row by row."""
    obs, _ = env.reset(seed=seed)
    now = copied(obs)
    space: Any = env.single_action_space
    writes = "token" in space.spaces
    law(
        (now["phase"] == (TEXT if writes else IMAGE)).all() and not now["is_action"].any(),
        "An episode must begin with its first phase that is not empty, and nothing an action.",
    )
    waited: set[frozenset[int]] = set()

    def careful_act(obs: dict[str, Any]) -> Any:
        kinds = frozenset(now["phase"][playing].tolist())
        if env.metadata["autoreset_mode"] is AutoresetMode.DISABLED and kinds not in waited:
            waited.add(kinds)
            _check_standing_still(env, act(obs), now, playing)
            obs = present(env)
        return act(obs)

    playing = np.arange(env.num_envs)
    for step in played(env, careful_act, obs, max_steps):
        before, now = now, copied(step.obs)
        for row in step.rows:
            was, has, did = (some_rows(values, row) for values in (before, now, step.actions))
            law(has["phase"] >= was["phase"], "`phase` must never go back within an episode.")
            if was["phase"] == IMAGE:
                _check_drawing(was, has, did)
                law(not step.cut[row], "A picture must not be truncated.")
            else:
                _check_writing(was, has, did)
        for row in step.due:
            _check_hybrid_sample(
                some_rows(now, row), env_attr(env, "finished")[row], bool(step.cut[row]), writes
            )
        playing = step.rows[~step.over[step.rows]]


def _check_text(was: dict[str, Any], has: dict[str, Any]) -> None:
    """What has been said stays, and what the world writes is no action."""
    start, end = int(was["length"]), int(has["length"])
    law(not has["is_action"][start + 1 : end].any(), "What follows an action by itself is no action.")
    law(
        all(np.array_equal(was[name][:start], has[name][:start]) for name in ("tokens", "is_action")),
        "What has been said must not change within an episode.",
    )
    law(has["prompt_length"] == was["prompt_length"], "`prompt_length` must not change within an episode.")


def _says(was: dict[str, Any], has: dict[str, Any], token: int) -> bool:
    """Whether `token` is said next, as an action."""
    start, end = int(was["length"]), int(has["length"])
    return end > start and has["tokens"][start] == token and bool(has["is_action"][start])


def _check_written(row: dict[str, Any], sample: Any, cut: bool) -> None:
    """One text ended."""
    said = row["tokens"][int(row["prompt_length"]) : int(row["length"])]
    law(
        sample.tokens is not None and np.array_equal(as_numpy(sample.tokens), said),
        "`Sample.tokens` must be all tokens after the prompt.",
    )
    law(isinstance(sample.text, str), "`Sample.text` must be the generated text.")
    law(sample.truncated == cut, "`Sample.truncated` must say whether the limit ended the text.")


def _check_writing(was: dict[str, Any], has: dict[str, Any], did: dict[str, Any]) -> None:
    law(
        _says(was, has, did["token"]),
        "While an episode writes, its action must be the next token, marked as an action.",
    )
    _check_text(was, has)
    law(
        has["length"] == was["length"] + 1 or has["phase"] == IMAGE,
        "Only the opening of a picture may follow a text by itself.",
    )
    law(
        all(np.array_equal(was[name], has[name]) for name in DRAWN if name in was),
        "While an episode writes, its picture must stay as it began.",
    )


def _check_drawing(was: dict[str, Any], has: dict[str, Any], did: dict[str, Any]) -> None:
    law(
        all(np.array_equal(was[name], has[name]) for name in WRITTEN),
        "While an episode draws, its text must stay as it is.",
    )
    if "latent" in was:
        law(
            np.array_equal(has["latent"], did["latent"]) and has["step"] == was["step"] + 1,
            "While an episode draws, its action must be the next latent.",
        )
    else:
        count = int(was["image_length"])
        law(
            has["image_length"] == count + 1
            and has["image_tokens"][count] == did["image_token"]
            and np.array_equal(has["image_tokens"][:count], was["image_tokens"][:count]),
            "While an episode draws, its action must be the next token of the picture.",
        )


def _check_hybrid_sample(row: dict[str, Any], sample: Any, cut: bool, writes: bool) -> None:
    pictured = any(made is not None for made in (sample.image, sample.video, sample.latent))
    law(
        pictured == (row["phase"] == IMAGE),
        "`Sample` must have a picture where the episode came to it only.",
    )
    if writes:
        _check_written(row, sample, cut)
    law(sample.truncated == cut, "`Sample.truncated` must say whether the limit ended the text.")


def _check_standing_still(env: VectorEnv, actions: Any, now: dict[str, Any], playing: np.ndarray) -> None:
    """In mode DISABLED, the phases whose parts are left out stand still; so do episodes that WAIT."""
    snapshot = env.unwrapped.snapshot()
    held = [(TEXT, {name: part for name, part in actions.items() if name != "token"})]
    held += [(IMAGE, {"token": actions["token"]})] if "token" in actions else []
    if "token" in actions:
        wait = actions["token"] * 0 + WAIT
        held.append((TEXT, {**actions, "token": wait}))
    for phase, partly in held:
        if partly:
            after = copied(env.unwrapped.step(partly)[0])
            rows = playing[now["phase"][playing] == phase]
            law(
                all(same(some_rows(now, row), some_rows(after, row)) for row in rows),
                "An episode whose phase has no part in the action, or that waits, must stay as it is.",
            )
            env.unwrapped.restore(snapshot)


def _check_middle(env: VectorEnv, act: Act, seed: int, max_steps: int, phase: int) -> None:
    """Snapshots and copies in the middle of a phase."""
    obs, info = env.reset(seed=seed)
    draws, rows = phase == IMAGE and set(obs) & set(DRAWN), np.zeros(0, dtype=np.int64)
    for step in played(env, act, obs, max_steps):
        obs, info = step.obs, step.info
        there = as_numpy(obs["phase"]) == phase
        if draws:
            there = there & (as_numpy(obs["image_length" if "image_length" in obs else "step"]) > 0)
        playing = step.rows[~step.over[step.rows]]
        rows, done = playing[there[playing]], ~np.isin(np.arange(env.num_envs), playing)
        if len(rows):
            break
    if len(rows):
        check_branches(env, act, obs, info, done, max_steps, int(rows[-1]))
