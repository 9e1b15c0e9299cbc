# SPDX-License-Identifier: MIT
"""Questions that the mail left open, each as a sweep and a short page.

A page says the question, what was run, the table and the figure, the answer and how sure it is. The answer is
made from the numbers: a difference counts if the intervals over the seeds lie apart and it is 2 % or more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vmalloc.simulate.compare import Group, draw, group, markdown
from vmalloc.simulate.plan import Plan

__all__ = ["QUESTIONS", "Question", "page", "plans_of"]

DIFFERS = 0.02
CPUS = (64, 448, 1024)
MACHINE = "threadripper-3970x"
COLUMNS = (
    "pairs_per_s",
    "lock_wait_share",
    "alloc_p99_us",
    "pool_hit_share",
    "pooled_mean_mib",
    "lazy_mean_mib",
)


@dataclass(frozen=True)
class Question:
    """What is asked, and the variants that answer it: label -> changes of the base plan. The first is
    today's."""

    title: str
    words: str
    variants: dict[str, dict[str, Any]]
    caveat: str
    cpus: tuple[int, ...] = CPUS
    columns: tuple[str, ...] = COLUMNS
    drawn: tuple[str, ...] = ("pairs_per_s", "lock_wait_share", "alloc_p99_us")


CANDIDATES = {f"ours: {pools}": pools for pools in ("locked", "llist", "tagged", "percpu")}
QUESTIONS = {
    "llist": Question(
        "Should the pools be lock-free lists?",
        "Dave Chinner, 11 to 17 January 2024: use an llist, with an atomic counter, and no pool_lock is"
        " needed."
        " Uladzislau Rezki: the lock is not contended, and a taker of one entry must be alone anyway.",
        {
            "list and lock (6.16)": {"design": "linux-6.16"},
            "llist": {"design": "llist"},
            **{label: {"design": f"vmalloc/{pools}"} for label, pools in CANDIDATES.items()},
        },
        "The candidates behind our own allocator are compared with `locked` there: it allocates addresses in"
        " user space and no pages, so its times are not the kernel's. The llist variant detaches the whole"
        " list and puts the rest back, so its hold grows with the"
        " pool: one"
        " cached access for each entry. A list that remembers its tail would not; ours does (decision 0004)."
        " Why `percpu` is the slowest of ours: [percpu](percpu.md).",
    ),
    "percpu": Question(
        "A pool for each CPU?",
        "Rezki, 12 January 2024: a pop of one entry from an llist must be serialised, by a pool for each CPU"
        ' or by an atomic "in use". Magazines of threads stand beside.',
        {
            **{label: {"design": f"vmalloc/{pools}"} for label, pools in CANDIDATES.items()},
            "ours: magazine": {"design": "vmalloc/magazine"},
            "ours: off": {"design": "vmalloc/off"},
        },
        "All of it is our own allocator in user space. A thread stays on its CPU here, so a restartable"
        " sequence is never begun again. What slabs and magazines keep is not in the column of the pools."
        " `percpu` is slower than `locked` here by what it decides, not by what it costs: before more is used"
        " than ever, pools and slabs are emptied into the warm store if a sixteenth of the peak lies in them."
        " So random sizes find little ready. A neighbour's pool may still have one, another CPU's slab cannot"
        " be asked; so nearly all of them go to the warm store with `percpu`, behind one lock. The core does"
        " so only where memory is resident, and the simulation takes all of it for that.",
    ),
    "shrinker-fairness": Question(
        "Is the shrinker unfair to the first nodes?",
        "Chinner, 12 January 2024: the global shrinker is 'completely unfair to low numbered nodes due to"
        " scan loop start bias'.",
        {
            "no pressure": {"design": "linux-6.16"},
            "a scan empties all nodes (merged)": {"design": "linux-6.16", "shrink_every_us": 1_000},
            "16 nodes, from the first on": {
                "design": "linux-6.16",
                "shrink_every_us": 1_000,
                "shrink_nodes": 16,
            },
            "16 nodes, from where it stopped": {
                "design": "linux-6.16",
                "shrink_every_us": 1_000,
                "shrink_nodes": 16,
                "shrink_rotates": 1,
            },
        },
        "A scan that finds a purge at work goes away again, as the trylock of August 2026 does, and where"
        " purges follow one another at once there are few scans. The merged scan ignores how much it was"
        " asked for and empties every node, so its order matters only"
        " to who waits while it runs; a scan that stops early is what the complaint is about. Our shrink"
        " is a full purge.",
        columns=(
            "pairs_per_s",
            "pool_hit_share",
            "pool_hit_first_share",
            "pool_hit_others_share",
            "pooled_mean_mib",
        ),
        drawn=("pairs_per_s", "pool_hit_first_share", "pool_hit_others_share"),
    ),
    "nodes": Question(
        "How many nodes?",
        "The patch has min(CPUs, 128) nodes because its author could test no more; Chinner asked for"
        " nodes by NUMA"
        " node or cluster instead.",
        {
            f"{nodes} node{'s' * (nodes > 1)}": {"design": f"linux-6.16,nodes_max={nodes}"}
            for nodes in (128, 1, 8, 32, 512)
        },
        "Nodes beyond 255 do not fit the kernel's flags word; they are tried here all the same. Where a"
        " node's memory"
        " lies is not simulated.",
    ),
    "decay": Question(
        "How much should a purge take from the pools?",
        "The patch gives back a quarter of each pool at every purge, by feeling.",
        {
            "a quarter": {"design": "linux-6.16"},
            "a half": {"design": "linux-6.16,decay_shift=1"},
            "an eighth": {"design": "linux-6.16,decay_shift=3"},
            "nothing": {"design": "linux-6.16,decay_shift=31"},
            "a quarter, small ones emptied (6.9)": {"design": "linux-6.9"},
        },
        "The load is steady, which favours keeping: what decay is for, a load that ends, shows in what"
        " the pools hold.",
    ),
    "pool-size": Question(
        "Should a pool have a cap?",
        "Baoquan He, February 2024: with many workers the purge cannot keep up and the address space"
        " grows; Rezki's"
        " draft refused to add to a pool longer than a limit, and was never merged.",
        {
            "no cap": {"design": "linux-6.16"},
            **{
                f"at most {cap}": {"design": f"linux-6.16,pool_ranges_max={cap}"}
                for cap in (1024, 256, 64, 16)
            },
        },
        "The draft's second half, helpers on a queue of high priority, is not simulated.",
    ),
    "purge-vs-shrink": Question(
        "Why should a purge differ from a shrink?",
        "Chinner, 17 January 2024: the purge takes a quarter, the shrinker all; why not the same?",
        {
            "a quarter": {"design": "linux-6.16"},
            "a purge takes all": {"design": "linux-6.16", "purge_is_full": 1},
            "a shrink every millisecond beside": {"design": "linux-6.16", "shrink_every_us": 1_000},
        },
        "A purge that takes all also fills no pool, as the kernel's full purge.",
    ),
}


