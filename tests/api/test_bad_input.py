# SPDX-License-Identifier: MIT
"""Bad input: one of our errors with the numbers in it, never a crash, never a corrupt region."""

from __future__ import annotations

import fcntl
import importlib.metadata
import os
import pickle
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from tests.conftest import PAGE, assert_at_rest

import vmalloc
from vmalloc import facts
from vmalloc._core import split_reference
from vmalloc.adapters.registry import rebuild
from vmalloc.description import Description, decode
from vmalloc.facts import REGION_NAME_BYTES_MAX
from vmalloc.region import region_at

HUGE = [2**40, 2**62, 2**62 + 1, 2**63, 2**64, 2**70]


@pytest.fixture
def region():
    region = vmalloc.Region("16M")
    yield region
    for name in region:
        del region[name]
    assert_at_rest(region)
    assert region.stats().busy_pages == 0


def number(n):
    return re.escape(str(n))


@pytest.mark.parametrize("nbytes", [0, -1, -(2**70)])
def test_sizes_must_be_positive(region, nbytes):
    for call in (region.alloc, lambda n: region.alloc_bulk(n, 3)):
        with pytest.raises(ValueError, match=f"nbytes must be positive, not {number(nbytes)}"):
            call(nbytes)


@pytest.mark.parametrize("nbytes", HUGE)
def test_huge_sizes_are_out_of_pages(region, nbytes):
    for call in (
        region.alloc,
        lambda n: region.alloc_bulk(n, 1),
        lambda n: region.alloc_bulk(PAGE, n),
        lambda n: region.empty(n, "u1"),
        lambda n: region.zeros((n, n), "f8"),
        lambda n: region.empty((3, n), "V4000"),
    ):
        with pytest.raises(vmalloc.OutOfPages, match=r"\d"):
            call(nbytes)


@pytest.mark.parametrize("align", [0, -1, -4096, 3, 4097, 2**62 + 1])
def test_alignments_must_be_powers_of_two(region, align):
    for call in (lambda a: region.alloc(10, a), lambda a: region.alloc_bulk(10, 2, align=a)):
        with pytest.raises(ValueError, match=f"align must be a power of two.*{number(align)}"):
            call(align)


@pytest.mark.parametrize("align", [2**40, 2**62])
def test_huge_alignments_are_out_of_pages(region, align):
    with pytest.raises(vmalloc.OutOfPages):
        region.alloc(10, align)


@pytest.mark.parametrize("wrong", [1.5, 4096.0, "4096", None, b"1", [1], np.float64(3)])
def test_only_integers_are_sizes(region, wrong):
    for call in (
        region.alloc,
        lambda n: region.alloc(10, n),
        lambda n: region.alloc_bulk(10, n),
        lambda n: region.alloc_bulk(n, 1),
        lambda n: region.empty((2, n), "u1"),
    ):
        with pytest.raises(TypeError):
            call(wrong)


def test_numpy_integers_are_sizes(region):
    assert region.alloc(np.int64(5000), np.uint16(4096)).nbytes == 5000
    assert region.empty(np.int32(7), "u1").shape == (7,)
    assert region.empty([np.int32(7), 2], "u1").shape == (7, 2)


@pytest.mark.parametrize("shape", [-1, (2, -3), (-(2**70),)])
def test_negative_dimensions_are_told(region, shape):
    with pytest.raises((ValueError, vmalloc.OutOfPages), match=r"dimension -|larger"):
        region.empty(shape)


@pytest.mark.parametrize("dtype", ["O", object, [("a", "i4"), ("b", "O")]])
def test_dtypes_of_objects_are_refused(region, dtype):
    for call in (region.empty, region.zeros):
        with pytest.raises(TypeError, match="private to a process"):
            call(3, dtype)
    with pytest.raises(TypeError, match="private to a process"):
        region.array([object()])


def test_unknown_orders_and_dtypes_are_refused(region):
    with pytest.raises(ValueError, match="'K'"):
        region.empty(3, order="K")
    with pytest.raises(TypeError):
        region.empty(3, "no such dtype")


@pytest.mark.parametrize("size", [0, -1, "0", "", "8X", "-1G", "nan", "1e3", "8 G B"])
def test_region_sizes_are_checked(size):
    with pytest.raises(ValueError, match=re.escape(repr(size))):
        vmalloc.Region(size)


