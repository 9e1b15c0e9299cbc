# SPDX-License-Identifier: MIT
"""The simulator: every design of the model on virtual CPUs, from 1 to 1,024 and more.

    costs.py, costs/     what a locked instruction, a line, a hand-over, a page cost; each with its source
    design.py            designs by name, as numbers for the twin
    plan.py              one run: the suite's parameters, a machine, a seed; the result as a row
    _engine.pyx          the compiled part:
      space.c, twin.c, kernel_twin.c, caching_twin.c    the model's decisions
      engine.c           discrete events: threads, locks, purges
    fit.py               the four costs that are fitted
    published.py, validate.py    figures of others, and how far off the simulation is
    sweep.py             many runs on any executor, resumable
    compare.py           rows to tables and figures with their uncertainty
    questions.py         what the mail left open, a page each
    calibrate.py         the costs of the machine at hand

The commands are `vmalloc simulate`, `vmalloc compare` and `vmalloc calibrate`; docs/simulator.md says how it
works and how far it can be trusted.
"""

from vmalloc.simulate.costs import Machine, Topology, load_machine, machines
from vmalloc.simulate.design import DESIGNS
from vmalloc.simulate.plan import Plan, run_plan
from vmalloc.simulate.sweep import SweepError, run_on_processes, run_sweep

__all__ = [
    "DESIGNS",
    "Machine",
    "Plan",
    "SweepError",
    "Topology",
    "load_machine",
    "machines",
    "run_on_processes",
    "run_plan",
    "run_sweep",
]
