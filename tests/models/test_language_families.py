"""Scores and answers of many families against transformers' own eager forward pass, one text at a time."""

import logging

import pytest
import torch
from language_cases import ALONE, LONG, PACKED, REFUSED, write
from transformers import AutoModelForCausalLM

from unirl_env.errors import ConfigError, ContractError, EngineError
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.shared import packed
from unirl_env.models.shared.alone import read_alone, reads_alone
from unirl_env.policies.actor import Actor
from unirl_env.rollouts.engines import Request
from unirl_env.rollouts.engines.local import LocalEngine
from unirl_env.types import Prompt

LENGTHS = (9, 13, 5, 17, 5)
NO_END = 10**6


@pytest.fixture(autouse=True)
def quiet(quiet_models):
    """Transformers says much about untrained models."""


def texts(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 250, (length,), generator=generator) for length in lengths]


def plain(path):
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()


@torch.no_grad()
def scores(model, network, rows):
    """Log-probabilities `[L, V]` of each text, packed as a learner packs them."""
    lengths = torch.tensor([len(row) for row in rows])
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None, None]
    hidden = model.hidden(network, torch.cat(rows)[None], positions, lengths=lengths)[0]
    return (hidden @ model.head(network).T).log_softmax(-1).split(lengths.tolist())


@torch.no_grad()
def truth(network, rows):
    return [network(input_ids=row[None]).logits[0].float().log_softmax(-1) for row in rows]


def furthest(got, expected):
    return max((mine - theirs).abs().max().item() for mine, theirs in zip(got, expected, strict=True))


def answered(model, network, reference, rows, rows_at_once=None):
    """How far the log-probabilities that the local engine reports lie from transformers' own."""
    actor = Actor(model)
    requests = [
        Request(tuple(row.tolist()), Prompt(f"p{i}"), seed=i, max_new_tokens=6 - i % 3)
        for i, row in enumerate([*rows, rows[0]])
    ]
    far = 0.0
    answers = LocalEngine(actor, eos_ids=(NO_END,), rows=rows_at_once).generate(requests)
    for request, answer in zip(requests, answers, strict=True):
        said = torch.tensor(answer.tokens)
        assert len(said) == request.max_new_tokens
        whole = torch.cat([torch.tensor(request.tokens), said])
        (expected,) = truth(reference, [whole])
        expected = expected[len(request.tokens) - 1 : -1].gather(1, said[:, None])[:, 0]
        far = max(far, (expected - torch.tensor(answer.log_probs)).abs().max().item())
    return far


@pytest.mark.parametrize("name", [*PACKED, *ALONE])
def test_scores_and_answers_are_transformers_own(name, tmp_path, caplog):
    path, rows = write(tmp_path, name, {**PACKED, **ALONE}[name]), texts()
    model, reference = CausalLM(path, chat=False), plain(path)
    with caplog.at_level(logging.WARNING):
        network = model.network()
    assert reads_alone(network) == (name in ALONE) == ("one text at a time" in caplog.text)
    assert furthest(scores(model, network, rows), truth(reference, rows)) <= 2e-5
    assert answered(model, network, reference, rows) <= 2e-5


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_right_in_no_way_is_refused_by_name(name, tmp_path):
    settings, said = REFUSED[name]
    path = write(tmp_path, name, settings)
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        CausalLM(path, chat=False).network()


def test_a_text_is_read_without_its_neighbours(tmp_path):
    """Else the comparisons above might compare two leaks."""
    model = CausalLM(write(tmp_path, "Lfm2", ALONE["Lfm2"]), chat=False)
    network, rows = model.network(), texts()
    other = [rows[0].flip(0), *rows[1:]]
    here, there = scores(model, network, rows), scores(model, network, other)
    assert all(torch.equal(a, b) for a, b in zip(here[1:], there[1:], strict=True))
    packed_row = torch.cat(rows)[None]
    with torch.no_grad():
        leaking = network.base_model(input_ids=packed_row).last_hidden_state[0, 9:22]
        whole = read_alone(network.base_model, packed_row, {"lengths": torch.tensor(LENGTHS)})
    assert (leaking - whole[0, 9:22]).abs().max() > 0.1


