"""Networks that read pictures, for each family, against transformers' own forward call."""

import pytest
import torch
from vl_cases import ANSWERS, FAMILIES, PROMPTS, build, joined, plain, sequences

from unirl_env.errors import ContractError
from unirl_env.models.qwen_vl import QwenVL
from unirl_env.models.shared.vision import picture_features, picture_places


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory, quiet_models):
    return QwenVL(build(request.param, tmp_path_factory.mktemp("vl") / request.param), max_images=2)


@pytest.fixture(scope="module")
def network(model):
    return model.network()


class TestScoring:
    def test_packed_is_each_sequence_alone(self, model, network):
        rows = list(sequences(model))
        packed = joined(rows)
        with torch.no_grad():
            hidden = model.hidden(network, **packed)[0]
            logits = hidden @ model.head(network).T
        for (tokens, _, inputs), found, said in zip(
            rows,
            hidden.split(packed["lengths"].tolist()),
            logits.split(packed["lengths"].tolist()),
            strict=True,
        ):
            expected_logits, expected = plain(network, model, tokens, inputs)
            assert (found - expected).abs().max() <= 1e-5
            assert (said - expected_logits).abs().max() <= 1e-4

    def test_pictures_and_their_places_matter(self, model, network):
        """Else the comparison above could not tell them apart."""
        rows = list(sequences(model))[:1]
        packed = joined(rows)
        with torch.no_grad():
            hidden = model.hidden(network, **packed)
            other = dict(
                packed, inputs={**packed["inputs"], "pixel_values": -packed["inputs"]["pixel_values"]}
            )
            flat = dict(packed, positions=torch.arange(packed["tokens"].shape[1]).repeat(3, 1)[:, None])
            for changed in (other, flat):
                assert (model.hidden(network, **changed) - hidden)[0, -1].abs().max() > 1e-3

    def test_a_picture_goes_through_the_tower_once(self, model, network, monkeypatch):
        rows = list(sequences(model))
        seen = []
        tower = network.model.visual.forward
        monkeypatch.setattr(
            network.model.visual, "forward", lambda x, *a, **k: seen.append(len(x)) or tower(x, *a, **k)
        )
        with torch.no_grad():
            model.hidden(network, **joined(rows))
        sizes = [int(grid.prod()) for row in rows for grid in row[2].get("image_grid_thw", ())]
        assert len(sizes) == 5 and seen == [sizes[0] + sizes[1] + sizes[3]], "three of five are the same"

    def test_a_policy_may_say_the_mark_of_pictures(self, model, network):
        """Sampled tokens are whatever the policy likes; the mark is then a token like any other."""
        mark = network.config.image_token_id
        answers = [[5, mark, mark], [mark], [mark, mark, 9, 10], [90, 91], [33]]
        rows = list(sequences(model, answers=answers))
        packed = joined(rows)
        hidden = model.hidden(network, **packed)[0].split(packed["lengths"].tolist())
        for (tokens, positions, inputs), found, prompt in zip(rows, hidden, PROMPTS, strict=True):
            start = len(model.encode(prompt).tokens)
            from transformers import DynamicCache

            cache = DynamicCache(config=network.config)
            first = model.hidden(
                network, tokens[None, :start], positions[:, None, :start], inputs=inputs, cache=cache
            )
            rest = model.hidden(network, tokens[None, start:], positions[:, None, start:], cache=cache)
            assert (torch.cat([first, rest], 1)[0] - found).abs().max() <= 1e-5

    def test_pictures_of_other_tokens_are_refused(self, model, network):
        packed = joined(list(sequences(model))[:1])
        packed["inputs"] = {name: torch.cat([value, value]) for name, value in packed["inputs"].items()}
        with pytest.raises(ContractError, match="of pictures for"):
            model.hidden(network, **packed)


