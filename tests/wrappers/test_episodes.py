"""Which rows run, begin and end, whatever the autoreset."""

import numpy as np
import pytest
from fakes import FakeDenoiseEnv

from unirl_env.errors import ContractError
from unirl_env.wrappers.base import EpisodeRows


def follow(env, count, seed=0):
    rows = EpisodeRows(env.num_envs)
    obs, info = env.reset(seed=seed)
    rows.reset(info, None)
    changes = []
    for _ in range(count):
        obs, _, terminated, truncated, info = env.step(obs["latent"])
        changes.append(rows.step(info, terminated, truncated))
    return rows, changes


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_rows_that_wait_are_neither_counted_nor_ended_again(backend):
    _, changes = follow(FakeDenoiseEnv(steps=(1, 3), backend=backend), 3)
    assert [change.stepped.tolist() for change in changes] == [[True, True], [False, True], [False, True]]
    assert [change.ended.tolist() for change in changes] == [[True, False], [False, False], [False, True]]
    assert not any(change.began.any() for change in changes)


def test_an_automatic_reset_begins_a_row_and_counts_no_step():
    _, changes = follow(FakeDenoiseEnv(steps=(1, 2), autoreset="next_step"), 4)
    assert [change.began[0] for change in changes] == [False, True, False, True]
    assert [change.stepped[0] for change in changes] == [True, False, True, False]
    assert [change.ended[1] for change in changes] == [False, True, False, False]


def test_a_masked_reset_begins_its_rows_only():
    env = FakeDenoiseEnv(steps=(2, 2, 2, 2))
    rows, _ = follow(env, 2)
    mask = np.array([True, True, False, False])
    obs, info = env.reset(seed=0, options={"reset_mask": mask})
    assert rows.reset(info, {"reset_mask": mask}).tolist() == mask.tolist()
    change = rows.step(env.step(obs["latent"])[4], mask & False, mask & False)
    assert change.stepped.tolist() == mask.tolist()


def test_the_seeds_must_be_there():
    with pytest.raises(ContractError, match=r"`info` must have `episode_seed`.*got \['group'\]"):
        EpisodeRows(2).reset({"group": 0}, None)
