"""The checks, on a sandbox: they pass for a mesh, and refuse one that is none."""

import os
import unittest
from pathlib import Path as File

from culvert_bench import backend, checks, manifests, scale
from culvert_bench.cases import Place
from culvert_bench.cluster_state import Size
from culvert_bench.contenders import Culvert, Direct
from culvert_bench.model import Path, Refused
from culvert_bench.sandbox import Sandbox

PATHS = {Path.WEIGHTED, Path.REGEX, Path.OPAQUE, Path.ECHO, Path.CALLS}


class Checks(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.state = File(os.environ["CULVERT_BENCH_DIR"]) / "test"
        cls.state.mkdir(parents=True, exist_ok=True)
        cls.sandbox = Sandbox(File(os.environ["CULVERT_BIN_DIR"]))
        cls.place = Place(cls.state, File("unused"), File("unused"))
        cls.place.write()
        for namespace in (manifests.PLAIN, manifests.MESHED):
            backend.write_nginx(cls.state / namespace)

    def tearDown(self):
        self.sandbox.down()

    def up(self, labels):
        documents = manifests.cluster(self.state)
        for one in documents:
            if one["kind"] == "Namespace" and one["metadata"]["name"] == manifests.MESHED:
                one["metadata"]["labels"] = labels
        manifests.write(documents, self.state / "cluster.yaml")
        self.sandbox.up(self.state / "cluster.yaml")

    def contender(self, kind, namespace):
        [servers] = [
            pod["status"]["podIP"]
            for pod in self.sandbox.objects("pods", namespace)
            if pod["metadata"]["name"] == manifests.BACKEND
        ]
        return kind(kind.__name__.lower(), namespace, self.sandbox, servers)

    def test_a_mesh_passes_and_so_does_none(self):
        self.up({"culvert.dev/mesh": "enabled"})
        checks.check(self.contender(Direct, manifests.PLAIN), PATHS, self.place)
        culvert = self.contender(Culvert, manifests.MESHED)
        checks.check(culvert, PATHS, self.place)
        self.assertEqual(len(culvert.pids()), 2)

    def test_a_namespace_that_is_not_enrolled_is_refused(self):
        self.up({})
        for path in (Path.WEIGHTED, Path.ECHO):
            with self.assertRaises(Refused, msg=path):
                checks.check(self.contender(Culvert, manifests.MESHED), {path}, self.place)


class Scale(unittest.TestCase):
    def test_a_cluster_that_nobody_runs_is_measured(self):
        """Refused would be: a proxy that does not get all of it, an edit that does not arrive, a request that fails."""
        plan = scale.Plan(Size(40, 10, 20), rounds=1, edits=2, idle=0.5, unwatched=1)
        output = File(os.environ["CULVERT_BENCH_DIR"]) / "test"
        output.mkdir(parents=True, exist_ok=True)
        load = File(os.environ["CULVERT_BENCH_LOAD"])
        found = scale.measure(plan, File(os.environ["CULVERT_BIN_DIR"]), load, output)
        rows = {name for result in found for name in result.rounds}
        self.assertEqual(rows, {"culvert", "controller", "proxy of node1", "proxy of node2"})
        self.assertTrue(all(result.case.endswith("40 pods, 10 Services, 20 routes") for result in found))


if __name__ == "__main__":
    unittest.main()
