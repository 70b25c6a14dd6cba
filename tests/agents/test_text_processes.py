"""Texts in several processes: the same curve for the same seed."""

import pytest
import torch
from test_processes import assert_same_curve, train, weights
from test_texts import config_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize(("runners", "learners"), [(1, 2), (2, 1)])
def test_the_curve_of_texts_does_not_depend_on_the_number_of_processes(cluster, runners, learners):
    agents = [
        config_of(micro_batch_tokens=200)
        .env_runners(num_env_runners=count)
        .learners(num_learners=others)
        .build_algo()
        for count, others in ((0, 0), (runners, learners))
    ]
    try:
        local, spread = agents
        assert_same_curve(train(spread), train(local))
        assert [s.text for s in spread.last_batch.samples] == [s.text for s in local.last_batch.samples]
        expected = weights(local)
        for name, tensor in weights(spread).items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-4)
    finally:
        for agent in agents:
            agent.stop()