def plans_of(question: Question, base: Plan, seeds: int) -> tuple[list[Plan], dict[Plan, str]]:
    """All runs of a question, and the label of each plan without its seed."""
    plans, labels = [], {}
    for label, changes in question.variants.items():
        for cpus in (base.cpus,) if base.cpus else question.cpus:
            plan = replace(base, cpus=cpus, **changes)
            labels[replace(plan, seed=0)] = label
            plans += [replace(plan, seed=seed) for seed in range(seeds)]
    return plans, labels


def base_plan(**changes: Any) -> Plan:
    """The load of the questions: tests 1, 3 and 4 of the suite, loops so that several purges come."""
    return replace(Plan(machine=MACHINE, run_test_mask=13, test_loop_count=40_000, shrunk=128), **changes)


def _verdict(base: Group, other: Group, name: str = "pairs_per_s") -> str:
    here, there = base.mean(name), other.mean(name)
    apart = abs(there - here) > base.half_width(name) + other.half_width(name)
    share = there / here - 1 if here else 0.0
    if not apart or abs(share) < DIFFERS:
        return "no difference seen"
    return f"{abs(share):.0%} {'more' if share > 0 else 'fewer'}"


def answers(groups: list[Group]) -> list[str]:
    """One line for each variant and number of CPUs, against today's."""
    lines = []
    for one in groups:
        base = next(g for g in groups if _kind(g) == _kind(one) and g.cpus == one.cpus)
        if one.label == base.label:
            continue
        held = one.mean("pooled_mean_mib") + one.mean("lazy_mean_mib")
        base_held = base.mean("pooled_mean_mib") + base.mean("lazy_mean_mib")
        lines.append(
            f"* {one.cpus} CPUs, {one.label}: pairs a second: {_verdict(base, one)};"
            f" held in pools and lazy: {held:,.0f} MiB instead of {base_held:,.0f}.{_by_nodes(one)}"
        )
    return lines


def _kind(one: Group) -> bool:
    """Whether it is one of ours: these are compared with the first of ours, the kernel's with theirs."""
    return one.plan.design.startswith("vmalloc")


def _by_nodes(one: Group) -> str:
    """Under pressure: what the first nodes' pools serve, and the others'."""
    if not one.plan.shrink_every_us or not all("pool_hit_first_share" in row for row in one.rows):
        return ""
    first, others = one.mean("pool_hit_first_share"), one.mean("pool_hit_others_share")
    return f" The first quarter of the nodes serves {first:.0%} from its pools, the others {others:.0%}."


def page(
    name: str, plans: list[Plan], rows: list[dict[str, Any]], labels: dict[Plan, str], folder: Path
) -> Path:
    """Write NAME.md and NAME.png into a folder; returns the page's path."""
    question, base = QUESTIONS[name], plans[0]
    groups = group(plans, rows, labels)
    draw(groups, folder / f"{name}.png", question.drawn)
    seeds, purges = len(groups[0].rows), min(row["purges"] for row in rows)
    pairs = min(row["pairs"] for row in rows)
    firsts = dict.fromkeys(next(g.label for g in groups if _kind(g) == _kind(one)) for one in groups)
    against = " and ".join(f'"{label}"' for label in firsts)
    text = f"""# {question.title}

Made by `vmalloc compare --question {name} --seeds {seeds}`.

**The question.** {question.words}

**What was run.** Tests of mask {base.run_test_mask}, {base.test_loop_count:,} loops, a workload
{base.shrunk} times smaller with trees priced as large as they would be, one thread for each CPU, costs
of `{base.machine}`,
{seeds} seeds;
{pairs:,} pairs or more and {purges} purges or more in each run.

{markdown(groups, question.columns)}

![{question.title}]({name}.png)

**The answer**, against {against}:

{chr(10).join(answers(groups))}

**How sure.** Waiting for locks is that of the purge's workers too, in time of the threads, so it can be
more than 100 %. The intervals are those over seeds. The decisions are the model's; the costs are uncertain as
[validation.md](validation.md) shows, and beyond 64 CPUs they are extrapolated. With {seeds} seeds
and as few as {purges} purges in a run this is a first look: small differences may be chance.
{question.caveat}
"""
    path = folder / f"{name}.md"
    path.write_text(text)
    return path
