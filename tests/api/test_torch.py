# SPDX-License-Identifier: MIT
"""Tensors in regions: by reference, in both directions, as torch's own ways share them."""

import collections
import gc
import inspect
import json
import multiprocessing
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import time
from multiprocessing.reduction import ForkingPickler

import pytest

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, Dataset, Subset, default_collate  # noqa: E402

import vmalloc  # noqa: E402
import vmalloc.torch  # noqa: E402
from vmalloc.facts import STREAMED_BYTES  # noqa: E402

LARGE = 100_000
Pair = collections.namedtuple("Pair", "image label")


@pytest.fixture
def region():
    with vmalloc.Region("128M") as region:
        vmalloc.install(region)
        yield region
        vmalloc.uninstall()


def sent(x):
    return pickle.loads(ForkingPickler.dumps(x))


def at_rest(region):
    gc.collect()
    stats = region.stats()
    return stats.nr_busy, stats.nr_leases


# ---- made in a region ----


def test_tensors_are_made_in_a_region(region):
    assert vmalloc.region_of(vmalloc.torch.empty(3, 4, region=region)) is region
    made = vmalloc.torch.zeros((2, 5), dtype=torch.bfloat16, region=region)
    assert made.shape == (2, 5)
    assert made.dtype is torch.bfloat16
    assert not made.any()
    assert made.untyped_storage().nbytes() == 20
    assert vmalloc.torch.zeros((), region=region).item() == 0
    assert vmalloc.torch.empty(3, 0, region=region).shape == (3, 0)


def test_from_numpy_shares_what_lies_in_a_region_and_copies_what_does_not(region):
    a = region.zeros(8)
    t = vmalloc.torch.from_numpy(a)
    t[0] = 7
    assert a[0] == 7
    private = np.zeros(8)
    copied = vmalloc.torch.from_numpy(private, region)
    copied[0] = 7
    assert vmalloc.region_of(copied) is region
    assert private[0] == 0


def test_memory_goes_with_the_last_tensor_of_it(region):
    t = vmalloc.torch.zeros(LARGE, region=region)
    view = t[5:]
    del t
    assert at_rest(region)[0] == 1
    del view
    assert at_rest(region) == (0, 0)


def test_dlpack_both_ways_is_a_reference_still(region):
    a = region.zeros(LARGE)
    t = torch.from_dlpack(a)
    sent(t)[1] = 5
    assert a[1] == 5
    back = np.from_dlpack(vmalloc.torch.zeros(LARGE, region=region))
    assert vmalloc.region_of(back) is region
    with region.alloc(4096) as block:
        whole = torch.from_dlpack(block)
        assert vmalloc.region_of(whole) is region
        del whole


# ---- sent ----


def test_a_tensor_of_a_region_is_received_on_the_same_memory_and_stays_where_it_was(region):
    t = vmalloc.torch.zeros(100, 10, region=region)
    where = t.data_ptr()
    got = sent(t)
    got[3, 4] = 1
    assert t[3, 4] == 1
    assert t.data_ptr() == where
    del got
    assert at_rest(region) == (1, 0)


def test_views_of_one_storage_share_one_where_they_are_received(region):
    t = vmalloc.torch.zeros(100, 10, region=region)
    whole, column, turned = sent((t, t[:, 2], t.T))
    assert column.untyped_storage()._cdata == whole.untyped_storage()._cdata
    assert column.stride() == (10,)
    assert column.storage_offset() == 2
    assert turned.shape == (10, 100)
    column[0] = 9
    assert whole[0, 2] == 9
    assert t[0, 2] == 9


def beside_each_other(region, nr=3):
    """Tensors of one block, each with a storage of its own."""
    pages = region.zeros(nr * 4096, "u1")
    return [vmalloc.adapters.torch.tensor_on(pages, i * 4096, (1000,), torch.float32) for i in range(nr)]


def test_storages_of_one_block_need_one_lease_and_are_one_block_still(region):
    sent_tensors = beside_each_other(region)
    message = bytes(ForkingPickler.dumps(sent_tensors))
    assert region.stats().nr_leases == 1
    got = pickle.loads(message)
    assert at_rest(region) == (1, 0)
    for i, t in enumerate(got):
        t[0] = i
    assert [float(t[0]) for t in sent_tensors] == [0, 1, 2]
    assert [t.untyped_storage().nbytes() for t in got] == [4000] * 3
    del sent_tensors, got[0], got[0], t
    assert got[0][0] == 2  # the one that went first is gone
    assert at_rest(region) == (1, 0)
    del got
    assert at_rest(region) == (0, 0)


