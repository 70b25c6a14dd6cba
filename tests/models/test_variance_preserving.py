"""Epsilon and v models in the coordinates of flows, against the schedulers themselves."""

import math

import pytest
import torch

import unirl_env.functional as F
from unirl_env.errors import ConfigError
from unirl_env.models.shared.variance_preserving import VariancePreserving

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = {
    "_class_name": "PNDMScheduler",
    **BETAS,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "clip_sample": False,
}
SDXL = {
    **{"_class_name": "EulerDiscreteScheduler", **BETAS, "steps_offset": 1, "timestep_spacing": "leading"},
    # As published: settings of the scheduler that it was first published with.
    **{"sample_max_value": 1.0, "skip_prk_steps": True, "set_alpha_to_one": False, "trained_betas": None},
}
PIXART = {
    "_class_name": "DPMSolverMultistepScheduler",
    "lambda_min_clipped": -math.inf,
    "thresholding": False,
}
DDIM = {"_class_name": "DDIMScheduler", **BETAS, "clip_sample": False, "steps_offset": 1}
CHECKPOINTS = {
    "sd15": SD15,
    "sdxl": SDXL,
    "pixart": PIXART,
    "ddim": DDIM,
    "ddim, above 0": {**DDIM, "set_alpha_to_one": False},
    "ddim, v, no data at the start": {
        **{**DDIM, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        "timestep_spacing": "trailing",
    },
    "euler, fractional times": {**SDXL, "timestep_spacing": "linspace"},
    "euler, karras": {**SDXL, "use_karras_sigmas": True},
    "euler, above 0": {**SDXL, "final_sigmas_type": "sigma_min"},
    "solver, karras": {**PIXART, "use_karras_sigmas": True},
    "solver, v": {**PIXART, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
}


def scheduler_of(config, num_steps):
    """Diffusers' own, DDIM in the place of PNDM and a solver of the first order."""
    import diffusers

    name = config["_class_name"].replace("PNDM", "DDIM")
    first = {"solver_order": 1} if "Solver" in name else {}
    if "PNDM" in config["_class_name"]:
        first = {"set_alpha_to_one": False}
    scheduler = getattr(diffusers, name).from_config({**config, **first})
    scheduler.set_timesteps(num_steps)
    return scheduler


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("num_steps", [4, 10])
def test_eulers_steps_are_the_schedulers(name, num_steps):
    """From noise to what is decoded, with one and the same prediction at every step."""
    config = CHECKPOINTS[name]
    schedule, scheduler = VariancePreserving(config), scheduler_of(config, num_steps)
    sigmas = schedule.sigmas(num_steps)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, 6, 6, generator=generator)
    theirs, ours = noise * scheduler.init_noise_sigma, schedule.start(noise, float(sigmas[0]))
    for step, time in enumerate(scheduler.timesteps):
        s = sigmas[step].expand(2)
        assert (schedule.times(s) - time).abs().max() <= 1e-3
        seen = scheduler.scale_model_input(theirs, time)
        assert (schedule.seen(ours, s) - seen).abs().max() <= 5e-5 * seen.abs().max()
        output = 0.8 * seen + 0.3 * torch.randn(2, 4, 6, 6, generator=generator)
        theirs = scheduler.step(output, time, theirs).prev_sample
        ours = F.sde_step(
            schedule.velocity(output, ours, s), ours, s, sigmas[step + 1].expand(2), eta=0.0
        ).latent
    decoded = schedule.finished(ours)
    assert (decoded - theirs).abs().max() <= 5e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_it_begins_below_one_and_says_where_it_ends(name):
    schedule = VariancePreserving(CHECKPOINTS[name])
    sigmas = schedule.sigmas(10)
    assert (sigmas[1:] < sigmas[:-1]).all() and sigmas[-1] == pytest.approx(schedule.last, abs=1e-6)
    assert schedule.known[0] <= sigmas[-2] + 1e-6 and sigmas[0] <= schedule.known[1] + 1e-6 <= 1 + 1e-6
    assert (schedule.last > 0) == (name in ("sd15", "ddim, above 0", "euler, above 0"))


def test_the_published_schedules_are_those_known():
    first, last = VariancePreserving(SD15).sigmas(5)[[0, -1]].tolist()
    assert first == pytest.approx(0.837, abs=1e-3) and last == pytest.approx(0.0283, abs=1e-4)


def test_times_are_the_nearest_that_the_network_knows():
    schedule = VariancePreserving(SD15)
    a = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().neg().add(1).cumprod(0)
    levels = (1 - a).sqrt() / (a.sqrt() + (1 - a).sqrt())
    assert torch.equal(schedule.times(levels.float()), torch.arange(1000.0))
    assert schedule.times(torch.tensor([0.0, 1.0])).tolist() == [0.0, 999.0]
    between = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.03
    distance = (levels - between[:, None]).abs()
    chosen = distance.gather(1, schedule.times(between).long()[:, None])[:, 0]
    assert (chosen <= distance.min(1).values + 2e-5).all()


def test_velocities_are_noise_minus_data_whatever_is_predicted():
    data, noise = (torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    s = torch.tensor([0.9, 0.5, 0.1])
    x = (1 - s)[:, None] * data + s[:, None] * noise
    alpha, beta = ((each / (s.square() + (1 - s).square()).sqrt())[:, None] for each in (1 - s, s))
    outputs = {"epsilon": noise, "sample": data, "v_prediction": alpha * noise - beta * data}
    for prediction, output in outputs.items():
        schedule = VariancePreserving({**DDIM, "prediction_type": prediction})
        assert (schedule.seen(x, s) - (alpha * data + beta * noise)).abs().max() < 1e-6
        assert (schedule.velocity(output, x, s) - (noise - data)).abs().max() < 2e-5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**DDIM, "clip_sample": True}, "`clip_sample`.*false"),
        ({**DDIM, "thresholding": True}, "`thresholding`.*false"),
        ({**DDIM, "prediction_type": "flow"}, "`prediction_type`.*one of epsilon"),
        ({**DDIM, "rescale_betas_zero_snr": True}, "`prediction_type`.*v_prediction"),
        ({**DDIM, "beta_start": "small"}, "`scheduler.beta_start`"),
        ({**DDIM, "beta_schedule": "cubic"}, "must fit together.*cubic"),
        ({**DDIM, "new_setting": 3}, "`new_setting` must be a setting of diffusers' DDIMScheduler"),
        ({**PIXART, "algorithm_type": "sde-dpmsolver++"}, "`algorithm_type`.*noise belongs to the policy"),
        ({**PIXART, "use_flow_sigmas": True}, "`use_flow_sigmas`"),
        ({**PIXART, "variance_type": "learned_range"}, "`variance_type`"),
        ({"_class_name": "LCMScheduler"}, "one of DDIMScheduler.*'LCMScheduler'"),
        ({}, "got 'None'"),
    ],
)
def test_what_it_cannot_honour_is_named(config, message):
    with pytest.raises(ConfigError, match=message):
        VariancePreserving(config)


@pytest.mark.parametrize(
    ("config", "num_steps", "message"),
    [
        ({**DDIM, "timestep_spacing": "linspace"}, 5, "each step must end 200 after its time"),
        ({**DDIM, "timestep_spacing": "trailing"}, 3, "each step must end 333 after its time"),
        ({**DDIM, "timestep_spacing": "backwards"}, 5, "must fit together"),
        ({**DDIM}, 1000, "each step must end 1 after"),
        ({**DDIM}, 2000, "must fit together"),
        ({**SDXL, "interpolation_type": "log_linear"}, 5, "interpolation_type"),
        ({**SDXL, "timestep_type": "continuous", "prediction_type": "v_prediction"}, 5, "times must follow"),
        ({**PIXART, "use_exponential_sigmas": True}, 7, "use_exponential_sigmas"),
        (SD15, 0, "`num_steps` must be"),
    ],
)
def test_steps_that_do_not_follow_one_another_are_named(config, num_steps, message):
    with pytest.raises(ConfigError, match=message):
        VariancePreserving(config).sigmas(num_steps)