@pytest.mark.parametrize("name", ["x" * (REGION_NAME_BYTES_MAX + 1), "ü" * 121, "a\0b", "\0"])
def test_a_name_that_a_region_cannot_bear_is_refused_and_not_cut(name):
    for make in (lambda: vmalloc.Region("1M", name=name), lambda: vmalloc.AddressSpace(0, 4096, name=name)):
        with pytest.raises(ValueError, match=r"name takes at most 241 bytes without zeros, not \d+: '"):
            make()


@pytest.mark.parametrize("name", ["x" * REGION_NAME_BYTES_MAX, "ü" * 120])
def test_a_region_bears_the_longest_name_whole(name):
    with vmalloc.Region("1M", name=name) as region:
        assert os.readlink(f"/proc/self/fd/{region.fileno()}") == f"/memfd:vmalloc:{name} (deleted)"
        assert vmalloc.Region.attach(name) is region


@pytest.mark.parametrize("size", [None, 1.5, b"8G", True])
def test_region_sizes_are_bytes_or_text(size):
    with pytest.raises(TypeError, match="size"):
        vmalloc.Region(size)


@pytest.mark.parametrize("size", ["5T", 2**70, "9999999999999T"])
def test_a_region_has_at_most_2_to_the_30_pages(size):
    with pytest.raises(ValueError, match=rf"at most {facts.PAGES_MAX} pages, not \d+"):
        vmalloc.Region(size)


@pytest.mark.parametrize(
    ("option", "value"),
    [("pools", "none"), ("nodes", 0), ("nodes", 129), ("nodes", -1), ("max_threads", 0),
     ("max_threads", 10**6), ("max_processes", 0), ("max_processes", 1024), ("max_processes", -1),
     ("limit", 0), ("limit", "x"), ("lazy_max", -1), ("lock_timeout_s", 0),
     ("lock_timeout_s", float("nan")), ("lock_timeout_s", -1)],
)  # fmt: skip
def test_options_are_checked(option, value):
    with pytest.raises(ValueError, match=re.escape(str(value))):
        vmalloc.Region("1M", **{option: value})


def test_an_endless_lock_timeout_is_fine():
    assert vmalloc.Region("1M", lock_timeout_s=float("inf")).alloc(1).nbytes == 1


@pytest.mark.parametrize(
    ("start", "stop", "more"),
    [(0, 0, {}), (10, 5, {}), (-4096, 4096, {}), (0, 4097, {}), (0, 1 << 70, {}), (0, 4096, {"granule": 3}),
     (0, 4096, {"granule": 0}), (0, 4096, {"on_death": "ignore"}), (0, 1 << 60, {})],
)  # fmt: skip
def test_address_spaces_are_checked(start, stop, more):
    with pytest.raises(ValueError, match=r"\d|ignore"):
        vmalloc.AddressSpace(start, stop, **more)


# ---- blocks ----


def test_a_block_is_released_once(region):
    block = region.alloc(5000)
    other = region.alloc(5000)
    offset = block.offset
    block.release()
    block.release()
    assert block.released
    assert region.stats().busy_pages == 2
    for use in (memoryview, bytes, lambda b: np.frombuffer(b, "u1"), vmalloc.ref, lambda b: b.__dlpack__()):
        with pytest.raises(
            vmalloc.NotAllocated, match=f"block of 5000 bytes at offset {offset} was released"
        ):
            use(block)
    with pytest.raises(vmalloc.NotAllocated):
        region["x"] = block
    assert "released" in repr(block)
    assert not vmalloc.is_shared(block)
    other.release()


def test_a_foreign_block_is_not_taken_for_ours(region):
    other = vmalloc.Region("16M")
    mine, theirs = region.alloc(PAGE), other.alloc(PAGE)
    memoryview(mine)[:], memoryview(theirs)[:] = b"m" * PAGE, b"t" * PAGE
    with pytest.raises(vmalloc.NotAllocated, match="another region"):
        region.free_bulk([mine, theirs])
    assert not mine.released
    with pytest.raises(vmalloc.NotAllocated, match="another region"):
        region._share(theirs)
    region["copied"] = theirs
    assert bytes(region["copied"]) == b"t" * PAGE
    theirs.release()
    assert bytes(region["copied"]) == b"t" * PAGE


def test_free_bulk_takes_blocks_only(region):
    with pytest.raises(TypeError, match="ndarray"):
        region.free_bulk([region.empty(3)])


def test_blocks_are_not_made_by_hand():
    for kind in (vmalloc.Block, vmalloc._core.ArrayOwner, vmalloc._core.Holding):
        with pytest.raises(TypeError, match="made by a region"):
            kind()


# ---- closed ----


