"""Medians, spread, ratios, bounds."""

import unittest

from culvert_bench import compare, numbers, plots, report
from culvert_bench.compare import Bound
from culvert_bench.model import Latency, Load, Measurement, Result, Usage


def result(**rounds):
    return Result(
        "L7",
        "keep-alive",
        "request",
        {who: [{"rate": rate, "cpu_us": 10.0} for rate in rates] for who, rates in rounds.items()},
    )


class Numbers(unittest.TestCase):
    def test_the_median_and_half_the_range(self):
        found = numbers.summarize([90.0, 130.0, 100.0])
        self.assertEqual((found.median, found.lowest, found.highest), (100.0, 90.0, 130.0))
        self.assertAlmostEqual(found.spread, 0.2)

    def test_percentiles_are_nearest_ranks(self):
        self.assertEqual([numbers.percentile([1, 2, 3, 4], share) for share in (0.0, 0.5, 0.51, 1.0)], [1, 2, 3, 4])

    def test_a_figure_that_a_round_lacks_is_left_out(self):
        self.assertEqual(list(numbers.summarize_rounds([{"a": 1.0, "b": 2.0}, {"a": 3.0}])), ["a"])

    def test_figures_are_per_request(self):
        load = Load(seconds=2.0, units=1000, latency=Latency(0.5, 1.0))
        usage = Usage(user=0.03, system=0.02, peak_memory=20_000_000, switches=500)
        figures = Measurement(load, usage, idle_memory=10_000_000).figures()
        expected = {
            "rate": 500,
            "cpu_us": 50,
            "user_us": 30,
            "system_us": 20,
            "switches": 0.5,
            "peak_memory_mb": 20,
            "memory_kb": 10,
        }
        for name, value in expected.items():
            self.assertAlmostEqual(figures[name], value, msg=name)
        self.assertNotIn("p999_ms", figures)


class Compare(unittest.TestCase):
    def test_against_an_older_report(self):
        lines = compare.against([result(culvert=[200.0])], [result(culvert=[100.0], envoy=[1.0])])
        self.assertEqual(len(lines), 2)
        self.assertIn("2.00 x", lines[0])
        self.assertIn("1.00 x", lines[1])

    def test_a_ratio_may_be_worse_by_its_tolerance_only(self):
        bound = Bound("L7: keep-alive", "envoy", "rate", stored=2.0, tolerance=0.25)
        for ours, is_kept in ((2000.0, True), (1501.0, True), (1499.0, False)):
            found = compare.check_ratios([result(culvert=[ours], envoy=[1000.0])], [bound])
            self.assertEqual(not found, is_kept, (ours, found))

    def test_cpu_may_be_lower_but_not_higher(self):
        bound = Bound("L7: keep-alive", "envoy", "cpu_us", stored=0.5, tolerance=0.2)
        for cpu, is_kept in ((1.0, True), (5.9, True), (6.1, False)):
            one = Result("L7", "keep-alive", "request", {"culvert": [{"cpu_us": cpu}], "envoy": [{"cpu_us": 10.0}]})
            self.assertEqual(not compare.check_ratios([one], [bound]), is_kept, cpu)

    def test_what_was_not_measured_is_not_kept(self):
        bound = Bound("L7: keep-alive", "envoy", "rate", stored=2.0, tolerance=0.25)
        self.assertIn("was not measured", compare.check_ratios([result(culvert=[1.0])], [bound])[0])

    def test_instructions_are_kept_in_both_directions(self):
        stored = {"a": 1000.0, "b": 1000.0}
        self.assertEqual(compare.check_instructions({"a": 1019.0, "b": 981.0}, stored, 0.02), [])
        for found in (
            {"a": 1021.0, "b": 1000.0},
            {"a": 1000.0, "b": 979.0},
            {"a": 1000.0},
            {"a": 1000.0, "b": 1000.0, "c": 1.0},
        ):
            self.assertEqual(len(compare.check_instructions(found, stored, 0.02)), 1, found)


class Report(unittest.TestCase):
    def test_numbers_have_three_digits(self):
        self.assertEqual(
            [report.number(value) for value in (0, 0.01234, 1.5, 123.4, 12_345.0)],
            ["0", "0.0123", "1.5", "123", "12.3k"],
        )

    def test_a_contender_without_a_figure_has_a_dash(self):
        one = Result("L7", "a case", "request", {"direct": [{"rate": 5.0}], "culvert": [{"rate": 4.0, "cpu_us": 3.0}]})
        self.assertEqual(
            report.table(one).splitlines()[2:],
            ["| direct | 5 ±0 % | – |", "| culvert | 4 ±0 % | 3 ±0 % |"],
        )

    def test_plots_show_shares_of_the_best(self):
        found = plots.shares([result(direct=[200.0], culvert=[100.0]), result(culvert=[50.0])], "rate")
        self.assertEqual(found, {"direct": [1.0, 0.0], "culvert": [0.5, 1.0]})


if __name__ == "__main__":
    unittest.main()
