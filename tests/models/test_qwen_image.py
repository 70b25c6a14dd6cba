"""What Qwen-Image alone has, on an untrained tiny checkpoint."""

import shutil
from dataclasses import replace

import pytest
import torch
from models import family_checks as checks
from models.qwen_image_cases import EDIT, QWEN_IMAGE

from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.models.shared import of_diffusers
from unirl_env.models.shared.fixed_batches import by_kind
from unirl_env.policies.actor import Actor
from unirl_env.types import Prompt


@pytest.fixture(scope="module")
def folder(checkpoint):
    return checkpoint(QWEN_IMAGE)


def test_its_schedule_ends_at_the_checkpoints_terminal(folder):
    denoiser, pipeline = QWEN_IMAGE.denoiser(folder), QWEN_IMAGE.load(folder)
    for steps in (2, 7):
        QWEN_IMAGE.by_pipeline(pipeline, denoiser, torch.zeros(1, 15, 16), 1.0, steps, [Prompt("cat")])
        assert torch.equal(denoiser.sigmas(steps), pipeline.scheduler.sigmas)
        assert denoiser.sigmas(steps)[-2].item() == pytest.approx(0.02)


def test_it_draws_them_with_texts_padded_to_any_width(folder):
    for exact in ({"rows_per_forward": 2}, {"max_sequence_length": 64}):
        checks.equals_the_pipeline(QWEN_IMAGE, folder, guidance=3.5, **exact)


def test_guidance_keeps_the_norm_of_every_token(folder):
    denoiser = QWEN_IMAGE.denoiser(folder)
    without, with_prompt = torch.randn(2, 3, 15, 16, generator=torch.Generator().manual_seed(0))
    guided = denoiser.guided(without, with_prompt, 4.0, torch.ones(3))
    plain = without + 4 * (with_prompt - without)
    torch.testing.assert_close(guided.norm(dim=-1), with_prompt.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(guided, plain, -1), torch.ones(3, 15))
    assert (guided - plain).abs().max() > 0.1
    nothing = denoiser.guided(torch.zeros(1, 1, 16), torch.zeros(1, 1, 16), 4.0, torch.ones(1))
    assert torch.equal(nothing, torch.zeros(1, 1, 16))


def test_a_texts_context_is_the_pipelines_and_zeros(folder):
    denoiser, pipeline = QWEN_IMAGE.denoiser(folder), QWEN_IMAGE.load(folder)
    context = denoiser.encode(QWEN_IMAGE.prompts)
    for row, prompt in enumerate(QWEN_IMAGE.prompts):
        with torch.no_grad():
            embeds, mask = pipeline.encode_prompt(prompt.text, device="cpu")
        count = embeds.shape[1]
        assert mask is None and context["prompt_embeds_mask"][row].tolist() == [1] * count + [0] * (
            24 - count
        )
        torch.testing.assert_close(context["prompt_embeds"][row, :count], embeds[0], atol=1e-5, rtol=1e-5)
        assert not context["prompt_embeds"][row, count:].any()


def test_a_text_that_is_cut_is_cut_as_by_the_pipeline_and_said(folder, caplog, monkeypatch):
    monkeypatch.setattr(of_diffusers, "_told", set())
    length = {"max_sequence_length": 9}
    short = replace(QWEN_IMAGE, options=length, call=lambda *asked: {**QWEN_IMAGE.call(*asked), **length})
    checks.equals_the_pipeline(short, folder, guidance=1.0)
    assert "do not read every prompt to its end" in caplog.text


def test_adapters_sit_where_gradients_come(folder):
    targets = QWEN_IMAGE.denoiser(folder).lora_targets
    assert "transformer_blocks.0.attn.to_add_out" in targets and "transformer_blocks.2.attn.to_k" in targets
    assert not {f"transformer_blocks.2.attn.{name}" for name in ("to_add_out", "add_q_proj")} & set(targets)


def test_rows_of_one_kind_are_evaluated_together_and_come_back_in_order():
    seen, rows = [], torch.arange(6.0)[:, None]

    def function(part, twice):
        seen.append(part.flatten().tolist())
        return part + twice

    kinds = torch.tensor([[2, 1], [0, 0], [2, 1], [2, 0], [0, 0], [2, 1]])
    assert torch.equal(by_kind(function, rows, 2 * rows, kinds=kinds), 3 * rows)
    assert seen == [[1.0, 4.0], [3.0], [0.0, 2.0, 5.0]]
    assert torch.equal(by_kind(function, rows, rows, kinds=None), 2 * rows) and len(seen) == 4


