"""One Ray for the whole test session: starting it takes longer than most tests."""

import os
from pathlib import Path

import ray


def start():
    """Start Ray on this machine, unless it runs already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not ray.is_initialized():
        # Workers do not read conftest.py, which puts this folder on the path of the tests.
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        ray.init(include_dashboard=False, num_cpus=4, log_to_driver=False, logging_level="ERROR")
