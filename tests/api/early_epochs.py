# SPDX-License-Identifier: MIT
"""Epochs of a DataLoader that end too early, with few descriptors: python early_epochs.py N REGION BATCH.

Of N epochs most are left by `break`, with new workers each or with ones that stay; in every fifth a worker is
killed. All batches must come by reference, and in the end nothing may be kept. REGION and BATCH are in MiB.
Prints what was there at the end.
"""

import gc
import json
import os
import resource
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import vmalloc
import vmalloc.torch

MIB = 1 << 20
DESCRIPTORS = 64
SAMPLES_A_BATCH, BATCHES = 8, 12


class Samples(Dataset):
    def __init__(self, batch_mib, dies_at=None):
        self.row, self.dies_at = torch.ones(batch_mib * MIB // SAMPLES_A_BATCH // 4), dies_at

    def __len__(self):
        return BATCHES * SAMPLES_A_BATCH

    def __getitem__(self, i):
        if i == self.dies_at:
            os.kill(os.getpid(), 9)
        return self.row


def loader(samples, **options):
    return DataLoader(samples, SAMPLES_A_BATCH, num_workers=2, collate_fn=vmalloc.torch.collate, **options)


def leave_early(loaded):
    for batch in loaded:
        assert vmalloc.is_shared(batch), "a batch of torch's"
        assert batch[-1, -1] == 1
        return


def read_all(loaded):
    for batch in loaded:
        assert vmalloc.is_shared(batch), "a batch of torch's"


def run(nr_epochs, batch_mib):
    """The numbers of this process's descriptors while it runs."""
    samples, descriptors = Samples(batch_mib), []
    stays = loader(samples, persistent_workers=True)
    for nr in range(nr_epochs):
        if nr % 5 == 4:
            with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed"):
                read_all(loader(Samples(batch_mib, dies_at=3 * SAMPLES_A_BATCH + 1)))
        else:
            leave_early(stays if nr % 2 else loader(samples))
        gc.collect()
        descriptors.append(len(os.listdir("/proc/self/fd")))
    return descriptors


def fewest_early_and_late(counts):
    """What is open for a moment only is in neither."""
    half = len(counts) // 2
    return [min(counts[:half]), min(counts[half:])]


def at_rest(region, within_s=60):
    """Whether everything is given back, without being asked for."""
    ends = time.monotonic() + within_s
    while (stats := region.stats()).nr_busy or stats.nr_leases:
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def main(nr_epochs, region_mib, batch_mib):
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    torch.set_num_threads(1)
    files = set(os.listdir("/dev/shm"))
    with vmalloc.Region(f"{region_mib}M") as region:
        vmalloc.install(region)
        descriptors = run(nr_epochs, batch_mib)
        gc.collect()
        told = {
            "at_rest": at_rest(region),
            "descriptors": fewest_early_and_late(descriptors[1:]),  # after it there are workers that stay
            "files": sorted(set(os.listdir("/dev/shm")) - files),
        }
        vmalloc.uninstall()
    print(json.dumps(told))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
