"""Several nodes of Ray on one machine, which can be killed, and a scorer that never comes back on some."""

import gc
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from toy import nearness

TESTS = Path(__file__).parent


class Nodes:
    """A head, where the driver is, and further nodes by names; a context manager.

    Ray writes down which cluster on a machine was started last, and whoever starts another one joins it: this
    one has a folder of its own.
    """

    def __enter__(self):
        self._folder = tempfile.mkdtemp(prefix="nodes")
        own = {"RAY_TMPDIR": self._folder, "RAY_USAGE_STATS_ENABLED": "0"}
        # Processes of nodes import what the driver can, and nothing tells them where it lies.
        paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
        own["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        self._before = {name: os.environ.get(name) for name in own}
        os.environ |= own
        self._nodes = {}
        self._cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False})
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        return self

    def __exit__(self, *error):
        gc.collect()  # groups of learners that are collected after Ray's end start another one
        ray.shutdown()
        self._cluster.shutdown()
        for name, value in self._before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, name, **resources):
        """Start a node; what it has beside no processors, by name and number."""
        self._nodes[name] = self._cluster.add_node(num_cpus=0, resources=resources)

    def kill(self, name):
        """End a node and all that runs there, without notice."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def id_of(self, name):
        """What Ray calls the node."""
        return self._nodes[name].node_id

    def kill_at_play(self, name, scorer):
        """Kill a node as soon as a player there has played its episodes and they are to be scored."""
        node = self.id_of(name)
        scorer.hold(node)

        def wait():
            while not scorer.holds(node):
                time.sleep(0.05)
            self.kill(name)

        threading.Thread(target=wait, daemon=True).start()


class Holding:
    """`toy.nearness`, which never comes back on nodes that are to be held."""

    def __init__(self, folder):
        self._folder = str(folder)

    def __call__(self, samples, prompts):
        node = ray.get_runtime_context().get_node_id()
        while self._file("hold", node).exists():
            self._file("held", node).touch()
            time.sleep(0.05)
        return nearness(samples, prompts)

    def hold(self, node):
        self._file("hold", node).touch()

    def holds(self, node):
        return self._file("held", node).exists()

    def _file(self, what, node):
        return Path(self._folder) / f"{what}-{node}"