class TestRefusals:
    @pytest.mark.parametrize("size, near", [({"height": 30}, "24 or 32"), ({"width": 4}, "8 or 16")])
    def test_sizes(self, folder, size, near):
        with pytest.raises(
            ConfigError, match=f"`{next(iter(size))}` must be a positive multiple of 8.*{near}"
        ):
            QWEN_IMAGE.denoiser(folder, **size)

    def test_texts_longer_than_the_pipeline_reads(self, folder):
        with pytest.raises(ConfigError, match="`max_sequence_length` must be at most 1024, got 2000"):
            QWEN_IMAGE.denoiser(folder, max_sequence_length=2000)

    def test_a_checkpoint_that_edits(self, folder, tmp_path):
        other = checks.edited_copy(folder, tmp_path / "edit", "model_index.json", _class_name=EDIT[""])
        with pytest.raises(ModelNotFound, match=r"model_index\.json is of QwenImageEditPipeline"):
            QWEN_IMAGE.denoiser(other)

    @pytest.mark.parametrize("name", ["guidance_embeds", "use_layer3d_rope", "use_additional_t_cond"])
    def test_a_network_of_another_pipeline(self, folder, tmp_path, name):
        other = checks.edited_copy(folder, tmp_path / name, "transformer/config.json", **{name: True})
        with pytest.raises(ConfigError, match=f"`{name}` of the transformer must be false"):
            QWEN_IMAGE.denoiser(other)

    def test_another_familys_network_and_missing_parts(self, folder, tmp_path):
        file, kind = "transformer/config.json", "FluxTransformer2DModel"
        other = checks.edited_copy(folder, tmp_path / "flux", file, _class_name=kind)
        with pytest.raises(
            ModelNotFound, match=f"transformer is a {kind}, not a QwenImageTransformer2DModel"
        ):
            QWEN_IMAGE.denoiser(other)
        part = shutil.copytree(folder, tmp_path / "part")
        shutil.rmtree(part / "text_encoder")
        with pytest.raises(ModelNotFound, match="Try a local directory"):
            QWEN_IMAGE.denoiser(part).encode([Prompt("cat")])
        shutil.rmtree(part / "vae")
        with pytest.raises(ModelNotFound, match="Try a local directory"):
            QWEN_IMAGE.denoiser(part)

    @pytest.mark.parametrize("setting", [{"stochastic_sampling": True}, {"shift_wildly": 3.0}])
    def test_settings_of_the_scheduler(self, folder, tmp_path, setting):
        other = checks.edited_copy(
            folder, tmp_path / "scheduler", "scheduler/scheduler_config.json", **setting
        )
        with pytest.raises(ConfigError, match=f"`{next(iter(setting))}`"):
            QWEN_IMAGE.denoiser(other)


def test_in_bfloat16_it_is_the_pipelines_to_rounding(folder):
    denoiser, pipeline = (
        QWEN_IMAGE.denoiser(folder, dtype="bfloat16"),
        QWEN_IMAGE.load(folder, dtype=torch.bfloat16),
    )
    actor, prompts = Actor(denoiser, guidance=3.5, storage_dtype="bfloat16"), list(QWEN_IMAGE.prompts)
    start, final, pictures = QWEN_IMAGE.drawn(denoiser, actor, 3, prompts)
    expected = QWEN_IMAGE.by_pipeline(pipeline, denoiser, start.bfloat16(), 3.5, 3, prompts)
    assert final.dtype == torch.bfloat16 and pictures.dtype == torch.float32
    assert (pictures - expected.float()).abs().max() <= 0.05


def test_a_larger_copy_is_one_made_so(folder):
    """As evaluation has it, with the tokens and the shift of its own size."""
    larger, made = QWEN_IMAGE.denoiser(folder).sized(64, 48), QWEN_IMAGE.denoiser(folder, height=64, width=48)
    assert larger.latent_shape == made.latent_shape == (48, 16)
    assert torch.equal(larger.sigmas(4), made.sigmas(4))
    assert not torch.equal(made.sigmas(4), QWEN_IMAGE.denoiser(folder).sigmas(4))
    latent = torch.randn(1, 48, 16, generator=torch.Generator().manual_seed(0))
    context = made.encode([Prompt("cat")])
    with torch.no_grad():
        found = [each.velocity(made.network(), latent, torch.ones(1), context) for each in (larger, made)]
    assert torch.equal(*found)
    assert torch.equal(*(each.decode(latent)[0].image for each in (larger, made)))
