# SPDX-License-Identifier: MIT
"""Published figures, each with its source: what calibrates the costs and what is scored against them."""

from __future__ import annotations

_V1_DEFAULT = (
    "0.576131 2.68376 4.26502 6.04306 8.04786 9.38844 9.53481 10.4609 10.6089 11.7372 11.5969 13.053 12.2973"
    " 13.1429 13.7348 14.3687 14.8823 14.9571 14.9127 16.0786 15.8055 16.8087 16.7298 17.244 17.8416 18.8008"
    " 18.5591 19.761 20.06 20.4353 20.9082 21.0865"
)
_V1_PATCHED = (
    "0.555889 1.07895 1.01739 1.28924 1.57616 1.78142 2.00172 2.15964 2.484 2.40443 2.71635 2.6162 2.843 2.85714"
    " 2.90691 3.0285 3.05717 2.98018 3.0951 3.19521 3.24915 3.2521 3.25698 3.36586 3.39384 3.40907 3.5254 3.55468"
    " 3.59869 3.6991 3.73028 3.82904"
)

V1_DEFAULT = {jobs: float(us) for jobs, us in enumerate(_V1_DEFAULT.split(), 1)}
"""us a pair of one page by jobs, default kernel 6.3, 3970X: cover letter of v1, May 2023."""
V1_PATCHED = {jobs: float(us) for jobs, us in enumerate(_V1_PATCHED.split(), 1)}
"""The same with v1, a design that the model does not have."""
V1_CALIBRATES = (1, 8, 32)
