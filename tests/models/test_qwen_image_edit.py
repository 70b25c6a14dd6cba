"""Qwen-Image-Edit, of one picture and of several, against its own pipelines on untrained tiny checkpoints."""

import importlib
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from models import family_checks as checks
from models.qwen_image_cases import EDIT, EDITS, QWEN_IMAGE, QWEN_IMAGE_EDIT, SIDE, build, picture

from unirl_env.errors import ConfigError, ModelNotFound, PromptError
from unirl_env.policies.actor import Actor
from unirl_env.types import Prompt

SEVERAL = [replace(EDITS[0], images=(picture(0), picture(7, 40, 64))), EDITS[1], EDITS[2]]
"""Prompts of two pictures and of one."""
PLUS = replace(
    QWEN_IMAGE_EDIT,
    pipeline=EDIT["plus"],
    options={**QWEN_IMAGE_EDIT.options, "max_images": 2},
    prompts=tuple(SEVERAL),
)
FAMILIES = {"": QWEN_IMAGE_EDIT, "plus": PLUS}
both = pytest.mark.parametrize("kind", EDIT)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, quiet_models):
    where = tmp_path_factory.mktemp("qwen_image_edit")
    return {kind: build(where / name, name) for kind, name in EDIT.items()}


@pytest.fixture(autouse=True)
def small_areas(monkeypatch):
    """The pipelines scale pictures to 1024 x 1024 pixels, whatever is asked; here to fewer."""
    for name in ("pipeline_qwenimage_edit", "pipeline_qwenimage_edit_plus"):
        module = importlib.import_module(f"diffusers.pipelines.qwenimage.{name}")
        own = module.calculate_dimensions

        def small(area, aspect, own=own):
            return own(SIDE**2 if area == 1024**2 else area, aspect)

        monkeypatch.setattr(module, "calculate_dimensions", small)


@both
@pytest.mark.parametrize("guidance, num_steps", [(1.0, 2), (3.5, 4)])
def test_it_draws_the_pipelines_pictures(folders, kind, guidance, num_steps):
    checks.equals_the_pipeline(FAMILIES[kind], folders[kind], guidance=guidance, num_steps=num_steps)


def test_a_network_that_knows_pictures_as_clean_draws_the_pipelines(tmp_path, folders):
    """The variant of 2511, in which pictures' tokens have time 0."""
    clean = build(tmp_path, EDIT["plus"], zero_cond_t=True)
    checks.equals_the_pipeline(PLUS, clean, guidance=3.5, num_steps=2)


@both
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_it_agrees_with_itself(folders, kind, lora, exact):
    checks.agrees_with_itself(FAMILIES[kind], folders[kind], lora=lora, exact=exact)


@both
def test_what_it_exports_loads(folders, tmp_path, kind):
    checks.adapters_load_in_the_pipeline(FAMILIES[kind], folders[kind], tmp_path / "adapters")
    checks.whole_weights_load(FAMILIES[kind], folders[kind], tmp_path / "weights")


def test_contexts_are_of_one_width_whatever_the_pictures(folders):
    denoiser = PLUS.denoiser(folders["plus"])
    context = denoiser.encode(SEVERAL)
    assert context["image_sizes"].tolist() == [[[8, 8], [8, 12]], [[4, 12], [0, 0]], [[12, 8], [0, 0]]]
    places = context["image_latents"].abs().sum(-1).ne(0).sum(1).tolist()
    assert places == [64 + 96, 48, 96] and context["image_latents"].shape[1] == denoiser.image_tokens
    alone = denoiser.encode(SEVERAL[1:2])
    assert all(alone[name].shape[1:] == context[name].shape[1:] for name in context)


def test_the_picture_matters(folders):
    denoiser, prompt = QWEN_IMAGE_EDIT.denoiser(folders[""]), EDITS[0]
    context = denoiser.encode([prompt, replace(prompt, images=(picture(9),))])
    latent = torch.randn(1, *denoiser.latent_shape, generator=torch.Generator().manual_seed(0)).expand(
        2, -1, -1
    )
    with torch.no_grad():
        one, other = denoiser.velocity(denoiser.network(), latent, torch.full((2,), 0.8), context)
        tokens = {**context, "prompt_embeds": context["prompt_embeds"][:1].expand(2, -1, -1)}
        seen, also = denoiser.velocity(denoiser.network(), latent, torch.full((2,), 0.8), tokens)
    assert (one - other).abs().max() > 1e-3 and (seen - also).abs().max() > 1e-3, "its latents alone, too"


