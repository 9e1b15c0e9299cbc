# SPDX-License-Identifier: MIT
"""Ray, which has no adapter: what docs/ray.md says of a region beside it."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

np = pytest.importorskip("numpy")
ray = pytest.importorskip("ray")

import vmalloc  # noqa: E402

LARGE = 300_000


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    with vmalloc.Region("64M", name=f"beside-ray-{os.getpid()}") as region:
        ray.init(
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 << 20,
            _temp_dir=str(tmp_path_factory.mktemp("r")),
        )
        yield region
        ray.shutdown()


def look(x):
    return vmalloc.is_shared(x), x.flags.writeable


def fill(region, key):
    region[key] = region.full(LARGE, 2.0)


def make(region):
    return vmalloc.ref(region.full(LARGE, 2.0))


def far(function, *arguments):
    return ray.get(ray.remote(function).remote(*arguments))


def test_a_ref_is_the_array_itself(region):
    kept = vmalloc.ref(region.full(LARGE, 1.0))
    assert far(look, kept) == (True, True)
    put = ray.put(kept)
    assert [far(look, put), far(look, put)] == [(True, True)] * 2


def test_an_array_of_a_region_goes_by_value_also_after_install(region):
    vmalloc.install(region)
    try:
        assert far(look, region.full(LARGE, 1.0)) == (False, False)
    finally:
        vmalloc.uninstall()


def test_a_task_hands_a_result_over_by_a_name(region):
    far(fill, region, "result")
    assert region["result"][0] == 2.0
    del region["result"]


def test_a_ref_that_a_task_returns_is_gone(region):
    with pytest.raises(ray.exceptions.RaySystemError, match="the range was freed"):
        far(make, region)


def test_the_page_of_the_documents_runs(tmp_path):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "ray.md").read_text()
    script = tmp_path / "page.py"
    script.write_text("".join(re.findall(r"(?ms)^```python\n(.*?)^```$", page)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
