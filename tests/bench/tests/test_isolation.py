"""What divan prints, read back."""

import unittest

from culvert_bench import isolation
from culvert_bench.model import Refused

OUTPUT = """Timer precision: 25 ns
select          fastest       │ slowest       │ median        │ mean          │ samples │ iters
╰─ select_among               │               │               │               │         │
   ├─ 10        190.1 µs      │ 1.1 ms        │ 200 µs        │ 213.5 µs      │ 100     │ 100
   │            5.26 Mitem/s  │ 900 Kitem/s   │ 5 Mitem/s     │ 4.68 Mitem/s  │         │
   ╰─ 10000     290.1 µs      │ 1.1 ms        │ 400 µs        │ 413.5 µs      │ 100     │ 100
                3.2 Mitem/s   │ 900 Kitem/s   │ 2.5 Mitem/s   │ 2.41 Mitem/s  │         │
"""


class Isolation(unittest.TestCase):
    BENCH = isolation.Bench("culvert-routing", "select", {"select_among": "select, {} routes"})

    def test_nanoseconds_for_each_item(self):
        found = dict(isolation.read(OUTPUT))
        self.assertEqual(
            {key: median for key, (_, median) in found.items()},
            {("select_among", "10"): 200.0, ("select_among", "10000"): 400.0},
        )
        self.assertAlmostEqual(found["select_among", "10000"][0], 312.5)

    def test_a_result_for_each_size(self):
        results = isolation.results(self.BENCH, OUTPUT)
        self.assertEqual([result.case for result in results], ["select, 10 routes", "select, 10,000 routes"])

    def test_what_printed_nothing_is_refused(self):
        with self.assertRaises(Refused):
            isolation.results(self.BENCH, "")


if __name__ == "__main__":
    unittest.main()
