# SPDX-License-Identifier: MIT
"""Tables and frames go by reference: their buffers, and what was put() into one block."""

import pickle
from multiprocessing.reduction import ForkingPickler

import pytest

np = pytest.importorskip("numpy")
pa = pytest.importorskip("pyarrow")

import vmalloc  # noqa: E402
import vmalloc.arrow  # noqa: E402

NR = 50_000


@pytest.fixture
def region():
    with vmalloc.Region("128M") as region:
        vmalloc.install(region)
        yield region
        vmalloc.uninstall()


@pytest.fixture
def table():
    words = [f"a word that is longer than a view, number {i}" if i % 7 else None for i in range(NR)]
    return pa.table(
        {
            "number": np.arange(float(NR)),
            "word": words,
            "kind": pa.array(["red", "green"] * (NR // 2)).dictionary_encode(),
            "date": pa.array(np.arange(NR).astype("M8[s]")),
            "parts": pa.array([[i, i] for i in range(NR)]),
        }
    )


def sent(x):
    """The message, and what is received."""
    message = ForkingPickler.dumps(x)
    return len(message), pickle.loads(message)


def test_a_table_goes_as_references_to_its_buffers(region, table):
    nbytes, got = sent(table)
    assert nbytes < table.nbytes // 10
    assert got.equals(table)
    assert vmalloc.is_shared(got["number"].chunk(0).to_numpy())
    again, got_again = sent(got)
    assert again < table.nbytes // 10
    assert got_again["number"].chunk(0).buffers()[1].address == got["number"].chunk(0).buffers()[1].address


def test_chunks_and_slices_stay_what_they_are(region, table):
    chunked = pa.concat_tables([table, table.slice(100, 30_000), table.slice(0, 0)])
    assert sent(chunked)[1].equals(chunked)
    assert sent(table["word"])[1].equals(table["word"])
    assert sent(table.to_batches()[0].slice(5))[1].equals(table.to_batches()[0].slice(5))


def test_received_buffers_are_immutable(region):
    got = sent(pa.array(np.arange(float(NR))))[1]
    assert not got.buffers()[1].is_mutable
    assert not got.to_numpy().flags.writeable


def test_nothing_stays_when_all_are_gone(region, table):
    _, got = sent(table)
    del got
    put = vmalloc.arrow.put(table, region)
    _, got = sent(put)
    del got, put
    stats = region.stats()
    assert (stats.nr_busy, stats.nr_leases) == (0, 0)


def test_put_makes_one_block_and_one_reference(region, table):
    put = vmalloc.arrow.put(table, region)
    assert put.equals(table)
    assert region.stats().nr_busy == 1
    assert vmalloc.arrow.put(put, region) is put
    nbytes, got = sent(put)
    assert nbytes < 500
    assert got.equals(table)
    assert region.stats().nr_busy == 1
    part = put.slice(10, 20_000)
    assert sent(part)[1].equals(part)
    assert region.stats().nr_busy == 1


def test_names_and_refs_keep_tables(region, table):
    region["table"] = table
    assert region["table"].equals(table)
    assert pickle.loads(pickle.dumps(vmalloc.ref(table, region))).equals(table)
    region["buffer"] = pa.py_buffer(b"x" * 10_000)
    assert region["buffer"].to_pybytes() == b"x" * 10_000


def test_a_stream_that_is_none_is_stale(region, table):
    put = vmalloc.arrow.put(table, region)
    region["table"] = put
    np.ndarray((64,), "u1", vmalloc.adapters.holding_of(put))[:] = 255
    with pytest.raises(vmalloc.StaleReference, match="no table"):
        region["table"]


def test_put_takes_tables_only(region):
    with pytest.raises(TypeError, match="not a list"):
        vmalloc.arrow.put([1, 2], region)


@pytest.mark.parametrize("what", ["frame", "series", "index"])
def test_pandas_goes_by_reference(region, table, what):
    pd = pytest.importorskip("pandas")
    frame = table.drop_columns(["parts"]).to_pandas()
    value = {"frame": frame, "series": frame["word"], "index": frame.set_index("date")}[what]
    nbytes, got = sent(value)
    tester = pd.testing.assert_series_equal if what == "series" else pd.testing.assert_frame_equal
    tester(got, value)
    first = region.stats().busy_bytes
    again, got_again = sent(got)
    tester(got_again, value)
    if pa.types.is_large_string(getattr(getattr(frame["word"].array, "_pa_array", None), "type", pa.null())):
        assert max(nbytes, again) < table.nbytes // 3
        assert region.stats().busy_bytes == first  # text, too, is not copied twice


def test_polars_goes_by_reference(region, table):
    pl = pytest.importorskip("polars")
    frame = pl.from_arrow(table)
    nbytes, got = sent(frame)
    assert nbytes < table.nbytes // 5
    assert got.equals(frame)
    assert got.schema == frame.schema
    assert vmalloc.is_shared(got["number"].to_numpy())
    nbytes, series = sent(frame["number"])
    assert nbytes < 2000
    assert (series.name, series.sum()) == ("number", sum(range(NR)))


def test_a_part_of_a_polars_frame_is_sent_without_the_rest(region):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"x": np.zeros(1_000_000)})
    before = region.stats().busy_bytes
    assert sent(frame.slice(5, 20_000))[1].height == 20_000
    assert region.stats().busy_bytes - before < 1 << 20


