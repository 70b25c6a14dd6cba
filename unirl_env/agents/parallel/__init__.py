"""How learners divide a policy: whole copies, shards, or shards within groups of learners."""

from unirl_env.agents.parallel.bell import Bell
from unirl_env.agents.parallel.level import Minibatch, idle_rows
from unirl_env.agents.parallel.parallel import Parallel, check_parallel, parallel_of

__all__ = ["Bell", "Minibatch", "Parallel", "check_parallel", "idle_rows", "parallel_of"]
