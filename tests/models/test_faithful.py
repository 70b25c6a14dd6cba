"""The comparison with transformers' own forward pass: what it finds and says, and what it leaves alone."""

import logging

import pytest
import torch
from language_cases import ALONE, PACKED, write

from unirl_env.errors import ConfigError, ContractError
from unirl_env.models import check_language_model
from unirl_env.models.causal_lm import CausalLM
from unirl_env.models.shared import faithful, packed
from unirl_env.models.shared.alone import reads_alone


@pytest.fixture(autouse=True)
def quiet(quiet_models):
    """Transformers says much about untrained models."""


@pytest.fixture
def with_sinks(tmp_path):
    return write(tmp_path, "GptOss", ALONE["GptOss"])


class TestAtLoad:
    def test_what_the_kernel_drops_is_seen(self, with_sinks, monkeypatch, caplog):
        """As if sinks were not refused by name."""
        monkeypatch.setattr(packed, "HARMLESS", packed.HARMLESS | {"s_aux"})
        with caplog.at_level(logging.WARNING):
            network = CausalLM(with_sinks, chat=False).network()
        assert reads_alone(network) and network.config._attn_implementation == "eager"
        assert "nats a token" in caplog.text and "GptOssForCausalLM" in caplog.text

    def test_a_leak_between_packed_texts_is_seen(self, tmp_path, monkeypatch, caplog):
        one_text = packed.Packing.of
        monkeypatch.setattr(
            packed.Packing,
            "of",
            lambda lengths, device="cpu", follows=None: one_text(torch.tensor([int(lengths.sum())]), device),
        )
        with caplog.at_level(logging.WARNING):
            network = CausalLM(write(tmp_path, "Llama", {}), chat=False).network()
        assert reads_alone(network) and "off when scored" in caplog.text

    def test_what_cannot_be_put_right_is_refused_with_numbers(self, tmp_path, monkeypatch):
        path = write(tmp_path, "Cohere", PACKED["Cohere"])
        monkeypatch.setattr("unirl_env.models.causal_lm.logit_scale", lambda config: 1.0)
        said = r"CohereForCausalLM .* nats a token .* off when scored and .* off when generated; texts alone"
        with pytest.raises(ConfigError, match=said):
            CausalLM(path, chat=False).network()

    def test_nothing_else_changes(self, tmp_path):
        model = CausalLM(write(tmp_path, "Mistral", PACKED["Mistral"]), chat=False)
        network, random = model.network(), torch.get_rng_state()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        buffers = {name: tensor.clone() for name, tensor in network.named_buffers()}
        way = faithful.settle(model, network)
        assert way[:2] == (False, packed.NAME) == (reads_alone(network), network.config._attn_implementation)
        assert torch.equal(random, torch.get_rng_state()) and not network.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        assert all(torch.equal(tensor, buffers[name]) for name, tensor in network.named_buffers())
        assert all(p.grad is None and p.requires_grad for p in network.parameters())

    def test_the_second_network_takes_the_way_of_the_first(self, with_sinks, monkeypatch):
        model = CausalLM(with_sinks, chat=False)
        first = model.network()
        monkeypatch.setattr(faithful, "compare", None)
        second = model.network()
        for network in (first, second):
            assert reads_alone(network) and network.config._attn_implementation == "eager"

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision_is_no_gap(self, tmp_path, dtype):
        model = CausalLM(write(tmp_path, "Qwen3", {}), chat=False, dtype=dtype)
        assert not reads_alone(model.network())


class TestGap:
    def test_it_weighs_by_probability(self):
        theirs = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
        mine = torch.tensor([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]]).log()
        gap = faithful._gap([mine], [theirs])
        expected = 0.5 * (torch.tensor(2.0).log() + torch.tensor(1.5).log())
        assert gap.largest == pytest.approx(expected.item()) == pytest.approx(2 * gap.mean)

    def test_what_is_no_number_is_far(self):
        gap = faithful._gap([torch.tensor([[torch.nan, 0.0]])], [torch.zeros(1, 2)])
        assert gap.largest == torch.inf and not gap.within(torch.bfloat16)


class TestLongTexts:
    @pytest.mark.parametrize(
        "name, borders",
        [
            ("Gemma3", {"`sliding_window` of 4 tokens"}),
            ("Llama4", {"`attention_chunk_size` of 4 tokens"}),
            ("Llama4 tuned", {"`attention_chunk_size` of 4 tokens", "`floor_scale` of 4 tokens"}),
            ("Ministral3", {"`original_max_position_embeddings` of 8 tokens"}),
            ("GptOss", {"`sliding_window` of 4 tokens"}),
            ("Qwen3", set()),
        ],
    )
    def test_every_border_is_crossed(self, tmp_path, name, borders):
        report = check_language_model(write(tmp_path, name, {**PACKED, **ALONE}[name]))
        assert set(report.gaps) == {"short texts", *borders} and not report.not_crossed
        assert all(gap.largest <= 1e-5 for gaps in report.gaps.values() for gap in gaps.values())
        assert report.alone == (name in ALONE) and report.network in str(report)

    @pytest.mark.parametrize(
        "name, border", [("Mistral", "sliding_window"), ("Llama4", "attention_chunk_size")]
    )
    def test_a_forgotten_border_is_named(self, tmp_path, monkeypatch, name, border):
        """On short texts nothing is wrong."""
        path = write(tmp_path, name, PACKED[name], **{border: 14})
        monkeypatch.setattr(packed, "_reach", lambda module, window: (None, None))
        assert not reads_alone(CausalLM(path, chat=False).network())
        with pytest.raises(
            ContractError, match=f"nats a token .* when scored behind `{border}` of 14 tokens"
        ):
            check_language_model(path)

    def test_what_was_not_crossed_is_said(self, tmp_path):
        path = write(tmp_path, "Mistral", PACKED["Mistral"], sliding_window=100)
        report = check_language_model(path, max_tokens=64)
        assert report.not_crossed == {"sliding_window": 100} and "`sliding_window` of 100" in str(report)
        with pytest.raises(ConfigError, match="`max_tokens`"):
            check_language_model(path, max_tokens=4)

    def test_an_adapter_of_pictures_can_be_checked(self):
        from unirl_env.models.tiny import TinyQwenVL

        report = check_language_model(TinyQwenVL())
        assert not report.alone and set(report.gaps) >= {"short texts"}
