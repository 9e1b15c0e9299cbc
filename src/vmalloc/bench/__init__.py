# SPDX-License-Identifier: MIT
"""What an array costs on its way to another process: ours and the peers', measured side by side.

    handover.py   the plan, the rounds, what was found
    crew.py       one process per peer: start, ask, end, clear away
    host.py       the program such a process runs
    peers/        one small class per peer and way, all behind Peer
    processes.py  a process tree, and what the others take of the CPUs
    faults.py     page faults of a process tree, and what one costs on this machine
    report.py     the tables and the file
    plot.py       the picture

After: Linux tools/perf/bench, one workload behind one interface per candidate.
"""