def test_recurrent_states_see_no_padding(tmp_path):
    model = CausalLM(write(tmp_path, "Qwen3_5", ALONE["Qwen3_5"]), chat=False)
    network = model.network()
    assert not model.padded(network)
    lots = LocalEngine(Actor(model), rows=2)._batches(
        [Request(tuple(range(n)), Prompt("p"), seed=0, max_new_tokens=1) for n in (3, 2, 3, 3, 2)]
    )
    assert lots == [[1, 4], [0, 2], [3]]
    with pytest.raises(ContractError, match="padded"):
        mask = torch.tensor([[False, True, True]])
        model.hidden(network, torch.zeros(1, 3).long(), torch.zeros(1, 1, 3).long(), mask=mask)


class TestKeywords:
    """Whatever a layer asks of its attention is understood or refused."""

    @pytest.mark.parametrize("packing", [None, packed.Packing.of(torch.tensor([2, 3]))])
    @pytest.mark.parametrize("keyword", ["s_aux", "softcap", "position_bias", "indices", "something_new"])
    def test_an_unknown_one_is_refused_by_name(self, keyword, packing):
        query = torch.randn(1, 2, 5, 8)
        options = {keyword: torch.ones(2), "packed_sequences": packing}
        with pytest.raises(ContractError, match=f"Module must ask .* `{keyword}`"):
            packed.packed_attention(torch.nn.Module(), query, query, query, None, **options)
        options[keyword] = None
        packed.packed_attention(torch.nn.Module(), query, query, query, None, **options)

    def test_layers_of_another_kind_are_refused(self):
        layer = torch.nn.Module()
        layer.config, layer.layer_idx = type("Config", (), {"layer_types": ["indexed_attention"]}), 0
        query = torch.randn(1, 2, 5, 8)
        with pytest.raises(ContractError, match="layer of kind 'indexed_attention'"):
            packed.packed_attention(
                layer, query, query, query, None, packed_sequences=packed.Packing.of(torch.tensor([5]))
            )


class TestRotary:
    """Frequencies that change with the longest text of a forward pass: no text is so long."""

    def test_longrope_ends_texts_before_its_border(self, tmp_path):
        rope = {"rope_type": "longrope", "rope_theta": 1e4, **LONG}
        path = write(
            tmp_path, "Phi3", PACKED["Phi3"], rope_parameters=rope, original_max_position_embeddings=16
        )
        model, reference = CausalLM(path, chat=False), plain(path)
        network, rows = model.network(), texts((9, 16, 4))
        assert model.max_context == 16
        assert furthest(scores(model, network, rows), truth(reference, rows)) <= 2e-5
        with pytest.raises(ContractError, match=r"at most 16 tokens, .* got 17"):
            scores(model, network, texts((9, 17)))
        request = Request(tuple(range(12)), Prompt("p"), seed=0, max_new_tokens=5)
        with pytest.raises(EngineError, match="16 tokens"):
            LocalEngine(Actor(model)).generate([request])

    def test_so_does_dynamic_scaling(self, tmp_path):
        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        path = write(tmp_path, "Llama", {}, max_position_embeddings=16, rope_parameters=rope)
        model = CausalLM(path, chat=False)
        network = model.network()
        assert furthest(scores(model, network, texts((9, 16))), truth(plain(path), texts((9, 16)))) <= 2e-5
        with pytest.raises(ContractError, match="at most 16 tokens"):
            scores(model, network, texts((17,)))

    def test_frozen_scalings_have_no_border(self, tmp_path):
        rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8}  # fmt: skip
        path = write(tmp_path, "Llama", {}, rope_parameters=rope)
        model, rows = CausalLM(path, chat=False), texts()
        assert model.max_context == 512
        assert furthest(scores(model, model.network(), rows), truth(plain(path), rows)) <= 2e-5
