"""The schedule of a checkpoint's scheduler, field by field against diffusers itself."""

import itertools
import json
import shutil
import warnings

import numpy as np
import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError, UnirlError
from unirl_env.models.sd3 import SD3Denoiser
from unirl_env.models.shared.flow_schedule import FlowSchedule

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
TOKENS = 1024
SPACINGS = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})
SHIFTS = (
    {"shift": 3.0},
    {"shift": 0.5},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "base_shift": 0.3, "max_shift": 2.0, "base_image_seq_len": 64},
    {"use_dynamic_shifting": True, "time_shift_type": "linear"},
)
OTHERS = ({}, {"shift_terminal": 0.1}, {"num_train_timesteps": 500}, {"max_image_seq_len": 512})
COMBINATIONS = [a | b | c for a, b, c in itertools.product(SPACINGS, SHIFTS, OTHERS)]


def config(**fields):
    return {"_class_name": SCHEDULER, "_diffusers_version": "0.30.0", **fields}


def of_diffusers(fields, num_steps, even):
    """As the pipeline asks its scheduler for it."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config(**fields))
    asked = {"sigmas": np.linspace(1.0, 1 / num_steps, num_steps)} if even else {}
    if scheduler.config.use_dynamic_shifting:
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        asked["mu"] = calculate_shift(TOKENS, *(scheduler.config[name] for name in names))
    scheduler.set_timesteps(num_steps, **asked)
    return scheduler.sigmas


@pytest.mark.parametrize("even", [True, False])
def test_every_combination_is_diffusers_own(even):
    told = set()
    for fields, num_steps in itertools.product(COMBINATIONS, (2, 7)):
        expected = of_diffusers(fields, num_steps, even)
        sigmas = FlowSchedule(config(**fields), TOKENS).sigmas(num_steps, even=even)
        assert torch.allclose(sigmas, expected, rtol=0, atol=3e-7), (fields, num_steps)
        assert sigmas[0] == 1 and sigmas[-1] == 0
        told.add(tuple(sigmas.tolist()))
    assert len(told) > 40, "the fields must tell schedules apart"


@pytest.mark.parametrize("num_steps", [1, 2, 10, 28])
def test_plain_shifts_are_those_of_the_functional_core(num_steps):
    schedule = FlowSchedule(config(shift=3.0), TOKENS)
    assert torch.equal(schedule.sigmas(num_steps), F.flow_sigmas(num_steps, shift=3.0))
    schedule = FlowSchedule(config(use_dynamic_shifting=True), TOKENS)
    assert torch.equal(schedule.sigmas(num_steps), F.dynamic_shift_sigmas(num_steps, TOKENS))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"invert_sigmas": True}, "invert_sigmas"),
        ({"stochastic_sampling": True}, "stochastic_sampling"),
        ({"sigma_min": 0.02}, "sigma_min"),
        ({"prediction_type": "epsilon"}, "prediction_type"),
        ({"flow_shift": 3.0}, "flow_shift"),
        ({"use_karras_sigmas": "no"}, "use_karras_sigmas"),
        ({"use_dynamic_shifting": 1}, "use_dynamic_shifting"),
        ({"use_dynamic_shifting": True, "max_shift": None}, "max_shift"),
        ({"shift": "3"}, "shift"),
        ({"shift": float("nan")}, "shift"),
        ({"shift": 0}, "shift"),
        ({"shift": -1.0}, "shift"),
        ({"shift_terminal": "0.1"}, "shift_terminal"),
        ({"shift_terminal": 1.0}, "shift_terminal"),
        ({"num_train_timesteps": 1000.5}, "num_train_timesteps"),
        ({"time_shift_type": "cosine", "use_karras_sigmas": True}, "time_shift_type"),
        ({"time_shift_type": "cosine", "use_dynamic_shifting": True}, "time_shift_type"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_karras_sigmas"),
        ({"use_dynamic_shifting": True, "max_image_seq_len": 256}, "base_tokens"),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear", "max_shift": -9.0}, "max_shift"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "UniPCMultistepScheduler"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "FlowMatchHeunDiscreteScheduler"),
        ({"_class_name": "FlowMatchLCMScheduler"}, "FlowMatchLCMScheduler"),
        ({"_class_name": None}, "None"),
    ],
)
def test_what_episodes_cannot_honour_is_refused_by_its_name(fields, named):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConfigError, match=named):
            FlowSchedule(config(**fields), TOKENS).sigmas(4)


def test_fields_that_are_unknown_and_off_say_nothing():
    fields = {"use_flow_sigmas": False, "sigma_max": None, "_name_or_path": "somewhere"}
    assert torch.equal(FlowSchedule(config(**fields), TOKENS).sigmas(3), F.flow_sigmas(3, shift=1.0))


def test_one_step_that_a_terminal_shift_cannot_stretch_is_refused():
    schedule = FlowSchedule(config(shift_terminal=0.1), TOKENS)
    with pytest.raises(ConfigError, match=r"must fall from 1 to 0.*'shift_terminal': 0.1"):
        schedule.sigmas(1)


def edited(tiny_dir, folder, file="scheduler/scheduler_config.json", **changes):
    shutil.copytree(tiny_dir, folder)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.parametrize("schedule", ["flow", "pipeline"])
def test_the_ode_reproduces_a_pipeline_of_another_schedule_and_time(tiny_dir, tmp_path, schedule):
    """Karras spacing, and a network whose time runs to 500: the pipeline's latents, from the same noise."""
    from diffusers import StableDiffusion3Pipeline

    from unirl_env.models.shared.generate import draw_latents
    from unirl_env.models.tiny import TinySD3Denoiser
    from unirl_env.types import Prompt

    folder = edited(tiny_dir, tmp_path / "m", use_karras_sigmas=True, num_train_timesteps=500)
    denoiser = TinySD3Denoiser(folder, schedule=schedule)
    ours = draw_latents(denoiser, denoiser.network(), [Prompt("a red circle")], [7], num_steps=4)
    noise = F.keyed_noise([7], -1, denoiser.latent_shape)
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        prompt="a red circle",
        num_inference_steps=4,
        sigmas=np.linspace(1.0, 1 / 4, 4) if schedule == "flow" else None,
        guidance_scale=1.0,
        max_sequence_length=10,
        latents=noise,
        output_type="latent",
    ).images
    assert (ours - noise).abs().max() > 0.1 and (ours - theirs).abs().max() <= 1e-5
    plain = TinySD3Denoiser(edited(tiny_dir, tmp_path / "n", use_karras_sigmas=True), schedule=schedule)
    other = draw_latents(plain, plain.network(), [Prompt("a red circle")], [7], num_steps=4)
    assert (ours - other).abs().max() > 1e-4, "the network's time must matter"


def test_the_pipelines_index_names_the_scheduler_too(tiny_dir, tmp_path):
    folder = edited(
        tiny_dir, tmp_path / "m", "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"]
    )
    with pytest.raises(UnirlError, match="got 'DPMSolverMultistepScheduler'"):
        SD3Denoiser(str(folder)).sigmas(4)
