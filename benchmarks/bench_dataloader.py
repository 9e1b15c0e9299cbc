# SPDX-License-Identifier: MIT
"""Is a DataLoader faster by reference? Batches of 16 MiB from 2 workers, as one tensor and as 8 leaves.

Stock torch, the same with `collate_fn=vmalloc.torch.collate`, and the loader without workers, epochs in
turn, after one that does not count. The samples are there already: what is measured is the way of a batch,
not how it is made. `--json FILE` writes the figures.
"""

import argparse
import json
import os
import statistics
import time
import warnings

SAMPLES_A_BATCH = 16
BATCHES = 200  # so that an epoch by reference takes longer than what disturbs it
ROUNDS = 5


def samples(torch, nbytes, leaves):
    """A dataset that hands out the same few samples."""
    rows = [
        [torch.ones(nbytes // SAMPLES_A_BATCH // leaves // 4) for _ in range(leaves)]
        for _ in range(SAMPLES_A_BATCH)
    ]
    return Same([tuple(row) if leaves > 1 else row[0] for row in rows])


class Same:
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return BATCHES * SAMPLES_A_BATCH

    def __getitem__(self, i):
        return self.rows[i % SAMPLES_A_BATCH]


def batches_a_second(loader):
    """The first batch does not count: workers start with an epoch."""
    epoch = iter(loader)
    next(epoch)
    started = time.perf_counter()
    nr = sum(1 for _ in epoch)
    return nr / (time.perf_counter() - started)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    parser.add_argument("--mib", type=int, default=16)
    options = parser.parse_args()
    try:
        import torch
        from torch.utils.data import DataLoader

        import vmalloc.torch
    except ImportError as e:
        print(f"skipped: {e}")
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    vmalloc.install(vmalloc.Region(64 * options.mib << 20))
    results = {}
    for name, leaves in {"one tensor": 1, "8 leaves": 8}.items():
        data = samples(torch, options.mib << 20, leaves)
        workers = {"num_workers": 2, "persistent_workers": True}
        loaders = {
            "stock": DataLoader(data, SAMPLES_A_BATCH, **workers),
            "vmalloc": DataLoader(data, SAMPLES_A_BATCH, collate_fn=vmalloc.torch.collate, **workers),
            "no workers": DataLoader(data, SAMPLES_A_BATCH),
        }
        told = {way: [] for way in loaders}
        for turn in range(ROUNDS + 1):
            for way, loader in loaders.items():
                rate = batches_a_second(loader)
                if turn:
                    told[way].append(rate)
        results[name] = rates = {way: statistics.median(values) for way, values in told.items()}
        print(
            f"{options.mib} MiB, {name:10} stock {rates['stock']:6.1f} batches/s, "
            f"vmalloc {rates['vmalloc']:6.1f} ({rates['vmalloc'] / rates['stock']:.1f}x), "
            f"no workers {rates['no workers']:6.1f}; "
            f"{len(os.listdir('/proc/self/fd'))} descriptors",
            flush=True,
        )
        del loaders, loader
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
