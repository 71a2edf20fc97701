"""What a ztunnel is told, and by whom."""

import json
import os
import re
import socket
import tempfile
import unittest
from pathlib import Path as File

from culvert_bench import backend, manifests, zds, ztunnel
from culvert_bench.model import Path, Refused


class Messages(unittest.TestCase):
    POD = zds.Pod("u", "client", "ns", "acc", File("/dev/null"))

    def test_a_pod_is_uid_and_names(self):
        self.assertEqual(zds.add(self.POD), b"\x0a\x16\x0a\x01u\x12\x11\x0a\x06client\x12\x02ns\x1a\x03acc")
        self.assertEqual(zds.SNAPSHOT_SENT, b"\x1a\x00")

    def test_lengths_above_127_have_two_bytes(self):
        self.assertEqual(zds._field(1, bytes(300))[:3], b"\x0a\xac\x02")

    def test_an_acknowledgement_may_complain(self):
        self.assertIsNone(zds.error_of(b"\x0a\x00"))
        self.assertIn("no such", zds.error_of(b"\x0a\x09\x0a\x07no such"))
        self.assertIsNotNone(zds.error_of(b""))

    def test_pods_come_with_their_namespaces_one_by_one(self):
        for answer, wrong in ((b"\x0a\x00", None), (b"\x0a\x03\x0a\x01x", "client")):
            with tempfile.TemporaryDirectory() as directory:
                agent = zds.Agent(File(directory) / "agent", [self.POD])
                self.addCleanup(agent.close)
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
                    asking.connect(str(agent.path))
                    asking.send(b"\x08\x01")
                    message, descriptors, _, _ = socket.recv_fds(asking, 1024, 4)
                    self.assertEqual((message, len(descriptors)), (zds.add(self.POD), 1))
                    os.close(descriptors[0])
                    asking.send(answer)
                    if wrong:
                        self.assertRaisesRegex(Refused, wrong, agent.wait)
                    else:
                        self.assertEqual(asking.recv(1024), zds.SNAPSHOT_SENT)
                        asking.send(answer)
                        agent.wait()
                agent.close()


class Configuration(unittest.TestCase):
    def test_services_lead_to_the_servers_pod_only(self):
        pods = {"client": ("10.0.0.1", "node1"), manifests.BACKEND: ("10.0.0.2", "node2")}
        text = ztunnel.configuration("ztunnel", pods, manifests.BACKEND)
        self.assertIn(f"{{80: {backend.V1}}}", text)
        made = json.loads(re.sub(r"(\d+):", r'"\1":', text))
        client, server = made["workloads"]
        self.assertEqual((client["services"], client["node"]), ({}, "node1"))
        self.assertEqual(len(server["services"]), len(ztunnel.ADDRESSES))
        ports = server["services"]["ztunnel/opaque.ztunnel.svc.cluster.local"]
        self.assertEqual(ports, {"80": backend.V1})
        names = {f"{one['namespace']}/{one['hostname']}" for one in made["services"]}
        self.assertEqual(names, set(server["services"]))

    def test_it_takes_part_where_there_are_bytes_only(self):
        who = ztunnel.Ztunnels(
            "z",
            "z",
            None,
            "10.0.0.2",
            variant=ztunnel.variants(True, 2)[0],
            program=File("z"),
            directory=File("d"),
            root=File("/"),
        )
        self.assertEqual({path for path in Path if who.carries(path)}, {Path.OPAQUE, Path.BULK, Path.ECHO, Path.COLD})


if __name__ == "__main__":
    unittest.main()
