# SPDX-License-Identifier: MIT
"""Names that documents and comments may use though this repository does not define them, with the reason.

test_checker.py fails on an entry that is no longer needed. Builtins, the standard library, numpy and the
names in the kernel's column of docs/kernel-map.md need no entry.
"""

from __future__ import annotations

import re

from tests.docs.sources import text

SYSTEM_PATHS = ("/proc", "/dev", "/sys")

_NAMES = {
    "C and its library": "__ATOMIC_SEQ_CST _Static_assert memcpy clone libvmalloc.so",
    "the compiler's, for SSE2": "immintrin.h _mm_sfence",
    "environment of every program": "PYTHONPATH PIP_CONSTRAINT",
    "the name np.ndarray has for what it lies in": "buffer",
    "of multiprocessing and executors": "Process",
    "of pyarrow, polars, joblib": "pa.array pl.Series.to_numpy joblib.parallel_config",
    "of Dask": "client.gather client.scatter gather scatter Client Client.run direct direct_to_workers",
    "of Ray": "ray.get ray.put ray.util.multiprocessing.Pool max_calls RaySystemError",
    "of torch": "share_memory_ pin_memory default_collate_fn_map torch.from_dlpack collate_fn batch_size"
    " default_convert DataLoader IterableDataset torch.set_num_threads",
    "of prctl()": "PR_SET_DUMPABLE",
    "defined by the build": "VM_HOOKS",
    "pytest's own": "pytest.mark.soak",
    "files that a user's recording is": "kernel.trace.gz kernel.before.vmallocinfo.gz"
    " kernel.after.vmallocinfo.gz",
    "line of /proc/meminfo": "MemAvailable",
    "of mlockall()": "mlockall MCL_FUTURE MCL_CURRENT MCL_ONFAULT",
    "switch of the kernel": "kernel.kptr_restrict",
    "the kernel's macros": "smp_load_acquire READ_ONCE",
    "the kernel's, named by the model alone": "vb_alloc vb_free purge_fragmented_block addr_to_node_id"
    " encode_vn_id merge_or_add_vmap_area vmalloc_info_show",
    "the kernel's test suite": "do_concurrent_test shuffle_array get_cycles avg",
    "what the kernel, trace-cmd and perf print": "tracer tgid PERF_RECORD_LOST",
    "options of perf and trace-cmd": "--ns --show-lost-events -t",
    "made of two parts in record_kernel.py": "SNAP_BEFORE SNAP_BEFORE_END SNAP_AFTER SNAP_AFTER_END",
    "other programs that read Parquet": "polars.read_parquet duckdb",
    "in lines that describe arguments and output": "NR_PAGES MAX_PAGES NS_PER_PAIR RESIDENT_BYTES",
    "the operation modulo": "mod",
    "a method by name and a stand-in for another": "Block.__dlpack__ VM_POOLS_NAME",
    "read by the benchmarks with a name of their own": "VMALLOC_CFLAGS",
}

_FILES = {
    "the kernel's": "mm/vmalloc.c lib/llist.c lib/test_vmalloc.c include/trace/events/vmalloc.h",
    "another project's": "dlpack.h",
    "made while building": "vmalloc_facts.h ../lib .venv/bin/python",
    "made by spin": "pan.c",
    "example of a machine's costs": "here.toml",
    "example of a recording": "run.trace.gz run.json.gz run.before.vmallocinfo.gz run.after.vmallocinfo.gz"
    " NAME.state0 trace.dat perf.data",
}


def _by_name(groups: dict[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in groups.items() for name in names.split()}


NAMES = _by_name(_NAMES)
FILES = _by_name(_FILES)


def kernel() -> frozenset[str]:
    """Names in the kernel's column of docs/kernel-map.md."""
    rows = [row for row in text("docs/kernel-map.md").splitlines() if row.startswith("|")]
    spans = re.findall(r"`([^`]+)`", " ".join(row.split("|")[1] for row in rows))
    return frozenset(re.findall(r"[A-Za-z_]\w+", " ".join(spans)))


KERNEL = kernel()