def test_sparse_matrices_go_by_their_arrays(region):
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.csr_matrix((np.ones(NR), (np.arange(NR), np.arange(NR)[::-1])))
    nbytes, got = sent(matrix)
    assert nbytes < 5000
    assert (got != matrix).nnz == 0


WORDS = [f"{i} is a word that is longer than a view" for i in range(NR)]
ARROW = {
    "dictionary": lambda: pa.array(WORDS).dictionary_encode(),
    "dictionaries": lambda: pa.chunked_array([pa.array(w).dictionary_encode() for w in (WORDS, ["a"])]),
    "views": lambda: pa.array(WORDS, pa.string_view())[5:-5],
    "sparse union": lambda: pa.UnionArray.from_sparse(
        pa.array((np.arange(NR) % 2).astype("i1")), [pa.array(np.arange(NR)), pa.array(WORDS)]
    ),
    "dense union": lambda: pa.UnionArray.from_dense(
        pa.array((np.arange(NR) % 2).astype("i1")),
        pa.array((np.arange(NR) // 2).astype("i4")),
        [pa.array(np.arange(NR)), pa.array(WORDS)],
    ),
    "structs": lambda: pa.array([{"a": i, "b": w} for i, w in enumerate(WORDS)])[7:],
    "runs": lambda: pa.RunEndEncodedArray.from_arrays(np.arange(1, NR + 1, dtype="i4"), WORDS),
    "extension": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((NR, 2, 2))),
    "nulls and bits": lambda: pa.array([None, True, False] * NR)[3:],
    "empty": lambda: pa.array(WORDS)[:0],
}


@pytest.mark.parametrize("kind", ARROW)
def test_arrow_arrays_of_every_kind_arrive_as_they_were(region, kind):
    if kind == "views" and not hasattr(pa, "string_view"):
        pytest.skip("this pyarrow has none")
    made = ARROW[kind]()
    _, got = sent(sent(made)[1])
    got.validate(full=True)
    assert type(got) is type(made)
    assert got.type == made.type
    assert got.to_pylist() == made.to_pylist()


PANDAS = {
    "categories": lambda pd: pd.Series(WORDS).astype("category"),
    "time zone": lambda pd: pd.Series(pd.date_range("2020", periods=NR, freq="min", tz="Europe/Berlin")),
    "nullable": lambda pd: pd.Series(pd.array([None, 1, 2] * NR, dtype="Int64")),
    "python text": lambda pd: pd.Series(WORDS, dtype="string[python]"),
    "objects": lambda pd: pd.Series([{"a": i} for i in range(NR)], dtype=object),
    "sparse": lambda pd: pd.Series(pd.arrays.SparseArray(np.where(np.arange(NR) % 2, 0.0, 1.0))),
    "periods": lambda pd: pd.Series(pd.period_range("1900", periods=NR, freq="h")),
    "intervals": lambda pd: pd.Series(pd.interval_range(0, NR)),
    "arrow lists": lambda pd: pd.Series(pd.arrays.ArrowExtensionArray(pa.array([[i] for i in range(NR)]))),
    "arrow times": lambda pd: pd.Series(np.arange(NR)).astype(pd.ArrowDtype(pa.timestamp("us", "UTC"))),
    "multi-index": lambda pd: pd.Series(
        np.arange(NR), index=pd.MultiIndex.from_arrays([np.arange(NR) % 7, WORDS])
    ),
    "part": lambda pd: pd.Series(WORDS)[100:-100:3],
}


@pytest.mark.parametrize("kind", PANDAS)
def test_pandas_columns_of_every_kind_arrive_as_they_were(region, kind):
    pd = pytest.importorskip("pandas")
    made = PANDAS[kind](pd)
    _, got = sent(sent(made)[1])
    pd.testing.assert_series_equal(got, made)


POLARS = {
    "categories": lambda pl: pl.Series("x", WORDS, dtype=pl.Categorical),
    "structs": lambda pl: pl.Series("x", [{"a": i, "b": [w]} for i, w in enumerate(WORDS)]),
    "lists": lambda pl: pl.Series("x", [[i, i] for i in range(NR)]),
    "time zone": lambda pl: pl.Series("x", np.arange(NR)).cast(pl.Datetime("us", "Europe/Berlin")),
    "decimals": lambda pl: pl.Series("x", np.arange(NR)).cast(pl.Decimal(20, 2)),
    "bytes": lambda pl: pl.Series("x", [w.encode() for w in WORDS]),
    "nothing": lambda pl: pl.Series("x", [None] * NR),
}


@pytest.mark.parametrize("kind", POLARS)
def test_polars_columns_of_every_kind_arrive_as_they_were(region, kind):
    pl = pytest.importorskip("polars")
    made = POLARS[kind](pl)
    frame, series = sent((made.to_frame(), made))[1]
    assert (series.name, series.dtype) == ("x", made.dtype)
    assert series.to_list() == made.to_list()
    assert frame.equals(made.to_frame())


def test_polars_columns_that_arrow_does_not_know_go_as_in_stock(region):
    pl = pytest.importorskip("polars")
    if not hasattr(pl, "Int128"):
        pytest.skip("this polars has no such type")
    wide = pl.Series("x", np.arange(NR)).cast(pl.Int128)
    frame = wide.to_frame().with_columns(y=np.arange(NR))
    got_frame, got = sent((frame, wide))[1]
    assert got.equals(wide)
    assert got_frame.equals(frame)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"])
@pytest.mark.parametrize("family", ["matrix", "array"])
def test_sparse_matrices_of_every_kind_arrive_as_they_were(region, kind, family):
    sparse = pytest.importorskip("scipy.sparse")
    made = getattr(sparse, f"{kind}_{family}")(sparse.eye(20_000, format="csr") * 3.0)
    _, got = sent(sent(made)[1])
    assert (type(got), got.shape, got.dtype) == (type(made), made.shape, made.dtype)
    assert (got != made).nnz == 0
    assert (got + got).sum() == 6.0 * 20_000


def test_xarray_goes_by_its_arrays(region):
    xr = pytest.importorskip("xarray")
    made = xr.Dataset(
        {"t": (("x", "y"), np.zeros((NR, 2)))}, {"x": np.arange(NR), "y": ["a", "b"]}, {"unit": "K"}
    )
    nbytes, got = sent(made)
    assert nbytes < 10_000
    assert vmalloc.is_shared(got["t"].values)
    xr.testing.assert_identical(sent(got)[1], made)
