"""Fixtures of the agents' tests."""

import cluster as one_cluster
import pytest


@pytest.fixture(scope="session")
def cluster():
    """RLlib keeps its configuration in Ray's object store, even where everything runs in one process."""
    one_cluster.start()
