# SPDX-License-Identifier: MIT
"""Batches of a DataLoader in shared memory: two lines. Where PyTorch is installed."""

import importlib.util

try:
    import numpy as np
except ModuleNotFoundError:
    raise SystemExit("arrays need numpy: pip install 'vmalloc[numpy]'") from None

import vmalloc


class Pictures:
    def __len__(self):
        return 32

    def __getitem__(self, i):
        return np.full((3, 64, 64), i, "f4"), i


def epoch(region):
    from torch.utils.data import DataLoader

    import vmalloc.torch

    vmalloc.install(region)
    for pictures, labels in DataLoader(Pictures(), 8, num_workers=2, collate_fn=vmalloc.torch.collate):
        assert vmalloc.region_of(pictures) is region
        assert (pictures[:, 0, 0, 0] == labels).all()


if __name__ == "__main__":
    if importlib.util.find_spec("torch"):
        epoch(vmalloc.Region("64M"))
    print("done")
