"""A package of one's own: an environment, its model, a reward, an algorithm and a recipe.

Install it (`pip install -e .`), and from any directory
`python -m unirl_env.train --config-dir <this folder>/mylab/recipes --config-name ring`.
"""

import unirl_env

# Parts are named by their paths: importing this package loads none of them.
unirl_env.register(
    "mylab/Ring-v0",
    denoiser="mylab.ring:RingDenoiser",
    num_steps=6,
    prompts=["0", "90", "180", "270"],
    scorer="mylab.ring:nearness",
)
