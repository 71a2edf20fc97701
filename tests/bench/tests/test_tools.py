"""What the load generators print, read back. The samples are what the tools printed."""

import json
import unittest

from culvert_bench import tools
from culvert_bench.model import Refused

WRK = """Running 3s test @ http://web.meshed/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.85ms    5.06ms  51.32ms   93.97%
    Req/Sec     8.63k     2.47k   12.23k    76.67%
  Latency Distribution
     50%    612.00us
     75%    2.02ms
     90%    4.40ms
     99%   31.23ms
  25754 requests in 3.01s, 4.22MB read
Requests/sec:   8568.88
Transfer/sec:      1.41MB
"""
TROUBLE = "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n"


class Wrk(unittest.TestCase):
    def test_requests_and_percentiles(self):
        load = tools.read_wrk(WRK)
        self.assertEqual((load.units, load.failed), (25754, 0))
        self.assertAlmostEqual(load.seconds, 3.01)
        self.assertAlmostEqual(load.latency.p50, 0.612)
        self.assertAlmostEqual(load.latency.p99, 31.23)

    def test_every_failure_counts(self):
        self.assertEqual(tools.read_wrk(WRK.replace("Requests/sec", TROUBLE + "Requests/sec")).failed, 15)

    def test_no_answer_is_refused(self):
        for output in ("", WRK.replace("25754 requests", "0 requests"), WRK.replace("     99%   31.23ms\n", "")):
            with self.assertRaises(Refused):
                tools.read_wrk(output)

    def test_only_whole_seconds(self):
        self.assertIn("-d1s", tools.wrk("http://a/", 1, 0.25, {}))
        self.assertIn("-H", tools.wrk("http://a/", 1, 5, {"Connection": "close"}))


class H2load(unittest.TestCase):
    def test_the_log_has_statuses_and_latencies(self):
        log = "".join(f"1\t200\t{micros}\n" for micros in range(1000, 101_000, 1000)) + "1\t503\t9\n"
        load = tools.read_h2load("", log, 2.0)
        self.assertEqual((load.units, load.failed, load.rate), (100, 1, 50.0))
        self.assertAlmostEqual(load.latency.p50, 50.0)
        self.assertAlmostEqual(load.latency.p99, 99.0)

    def test_no_answer_is_refused(self):
        with self.assertRaises(Refused):
            tools.read_h2load("failed", "1\t502\t9\n", 2.0)

    def test_streams_are_spread_over_connections(self):
        command = tools.h2load("http://a/", 100, 1, "log", {}, None)
        self.assertEqual(command[2:4], ["-c10", "-m10"])


class Iperf3(unittest.TestCase):
    def test_what_arrived_counts(self):
        ends = {"sum_sent": {"seconds": 2.0, "bytes": 9}, "sum_received": {"seconds": 2.0, "bytes": 4 * 2**30}}
        load = tools.read_iperf3(json.dumps({"end": ends}))
        self.assertEqual((load.units, load.rate), (4.0, 2.0))

    def test_an_error_is_refused(self):
        with self.assertRaises(Refused):
            tools.read_iperf3('{"error": "unable to connect"}')


class Hold(unittest.TestCase):
    def test_a_connection_fails_if_it_was_not_opened_or_not_answered(self):
        lines = '{"event":"open","ok":2000,"failed":0,"errors":{}}\n{"event":"","ok":1998,"failed":2,"errors":{}}\n'
        self.assertEqual(tools.read_hold(lines, 2000), 2)
        with self.assertRaises(Refused):
            tools.read_hold(lines.splitlines()[0], 2000)


class FixedRate(unittest.TestCase):
    def test_the_report_is_taken_as_it_is(self):
        said = {"seconds": 3.0, "answered": 2999, "failed": 1, "p50_ms": 0.2, "p99_ms": 1.0, "p999_ms": 2.0}
        load = tools.read_load(json.dumps(said))
        self.assertEqual((load.units, load.failed, load.latency.p999), (2999, 1, 2.0))


if __name__ == "__main__":
    unittest.main()
