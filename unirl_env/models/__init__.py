"""Model families: adapters that tell an environment and a policy how a model encodes, denoises, decodes."""

from unirl_env.models.base import Denoiser
from unirl_env.registry import Registry

__all__ = ["DENOISERS", "Denoiser"]

DENOISERS = Registry(
    "denoiser",
    {
        "gaussian_mixture": "unirl_env.models.gaussian_mixture:GaussianMixtureDenoiser",
        "sd3": "unirl_env.models.sd3:SD3Denoiser",
        "tiny_sd3": "unirl_env.models.tiny.sd3:TinySD3Denoiser",
    },
)
