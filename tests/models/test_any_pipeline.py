"""Pipelines that have no leaf, by what they do: AuraFlow, Lumina-Image 2, Chroma and Bria."""

import json
import pickle
import re
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import any_pipeline_cases as cases
import family_checks as checks
import gymnasium as gym
import pytest
import torch
from families import FAMILIES
from gymnasium.utils.env_checker import check_env

from unirl_env import train
from unirl_env.envs import check_vector_env
from unirl_env.errors import ConfigError, ContractError, ModelNotFound
from unirl_env.models import DENOISERS, any_pipeline, check_denoiser
from unirl_env.models.any_pipeline import LEAVES, PipelineDenoiser
from unirl_env.models.sd3 import SD3Denoiser
from unirl_env.models.shared import reading_off
from unirl_env.models.shared.guidance_rules import RULES
from unirl_env.policies.actor import Actor, LoRAConfig
from unirl_env.run.record.logbook import of_phases, read_rows

NAMES = tuple(cases.PIPELINES)
PAGE = Path(__file__).parents[2] / "docs/families/any.md"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By their names, the tiny checkpoints."""
    root = tmp_path_factory.mktemp("pipelines")
    return {name: family.build(root / name) for name, family in cases.PIPELINES.items()}


@pytest.fixture(params=NAMES)
def case(request, folders):
    """Each of them with its checkpoint."""
    return cases.PIPELINES[request.param], folders[request.param]


@pytest.fixture
def aura(folders):
    return cases.AURA_FLOW, folders["AuraFlow"]


def edited(folder, copy, file, **changes):
    """A copy of a checkpoint with some settings of one of its JSON files changed."""
    if copy != folder:
        shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return copy


class TestWhatItMustShow:
    @pytest.mark.parametrize("guidance", [1.0, 3.5])
    @pytest.mark.parametrize("num_steps", [3, 5])
    def test_it_draws_the_pipelines_pictures(self, case, guidance, num_steps):
        checks.equals_the_pipeline(*case, guidance=guidance, num_steps=num_steps)

    @pytest.mark.parametrize("lora", [True, False])
    @pytest.mark.parametrize("exact", [True, False])
    def test_it_agrees_with_itself(self, case, lora, exact):
        checks.agrees_with_itself(*case, lora=lora, exact=exact)

    def test_what_it_exports_loads(self, case, tmp_path):
        checks.adapters_load_in_the_pipeline(*case, tmp_path / "adapters")
        checks.whole_weights_load(*case, tmp_path / "weights")

    def test_it_passes_the_judge_that_opens_the_checkpoint_anew(self, case):
        family, folder = case
        denoiser = family.denoiser(folder)
        report = check_denoiser(denoiser)
        assert max(report.gaps.values()) <= 1e-5 and report.guidances == (1.0, 3.5)
        assert report.denoiser == "PipelineDenoiser" and report.pipeline == family.pipeline

    def test_both_checkers(self, case):
        family, folder = case
        arguments = family.arguments(folder)
        check_env(gym.make(family.id, **arguments).unwrapped, skip_render_check=True)
        check_vector_env(
            gym.make_vec(family.id, num_envs=2, vectorization_mode="vector_entry_point", **arguments)
        )

    @pytest.mark.slow
    @pytest.mark.ray
    @pytest.mark.parametrize("agent", ["grpo", "flow_dppo", "drpo"])
    def test_an_iteration_of_training(self, aura, agent, cluster, tmp_path):
        family, folder = aura
        words = [
            f"agent={agent}",
            f"model.env={family.id}",
            f"model.pretrained={folder}",
            "model.height=32",
            "model.width=48",
            "model.num_steps=4",
            "model.options.max_sequence_length=12",
            "reward=saturation",
            "policy.lora_rank=2",
            "iterations=1",
            "agent.warmup_iterations=0",
            "rollout.num_prompts=2",
            "rollout.group_size=4",
            "logging.eval_prompts=1",
            "logging.eval_samples=1",
            f"logging.folder={tmp_path}",
            "name=run",
        ]
        assert train.main(["--config-name=diffusion/tiny_sd3", *words]) == 0
        (row,) = read_rows(tmp_path / "run" / "metrics.jsonl")
        assert row["grad_norm"] > 0 and row["reward"] is not None
        assert all(row[name] <= 1e-4 for name in of_phases("self_check/ratio", row).values())


class TestWhatIsReadOff:
    @pytest.mark.parametrize(
        ("name", "slope", "offset", "sign", "context", "rule"),
        [
            ("AuraFlow", 1, 0, 1, {"encoder_hidden_states"}, "u + g (c - u)"),
            ("Lumina2", -1, 1, -1, {"encoder_hidden_states", "encoder_attention_mask"}, "norm of c"),
            ("Chroma", 1, 0, 1, {"encoder_hidden_states", "attention_mask"}, "u + g (c - u)"),
            ("Bria", 1000, 0, 1, {"encoder_hidden_states"}, "u + g (c - u)"),
        ],
    )
    def test_the_way(self, folders, name, slope, offset, sign, context, rule):
        way = cases.PIPELINES[name].denoiser(folders[name]).way
        assert (way.slope, way.offset, way.sign) == (slope, offset, sign)
        assert set(way.context) == context and (way.height, way.width) == (32, 48)
        assert next(found for found, known in RULES.items() if known is way.rule).count(rule)

    def test_a_text_is_read_as_if_it_were_alone(self, folders):
        denoiser = cases.BRIA.denoiser(folders["Bria"])
        alone, beside = (denoiser.encode(p, negative=True) for p in (checks.PROMPTS[1:2], checks.PROMPTS[:2]))
        for name, value in alone.items():
            assert torch.equal(beside[name][1:], value) and value.abs().max() > 0

    def test_adapters_attach_to_attention_or_where_they_are_told(self, folders):
        family, folder = cases.CHROMA, folders["Chroma"]
        targets = family.denoiser(folder).lora_targets
        assert {"attn.to_q", "attn.add_k_proj"} <= set(targets)
        assert not any("ff" in name or "norm" in name for name in targets)
        told = Actor(family.denoiser(folder, lora_targets=["proj_mlp"]), lora=LoRAConfig(rank=2))
        assert told.trainable_state() and all("proj_mlp" in name for name in told.trainable_state())

    def test_a_policy_reads_off_and_lets_the_encoders_go(self, aura):
        family, folder = aura
        denoiser = family.denoiser(folder)
        world = family.denoiser(folder)
        actor = Actor(denoiser)
        obs = {
            "latent": torch.randn(1, *world.latent_shape),
            "sigma": torch.tensor([0.5]),
            "sigma_next": torch.tensor([0.25]),
            **world.encode(checks.PROMPTS[:1]),
        }
        assert torch.equal(actor.velocity(obs), Actor(world).velocity(obs))
        assert "frozen" not in vars(denoiser) and "recorded" not in vars(denoiser)
        assert "frozen" in vars(world)

    def test_it_is_made_anew_from_its_arguments(self, aura):
        family, folder = aura
        twin = pickle.loads(pickle.dumps(family.denoiser(folder)))
        assert isinstance(twin, PipelineDenoiser) and twin.latent_shape == (4, 8, 12)

    def test_parts_that_are_kept_on_the_cpu_between_uses_draw_the_same(self, aura):
        family, folder = aura
        plain, kept = (family.denoiser(folder, offload=on) for on in (False, True))
        latents = torch.randn(2, *plain.latent_shape)
        ours, theirs = (torch.stack([s.image for s in d.decode(latents)]) for d in (kept, plain))
        assert torch.equal(ours, theirs) and torch.equal(kept.sigmas(3), plain.sigmas(3))

    def test_another_size_shares_what_is_frozen(self, aura):
        family, folder = aura
        denoiser = family.denoiser(folder)
        other = denoiser.sized(48, 32)
        assert other.latent_shape == (4, 12, 8) and denoiser.latent_shape == (4, 8, 12)
        assert other.frozen is denoiser.frozen
        (picture,) = other.decode(torch.zeros(1, *other.latent_shape))
        assert picture.image.shape == (3, 48, 32)
        with pytest.raises(ConfigError, match="divisible by 8 but are 33"):
            denoiser.sized(33, 32)

    def test_without_sizes_the_pipelines_own_are_taken(self, folders):
        denoiser = PipelineDenoiser(str(folders["Lumina2"]), **cases.LUMINA2.options)
        assert (denoiser.height, denoiser.width) == (32, 32)

    def test_the_even_schedule_is_the_other_choice(self, aura):
        family, folder = aura
        own, even = (family.denoiser(folder, schedule=name).sigmas(4) for name in ("pipeline", "flow"))
        assert own[0] == even[0] == 1 and own[-1] == even[-1] == 0
        assert own[-2] < 1e-2 < even[-2], "AuraFlow leaves the grid to its scheduler"


class TestLeaves:
    def test_a_pipeline_that_has_a_leaf_is_that(self, tiny_dir):
        made = any_pipeline.any_pipeline(str(tiny_dir), height=32)
        assert type(made) is SD3Denoiser and made.height == 32
        assert type(pickle.loads(pickle.dumps(made))) is SD3Denoiser

    @pytest.mark.parametrize("name", LEAVES)
    def test_every_leaf_is_known_by_its_pipeline(self, name):
        found = DENOISERS.get(LEAVES[name])
        said = [each for each in vars(sys.modules[found.__module__]).values() if isinstance(each, str)]
        assert name in (found.pipeline, *said)

    def test_the_leaf_of_the_page_is_acquitted(self, aura):
        (code,) = re.findall(r"```python\n(from torch import Tensor.*?)```", PAGE.read_text(), re.S)
        exec(code, found := {})
        leaf = found["MyDenoiser"](str(aura[1]), height=32, width=48, max_sequence_length=12)
        assert max(check_denoiser(leaf).gaps.values()) <= 1e-5


class TestRefusals:
    def refused(self, folder, words, **options):
        with pytest.raises(ConfigError, match=words):
            _ = PipelineDenoiser(str(folder), max_sequence_length=12, height=32, width=48, **options).way

    @pytest.mark.parametrize(
        ("scheduler", "settings", "words"),
        [
            ("DDIMScheduler", {"prediction_type": "epsilon"}, "predicts epsilon, and no velocity"),
            ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, "predicts v_prediction"),
            (
                "UniPCMultistepScheduler",
                {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
                "FlowMatchEulerDiscreteScheduler.*got 'UniPCMultistepScheduler'",
            ),
            ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "`stochastic_sampling`"),
            ("FlowMatchEulerDiscreteScheduler", {"swirl": 2}, "`swirl`"),
        ],
    )
    def test_schedulers_before_anything_is_loaded(self, aura, tmp_path, scheduler, settings, words):
        folder = edited(aura[1], tmp_path / "copy", "model_index.json", scheduler=["diffusers", scheduler])
        config = {"_class_name": scheduler, **settings}
        edited(folder, folder, "scheduler/scheduler_config.json", **config)
        with pytest.raises(ConfigError, match=words):
            PipelineDenoiser(str(folder))

    @pytest.mark.parametrize(
        ("index", "words"),
        [
            ({"_class_name": "NoSuchPipeline"}, "NoSuchPipeline"),
            ({"transformer": ["diffusers", "NoSuchModel"]}, "NoSuchModel"),
            ({"transformer": [None, None]}, "`transformer` is None"),
        ],
    )
    def test_parts_that_diffusers_has_not(self, aura, tmp_path, index, words):
        folder = edited(aura[1], tmp_path / "copy", "model_index.json", **index)
        with pytest.raises(ModelNotFound, match=words):
            any_pipeline.any_pipeline(str(folder))

    def test_no_checkpoint(self):
        with pytest.raises(ModelNotFound, match=r"nowhere.*unirl/TinySD3-T2I-v0"):
            any_pipeline.any_pipeline("./nowhere")

    def test_sizes(self, folders):
        aura, chroma = folders["AuraFlow"], folders["Chroma"]
        for folder, words in ((aura, "divisible by 8 but are 33"), (chroma, "`height`.* 33, .*; try 32")):
            with pytest.raises(ConfigError, match=words):
                _ = PipelineDenoiser(str(folder), height=33, width=48).latent_shape

    def test_arguments(self, aura):
        self.refused(aura[1], r"`arguments`.*\['swirl'\]", arguments={"swirl": 1})

    def test_guidance_that_no_rule_explains(self, folders, monkeypatch):
        monkeypatch.setitem(
            RULES, "u + g (c - u) with the norm of c along the last axis", RULES["u + g (c - u)"]
        )
        denoiser = cases.LUMINA2.denoiser(folders["Lumina2"])
        assert "its guidance is none of" in denoiser.unguided
        one = torch.ones(1, *denoiser.latent_shape)
        with pytest.raises(ConfigError, match=r"`guidance` must be 1, got 2.*docs/families/any\.md"):
            denoiser.guided(one, one, 2.0, torch.ones(1))

    def test_guidance_that_ends_on_the_way(self, folders):
        family, folder = cases.LUMINA2, folders["Lumina2"]
        arguments = {"system_prompt": cases.SYSTEM, "cfg_trunc_ratio": 0.6}
        assert "two rows for each prompt" in family.denoiser(folder, arguments=arguments).unguided

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"slope": 1000.0}, "`timestep`"),
            ({"sign": -1.0}, "velocity"),
            ({"rule": lambda u, c, g: c + g * (c - u)}, "guided velocity"),
            ({"negatives_first": False}, "`encoder_hidden_states`"),
        ],
    )
    def test_what_is_read_off_wrongly_is_found_when_it_is_first_used(self, aura, monkeypatch, change, words):
        family, folder = aura
        monkeypatch.setattr(
            any_pipeline, "read_off", lambda *given: replace(reading_off.read_off(*given), **change)
        )
        with pytest.raises(ConfigError, match=f"(?s)what was read off.*{words}.*any.md"):
            _ = family.denoiser(folder).latent_shape


class TestPipelinesThatHaveALeaf:
    """What only a leaf can serve is refused, and what is served is what the pipeline does."""

    @pytest.mark.parametrize(
        ("id", "words"),
        [
            ("unirl/ZImage-T2I-v0", r"called with a list of tensors \(`x`\)"),
            ("unirl/QwenImage-T2I-v0", "`encoder_hidden_states` has another width for another text"),
            ("unirl/QwenImage-Edit-v0", "takes beside prompts, got .*NoneType"),
        ],
    )
    def test_refused(self, id, words, tmp_path):
        import_module(FAMILIES[id]).CASES[id].build(tmp_path)
        with pytest.raises(ConfigError, match=words):
            _ = PipelineDenoiser(str(tmp_path), height=32, width=48).way

    def test_guidance_that_is_an_input_stays_the_pipelines_own(self, tmp_path):
        id = "unirl/Flux2-T2I-v0"
        family = import_module(FAMILIES[id]).CASES[id]
        family.build(tmp_path)
        own = {"height": 32, "width": 48, "max_sequence_length": family.options["max_sequence_length"]}
        for arguments, expected in (({}, 4.0), ({"guidance_scale": 2.5}, 2.5)):
            denoiser = PipelineDenoiser(str(tmp_path), arguments=arguments, **own)
            assert float(denoiser.encode(checks.PROMPTS[:1])["guidance"]) == expected
            assert "has no classifier-free guidance" in denoiser.unguided


class TestPacked:
    """Mistakes that only packed latents can show, on Chroma."""

    def convicted(self, folders, words, **constants):
        denoiser = cases.CHROMA.denoiser(folders["Chroma"])
        way = denoiser.way
        found = {name: change(way.constants[name]) for name, change in constants.items()}
        vars(denoiser)["way"] = replace(way, constants={**way.constants, **found})
        with pytest.raises(ContractError, match=words):
            check_denoiser(denoiser)

    def test_height_and_width_swapped_in_places(self, folders):
        self.convicted(folders, "- `img_ids`", img_ids=lambda ids: ids[:, [0, 2, 1]])

    def test_a_missing_mask(self, folders):
        denoiser = cases.CHROMA.denoiser(folders["Chroma"])
        way = denoiser.way
        kept = {name: kind for name, kind in way.context.items() if name != "attention_mask"}
        vars(denoiser)["way"] = replace(way, context=kept)
        with pytest.raises(ContractError, match="- `attention_mask`: nothing in the place of"):
            check_denoiser(denoiser)
