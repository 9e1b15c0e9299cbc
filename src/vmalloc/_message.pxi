# SPDX-License-Identifier: MIT
# Part of _core.pyx: references in messages, and Refs.

def offset_of(array, Holding holding not None):
    """Bytes from the start of `holding`'s pages to the array's first element."""
    cdef Py_buffer view
    cdef char *start = <char *>vm_pointer(holding._region.r, holding.page)
    try:
        PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    except (BufferError, ValueError):  # dates and the like are no buffers
        return array.__array_interface__["data"][0] - <size_t>start
    offset = <char *>view.buf - start
    PyBuffer_Release(&view)
    return offset


# ---- small arrays in messages: the most frequent ones must not notice us ----

cdef Py_ssize_t _by_value_up_to = -1
cdef object _reduce_other = None


def reduce_arrays(Py_ssize_t threshold, reduce_other):
    """What reduce_array() does from now on."""
    global _by_value_up_to, _reduce_other
    _by_value_up_to, _reduce_other = threshold, reduce_other


def reduce_array(a):
    """For a pickler: private arrays of at most the threshold as before, the others as `reduce_other` says."""
    if a.base is None and <Py_ssize_t>a.nbytes <= _by_value_up_to:
        return a.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    return _reduce_other(a)


# ---- plain arrays in messages: what reference.py does, for the most frequent case, in one object ----

cdef enum:
    PLAIN_DIMS = 32
    PLAIN_DTYPE = 6

cdef struct Plain:  # then the shape, an int64 each; then the pickled where
    uint8_t region[16]
    uint64_t page, id, lease
    int64_t nbytes, offset
    uint8_t readonly, ndim
    char dtype[PLAIN_DTYPE]

cdef dict _plain_texts = {}  # dtype -> what numpy calls it, b"" if that does not say all


cdef bytes _plain_text(object dtype):
    text = _plain_texts.get(dtype)
    if text is None:
        text = dtype.str.encode() if dtype.kind in "biufc" and dtype.fields is None else b""
        text = text if len(text) < PLAIN_DTYPE else b""
        if len(_plain_texts) < 256:
            _plain_texts[dtype] = text
    return text


def pack_plain(array, bint readonly):
    """A C-contiguous array of numbers that owns its pages, with a lease; None: another kind of array."""
    cdef Py_buffer view
    cdef Plain plain
    cdef ArrayOwner owner
    cdef CoreRegion region
    cdef bytes text, packed
    base = array.base
    if type(base) is not ArrayOwner:
        return None
    owner = base
    region = owner._region
    text = _plain_text(array.dtype)
    where = region._where
    if not text or where is None or region.closed or not owner.held:
        return None
    PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    try:
        if view.ndim > PLAIN_DIMS or not PyBuffer_IsContiguous(&view, b"C"):
            return None
        where_packed = region.where_packed
        if region.where_told is not where:
            region.where_packed = where_packed = pickle.dumps(where)
            region.where_told = where
        memset(&plain, 0, sizeof(Plain))
        memcpy(plain.region, region.id_, 16)
        memcpy(plain.dtype, <char *>text, len(text))
        plain.nbytes = owner.nbytes
        plain.offset = <char *>view.buf - <char *>vm_pointer(region.r, owner.page)
        plain.readonly = readonly or view.readonly
        plain.ndim = <uint8_t>view.ndim
        region.lease_of(owner, &plain.lease)
        plain.page, plain.id = owner.page, owner.id
        packed = <bytes>(<char *>&plain)[:sizeof(Plain)]
        return packed + (<char *>view.shape)[:view.ndim * sizeof(int64_t)] + where_packed
    finally:
        PyBuffer_Release(&view)


# What pickle.dumps() makes of load_plain(packed), but for frames and memo: a pickler takes longer to make than
# everything else here together.
_BEFORE = (b"\x80\x04"  # protocol 4
           + b"".join(b"\x8c" + bytes([len(word)]) + word for word in (b"vmalloc._core", b"load_plain"))
           + b"\x93B")  # that global, then bytes after their number in 32 bits
_AFTER = b"\x85R."  # called with them; the end


def pickled_plain(bytes packed not None):
    """A whole message that is one such array, as any unpickler loads it."""
    return _BEFORE + len(packed).to_bytes(4, "little") + packed + _AFTER


cdef size_t _unpack(bytes packed, Plain *plain) except 0:
    """Where the pickled where begins."""
    cdef size_t where_at
    if len(packed) >= <Py_ssize_t>sizeof(Plain):
        memcpy(plain, <char *>packed, sizeof(Plain))
        where_at = sizeof(Plain) + plain.ndim * sizeof(int64_t)
        if plain.ndim <= PLAIN_DIMS and <size_t>len(packed) >= where_at and plain.nbytes >= 0:
            return where_at
    raise errors.StaleReference(f"a reference of {len(packed)} bytes that is cut off or none of ours")


def drop_plain(bytes packed not None):
    """End the lease of a message that will not be sent."""
    cdef Plain plain
    _unpack(packed, &plain)
    known = _by_id.get(plain.region[:16])
    region = None if known is None else known()
    if region is not None:
        (<CoreRegion>region)._drop_lease(plain.lease)


def load_plain(bytes packed not None):
    """The array that pack_plain() packed. StaleReference, RegionUnavailable."""
    cdef Plain plain
    cdef size_t where_at = _unpack(packed, &plain)
    cdef CoreRegion region
    known = _by_id.get(plain.region[:16])
    found = None if known is None else known()
    if found is None or (<CoreRegion>found).closed:
        from vmalloc.attach import region_at
        found = region_at(pickle.loads(packed[where_at:]))
    region = found
    owner = region._adopt(plain.page, plain.id, plain.nbytes, plain.lease)
    cdef const int64_t *shape = <const int64_t *>(<char *>packed + sizeof(Plain))
    try:
        if plain.dtype[PLAIN_DTYPE - 1]:
            raise ValueError("no dtype")
        dims = tuple([shape[i] for i in range(plain.ndim)])
        kind = kind_of((<bytes>plain.dtype).decode())
        if not 0 <= plain.offset <= plain.nbytes - bytes_of(dims, kind):  # numpy's own check can overflow
            raise ValueError(f"offset {plain.offset}, shape {dims}")
        array = _ndarray(dims, (<Kind>kind).dtype, owner, plain.offset)
    except (TypeError, ValueError, MemoryError) as e:
        raise errors.StaleReference(
            f"the reference tells of no array within its {plain.nbytes} bytes: {e}") from None
    if plain.readonly:
        array.flags.writeable = False
    return array


@cython.final
@cython.no_gc_clear  # as for Holding
cdef class Lease:
    """A reference that any number of loads may follow; it ends with this object, or after its process."""
    cdef CoreRegion region
    cdef readonly uint64_t page, id
    cdef uint64_t lease
    cdef unsigned long fork_epoch

    def __init__(self, CoreRegion region not None, Holding holding not None):
        if self.region is not None:
            raise TypeError("a lease is made once")
        self.page, self.id, self.lease = region._lease(holding)
        self.fork_epoch = fork_epoch
        self.region = region

    @property
    def is_own(self):
        """Whether this process made it: a forked child's copy ends nothing."""
        return self.fork_epoch == fork_epoch

    def __dealloc__(self):
        if self.region is not None and self.region.r != NULL and self.fork_epoch == fork_epoch:
            with nogil:
                vm_drop_lease(self.region.r, self.lease)