def test_storages_of_two_blocks_need_two_leases(region):
    message = bytes(ForkingPickler.dumps([beside_each_other(region, 2), beside_each_other(region, 2)]))
    assert region.stats().nr_leases == 2
    assert [len(pair) for pair in pickle.loads(message)] == [2, 2]


def test_a_forged_storage_beside_another_shows_no_other_bytes(region):
    from vmalloc.adapters.torch import load_storage_beside

    first = beside_each_other(region)[0].untyped_storage()
    assert load_storage_beside(first, 4096, 4096).nbytes() == 4096
    for offset, nbytes in ((-1, 8), (3 * 4096, 1), (0, 3 * 4096 + 1), (8, 0), (8, -8), (1 << 70, 8)):
        with pytest.raises(vmalloc.StaleReference):
            load_storage_beside(first, offset, nbytes)
    for other in (torch.ones(8).untyped_storage(), first.nbytes(), None):
        with pytest.raises(vmalloc.StaleReference):
            load_storage_beside(other, 0, 8)


def test_a_storage_beside_a_copied_one_is_copied_with_it():
    from vmalloc.adapters.registry import rebuild
    from vmalloc.adapters.torch import load_storage_beside
    from vmalloc.description import Description

    room = np.arange(8192) % 256
    copied = rebuild(room.astype("u1"), Description(shape=(8,), offset=16, kind="torch.UntypedStorage"))
    assert list(load_storage_beside(copied, 40, 4)) == [40, 41, 42, 43]
    with pytest.raises(vmalloc.StaleReference):
        load_storage_beside(copied, 8190, 4)


def test_parameters_and_requires_grad_go_along(region):
    leaf = vmalloc.torch.zeros(5, region=region).requires_grad_()
    parameter = torch.nn.Parameter(vmalloc.torch.zeros(5, region=region), requires_grad=False)
    got, got_parameter = sent((leaf, parameter))
    assert got.requires_grad
    assert type(got_parameter) is torch.nn.Parameter
    assert not got_parameter.requires_grad
    with pytest.raises(RuntimeError, match="non-leaf"):
        sent(leaf * 2)


def test_a_module_on_region_memory_is_trained_in_place_elsewhere(region):
    model = torch.nn.Linear(4, 2)
    for p in model.parameters():
        p.data = vmalloc.copy_in(p.data, region)
    got = sent(model)
    with torch.no_grad():
        got.weight.fill_(3)
    assert (model.weight == 3).all()


def test_sparse_tensors_go_by_their_parts(region):
    indices = vmalloc.torch.from_numpy(np.array([[0, 1, 1], [2, 0, 2]]), region)
    values = vmalloc.torch.from_numpy(np.array([3.0, 4.0, 5.0]), region)
    got = sent(torch.sparse_coo_tensor(indices, values, (2, 3)))
    assert got.to_dense().tolist() == [[0, 0, 3], [4, 0, 5]]
    values[0] = 8
    assert got.to_dense()[0, 2] == 8


def test_what_lies_in_no_region_goes_torchs_way(region):
    t = torch.zeros(LARGE)
    got = sent(t)
    assert t.is_shared()
    assert got.is_shared()
    assert not vmalloc.is_shared(got)
    t[0] = 1  # as stock: the sender's memory is the receiver's
    assert got[0] == 1
    assert sent(torch.zeros(3, 0)).shape == (3, 0)
    assert sent(torch.empty(3, device="meta")).device.type == "meta"


def test_what_finds_no_lease_goes_as_a_copy_and_stays(region):
    vmalloc.install(region, on_full="copy")
    t = vmalloc.torch.zeros(LARGE, region=region)
    region.close()
    where = t.data_ptr()
    got = sent(t)
    got[0] = 1
    assert t[0] == 0
    assert t.data_ptr() == where
    assert not t.is_shared()


def test_after_uninstall_torch_has_its_own_ways_again(region):
    vmalloc.uninstall()
    t = vmalloc.torch.zeros(LARGE, region=region)
    assert not vmalloc.is_shared(sent(t))
    assert t.is_shared()