def test_a_closed_region_says_so_and_its_arrays_live_on(region):
    other = vmalloc.Region("1M")
    a, block = other.full(10, 7), other.alloc(100)
    other["a"] = a
    with other:
        pass
    for use in (
        lambda: other.alloc(1), lambda: other.alloc_bulk(1, 1), lambda: other.empty(1), lambda: other.stats(),
        lambda: other.ranges(), lambda: other.purge(), lambda: other.shrink(), lambda: other.recover(),
        lambda: other.check(), lambda: other.names(), lambda: other["a"], lambda: other.__delitem__("a"),
        lambda: other.fileno(), lambda: other.id, lambda: pickle.dumps(other), lambda: other.fail_every(1),
        lambda: vmalloc.ref(a), lambda: other.__enter__(), lambda: other.__setitem__("b", a),
    ):  # fmt: skip
        with pytest.raises(vmalloc.RegionClosed, match="closed"):
            use()
    assert repr(other) == "<vmalloc.Region closed>"
    assert a.tolist() == [7] * 10
    block.release()
    other.close()


# ---- names ----


@pytest.mark.parametrize("name", ["", "x" * 64, "ü" * 32, "a\0b"])
def test_names_take_1_to_63_bytes(region, name):
    with pytest.raises(ValueError, match="1 to 63 bytes"):
        region[name] = np.zeros(3)
    with pytest.raises(ValueError, match="1 to 63 bytes"):
        region[name]


@pytest.mark.parametrize("name", [1, None, b"a", ("a",)])
def test_names_are_text(region, name):
    with pytest.raises(TypeError):
        region[name] = np.zeros(3)
    with pytest.raises(TypeError):
        region[name]
    assert name not in region


def test_a_description_that_is_too_long_to_keep_is_refused(region):
    wide = np.dtype([(f"field_{i}", "f8") for i in range(40)])
    with pytest.raises(ValueError, match=r"too long to keep \(\d+ bytes; at most 416\)"):
        region["wide"] = region.zeros(1, wide)
    assert list(region) == []


def test_a_region_keeps_1024_names(region):
    a = region.zeros(1)
    for i in range(1024):
        region[f"n{i}"] = a
    with pytest.raises(vmalloc.OutOfPages, match="1024 names"):
        region["one more"] = a
    assert len(region) == 1024


# ---- what is attached ----


def memfd_of(data, size=None, *, seal=True):
    import fcntl

    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.truncate(fd, len(data) if size is None else size)
    os.pwrite(fd, data, 0)
    if seal:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


@pytest.mark.parametrize("fd", [-1, 10**6, 2**31, 2**70, -(2**40)])
def test_a_descriptor_that_is_not_open_is_unavailable(fd):
    with pytest.raises(vmalloc.RegionUnavailable, match=number(fd)):
        vmalloc.Region.attach(fd)


@pytest.mark.parametrize("path", ["/no/such/file", "/proc/1/fd/999999", "/", "a\0b"])
def test_a_path_to_nothing_is_unavailable(path):
    with pytest.raises(vmalloc.RegionUnavailable, match=re.escape(path.replace("\0", "\\x00"))):
        vmalloc.Region.attach(path)


