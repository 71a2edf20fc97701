"""What proxies, kernel and link say, judged."""

import unittest
from pathlib import Path as File
from types import SimpleNamespace

from culvert_bench import backend, cases, checks, contenders, envoy, manifests, processes, rounds
from culvert_bench.certificates import Certificates
from culvert_bench.model import Path, Refused, Target


def metric(service, flags="-", security="mutual_tls", reporter="source", value=5):
    labels = f'reporter="{reporter}",destination_service_name="{service}",response_flags="{flags}",connection_security_policy="{security}"'
    return f"istio_requests_total{{{labels}}} {value}\n"


class Counters(unittest.TestCase):
    def test_only_what_went_well_and_encrypted_counts(self):
        text = metric("v1") + metric("v1", value=2) + metric("v2", value=1)
        text += metric("v1", flags="BackendReset") + metric("v1", security="none") + metric("v1", reporter="mirror")
        self.assertEqual(contenders.by_destination(text, "istio_requests_total"), {"v1": 7, "v2": 1})

    def test_cold_connections_are_tunnels_one_by_one(self):
        case = next(case for case in cases.CASES if case.path is Path.COLD)
        who = SimpleNamespace(name="culvert")
        rounds.judge_served(case, who, 512, {"cold": 3}, {"cold": 515})
        for grown in (514, 516):
            with self.assertRaises(Refused):
                rounds.judge_served(case, who, 512, {"cold": 3}, {"cold": grown})

    def test_a_load_that_went_another_way_is_refused(self):
        case = next(case for case in cases.CASES if case.path is Path.WEIGHTED)
        who = SimpleNamespace(name="culvert")
        rounds.judge_served(case, who, 1000, {"v1": 5}, {"v1": 905, "v2": 100})
        with self.assertRaises(Refused):
            rounds.judge_served(case, who, 1000, {"v1": 5}, {"v1": 505})


class Kernel(unittest.TestCase):
    def test_times_of_a_command_with_blanks_and_brackets(self):
        fields = ["S", *["0"] * 10, "150", "50", "0"]
        self.assertEqual(
            processes.parse_stat("7 (a ) b) " + " ".join(fields)), (150 * processes.TICK, 50 * processes.TICK)
        )

    def test_sizes_are_bytes(self):
        status = "Name:\tx\nVmHWM:\t   10 kB\nvoluntary_ctxt_switches:\t3\n"
        self.assertEqual(processes.parse_status(status), {"VmHWM": 10240, "voluntary_ctxt_switches": 3})


class Link(unittest.TestCase):
    def summary(self, tls="v13", token=(), sent=100, server="10.0.0.2:15008"):
        return {
            "token_seen": list(token),
            "connections": [{"client": "10.0.0.1:9", "server": server, "sent": sent, "tls": tls}],
        }

    def test_an_encrypted_path_is_tls_and_nothing_else(self):
        who = SimpleNamespace(name="culvert", is_encrypted=True, addresses=lambda: {"10.0.0.2"})
        checks.judge_link(who, self.summary())
        wrong = (
            self.summary(tls={"no": "HTTP"}),
            self.summary(token=["10.0.0.1:9 > 10.0.0.2:80"]),
            self.summary(sent=0),
            self.summary(server="10.0.0.3:15008"),
        )
        for summary in wrong:
            with self.assertRaises(Refused):
                checks.judge_link(who, summary)

    def test_every_cold_connection_has_a_tunnel(self):
        pairs = Target("10.0.0.2", 8081, clients=("a", "b"), servers=("10.0.0.2",))
        who = SimpleNamespace(name="culvert", addresses=lambda: {"10.0.0.2"}, target=lambda _: pairs)
        seen = self.summary()["connections"]
        checks.judge_tunnels(who, {"connections": seen * 2})
        with self.assertRaises(Refused):
            checks.judge_tunnels(who, {"connections": seen + self.summary(server="10.0.0.9:15008")["connections"]})

    def test_without_a_mesh_the_token_must_be_readable(self):
        who = SimpleNamespace(name="direct", is_encrypted=False, addresses=lambda: {"10.0.0.2"})
        checks.judge_link(who, self.summary(token=["somewhere"]))
        with self.assertRaises(Refused):
            checks.judge_link(who, self.summary())


class Answers(unittest.TestCase):
    def test_what_curl_prints(self):
        one = "HTTP/1.1 200 OK\r\nA: b\r\n\r\nv1 body" + checks.SEPARATOR
        other = "HTTP/2 404 \r\n\r\n" + checks.SEPARATOR
        found = checks.read_answers(one + other)
        self.assertEqual([(answer.status, answer.body) for answer in found], [(200, "v1 body"), (404, "")])
        with self.assertRaises(Refused):
            checks.read_answers("garbage" + checks.SEPARATOR)


class Configurations(unittest.TestCase):
    def test_bodies_are_48_bytes(self):
        self.assertEqual({len(backend.answer(words)) for words in ("v1", "v2 items")}, {48})

    def test_the_same_routes_for_all(self):
        wanted = {f"/tenant-{number}/shop" for number in range(manifests.ROUTES)}
        ours = {route["spec"]["rules"][0]["matches"][0]["path"]["value"] for route in manifests.many_routes()}
        theirs = {route["match"]["path_separated_prefix"] for route in envoy._many()}
        self.assertEqual((ours, theirs), (wanted, wanted))

    def test_pairs_of_envoys_share_no_port(self):
        from culvert_bench.__main__ import variants

        ports = [
            port
            for variant in variants(False, 2)
            for port in [
                variant.admin,
                variant.tunnels,
                *(variant.listener(path) for path in Path),
                *(variant.arrival(name) for name in envoy.ARRIVALS),
            ]
        ]
        self.assertEqual(len(ports), len(set(ports)))

    def test_peers_are_known_by_their_name(self):
        keys = Certificates(File("/keys"))
        context = keys.server_socket["typed_config"]
        self.assertTrue(context["require_client_certificate"])
        names = context["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
        self.assertEqual([name["matcher"]["exact"] for name in names], ["spiffe://cluster.local/ns/plain/sa/client"])

    def test_a_cold_connection_of_envoy_shares_nothing(self):
        clusters = envoy._client(envoy.Variant("envoy", 1, "h2", 16000), Certificates(File("/keys")), "10.0.0.2", "/d")[
            1
        ]
        [cold] = [cluster for cluster in clusters if cluster["name"] == envoy.COLD]
        self.assertEqual(cold["transport_socket"]["typed_config"]["max_session_keys"], 0)
        [options] = cold["typed_extension_protocol_options"].values()
        self.assertEqual(options["common_http_protocol_options"], {"max_requests_per_connection": 1})

    def test_names_of_cases_are_unique(self):
        names = [f"{case.group}: {case.name}" for case in cases.CASES]
        self.assertEqual(len(names), len(set(names)))


if __name__ == "__main__":
    unittest.main()