def answer(inbox, outbox):
    while (got := inbox.get()) is not None:
        got[0] += 1  # one element: torch's pool of threads does not survive a fork
        outbox.put((got, vmalloc.is_shared(got), vmalloc.torch.zeros(3).dtype))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("library", [multiprocessing, torch.multiprocessing], ids=["stock", "torch"])
def test_queues_carry_them_both_ways(region, method, library):
    context = library.get_context(method)
    inbox, outbox = context.Queue(), context.Queue()
    process = context.Process(target=answer, args=(inbox, outbox))
    process.start()
    t = vmalloc.torch.zeros(LARGE, region=region)
    inbox.put(t)
    got, was_shared, _ = outbox.get(timeout=60)
    inbox.put(None)
    process.join(60)
    assert was_shared
    assert t[0] == 1
    got[0] = 5
    assert t[0] == 5
    del got
    assert at_rest(region) == (1, 0)


# ---- by name, by ref() ----


@pytest.mark.parametrize(
    "change",
    [lambda t: t, lambda t: t[1:, ::2], lambda t: t.T, lambda t: t[1, 1], lambda t: t.expand(3, 4, 6)],
)
def test_names_keep_tensors(region, change):
    t = change(vmalloc.torch.from_numpy(np.arange(24.0).reshape(4, 6), region))
    region["t"] = t
    got = region["t"]
    assert torch.equal(got, t)
    assert got.stride() == t.stride()
    assert got.data_ptr() == t.data_ptr()
    loaded = pickle.loads(pickle.dumps(vmalloc.ref(t)))
    assert loaded.data_ptr() == t.data_ptr()


def test_names_copy_private_tensors_in_and_keep_what_they_are(region):
    region["p"] = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    got = region["p"]
    assert type(got) is torch.nn.Parameter
    assert got.requires_grad
    assert got.dtype is torch.bfloat16
    assert vmalloc.region_of(got) is region


def test_what_cannot_be_copied_in_says_why(region):
    for bad in (torch.eye(3).to_sparse(), torch.zeros(0)):
        with pytest.raises(TypeError, match="tensor"):
            vmalloc.copy_in(bad, region)
    leaf = vmalloc.torch.zeros(3, region=region).requires_grad_()
    with pytest.raises(TypeError, match="detach"):
        vmalloc.ref(leaf.view(3, 1))


def test_a_forged_description_shows_no_other_bytes(region):
    from vmalloc.adapters.registry import rebuild
    from vmalloc.description import Description

    owner = region.zeros(4096, "u1").base
    true = Description(None, (4,), (4,), 0, False, b"\0float32", "torch.Tensor")
    assert rebuild(owner, true).tolist() == [0, 0, 0, 0]
    for change in (
        {"offset": 4090},
        {"offset": -4},
        {"shape": (2000,)},
        {"strides": (1 << 62,)},
        {"strides": (-4,)},
        {"strides": (3,)},
        {"shape": (-1,)},
        {"extra": b""},
        {"extra": b"\0nn"},
        {"strides": None},
    ):
        with pytest.raises(vmalloc.StaleReference):
            rebuild(owner, true._replace(**change))
    for shape, offset in (((5000,), 0), ((8,), 4090), ((0,), 0), ((-8,), 16), ((8,), -8), ((), 0)):
        with pytest.raises(vmalloc.StaleReference):
            rebuild(owner, Description(shape=shape, offset=offset, kind="torch.UntypedStorage"))


DTYPES = [
    "bool",
    "uint8",
    "int16",
    "float16",
    "bfloat16",
    "float64",
    "complex64",
    "complex128",
    "float8_e4m3fn",
]


@pytest.mark.parametrize("name", DTYPES)
def test_tensors_of_every_dtype_and_shape_arrive_on_the_same_memory(region, name):
    dtype = getattr(torch, name)
    a = vmalloc.torch.zeros(4, 1, 500, dtype=dtype, region=region)
    for x in (a, a[1:3, 0, ::7], a.transpose(0, 2), a.expand(4, 3, 500), a[2, 0, 5]):
        for got in (sent(x), pickle.loads(pickle.dumps(vmalloc.ref(x)))):
            assert (got.dtype, got.shape, got.stride()) == (dtype, x.shape, x.stride())
            assert vmalloc.region_of(got) is region