def test_what_is_no_region_is_unavailable(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(os.urandom(100_000))
    ends = os.pipe()
    empty, noise = memfd_of(b""), memfd_of(os.urandom(1 << 16))
    for source in (file, "/dev/null", "/dev/zero", ends[0], empty, noise):
        with pytest.raises(vmalloc.RegionUnavailable, match="no vmalloc region"):
            vmalloc.Region.attach(source)
    for fd in (*ends, empty, noise):
        os.close(fd)


FIELDS = {  # of vm_header (core/base/layout.h): offset, format, values
    "magic": (0, "<Q", [0, 1]),
    "format": (8, "<I", [0, 77, 2**32 - 1]),
    "page_bytes": (12, "<I", [0, 1, 65536]),
    "total_bytes": (48, "<Q", [0, 1, 2**63, 2**64 - 1]),
    "nr_pages": (56, "<Q", [0, 1, 2**30, 2**63, 2**64 - 1]),
    "granule_bytes": (64, "<Q", [0, 1, 3, 2**63]),
    "pools": (80, "<I", [len(facts.POOLS), 2**32 - 1]),
    "flags": (84, "<I", [1]),
    "nr_nodes": (88, "<I", [0, 129, 2**32 - 1]),
    "nr_threads": (92, "<I", [0, 255, 4097, 2**32 - 1]),
    "nr_processes": (284, "<I", [0, 1, 254, 256, 1087, 2**32 - 1]),
    "nr_levels": (96, "<I", [0, 99]),
    "ready": (100, "<I", [0]),
    "off_processes": (104, "<Q", [0, 2**63]),
    "off_data": (168, "<Q", [0, 2**63]),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_header_that_lies_is_refused(region, field):
    offset, form, values = FIELDS[field]
    head = os.pread(region.fileno(), 1 << 16, 0)
    size = os.fstat(region.fileno()).st_size
    for value in values:
        lying = bytearray(head)
        struct.pack_into(form, lying, offset, value)
        fd = memfd_of(bytes(lying), size)
        with pytest.raises(vmalloc.RegionUnavailable, match=rf"descriptor {fd} is .*(region|page size)"):
            vmalloc.Region.attach(fd)
        os.close(fd)


def test_a_region_of_another_version_or_page_size_is_named_as_such(region):
    head = bytearray(os.pread(region.fileno(), 1 << 16, 0))
    struct.pack_into("<I", head, 8, 77)
    fd = memfd_of(bytes(head), os.fstat(region.fileno()).st_size)
    with pytest.raises(vmalloc.RegionUnavailable, match="another format or page size"):
        vmalloc.Region.attach(fd)
    os.close(fd)


def test_a_truncated_region_is_refused(region):
    for size in (8, 31, 100, 4096, 1 << 16, os.fstat(region.fileno()).st_size - 1):
        fd = memfd_of(os.pread(region.fileno(), min(size, 1 << 16), 0), size)
        with pytest.raises(vmalloc.RegionUnavailable, match="damaged or truncated"):
            vmalloc.Region.attach(fd)
        os.close(fd)


def test_a_file_that_could_shrink_under_us_is_refused(region):
    size = os.fstat(region.fileno()).st_size
    fd = memfd_of(os.pread(region.fileno(), 1 << 16, 0), size, seal=False)
    with pytest.raises(vmalloc.RegionUnavailable, match=f"descriptor {fd}"):
        vmalloc.Region.attach(fd)
    os.close(fd)


# ---- forged references ----


def forge(ref, **changes):
    """Loads what a reference would be, were it not for `changes`, that could not all be encoded."""
    _, (packed,) = ref.__reduce__()
    page, id, lease, nbytes, described, where = split_reference(packed)
    description = decode(described)._asdict()
    parts = {"page": page, "id": id, "lease": lease, "nbytes": nbytes}
    parts |= {key: value for key, value in changes.items() if key in parts}
    description |= {key: value for key, value in changes.items() if key in description}

    def load():
        there = region_at(changes.get("where", pickle.loads(where)))
        return rebuild(there._adopt(**parts), Description(**description))

    return load


@pytest.mark.parametrize(
    "changes",
    [{"page": 1}, {"page": -1}, {"page": 2**40}, {"page": 2**70}, {"page": None}, {"page": 1.5},
     {"id": 0}, {"id": -1}, {"id": 2**70}, {"id": "x"}, {"id": 2**64 - 1},
     {"nbytes": -1}, {"nbytes": 2**62}, {"nbytes": 2**70}, {"nbytes": 3 * PAGE}, {"nbytes": None},
     {"shape": (10**6,)}, {"shape": (-1,)}, {"shape": (2**62, 2**62)}, {"shape": "ab"}, {"shape": None},
     {"shape": (1.5,)}, {"shape": (11, 10)}, {"shape": (1,) * 200},
     {"strides": (2**40,)}, {"strides": (-8,)}, {"strides": ()}, {"strides": "x"}, {"strides": (8, 8)},
     {"offset": -8}, {"offset": -PAGE}, {"offset": 8}, {"offset": PAGE},
     {"offset": 2**40}, {"offset": 2**70}, {"offset": None},
     {"dtype": "O"}, {"dtype": "no"}, {"dtype": None, "shape": (10**5,)}, {"dtype": "V4000"}],
    ids=str,
)  # fmt: skip
def test_a_forged_reference_is_stale(region, changes):
    a = region.zeros(100)
    keep = region.full(2 * PAGE, 9, "u1")
    ref = vmalloc.ref(a)
    with pytest.raises(vmalloc.StaleReference, match=r"reference|names"):
        forge(ref, **changes)()
    assert (a == 0).all()
    assert (keep == 9).all()
    assert forge(ref)().shape == (100,)


NOBODY = (bytes(16), 1, 1, 1, 1, None, None)


@pytest.mark.parametrize(
    "where",
    [NOBODY, (b"xyz", *NOBODY[1:]), NOBODY[:5], ("0" * 32, *NOBODY[1:]), (*NOBODY[:1], 10**9, *NOBODY[2:]),
     (*NOBODY[:1], -1, *NOBODY[2:]), (*NOBODY[:1], "a", *NOBODY[2:]), (), None, 7, "no"],
    ids=str,
)  # fmt: skip
def test_a_reference_into_no_region_is_unavailable(region, where):
    ref = vmalloc.ref(region.zeros(3))
    with pytest.raises(vmalloc.RegionUnavailable, match=r"cannot be reached|tells of no region"):
        forge(ref, where=where)()


def test_a_reference_to_an_unshared_range_is_stale(region):
    ref = vmalloc.ref(region.zeros(3))
    private = region.alloc(PAGE)
    page, _, id = private._range
    with pytest.raises(vmalloc.StaleReference):
        forge(ref, page=page, id=id)()
    private.release()


# ---- limits of the process and the machine ----


def limited(code, prefix):
    """Runs `code` in an interpreter under shell limits; must end by itself, without a signal."""
    done = subprocess.run(
        ["bash", "-c", f'{prefix} exec "$0" -c "$1"', sys.executable, code],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


TRY = """
import vmalloc
try:
    vmalloc.Region("64G")
except vmalloc.RegionUnavailable as e:
    print(e)
region = vmalloc.Region("{small}")
held = []
try:
    while True: held.append(region.zeros(1 << 20, "u1")); held[-1][:] = 1
except vmalloc.OutOfPages as e:
    print(len(held), e)
"""


def test_under_ulimit_v_a_region_that_does_not_fit_is_unavailable():
    out = limited(TRY.format(small="16M"), "ulimit -v 4000000;")
    assert "cannot create a region of 16777216 pages: Cannot allocate memory" in out
    assert "\n16 256 pages requested" in out


def test_under_ulimit_f_no_signal_is_sent():
    out = limited("import vmalloc\n" + TRY.format(small="1M"), "ulimit -f 100000;")
    assert "cannot create a region of 16777216 pages: File too large" in out
    assert "\n1 256 pages requested" in out


def test_dev_shm_is_not_used():
    def used():
        s = os.statvfs("/dev/shm")
        return s.f_blocks - s.f_bfree, sorted(n for n in os.listdir("/dev/shm") if "vmalloc" in n)

    before = used()[1]
    region = vmalloc.Region("1G")
    a = region.full(100 << 20, 1, "u1")
    assert used()[1] == before
    assert a.sum() == 100 << 20


def test_a_region_of_a_tebibyte_costs_kilobytes():
    region = vmalloc.Region("1T")
    assert region.stats().resident_bytes <= 512 << 10
    assert region.nr_pages == 1 << 28
    a = region.zeros(1 << 30, "u1")
    a[-1] = 1
    assert region.stats().resident_bytes <= 4 << 20
    region.check()


@pytest.mark.skipif(
    not os.access("/sys/fs/cgroup/memory/tasks", os.W_OK), reason="no writable cgroup v1 memory"
)
def test_a_memory_limit_of_the_cgroup_gives_out_of_pages():
    group = f"/sys/fs/cgroup/memory/vmalloc-test-{os.getpid()}"
    try:
        os.mkdir(group)
    except OSError as e:
        pytest.skip(f"cannot make a memory cgroup: {e}")
    code = f"""
import os
open({group + "/tasks"!r}, "w").write(str(os.getpid()))
import vmalloc, numpy
region = vmalloc.Region("4G")
held = []
try:
    while True: held.append(region.empty(1 << 20, "u1")); held[-1][:] = 1
except vmalloc.OutOfPages as e:
    print(len(held))
"""
    try:
        with open(group + "/memory.limit_in_bytes", "w") as f:
            f.write(str(300 << 20))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")
        assert 100 <= int(done.stdout) < 300
    finally:
        os.rmdir(group)


def test_a_region_of_another_version_is_refused_with_both_versions_named(region, tmp_path):
    head = os.pread(region.fileno(), 1 << 16, 0)
    fd = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, os.fstat(region.fileno()).st_size)
    newer = head[:8] + (77).to_bytes(4, "little") + head[12:32] + b"9.8.7".ljust(16, b"\0") + head[48:]
    os.pwrite(fd, newer, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with pytest.raises(vmalloc.RegionUnavailable) as refused:
        vmalloc.Region.attach(fd)
    os.close(fd)
    assert "format 77, of vmalloc 9.8.7" in str(refused.value)
    ours = importlib.metadata.version("vmalloc")
    assert f"this is vmalloc {ours}, which reads format {facts.FORMAT}" in str(refused.value)
