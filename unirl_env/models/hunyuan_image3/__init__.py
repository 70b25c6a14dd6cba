"""HunyuanImage 3.0: a mixture-of-experts decoder that writes text and then denoises a picture."""

from unirl_env.models.hunyuan_image3.model import HunyuanImage3

__all__ = ["HunyuanImage3"]