def test_one_storage_seen_as_several_dtypes_is_one_storage_still(region):
    floats = vmalloc.torch.zeros(2000, region=region)
    got_floats, got_ints, got_bytes = sent((floats, floats.view(torch.int32), floats.view(torch.uint8)[8:12]))
    got_floats[2] = 1.0
    assert got_ints[2] == floats.view(torch.int32)[2]
    assert got_bytes.tolist() == [0, 0, 128, 63]
    assert floats[2] == 1.0


# ---- DataLoader ----


class Samples(Dataset):
    def __init__(self, n=64, dies_at=None, numbers=3000):
        self.n, self.dies_at, self.numbers = n, dies_at, numbers

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return {
            "pair": Pair(torch.full((self.numbers,), float(i)), i),
            "array": np.full((2, self.numbers), i % 256, "u1"),
            "rest": (i / 2, np.float32(i), i % 2 == 0, f"sample {i}", [torch.tensor(i)]),
        }


def leaves(x):
    if isinstance(x, dict):
        x = list(x.values())
    return [leaf for item in x for leaf in leaves(item)] if isinstance(x, list | tuple) else [x]


def loader(region, data, **options):
    return DataLoader(data, 8, num_workers=2, collate_fn=vmalloc.torch.collate, **options)


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_batches_are_as_torch_makes_them_and_lie_in_one_block(region, context):
    data = Samples(20)
    got = list(loader(region, data, multiprocessing_context=context))
    expected = list(DataLoader(data, 8))
    for ours, stock in zip(got, expected, strict=True):
        assert type(ours["pair"]) is Pair
        assert ours["rest"][3] == stock["rest"][3]
        for a, b in zip(leaves(ours), leaves(stock), strict=True):
            if isinstance(b, torch.Tensor):
                assert torch.equal(a, b)
                assert a.dtype is b.dtype
                assert vmalloc.region_of(a) is region
    assert region.stats().nr_busy == len(got)
    del got, ours, a
    assert at_rest(region) == (0, 0)


def seed(worker):
    torch.manual_seed(worker)


