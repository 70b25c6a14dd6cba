"""Classifier-free guidance over picture tokens: one distribution draws and scores, the published one."""

import pytest
import torch
from janus_cases import PROMPTS, ask, packed, write_tiny_janus

from unirl_env.errors import ConfigError
from unirl_env.models.janus.model import Janus
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.engines.local import LocalEngine


@pytest.fixture(scope="module")
def directory(tmp_path_factory, quiet_models):
    return write_tiny_janus(tmp_path_factory.mktemp("models") / "janus")


@pytest.fixture(scope="module")
def model(directory):
    return Janus(directory, guidance=5.0)


@pytest.fixture(scope="module")
def actor(model):
    return Actor(model.image)


@pytest.mark.parametrize("before", [(), ([5, 6, 7], [], [9] * 11)])
def test_log_probs_are_those_of_the_learner(model, before):
    gentle = Janus(model.pretrained, guidance=1.5)
    own = Actor(gentle.image)
    requests = ask(gentle, before=before)
    answers = LocalEngine(own).generate(requests)
    obs, tokens = packed(requests, answers)
    with torch.no_grad():
        scored = own.score(obs, tokens).log_prob
    drawn = torch.tensor([value for answer in answers for value in answer.log_probs])
    assert drawn.min() < -2
    torch.testing.assert_close(scored, drawn, rtol=0, atol=2e-5)


def test_pictures_do_not_depend_on_the_batch(model, actor):
    requests = [request for n in (5, 16, 9) for request in ask(model, group=2, tokens=n)]
    together = LocalEngine(actor).generate(requests)
    alone = [LocalEngine(actor).generate([request])[0] for request in requests]
    assert [answer.tokens for answer in alone] == [answer.tokens for answer in together]
    assert [len(answer.tokens) for answer in together] == [5] * 6 + [16] * 6 + [9] * 6


def test_greedy_pictures_are_those_of_transformers(model, actor):
    from transformers import JanusForConditionalGeneration

    whole = JanusForConditionalGeneration.from_pretrained(model.pretrained).eval()
    requests = ask(model, group=1)
    answers = LocalEngine(actor).generate(requests, temperature=0)
    free = Actor(Janus(model.pretrained).image)
    assert answers != LocalEngine(free).generate(requests, temperature=0)
    for request, answer in zip(requests, answers, strict=True):
        tokens = torch.tensor([request.tokens])
        drawn = whole.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            generation_mode="image",
            do_sample=False,
            guidance_scale=5.0,
        )
        assert tuple((drawn[0] + model.image.first_id).tolist()) == answer.tokens


def test_logits_are_the_mixture(model, actor):
    (request,) = ask(model, PROMPTS[:1], group=1)
    free, head = Janus(model.pretrained).image, model.image.head(actor.network)
    row = torch.cat([torch.tensor(request.tokens), model.image.first_id + torch.arange(9)])[None]
    blank = row.clone()
    blank[0, 1 : len(request.tokens) - 1] = model.image.pad_id
    places, lengths = torch.arange(row.shape[1])[None, None], torch.tensor([row.shape[1]])
    with torch.no_grad():
        said, unsaid = (free.hidden(actor.network, r, places, lengths=lengths) @ head.T for r in (row, blank))
        found = model.image.hidden(actor.network, row, places, lengths=lengths) @ head.T
    assert (said - unsaid).abs().max() > 0.5
    torch.testing.assert_close(found, 5 * said - 4 * unsaid, rtol=1e-4, atol=1e-4)


def test_texts_are_written_without(model):
    assert model.text.streams == 1 and model.image.streams == 2 and Janus(model.pretrained).image.streams == 1


@pytest.mark.parametrize("guidance", [0.0, float("inf"), float("nan")])
def test_what_is_no_guidance(directory, guidance):
    with pytest.raises(ConfigError, match="`guidance`"):
        Janus(directory, guidance=guidance)
