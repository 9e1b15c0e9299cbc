# SPDX-License-Identifier: MIT
"""Every example runs and prints what its text says."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
ENDS_WITH = {
    "01_share_an_array.py": "[0, 2, 4, 6, 8]\n",
    "02_send_references.py": "[81, 9801, 998001, 99980001]\n24 pages in use\n0 pages in use\n",
    "03_blocks_of_bytes.py": "0 pages in use\n",
    "04_look_inside.py": "purged 1200 KiB\n4073 of 4096 pages free\n",
    "05_out_of_pages.py": "1048576\n",
    "06_address_space.py": "100000\n",
    "07_shared_memory.py": "[0, 2, 4, 6, 8]\n",
    "08_named_regions.py": "[7 7 7]\n42\nTrue\n",
    "09_install_once.py": "True\n2000 1000\n99 1\n0 pages in use\n",
    "11_video_pipeline.py": "every frame arrived: True\n",
    "12_service.py": "500000.0\n500000.0\n['model']\n",
    "10_fork_keeps_arrays.py": "1100 pages in use\n7 7\n1000 pages in use\n",
    "14_numpy_arrays.py": "True\n1000000.0\n0 pages in use\n",
    "15_tables_and_joblib.py": "done\n",
    "16_dataloader.py": "done\n",
    "17_dask.py": "done\n",
}


def test_every_example_is_listed():
    assert sorted(ENDS_WITH) == sorted(p.name for p in EXAMPLES.glob("[0-9]*.py"))


@pytest.mark.parametrize("name", ENDS_WITH)
def test_example(name):
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(ENDS_WITH[name])
