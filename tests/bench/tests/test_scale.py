"""The state of a large cluster, edits and what is seen of them."""

import collections
import sys
import tempfile
import unittest
from pathlib import Path as File

from culvert_bench import cluster_state, plots, report, scale, tools
from culvert_bench.cluster_state import QUICK, Directory, Size
from culvert_bench.model import Refused, Result
from culvert_bench.watching import CONNECTIONS, Watcher


class State(unittest.TestCase):
    def test_it_has_the_size_that_it_says(self):
        documents = list(cluster_state.documents(QUICK))
        kinds = collections.Counter(document["kind"] for document in documents)
        self.assertEqual((kinds["Pod"], kinds["Service"], kinds["HTTPRoute"]), (1000, 100, 500))
        endpoints = [len(one["endpoints"]) for one in documents if one["kind"] == "EndpointSlice"]
        self.assertEqual(set(endpoints), {10})
        addresses = {one["status"]["podIP"] for one in documents if one["kind"] == "Pod"}
        addresses |= {one["spec"]["clusterIP"] for one in documents if one["kind"] == "Service"}
        self.assertEqual(len(addresses), 1100)
        with tempfile.TemporaryDirectory() as directory:
            paths = {Directory(File(directory)).path(document) for document in documents}
        self.assertEqual(len(paths), len(documents))

    def test_endpoints_and_backends_are_there(self):
        size = Size(20, 10, 10)
        documents = list(cluster_state.documents(size))
        known = {(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]): one for one in documents}
        for one in documents:
            namespace = one["metadata"].get("namespace")
            if one["kind"] == "EndpointSlice":
                for endpoint in one["endpoints"]:
                    pod = known["Pod", namespace, endpoint["targetRef"]["name"]]
                    self.assertEqual(pod["status"]["podIP"], endpoint["addresses"][0])
            if one["kind"] == "HTTPRoute":
                for backend in one["spec"]["rules"][1]["backendRefs"]:
                    self.assertIn(("Service", namespace, backend["name"]), known)

    def test_the_largest_addresses_are_addresses(self):
        size = cluster_state.FULL
        self.assertEqual(cluster_state.pod_address(size.pods - 1), "10.244.140.251")
        self.assertEqual(cluster_state.service_address(size.services - 1), "10.96.19.250")

    def test_a_file_is_whole_or_not_there(self):
        with tempfile.TemporaryDirectory() as root:
            directory = Directory(File(root))
            draft = directory.prepare(cluster_state.edited_route("7"))
            self.assertTrue(draft.name.startswith("."))
            self.assertFalse(directory.path(cluster_state.edited_route("7")).exists())
            directory.put(cluster_state.edited_route("8"))
            self.assertEqual([file.name for file in draft.parent.iterdir()], ["edited.json"])


def changed(value, at):
    return "".join(
        f'{{"event":"changed","connection":{one},"value":"{value}","at_ns":{at + one}}}\n' for one in range(CONNECTIONS)
    )


class Watching(unittest.TestCase):
    def watcher(self, lines):
        # What it prints, and then until it is told to end.
        script = f"import sys; sys.stdout.write({lines!r}); sys.stdout.flush(); sys.stdin.read()"
        made = Watcher("client", [sys.executable, "-c", script])
        self.addCleanup(made.stop)
        return made

    def test_the_last_connection_counts(self):
        watcher = self.watcher(changed("0", 5) + changed("1", 100))
        watcher.begin("0", 60)
        self.assertEqual(watcher.wait_for("1", 60), 100 + CONNECTIONS - 1)

    def test_what_was_in_force_before_is_refused(self):
        watcher = self.watcher(changed("1", 5) + changed("0", 100))
        watcher.begin("1", 60)
        with self.assertRaisesRegex(Refused, "'0', which is not in force"):
            watcher.wait_for("2", 60)

    def test_a_failed_request_is_refused(self):
        watcher = self.watcher(changed("1", 5) + '{"event":"failed","connection":0,"why":"answered 503"}\n')
        watcher.begin("1", 60)
        with self.assertRaisesRegex(Refused, "answered 503"):
            watcher.wait_for("2", 60)

    def test_the_last_word_tells_of_failures(self):
        for failed, answered in ((0, 9), (1, 9), (0, 0)):
            ended = f'{{"event":"ended","answered":{answered},"failed":{failed}}}\n'
            watcher = self.watcher(changed("1", 5) + ended)
            watcher.begin("1", 60)
            if failed or not answered:
                self.assertRaises(Refused, watcher.end)
            else:
                self.assertEqual(watcher.end(), 9)

    def test_commands(self):
        self.assertEqual(tools.watch("load", "http://a/", None, 4)[1:], ["watch", "--connections", "4", "http://a/"])
        self.assertEqual(tools.first("load", ["http://a/"], ["/n"]), ["load", "first", "--from", "/n", "http://a/"])


class Figures(unittest.TestCase):
    METRICS = (
        "culvert_controller_translate_duration_seconds_sum {}\nculvert_controller_translate_duration_seconds_count {}\n"
    )

    def test_the_time_of_a_translation(self):
        before, after = (scale.Translations.read(self.METRICS.format(*values)) for values in ((1.5, 3), (2.5, 7)))
        self.assertAlmostEqual(after.since(before), 0.25)
        with self.assertRaises(Refused):
            before.since(before)
        with self.assertRaises(Refused):
            scale.Translations.read("")

    def test_rows_of_processes_have_their_own_columns(self):
        result = Result(scale.GROUP, "memory", "second")
        result.add_figures("controller", {"memory_mb": 40.0, "cpu_ms": 2.0})
        self.assertEqual(report.table(result).splitlines()[0], "| memory | MB | CPU ms per s |")
        self.assertEqual(plots.rows([result], ("memory_mb", "ns")), [("memory: controller, MB", 40.0)])


if __name__ == "__main__":
    unittest.main()