class TestRefusals:
    def made(self, folders, prompts):
        return gym.make_vec(
            QWEN_IMAGE_EDIT.id,
            num_envs=1,
            **{**QWEN_IMAGE_EDIT.arguments(folders[""]), "prompts": prompts},
        )

    @pytest.mark.parametrize("images, count", [((), 0), ((picture(0), picture(1)), 2)])
    def test_prompts_without_a_picture_or_with_too_many(self, folders, images, count):
        wrong = Prompt("paint it red", "wrong one", images=images)
        with pytest.raises(PromptError, match=f"1 to 1 pictures to edit, got {count} in 'wrong one'; try"):
            self.made(folders, [EDITS[0], wrong])
        env = self.made(folders, EDITS)
        with pytest.raises(PromptError, match=f"got {count} in 'wrong one'"):
            env.reset(options={"prompts": [wrong]})

    def test_prompts_that_do_not_fit(self, folders):
        denoiser = QWEN_IMAGE_EDIT.denoiser(folders[""], max_sequence_length=20)
        with pytest.raises(PromptError, match=r"at most 20 tokens .* got 22 .*larger `max_sequence_length`"):
            denoiser.encode(EDITS[1:2])
        slender = replace(EDITS[0], images=(picture(0, 8, 200),))
        with pytest.raises(PromptError, match="at most 4 times as long as wide, got 200 x 8"):
            QWEN_IMAGE_EDIT.denoiser(folders[""]).encode([slender])

    @pytest.mark.parametrize("area", [64**2, 70**2, 512**2, 1024**2])
    def test_there_is_room_for_all_other_pictures(self, folders, area):
        from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

        room = QWEN_IMAGE_EDIT.denoiser(folders[""], image_pixels=area).image_tokens
        for aspect in torch.linspace(1, 4, 200).tolist():
            for each in (aspect, 1 / aspect):
                width, height, _ = calculate_dimensions(area, each)
                assert 0 < (width // 8) * (height // 8) <= room

    def test_several_pictures_for_a_pipeline_of_one(self, folders):
        with pytest.raises(ConfigError, match=r"`max_images` must be at most 1, got 2.*EditPlusPipeline"):
            QWEN_IMAGE_EDIT.denoiser(folders[""], max_images=2)

    def test_a_checkpoint_that_draws_from_texts(self, tmp_path):
        with pytest.raises(
            ModelNotFound, match=r"model_index\.json is of QwenImagePipeline, not of QwenImageEd"
        ):
            QWEN_IMAGE_EDIT.denoiser(build(tmp_path))

    def test_the_other_edits_checkpoint(self, folders):
        with pytest.raises(ModelNotFound, match=r"model_index\.json is of QwenImageEditPlusPipeline"):
            QWEN_IMAGE.denoiser(folders["plus"])

    def test_settings_of_the_scheduler(self, folders, tmp_path):
        file = "scheduler/scheduler_config.json"
        with pytest.raises(ConfigError, match="`invert_sigmas`"):
            QWEN_IMAGE_EDIT.denoiser(
                checks.edited_copy(folders[""], tmp_path / "scheduler", file, invert_sigmas=True)
            )


def test_recomputing_changes_no_gradient(folders):
    checks.recomputing_changes_nothing(QWEN_IMAGE_EDIT, folders[""])


def test_it_keeps_the_contract(folders):
    checks.keeps_the_contract(QWEN_IMAGE_EDIT, folders[""])


@pytest.mark.ray
@pytest.mark.parametrize("agent", ["grpo", "flow_dppo", "drpo"])
def test_its_recipe_learns(folders, cluster, agent):
    checks.trains(QWEN_IMAGE_EDIT, folders[""], "diffusion/qwen_image_edit", agent)


@pytest.mark.slow
def test_at_the_pipelines_own_area(folders, monkeypatch):
    """1024 x 1024 pixels, which are 16384 places of the tiny decoder."""
    monkeypatch.undo()
    family = replace(QWEN_IMAGE_EDIT, options={"max_sequence_length": 96}, prompts=EDITS[:1])
    denoiser, pipeline = family.denoiser(folders[""]), family.load(folders[""])
    start, _, pictures = family.drawn(denoiser, Actor(denoiser), 2, family.prompts)
    expected = family.by_pipeline(pipeline, denoiser, start, 1.0, 2, family.prompts)
    assert (pictures - expected).abs().max() <= 1e-5
