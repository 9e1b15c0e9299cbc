# SPDX-License-Identifier: MIT
"""Fit: the four costs that no source states, from the three points that calibrate them.

    python -m vmalloc.simulate.fit

Points: v1's cover letter, default kernel, one page, 1, 8 and 32 jobs on the 3970X. The work of one thread is
what makes 1 job right; the two constants of the hand-over make 8 and 32 jobs right. Everything else is left
alone. The values printed stand in costs/threadripper-3970x.toml, marked as calibrated.
"""

from __future__ import annotations

from vmalloc.simulate.costs import load_machine
from vmalloc.simulate.plan import Plan, run_plan
from vmalloc.simulate.published import V1_DEFAULT

MACHINE = "threadripper-3970x"
ALLOC_SHARE = 0.55
"""Of one thread's own work: what of it is in the allocation; no figure tells them apart."""
LOOPS = 30_000
ROUNDS = 8


def us_per_pair(jobs: int, costs: dict[str, float]) -> float:
    """Time of one pair of one page in each of so many jobs."""
    plan = Plan("linux-6.8", MACHINE, nr_threads=jobs, run_test_mask=1, test_loop_count=LOOPS, shrunk=1,
                costs=costs)  # fmt: skip
    return float(run_plan(plan)["us_per_pair"])


def fit() -> dict[str, float]:
    """The four costs."""
    known = load_machine(MACHINE).values
    own = known["alloc_work"] + known["free_work"]
    floor, queue, few = known["handover_floor"], known["handover_queue"], known["handover_few"]
    costs: dict[str, float] = {}
    for _ in range(ROUNDS):
        costs = {
            "alloc_work": own * ALLOC_SHARE,
            "free_work": own * (1 - ALLOC_SHARE),
            "handover_floor": floor,
            "handover_queue": queue,
        }
        own += (V1_DEFAULT[1] - us_per_pair(1, costs)) * 1e3
        own = max(own, 0.0)
        # three visits to one lock a pair: an error of a us at n jobs is 1000 / 3n ns of each hand-over
        few_error = (V1_DEFAULT[8] - us_per_pair(8, costs)) * 1e3 / (3 * 8)
        many_error = (V1_DEFAULT[32] - us_per_pair(32, costs)) * 1e3 / (3 * 32)
        steeper = (few_error - many_error) / (1 / few - 1 / 31)
        queue = max(queue + steeper, 0.0)
        floor = max(floor + many_error - steeper / 31, 0.0)
    return costs


if __name__ == "__main__":
    found = fit()
    for name, value in found.items():
        print(f"{name} = {value:.1f}")
    for jobs in (1, 8, 32):
        print(f"{jobs} jobs: {us_per_pair(jobs, found):.3f} us a pair, published {V1_DEFAULT[jobs]:.3f}")
