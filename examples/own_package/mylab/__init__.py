"""A package of one's own: an environment, its model, a reward, an algorithm and a recipe.

pip install -e . && cd anywhere
python -m unirl_env.train --config-dir <this folder>/mylab/recipes --config-name ring
"""

import gymnasium as gym

# Strings, so that importing the package stays light: whoever makes the environment loads the rest.
gym.register(
    "mylab/Ring-v0",
    vector_entry_point="unirl_env.build:make_vector_env",
    kwargs={
        "denoiser": "mylab.ring:RingDenoiser",
        "num_steps": 6,
        "prompts": ["0", "90", "180", "270"],
        "scorer": "mylab.ring:nearness",
    },
)