@pytest.mark.parametrize(
    "options",
    [
        {"prefetch_factor": 8, "persistent_workers": True},
        {"timeout": 100},
        {"worker_init_fn": seed},
        {"in_order": False},
        {"drop_last": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_batches_come_by_reference_whatever_the_loader_is_told(region, options):
    if "in_order" in options and "in_order" not in inspect.signature(DataLoader.__init__).parameters:
        pytest.skip("this torch does not know it")
    got = list(loader(region, Subset(Samples(), range(8, 56)), **options))
    labels = sorted(label for batch in got for label in batch["pair"].label.tolist())
    assert labels == list(range(8, 56))
    assert all(vmalloc.region_of(batch["array"]) is region for batch in got)
    del got
    assert at_rest(region) == (0, 0)


def large_samples(nr=4, side=600):
    """Such that a batch of them is copied past the caches; some are not to be copied byte by byte."""
    wide = torch.arange(nr * side * side, dtype=torch.float32).reshape(nr, side, side)
    odd = torch.arange(nr * 1001, dtype=torch.int16).reshape(nr, 1001).to(torch.bfloat16)
    complex_ones = torch.complex(wide, wide)[:, :3, :3]
    return [
        {
            "wide": wide[i],
            "odd": odd[i],
            "turned": wide[i].T,
            "conjugated": complex_ones[i].conj(),
            "negated": complex_ones[i].conj().imag,
            "truth": wide[i] > 7,
            "none": torch.empty(0),
        }
        for i in range(nr)
    ]


def test_large_batches_are_as_torch_makes_them(region, monkeypatch):
    monkeypatch.setattr(vmalloc.torch, "get_worker_info", lambda: 1)
    batch = large_samples()
    ours, stock = vmalloc.torch.collate(batch), default_collate(batch)
    assert ours["wide"].nbytes + ours["turned"].nbytes > STREAMED_BYTES
    for name, expected in stock.items():
        assert torch.equal(ours[name], expected), name
        assert (ours[name].dtype, ours[name].stride()) == (expected.dtype, expected.stride())
        assert not ours[name]._is_view()
        assert expected.numel() == 0 or vmalloc.region_of(ours[name]) is region
    assert len({vmalloc.adapters.holding_of(t).offset for t in ours.values() if t.numel()}) == 1


def test_samples_of_different_shapes_are_refused_as_by_torch(region, monkeypatch):
    monkeypatch.setattr(vmalloc.torch, "get_worker_info", lambda: 1)
    with pytest.raises(RuntimeError, match="equal size"):
        vmalloc.torch.collate([torch.ones(1 << 20), torch.ones((1 << 20) + 1)])


def test_a_leaf_is_saved_without_the_rest_of_its_batch(region, tmp_path):
    batch = next(iter(loader(region, Samples())))
    torch.save(batch, tmp_path / "batch")
    torch.save(batch["pair"].label, tmp_path / "label")
    assert (tmp_path / "label").stat().st_size < 4096
    assert torch.equal(torch.load(tmp_path / "batch", weights_only=False)["array"], batch["array"])


def test_without_workers_or_install_batches_are_torchs(region):
    assert not vmalloc.is_shared(vmalloc.torch.collate([torch.ones(3)]))
    vmalloc.uninstall()
    batch = next(iter(loader(region, Samples())))
    assert batch["pair"].image.is_shared()
    assert not vmalloc.is_shared(batch["pair"].image)


def test_persistent_workers_give_back_what_epochs_left_early_made(region):
    loaded = loader(region, Samples(), persistent_workers=True)
    for _ in range(6):
        for batch in loaded:
            assert vmalloc.is_shared(batch["array"])
            break
    assert len([vmalloc.is_shared(batch["array"]) for batch in loaded]) == 8
    del batch
    assert at_rest(region) == (0, 0)


def test_epochs_left_early_and_killed_workers_never_fill_a_small_region():
    with vmalloc.Region("2M") as region:  # room for a dozen batches
        vmalloc.install(region)
        for _ in range(10):
            for batch in loader(region, Samples()):
                assert vmalloc.is_shared(batch["array"])
                break
            with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed"):
                list(loader(region, Samples(dies_at=11)))
        del batch
        ends = time.monotonic() + 60
        while at_rest(region) != (0, 0) and time.monotonic() < ends:
            time.sleep(0.05)
        assert at_rest(region) == (0, 0)  # ended by themselves: nobody asked for it
        vmalloc.uninstall()


def test_batches_of_a_full_region_are_torchs(region):
    vmalloc.install(region, on_full="copy")
    held = region.alloc(region.nr_pages * 4096)
    batches = list(loader(region, Samples(16)))
    assert all(batch["array"].is_shared() for batch in batches)
    held.release()


def test_types_that_torchs_map_knows_are_used_as_they_are(region, monkeypatch):
    from torch.utils.data._utils import collate as stock

    monkeypatch.setitem(stock.default_collate_fn_map, Odd, collate_odd)
    data = [Odd(torch.full((LARGE,), float(i))) for i in range(16)]
    batch = next(iter(loader(region, data, multiprocessing_context="fork")))
    assert type(batch) is Odd
    assert batch.value[3, 0] == 3


class Odd:
    def __init__(self, value):
        self.value = value


def collate_odd(batch, *, collate_fn_map):
    return Odd(default_collate([item.value for item in batch]))


# ---- single samples ----


class Batches(Dataset):
    """Makes whole batches by itself."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.make(i)


def made_whole(i):
    return {"x": torch.full((4, LARGE), float(i)), "pair": Pair(np.full(LARGE, i), f"batch {i}"), "nr": i}


def placed_already(i):
    return vmalloc.torch.zeros(LARGE), torch.ones(LARGE, requires_grad=True), torch.ones(3).to_sparse()


def converted(make):
    return list(DataLoader(Batches(make), batch_size=None, num_workers=2, collate_fn=vmalloc.torch.convert))


def test_batches_that_a_dataset_makes_are_converted_as_by_torch_and_lie_in_one_block(region):
    for ours, stock in zip(
        converted(made_whole), DataLoader(Batches(made_whole), batch_size=None), strict=True
    ):
        assert type(ours["pair"]) is Pair
        assert (ours["pair"].label, ours["nr"]) == (stock["pair"].label, stock["nr"])
        for a, b in ((ours["x"], stock["x"]), (ours["pair"].image, stock["pair"].image)):
            assert torch.equal(a, b)
            assert vmalloc.region_of(a) is region
        assert abs(ours["x"].data_ptr() - ours["pair"].image.data_ptr()) < 5 * LARGE * 8
    del ours, a
    assert at_rest(region) == (0, 0)


def test_convert_leaves_alone_what_lies_in_a_region_or_is_not_dense_or_has_a_gradient(region):
    for placed, grad, sparse in converted(placed_already):
        assert vmalloc.is_shared(placed)
        assert grad.requires_grad
        assert not vmalloc.is_shared(grad)
        assert sparse.is_sparse


def test_without_workers_or_install_convert_is_torchs(region):
    assert not vmalloc.is_shared(vmalloc.torch.convert(np.ones(LARGE)))
    vmalloc.uninstall()
    assert not any(vmalloc.is_shared(x["x"]) for x in converted(made_whole))


@pytest.mark.parametrize("sample", [torch.ones(3, 4), {"x": torch.ones(3)}], ids=["tensor", "dict"])
def test_collate_of_a_single_sample_says_what_is_for_it(region, sample):
    with pytest.raises(TypeError, match=r"batch_size=None.*vmalloc\.torch\.convert"):
        vmalloc.torch.collate(sample)


FORKS_AFTER_A_COPY = """
import os
import numpy, torch, vmalloc

torch.set_num_threads(4)
x = torch.from_numpy(numpy.ones({numbers}, "f4"))  # torch's arange() would start them before we look
with vmalloc.Region("16M") as region:
    vmalloc.copy_in(x[:1], region)
    before = len(os.listdir("/proc/self/task"))
    kept = [vmalloc.copy_in(a, region) for a in (x, torch.nn.Parameter(x), x.view(torch.bfloat16)[None])]
    assert len(os.listdir("/proc/self/task")) == before
    torch.empty_like(x).copy_(x)
    assert len(os.listdir("/proc/self/task")) > before  # so it would have been seen
"""


def test_to_copy_a_tensor_in_starts_no_thread_that_a_fork_would_lose():
    script = FORKS_AFTER_A_COPY.format(numbers=LARGE)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.ones(2, dtype=torch.cfloat).conj(),
        torch.tensor(3.0),
        torch.tensor([True, False]),
        torch.arange(6)[::2],
    ],
    ids=["turned", "conjugated", "one number", "truth", "every other"],
)
def test_a_tensor_is_copied_in_as_it_is(region, x):
    copy = vmalloc.copy_in(x, region)
    assert torch.equal(copy, x)
    assert (copy.dtype, copy.shape, copy.is_contiguous()) == (x.dtype, x.shape, True)
    assert vmalloc.region_of(copy) is region


def test_the_page_of_the_documents_runs(tmp_path):
    page = (pathlib.Path(__file__).parents[2] / "docs" / "pytorch.md").read_text()
    script = tmp_path / "page.py"
    script.write_text("".join(re.findall(r"(?ms)^```python\n(.*?)^```$", page)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_descriptors_stay_as_many(region):
    loaded = loader(region, Samples(400, numbers=50))
    counts = []
    kept = []
    for batch in loaded:
        kept.append(batch)
        counts.append(len(os.listdir("/proc/self/fd")))
    assert len(kept) == 50
    assert counts[-1] == counts[5]


EARLY_EPOCHS = pathlib.Path(__file__).with_name("early_epochs.py")
IN_A_SMALL_SHM = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]


def keeps_nothing(nr_epochs, region_mib, batch_mib, *before):
    """Of epochs that end too early, with 64 descriptors; `before`: what the command begins with."""
    numbers = map(str, (nr_epochs, region_mib, batch_mib))
    command = [*before, sys.executable, EARLY_EPOCHS, *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    early, late = told.pop("descriptors")
    assert told["at_rest"]
    assert not before or told["files"] == []  # elsewhere others make files, too
    return late <= early


def small_shm():
    try:
        subprocess.run([*IN_A_SMALL_SHM, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a /dev/shm of one's own needs unshare, and root")
    return IN_A_SMALL_SHM


def test_epochs_that_end_too_early_keep_neither_pages_nor_descriptors():
    assert keeps_nothing(10, 128, 4)


@pytest.mark.soak
def test_200_epochs_end_too_early_in_a_small_shm():
    assert keeps_nothing(200, 512, 16, *small_shm())


@pytest.mark.soak
def test_10_000_batches_take_the_same_descriptors(region):
    counts = []
    for batch in loader(region, Samples(80_000, numbers=50)):
        assert vmalloc.is_shared(batch["array"])
        counts.append(len(os.listdir("/proc/self/fd")))
    assert len(counts) == 10_000
    assert min(counts[5000:]) <= min(counts[10:5000])  # some are open for a moment only
    del batch
    assert at_rest(region) == (0, 0)
