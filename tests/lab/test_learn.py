# SPDX-License-Identifier: MIT
"""What is learned of an unseen start: the frontier of each length."""

from __future__ import annotations

import random

from vmalloc.lab.learn import Frontiers


def test_a_frontier_is_the_highest_address_of_its_length_or_a_shorter_one():
    draw = random.Random(3)
    for _ in range(50):
        frontiers, plain = Frontiers(), dict[int, int]()
        for _ in range(60):
            length, address = draw.randint(1, 12), draw.randint(0, 40)
            if draw.random() < 0.2:
                frontiers.lower_to(address)
                plain = {known: min(at, address) for known, at in plain.items()}
            else:
                frontiers.raise_to(length, address)
                plain[length] = max(plain.get(length, 0), address)
            for asked in range(14):
                highest = max((at for known, at in plain.items() if known <= asked), default=0)
                assert frontiers.of(asked) == highest


def test_frontiers_keep_only_what_says_something():
    frontiers = Frontiers()
    frontiers.raise_to(8, 100)
    frontiers.raise_to(4, 200)
    assert (frontiers.lengths, frontiers.addresses) == ([4], [200])