class TestGeneration:
    def test_a_cache_and_left_padding_change_nothing(self, model, network):
        from transformers import DynamicCache

        rows = list(sequences(model))
        longest = max(len(tokens) - len(answer) for (tokens, _, _), answer in zip(rows, ANSWERS, strict=True))
        steps, mark = 2, model.pad_id
        tokens = torch.full((len(rows), longest), mark)
        positions = torch.zeros(3, len(rows), longest, dtype=torch.int64)
        mask = torch.zeros(len(rows), longest, dtype=torch.bool)
        for i, ((row, place, _), answer) in enumerate(zip(rows, ANSWERS, strict=True)):
            count = len(row) - len(answer)
            tokens[i, longest - count :] = row[:count]
            positions[:, i, longest - count :] = place[:, :count]
            mask[i, longest - count :] = True
        cache = DynamicCache(config=network.config)
        inputs = joined(rows)["inputs"]
        with torch.no_grad():
            found = [model.hidden(network, tokens, positions, inputs=inputs, mask=mask, cache=cache)[:, -1:]]
            for step in range(steps):
                token = torch.tensor([(answer * 2)[step] for answer in ANSWERS])[:, None]
                mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.bool)], 1)
                positions = positions[:, :, -1:].amax((0, 2), keepdim=True).expand(3, -1, -1) + 1
                found.append(model.hidden(network, token, positions, mask=mask, cache=cache))
        for i, prompt in enumerate(PROMPTS):
            encoded = model.encode(prompt)
            whole = torch.cat([encoded.tokens, torch.tensor((ANSWERS[i] * 2)[:steps])])
            _, expected = plain(network, model, whole, encoded.inputs)
            got = torch.cat(found, 1)[i]
            assert (got - expected[-steps - 1 :]).abs().max() <= 1e-5


class TestTraining:
    def test_gradient_reaches_the_tower_only_where_it_is_trained(self, model):
        network = model.network()
        packed = joined(list(sequences(model)))
        network.requires_grad_(False)
        network.model.language_model.requires_grad_(True)
        model.hidden(network, **packed).square().sum().backward()
        assert all(p.grad is None for p in network.model.visual.parameters())
        assert network.model.language_model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
        network.requires_grad_(True)
        model.hidden(network, **packed).square().sum().backward()
        assert all(p.grad is not None for p in network.model.visual.parameters())

    def test_a_shared_picture_has_the_gradient_of_all_who_share_it(self, model, network):
        rows = list(sequences(model))
        weight = network.model.visual.patch_embed.proj.weight

        def gradient(some):
            hidden = model.hidden(network, **joined(some))
            return torch.autograd.grad(hidden.square().sum(), weight)[0]

        torch.testing.assert_close(
            gradient([rows[0], rows[4]]), gradient(rows[:1]) + gradient(rows[4:]), rtol=1e-3, atol=1e-3
        )

    def test_adapters_are_for_the_language_layers_and_load_in_peft(self, model, tmp_path):
        from peft import LoraConfig, PeftModel, inject_adapter_in_model

        network = model.network()
        inject_adapter_in_model(LoraConfig(r=2, target_modules=list(model.lora_targets)), network)
        adapted = [name for name, _ in network.named_parameters() if "lora_" in name]
        assert len(adapted) == 2 * len(model.lora_targets) and not any("visual" in name for name in adapted)
        with torch.no_grad():
            for name, weight in network.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(name)))
        packed = joined(list(sequences(model)))
        expected = model.hidden(network, **packed)
        base = model.hidden(model.network(), **packed)
        assert (expected - base).abs().max() > 1e-3
        model.save_adapters(network, str(tmp_path / "adapters"))
        loaded = PeftModel.from_pretrained(model.network(), tmp_path / "adapters").base_model.model
        torch.testing.assert_close(model.hidden(loaded, **packed), expected, rtol=1e-3, atol=1e-4)
        model.save_weights(network, str(tmp_path / "whole"))
        whole = QwenVL(str(tmp_path / "whole"), max_images=2)
        torch.testing.assert_close(whole.hidden(whole.network(), **packed), expected, rtol=1e-3, atol=1e-4)
        assert torch.equal(whole.encode(PROMPTS[3]).tokens, model.encode(PROMPTS[3]).tokens)


def test_a_picture_of_equal_sum_is_another_picture(model, network):
    grid = torch.tensor([[1, 4, 4]] * 2)
    one = torch.rand(16, model.input_spaces["pixel_values"][0][1])
    both = picture_features(network.base_model, torch.cat([one, one.flip(0)]), grid)
    alone = picture_features(network.base_model, one.flip(0), grid[:1])
    torch.testing.assert_close(both.merged[4:], alone.merged)
    assert both.tokens == (4, 4)


def test_places():
    mark = torch.tensor([[0, 1, 1, 0, 1, 1, 0, 1]]).bool()
    time = torch.tensor([[0, 1, 1, 3, 4, 5, 6, 7]]).expand(3, 1, -1)
    assert picture_places(mark, time, 2).int().tolist() == [[0, 1, 1, 0, 0, 0, 0, 0]]
    assert torch.equal(picture_places(mark, time, 5), mark)
    with pytest.raises(ContractError):
        picture_places(mark, time, 3)
