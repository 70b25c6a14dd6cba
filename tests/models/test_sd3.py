"""The adapter against diffusers' own pipeline, on an untrained tiny checkpoint."""

import gc
import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch

from unirl_env.envs.encodings import Contexts
from unirl_env.errors import ConfigError, ModelNotFound
from unirl_env.models.making import model_choice
from unirl_env.models.sd3 import SD3Denoiser
from unirl_env.models.tiny import TinySD3Denoiser
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.rollouts.driver import RolloutRequest
from unirl_env.rollouts.play import Rollout
from unirl_env.types import Prompt

TEXTS = ["a red circle at the top left", "two blue squares", "a green triangle"]
PROMPTS = [
    Prompt(text, negative=negative) for text, negative in zip(TEXTS, ["", "a circle", "red"], strict=True)
]
STEPS = 4
T5 = ("text_encoder_3", "tokenizer_3")


def load_pipeline(directory, **options):
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(directory, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline(tiny_dir):
    return load_pipeline(tiny_dir)


def edited_copy(tiny_dir, folder, file, **changes):
    """A copy of the checkpoint with some settings of one of its JSON files changed."""
    shutil.copytree(tiny_dir, folder)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def drawn_by_rollout(denoiser, *, guidance=1.0, actor=None, prompts=PROMPTS):
    """The ODE through environment, policy and rollout: initial latents, final latents, pictures."""
    envs = []

    def make_env(num_envs, num_steps=None):
        envs.append(
            gym.make_vec(
                "unirl/TinySD3-T2I-v0",
                num_envs=num_envs,
                num_steps=STEPS,
                denoiser=denoiser,
                with_negative=guidance != 1.0,
                array_backend="torch",
                autoreset_mode="disabled",
            )
        )
        return envs[-1]

    rollout = Rollout(make_env, actor or Actor(denoiser, guidance=guidance))
    batch = rollout.collect(RolloutRequest(prompts, seed=11, stochastic_steps=[]))
    latents = envs[0].unwrapped.snapshot().model_state["latent"]
    start, _ = envs[0].reset(seed=11, options={"prompts": prompts})
    return start["latent"], latents, torch.stack([sample.image for sample in batch.samples])


def drawn_by_pipeline(pipeline, latents, *, guidance=1.0, sigmas=None, prompts=PROMPTS):
    """The same by the pipeline: final latents, pictures."""
    settings = {
        "prompt": [prompt.text for prompt in prompts],
        "negative_prompt": [prompt.negative for prompt in prompts],
        "num_inference_steps": STEPS,
        "sigmas": sigmas,
        "guidance_scale": guidance,
        "max_sequence_length": 10,
    }
    final = pipeline(**settings, latents=latents.clone(), output_type="latent").images
    return final, pipeline(**settings, latents=latents.clone(), output_type="pt").images


class TestTheODE:
    """With eta 0 the whole stack is the pipeline, in float32.

    Given the encoded prompts, the latents are bitwise equal. Given the prompts, they are to 1e-5, because the
    environment encodes them in lots of one size, which changes the last bits of the context. Pictures: to
    1e-5, because they are decoded in lots.
    """

    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    def test_given_the_encoded_prompts_it_is_the_pipeline_to_the_last_bit(self, tiny, pipeline, guidance):
        start, latents, _ = drawn_by_rollout(tiny, guidance=guidance)
        encoded = {}
        for prefix, negative in (("", False), ("negative_", True)):
            contexts = Contexts(tiny, with_negative=negative, size=8, device=torch.device("cpu"))
            found = contexts.negative(PROMPTS) if negative else contexts.of(PROMPTS)
            pooled = found[f"{prefix}pooled_prompt_embeds"]
            encoded[f"{prefix}prompt_embeds"] = found[f"{prefix}prompt_embeds"]
            encoded["negative_pooled_prompt_embeds" if negative else "pooled_prompt_embeds"] = pooled
        final = pipeline(
            **encoded,
            latents=start.clone(),
            num_inference_steps=STEPS,
            sigmas=np.linspace(1.0, 1 / STEPS, STEPS),
            guidance_scale=guidance,
            output_type="latent",
        ).images
        assert torch.equal(latents, final)

    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    @pytest.mark.parametrize("schedule", ["flow", "pipeline"])
    def test_reproduces_the_pipeline(self, tiny_dir, pipeline, schedule, guidance):
        denoiser = TinySD3Denoiser(tiny_dir, schedule=schedule)
        actor = Actor(denoiser, guidance=guidance)
        sigmas = np.linspace(1.0, 1 / STEPS, STEPS) if schedule == "flow" else None
        for prompts in (PROMPTS[1:2], PROMPTS):
            start, latents, pictures = drawn_by_rollout(
                denoiser, guidance=guidance, actor=actor, prompts=prompts
            )
            final, expected = drawn_by_pipeline(
                pipeline, start, guidance=guidance, sigmas=sigmas, prompts=prompts
            )
            assert (final - start).abs().max() > 0.1, "the network must have done something"
            assert (latents - final).abs().max() <= 1e-5
            assert (pictures - expected).abs().max() <= 1e-5
        assert torch.equal(denoiser.sigmas(STEPS), pipeline.scheduler.sigmas)

    def test_guidance_and_negative_prompts_matter(self, tiny):
        """Else the comparison above could not tell them apart."""
        plain, guided = (drawn_by_rollout(tiny, guidance=guidance)[1] for guidance in (1.0, 4.0))
        assert (plain - guided).abs().max() > 1e-3
        other = [Prompt(prompt.text, negative="a green square") for prompt in PROMPTS]
        assert (drawn_by_rollout(tiny, guidance=4.0, prompts=other)[1] - guided).abs().max() > 1e-5

    def test_dynamic_shifting(self, tiny_dir, tmp_path):
        directory = edited_copy(
            tiny_dir, tmp_path / "dynamic", "scheduler/scheduler_config.json", use_dynamic_shifting=True
        )
        pipeline = load_pipeline(directory)
        for schedule, sigmas in (("flow", np.linspace(1.0, 1 / STEPS, STEPS)), ("pipeline", None)):
            start, latents, _ = drawn_by_rollout(TinySD3Denoiser(directory, schedule=schedule))
            assert (latents - drawn_by_pipeline(pipeline, start, sigmas=sigmas)[0]).abs().max() <= 1e-5
        plain = TinySD3Denoiser(tiny_dir).sigmas(STEPS)
        assert not torch.allclose(plain, TinySD3Denoiser(directory).sigmas(STEPS))

    def test_without_t5(self, tiny_dir, tmp_path):
        """Checkpoints are often used without their largest encoder; zeros stand in for it."""
        directory = edited_copy(
            tiny_dir,
            tmp_path / "no_t5",
            "model_index.json",
            text_encoder_3=[None] * 2,
            tokenizer_3=[None] * 2,
        )
        shutil.rmtree(directory / "text_encoder_3")
        shutil.rmtree(directory / "tokenizer_3")
        denoiser, pipeline = TinySD3Denoiser(directory), load_pipeline(directory, **dict.fromkeys(T5))
        start, latents, pictures = drawn_by_rollout(denoiser, guidance=4.0)
        sigmas = np.linspace(1.0, 1 / STEPS, STEPS)
        final, expected = drawn_by_pipeline(pipeline, start, guidance=4.0, sigmas=sigmas)
        assert (latents - final).abs().max() <= 1e-5 and (pictures - expected).abs().max() <= 1e-5
        assert all(p.is_meta for p in denoiser.frozen.transformer.parameters()), "its shape is enough"

    def test_bfloat16(self, tiny_dir):
        """Weights and activations in half precision, the steps in float32 and stored in bfloat16."""
        denoiser = TinySD3Denoiser(tiny_dir, dtype="bfloat16")
        actor = Actor(denoiser, storage_dtype="bfloat16")
        assert {p.dtype for p in actor.network.parameters()} == {torch.bfloat16}
        start, latents, pictures = drawn_by_rollout(denoiser, actor=actor)
        assert latents.dtype == torch.bfloat16 and pictures.dtype == torch.float32
        pipeline = load_pipeline(tiny_dir, dtype=torch.bfloat16)
        final, expected = drawn_by_pipeline(
            pipeline, start.bfloat16(), sigmas=np.linspace(1.0, 1 / STEPS, STEPS)
        )
        assert final.dtype == torch.bfloat16
        assert (latents.float() - final.float()).abs().max() <= 0.05
        assert (pictures - expected.float()).abs().max() <= 0.05

    def test_offloading_changes_nothing(self, tiny_dir, tiny):
        offloaded = TinySD3Denoiser(tiny_dir, offload=True)
        here, there = drawn_by_rollout(tiny, guidance=4.0), drawn_by_rollout(offloaded, guidance=4.0)
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


class TestTheFrozenHalf:
    def test_encodes_as_the_pipeline_does(self, tiny, pipeline):
        with torch.no_grad():
            embeds, negative, pooled, negative_pooled = pipeline.encode_prompt(
                TEXTS, None, None, negative_prompt=[p.negative for p in PROMPTS], max_sequence_length=10
            )
        mine, mine_negative = tiny.encode(PROMPTS), tiny.encode(PROMPTS, negative=True)
        assert set(mine) == {"prompt_embeds", "pooled_prompt_embeds"}
        assert torch.equal(mine["prompt_embeds"], embeds)
        assert torch.equal(mine["pooled_prompt_embeds"], pooled)
        assert torch.equal(mine_negative["prompt_embeds"], negative)
        assert torch.equal(mine_negative["pooled_prompt_embeds"], negative_pooled)
        assert not mine["prompt_embeds"].requires_grad and not torch.equal(embeds[0], embeds[1])

    def test_a_prompt_is_encoded_alike_alone(self, tiny):
        whole = tiny.encode(PROMPTS)
        for i, prompt in enumerate(PROMPTS):
            for name, tensor in tiny.encode([prompt]).items():
                assert torch.allclose(tensor[0], whole[name][i], atol=1e-6)

    def test_decodes_as_the_pipeline_does(self, tiny, pipeline):
        latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        vae = pipeline.vae
        scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
        with torch.no_grad():
            expected = (vae.decode(scaled).sample / 2 + 0.5).clamp(0, 1)
        pictures = [sample.image for sample in tiny.decode(latents)]
        assert (torch.stack(pictures) - expected).abs().max() <= 1e-5
        assert all(p.shape == (3, 32, 32) and p.dtype == torch.float32 for p in pictures)
        assert pictures[0].untyped_storage().nbytes() == 3 * 32 * 32 * 4, "a picture carries no other along"

    def test_a_picture_does_not_depend_on_what_is_decoded_with_it(self, tiny):
        latents = torch.randn(19, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        whole = [sample.image for sample in tiny.decode(latents)]
        for rows in ([0], [18, 3], list(range(5, 14))):
            part = tiny.decode(latents[rows])
            assert all(torch.equal(one.image, whole[row]) for one, row in zip(part, rows, strict=True))

    def test_the_world_never_holds_the_network_nor_the_policy_the_encoders(self, tiny_dir):
        from diffusers import AutoencoderKL, SD3Transformer2DModel
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        frozen = (AutoencoderKL, CLIPTextModelWithProjection, T5EncoderModel)

        def alive():
            gc.collect()
            kinds = (*frozen, SD3Transformer2DModel)
            return {id(thing): thing for thing in gc.get_objects() if type(thing) in kinds}

        before = set(alive())
        actor = Actor(TinySD3Denoiser(tiny_dir), lora=LoRAConfig())
        assert [type(part) for key, part in alive().items() if key not in before] == [SD3Transformer2DModel]
        del actor
        env = gym.make_vec("unirl/TinySD3-T2I-v0", num_envs=2, num_steps=1, pretrained=str(tiny_dir))
        obs, _ = env.reset(seed=0)
        env.step(obs["latent"])
        own = [part for key, part in alive().items() if key not in before]
        assert len(own) == 4 and {type(part) for part in own} == set(frozen)
        assert not any(p.requires_grad for part in own for p in part.parameters())


class TestTheTrainedHalf:
    def test_every_adapter_target_exists_and_is_reached(self, tiny_dir):
        for kind in (SD3Denoiser, TinySD3Denoiser):
            network = Actor(kind(str(tiny_dir), max_sequence_length=10), lora=LoRAConfig(rank=2)).network
            adapted = {
                name.rpartition(".lora_A")[0] for name, _ in network.named_parameters() if "lora_A" in name
            }
            for target in kind.lora_targets:
                assert any(name.endswith(f".{target}") for name in adapted), target

    def test_exported_adapters_give_the_pipeline_our_pictures(self, tiny_dir, tmp_path):
        from safetensors.torch import load_file

        denoiser = TinySD3Denoiser(tiny_dir)
        actor = Actor(denoiser, lora=LoRAConfig(rank=4, alpha=8))
        generator = torch.Generator().manual_seed(3)
        for tensor in actor.trainable_state().values():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
        actor.save_adapters(tmp_path)
        start, latents, pictures = drawn_by_rollout(denoiser, actor=actor)
        base = drawn_by_rollout(denoiser)[1]
        assert (latents - base).abs().max() > 0.05, "the adapters must matter"

        pipeline = load_pipeline(tiny_dir)
        pipeline.load_lora_weights(tmp_path)
        sigmas = np.linspace(1.0, 1 / STEPS, STEPS)
        final, expected = drawn_by_pipeline(pipeline, start, sigmas=sigmas)
        assert (latents - final).abs().max() <= 1e-5 and (pictures - expected).abs().max() <= 1e-4
        stored = load_file(tmp_path / "pytorch_lora_weights.safetensors")
        assert len(stored) == len(actor.trainable_state())
        assert all(name.startswith("transformer.") for name in stored)

    def test_rows_per_forward_changes_only_the_last_bits(self, tiny_dir, tiny):
        generator = torch.Generator().manual_seed(0)
        latent, sigma = torch.randn(5, 4, 8, 8, generator=generator), torch.rand(5, generator=generator)
        context = {name: tensor[[0, 1, 2, 1, 0]] for name, tensor in tiny.encode(PROMPTS).items()}
        network = tiny.network()
        with torch.no_grad():
            plain = tiny.velocity(network, latent, sigma, context)
            for rows in (1, 2, 5, 8):
                lots = TinySD3Denoiser(tiny_dir, rows_per_forward=rows).velocity(
                    network, latent, sigma, context
                )
                assert lots.shape == plain.shape and (lots - plain).abs().max() < 1e-5

    def test_gradients_flow_through_lots(self, tiny_dir, tiny):
        generator = torch.Generator().manual_seed(0)
        latent, sigma = torch.randn(3, 4, 8, 8, generator=generator), torch.rand(3, generator=generator)
        context, grads = tiny.encode(PROMPTS), []
        for denoiser in (tiny, TinySD3Denoiser(tiny_dir, rows_per_forward=2)):
            network = tiny.network()
            denoiser.velocity(network, latent, sigma, context).square().mean().backward()
            grads.append(network.proj_out.weight.grad)
        assert torch.allclose(*grads, rtol=1e-4, atol=1e-6) and grads[0].abs().max() > 0


class TestSizes:
    @pytest.mark.parametrize("height, width", [(16, 64), (64, 64), (8, 40)])
    def test_other_sizes_work(self, tiny_dir, height, width):
        denoiser = TinySD3Denoiser(tiny_dir, height=height, width=width)
        assert denoiser.latent_shape == (4, height // 4, width // 4)
        _, latents, pictures = drawn_by_rollout(denoiser)
        assert latents.shape == (3, *denoiser.latent_shape) and pictures.shape == (3, 3, height, width)

    @pytest.mark.parametrize("size, got", [({"height": 30}, 30), ({"width": 72}, 72), ({"height": -8}, -8)])
    def test_sizes_that_do_not_fit_are_named(self, tiny_dir, size, got):
        name = next(iter(size))
        with pytest.raises(
            ConfigError, match=f"`{name}` must be a positive multiple of 8 up to 64, got {got}"
        ):
            TinySD3Denoiser(tiny_dir, **size)

    @pytest.mark.parametrize(
        "option", [{"schedule": "cosine"}, {"rows_per_forward": 0}, {"dtype": "float31"}]
    )
    def test_settings_out_of_range_are_named(self, tiny_dir, option):
        with pytest.raises(ConfigError, match=f"`{next(iter(option))}`"):
            TinySD3Denoiser(tiny_dir, **option)


class TestMissingModels:
    REMEDY = r"(Try a local|try the path).*`unirl/TinySD3-T2I-v0`,? (which )?needs no download"

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch):
        """The hub answers at once that it is not there, instead of after five tries."""
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    @pytest.mark.parametrize("name", ["nobody/no-such-model-at-all", "no-such-folder/model/"])
    def test_the_error_names_id_cause_and_alternative(self, name):
        with pytest.raises(ModelNotFound, match=rf"got '{name}'[:,] .+{self.REMEDY}") as caught:
            gym.make_vec("unirl/SD3-T2I-v0", num_envs=2, pretrained=name)
        assert isinstance(caught.value, OSError)
        assert (caught.value.__cause__ is not None) == (name == "nobody/no-such-model-at-all")

    def test_an_offline_hub_is_named_as_the_cause(self):
        with pytest.raises(ModelNotFound, match=r"(?i)offline"):
            SD3Denoiser("nobody/no-such-model-at-all")

    def test_an_empty_directory(self, tmp_path):
        with pytest.raises(ModelNotFound, match=r"no file named config\.json"):
            SD3Denoiser(str(tmp_path))

    def test_a_broken_file(self, tiny_dir, tmp_path):
        shutil.copytree(tiny_dir, tmp_path / "broken")
        (tmp_path / "broken/transformer/config.json").write_text("{")
        with pytest.raises(ModelNotFound, match="not a valid JSON"):
            SD3Denoiser(str(tmp_path / "broken"))

    def test_missing_and_corrupt_weights(self, tiny_dir, tmp_path):
        shutil.copytree(tiny_dir, tmp_path / "torn")
        weights = tmp_path / "torn/transformer/diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        with pytest.raises(ModelNotFound, match=self.REMEDY):
            SD3Denoiser(str(tmp_path / "torn")).network()
        weights.unlink()
        with pytest.raises(ModelNotFound, match=self.REMEDY):
            SD3Denoiser(str(tmp_path / "torn")).network()
        torn = next((tmp_path / "torn/text_encoder").glob("*.safetensors"))
        torn.write_bytes(torn.read_bytes()[:1000])
        with pytest.raises(ModelNotFound, match=self.REMEDY):
            SD3Denoiser(str(tmp_path / "torn")).encode(PROMPTS)

    def test_a_model_of_another_family(self, tmp_path):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
        for part in ("transformer", "vae"):
            (tmp_path / part).mkdir()
            (tmp_path / part / "config.json").write_text(
                json.dumps({"_class_name": "FluxTransformer2DModel"})
            )
        with pytest.raises(ModelNotFound, match=self.REMEDY):
            SD3Denoiser(str(tmp_path))


class TestOptions:
    def test_model_and_world_are_parted(self):
        choice = model_choice(
            {"denoiser": "sd3", "pretrained": "a/b", "height": None, "num_steps": 8, "rows_per_forward": 16}
        )
        assert (choice.family, choice.name) == ("denoiser", "sd3")
        assert choice.options == {"pretrained": "a/b", "rows_per_forward": 16}
        assert choice.rest == {"num_steps": 8}

    def test_what_only_one_family_knows_goes_through(self):
        choice = model_choice(
            {"denoiser": "gaussian_mixture", "device": "cpu", "model_options": {"shift": 0.3}}
        )
        assert choice.options == {"device": "cpu", "shift": 0.3} and choice.rest == {}

    @pytest.mark.parametrize("named", [{}, {"denoiser": "sd3", "language_model": "causal_lm"}])
    def test_one_model_must_be_named(self, named):
        with pytest.raises(ConfigError, match="`denoiser`, `language_model`"):
            model_choice({"num_steps": 3, **named})

    def test_the_id_hands_its_options_to_the_model(self, tiny_dir):
        env = gym.make_vec(
            "unirl/TinySD3-T2I-v0",
            num_envs=1,
            pretrained=str(tiny_dir),
            rows_per_forward=4,
            schedule="pipeline",
        )
        denoiser = env.unwrapped.denoiser
        assert (denoiser.rows_per_forward, denoiser.schedule) == (4, "pipeline")
