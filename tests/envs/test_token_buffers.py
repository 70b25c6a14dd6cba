"""Who owns what in a token environment: observations, live buffers, snapshots and copies."""

import numpy as np
import pytest
import torch
from talk import SeeingModel, plain, say, talk

from unirl_env.errors import ContractError

BACKENDS = pytest.mark.parametrize("backend", ["numpy", "torch"])


class TestBuffers:
    def test_arrays_belong_to_the_caller(self):
        env = talk(num_envs=2, autoreset_mode="disabled")
        obs, _ = env.reset(seed=0)
        clean = {name: value.copy() for name, value in obs.items()}
        (result,) = say(env, "~", "a")
        for array in (*obs.values(), *result[0].values(), result[2], result[3]):
            array[...] = 1
        again, _, terminated, _, _ = say(env, "_", "_")[0]
        assert np.array_equal(
            again["tokens"][1][: clean["length"][1]], clean["tokens"][1][: clean["length"][1]]
        )
        assert terminated.tolist() == [True, False] and env.prompts and again["length"][1] > 1

    def test_tensors_are_the_live_buffers_and_their_lengths_are_not(self):
        env = talk(num_envs=2, array_backend="torch", autoreset_mode="disabled")
        first, _ = env.reset(seed=0)
        lengths = first["length"].tolist()
        second = say(env, "ab", "cd")[-1][0]
        assert second["tokens"].data_ptr() == first["tokens"].data_ptr()
        assert second["is_action"].dtype == torch.bool and first["length"].tolist() == lengths
        tokens = second["tokens"].clone()
        third, _ = env.reset(seed=1)
        assert third["tokens"].data_ptr() != first["tokens"].data_ptr()
        assert torch.equal(second["tokens"], tokens), "a reset leaves earlier observations alone"

    def test_a_restart_of_some_rows_leaves_earlier_observations_alone(self):
        env = talk(num_envs=2, array_backend="torch")
        env.reset(seed=0)
        (ended,) = say(env, "~", "a")
        kept = ended[0]["tokens"].clone()
        say(env, "xy", "bc")
        for row, length in enumerate(ended[0]["length"]):
            assert torch.equal(ended[0]["tokens"][row, :length], kept[row, :length])

    def test_both_backends_say_the_same(self):
        runs = []
        for backend in ("numpy", "torch"):
            env = talk(SeeingModel(), array_backend=backend)
            obs = [env.reset(seed=3)[0]]
            obs += [result[0] for result in say(env, "a~xb", "abcd", "~xyz", "ab~x")]
            runs.append([{name: plain(value) for name, value in each.items()} for each in obs[-1:]])
        for arrays, tensors in zip(*runs, strict=True):
            assert arrays.keys() == tensors.keys()
            assert all(np.array_equal(arrays[name], tensors[name]) for name in arrays)

    def test_a_mirror_on_another_device_follows(self):
        """The CPU stands in for the device."""
        options = {"num_envs": 2, "array_backend": "torch", "tool": lambda text, prompt: "ok"}
        env, mirrored = talk(**options), talk(**options)
        mirrored._activity.mirror = torch.device("cpu")
        for each in (env, mirrored):
            each.reset(seed=0)
        snapshots = [each.snapshot() for each in (env, mirrored)]
        for texts in (("ab~c", "a~bc"), ("abcd", "ab~c")):
            for one, other in zip(say(env, *texts), say(mirrored, *texts), strict=True):
                assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
            for each, snapshot in zip((env, mirrored), snapshots, strict=True):
                each.restore(snapshot)
                each.fork([1, 0])


class TestSnapshots:
    @BACKENDS
    def test_they_share_the_buffers_and_come_back_clean(self, backend):
        env = talk(num_envs=2, array_backend=backend, autoreset_mode="disabled")
        env.reset(seed=0)
        obs = {name: plain(value) for name, value in say(env, "ab", "cd")[-1][0].items()}
        snapshot = env.snapshot()
        assert snapshot.model_state["written"].tokens is env._activity.written.tokens
        say(env, "xyz", "uv~")
        for _ in range(2):
            back, _ = env.restore(snapshot)
            assert all(np.array_equal(plain(back[name]), obs[name]) for name in obs)
            assert say(env, "~", "q")[0][2].tolist() == [True, False]

    def test_fork_lets_branches_differ(self):
        env = talk(num_envs=3, array_backend="torch", autoreset_mode="disabled")
        obs, info = env.reset(seed=0)
        obs = say(env, "ab", "cd", "ef")[-1][0]
        copies, forked = env.fork([1, 1, 0])
        assert copies["length"].tolist() == obs["length"][[1, 1, 0]].tolist()
        assert [p.id for p in forked["prompt"]] == [info["prompt"][i].id for i in (1, 1, 0)]
        samples = say(env, "x~", "~_", "yz")[-1][4]["samples"]
        assert samples[0].text == "cdx"
        assert env._activity.written.length.tolist()[1] == copies["length"][1] + 1

    def test_a_finished_episode_can_be_forked_from(self):
        env = talk(num_envs=2, autoreset_mode="disabled")
        env.reset(seed=0)
        say(env, "~", "a")
        env.fork([0, 0])
        assert env._done.all()

    def test_a_snapshot_of_another_kind_is_refused(self):
        env = talk(num_envs=2)
        env.reset(seed=0)
        with pytest.raises(ContractError, match=r"observation `tokens` int64 \[30\] .*got .*\[32\]"):
            talk(num_envs=2, max_new_tokens=10).restore(env.snapshot())

    def test_it_outlives_autoresets(self):
        env = talk(num_envs=2)
        env.reset(seed=0)
        snapshot, kept = env.snapshot(), env._activity.written.tokens.copy()
        say(env, "~xa", "abc")
        back, _ = env.restore(snapshot)
        assert np.array_equal(back["tokens"], kept)
