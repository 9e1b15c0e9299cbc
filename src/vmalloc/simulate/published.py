# SPDX-License-Identifier: MIT
"""Published figures, each with its source: what calibrates the costs and what is scored against them."""

from __future__ import annotations

_V1_DEFAULT = (
    "0.576131 2.68376 4.26502 6.04306 8.04786 9.38844 9.53481 10.4609 10.6089 11.7372 11.5969 13.053 12.2973"
    " 13.1429 13.7348 14.3687 14.8823 14.9571 14.9127 16.0786 15.8055 16.8087 16.7298 17.244 17.8416 18.8008"
    " 18.5591 19.761 20.06 20.4353 20.9082 21.0865"
)
_V1_PATCHED = (
    "0.555889 1.07895 1.01739 1.28924 1.57616 1.78142 2.00172 2.15964 2.484 2.40443 2.71635 2.6162 2.843"
    " 2.85714"
    " 2.90691 3.0285 3.05717 2.98018 3.0951 3.19521 3.24915 3.2521 3.25698 3.36586 3.39384 3.40907 3.5254"
    " 3.55468"
    " 3.59869 3.6991 3.73028 3.82904"
)

V1_DEFAULT = {jobs: float(us) for jobs, us in enumerate(_V1_DEFAULT.split(), 1)}
"""us a pair of one page by jobs, default kernel 6.3, 3970X: cover letter of v1, May 2023."""
V1_PATCHED = {jobs: float(us) for jobs, us in enumerate(_V1_PATCHED.split(), 1)}
"""The same with v1, a design that the model does not have."""
V1_CALIBRATES = (1, 8, 32)

HEADLINE_S = {"linux-6.8": 651.271, "patch-v3": 51.301}
"""Wall time of the patch's own run, before and after: 3970X, mask 7, 64 threads; commit 8f33a2ff3072."""
HEADLINE_SPIN = {"linux-6.8": 0.9307, "patch-v3": 0.1651}
"""native_queued_spin_lock_slowpath, self, of the same run's profile."""
V2_SPIN = {"linux-6.8": 0.9305}
"""The same of v2's cover letter, mask 127, default kernel 6.5-rc6; patched 6.11 %, of a design the model
has not."""
V2_PATCHED_SPIN = 0.0611
LENOVO_US = {
    "xeon-72": (2194.0, 14.0),
    "xeon-192": (143799.0, 1139.0),
    "epyc-448": (1992122.0, 6883.0),
}
"""Mean time in purge_vmap_node, one atomic for each area and one for each node: Lenovo, 29 August 2024;
mask 7, one thread for each CPU. The 72 CPUs calibrate the cost of an area."""
BAOQUAN_S = {64: 268.018, 128: 379.328, 256: 1150.657}
"""Wall time by threads on 128 CPUs, mask 127, linux-next of February 2024."""
ALIBABA_PER_S = {"before": 113536.56, "after": 583729.93, "ceiling": 831950.39}
"""Requests a second, 48 CPUs of a guest, nginx over SMC: Wen Gu, January 2024; the ceiling has no lookup."""
PIGGIN_NS = {1: (14700, 2900), 2: (33600, 3000), 4: (49500, 2800), 8: (70631, 2900)}
"""ns a pair of 4 pages by threads, before and after Piggin's rewrite of 2008: designs the model does not
have."""
HIKEY_SHARE = 0.16
"""v2: "approximately" so much contention on an 8-CPU HiKey960, default kernel; which figure is meant is
not said."""
