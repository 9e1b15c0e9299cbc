# SPDX-License-Identifier: MIT
# Part of _core.pyx: what install() was told, and references on their way.
#
# A reference is one bytes object:
#
#     Reference      which region, which range of it, the lease, how many bytes
#     Description    what lies there: its head, then shape, strides, kind, dtype, extra (description.py)
#     where          the pickled text of where the region is (attach.py)
#
# description.py and adapters/ write and read every description. Here the most frequent one, a C-contiguous array
# of numbers, is written and read without them; both ways give the same (tests/equivalence/test_descriptions.py).

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


cdef enum:
    BASES_MAX = 1000  # a circle of objects ends the walk, too


cdef object _holding_by_adapter = None


def holding_of(x):
    """The block or owner whose pages `x` (an array, a view, a block, a registered type's value) lies in."""
    global _holding_by_adapter
    if type(x) is Block:  # the adapters of these two stay what they are
        return x
    if _ndarray is not None and type(x) is _ndarray:
        return holding_below(x)
    if _holding_by_adapter is None:
        from vmalloc.adapters.registry import holding_by_adapter as _holding_by_adapter
    return _holding_by_adapter(x)


cpdef Holding holding_below(x):
    """The block or owner whose pages all of an array, view or memoryview lies in, or None."""
    cdef Holding holding = _holding_below(x)
    if holding is None:  # what keeps the pages does not say so: the address does
        return holding_around(x)
    # whatever has a `base` may say that it is a region's
    if holding is x or not hasattr(x, "strides") or _is_within(x, holding):
        return holding
    return None


cdef Holding _holding_below(object x):
    cdef int i
    for i in range(BASES_MAX):
        if x is None or isinstance(x, Holding):
            return x
        x = x.obj if isinstance(x, memoryview) else getattr(x, "base", None)
    return None


cdef bint _is_within(object array, Holding holding) except -1:
    """Whether all its elements lie in `holding`'s pages; what has none lies anywhere."""
    cdef Py_buffer view
    try:
        PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    except (BufferError, TypeError, ValueError):  # dates and the like are no buffers
        from vmalloc.adapters.array import lies_within
        return lies_within(array, holding)
    cdef Py_ssize_t offset = <char *>view.buf - <char *>vm_pointer(holding._region.r, holding.page)
    cdef bint is_within = view.len == 0 or _lies_within(
        view.ndim, <int64_t *>view.shape, <int64_t *>view.strides, view.itemsize, offset, holding.nbytes)
    PyBuffer_Release(&view)
    return is_within


def is_plain(x):
    """Whether nothing can be wrong with describing it: a block, or an np.ndarray of numbers and no subclass."""
    return type(x) is Block or (_ndarray is not None and type(x) is _ndarray and len(_plain_text(x.dtype)) != 0)


# ---- what install() was told ----

cdef class MessageSettings:
    """The options of install(); one object of a process is in force, or none."""
    cdef readonly object region
    cdef readonly bint is_default
    cdef readonly Py_ssize_t threshold
    cdef readonly bint readonly
    cdef readonly str on_full
    cdef readonly object private  # False, True, or "copy"

    def __init__(self, region, bint is_default, Py_ssize_t threshold, bint readonly, str on_full not None, private=False):
        self.region, self.is_default, self.threshold = region, is_default, threshold
        self.readonly, self.on_full, self.private = readonly, on_full, private


cdef MessageSettings _settings = None
cdef object _reduce_larger = None


cdef bint _notes_always = False


cdef bint notes_reads() noexcept:
    """Whether this process notes which messages it has read."""
    return _notes_always or _settings is not None


cdef int tell_regions_who_notes() except -1:
    for region in _attached.values():
        if (<CoreRegion>region).r != NULL:
            vm_mark_reads((<CoreRegion>region).r, notes_reads())
    return 0


def note_always():
    """This process notes which messages it has read, from now on also without install()."""
    global _notes_always
    _notes_always = True
    tell_regions_who_notes()


def set_settings(MessageSettings settings, reduce_larger):
    """Put them in force; None: uninstalled. `reduce_larger` is for what reduce_array() does not do itself."""
    global _settings, _reduce_larger
    _settings, _reduce_larger = settings, reduce_larger
    tell_regions_who_notes()


def get_settings():
    """Those in force, or None."""
    return _settings


# ---- how many went which way ----

cdef enum:
    NR_WAYS = 4  # in the order of Sent (ways.py)

BY_REFERENCE, COPIED_IN, AS_BEFORE, BY_VALUE = range(NR_WAYS)
cdef uint64_t _sent[NR_WAYS]


def count_sent(unsigned way):
    """One value more went this way."""
    if way < NR_WAYS:
        _sent[way] += 1


def sent_counts():
    """By reference, copied in, as before, by value."""
    return tuple([_sent[way] for way in range(NR_WAYS)])


def forget_sent():
    """A forked child begins anew."""
    memset(_sent, 0, sizeof(_sent))


cdef bint _is_small_view(MessageSettings settings, a) except -1:
    """Whether it is sure to have at most the threshold, and to lie in no region, without a look at its bases."""
    cdef Py_buffer view
    cdef bint is_sure
    try:
        PyObject_GetBuffer(a, &view, PyBUF_STRIDES)
    except (BufferError, ValueError):  # dates and the like
        return False
    is_sure = 0 < view.len <= settings.threshold and not _lowest <= <size_t>view.buf < _highest
    PyBuffer_Release(&view)
    return is_sure


cdef extern from *:
    """
    static _Thread_local int by_value_here; /* this thread sends to a receiver that cannot attach */
    """
    bint by_value_here


@cython.final
cdef class Sending:
    """What the thread that asks sends just now."""

    @property
    def by_value(self):
        """To a receiver that cannot attach."""
        return by_value_here

    @by_value.setter
    def by_value(self, bint is_so):
        global by_value_here
        by_value_here = is_so


sending = Sending()


cdef bytes _pack_if_plain(MessageSettings settings, object a, Message message):
    """pack_plain(), or None where the longer way knows what to do."""
    if a.base is None:
        return None
    try:
        return pack_plain(a, settings.readonly, message)
    except errors.VmallocError:
        return None


cdef bint _goes_beside(Message message, object a) except -1:
    """Another array of the same pages went before, perhaps of another dtype."""
    base = a.base
    if type(base) is _ndarray:
        base = base.base
    first = message.first_of(base) if isinstance(base, Holding) else None
    return first is not None and first is not a


cdef object _reduce_plain(MessageSettings settings, Message message, object a):
    """The most frequent arrays of a region, by reference; None: not one of them."""
    beside = _reduce_beside(message, a, settings.readonly)
    if beside is not None:
        return beside
    if message.starts_process or _goes_beside(message, a):
        return None
    packed = _pack_if_plain(settings, a, message)
    return None if packed is None else (load_reference, (packed,))


def reduce_array(a):
    """For a pickler: private arrays of at most the threshold as before; they must not notice us."""
    cdef MessageSettings settings = _settings  # a finalizer may uninstall us meanwhile
    if settings is not None and (_is_small_view(settings, a) if a.base is not None else
                                 <Py_ssize_t>a.nbytes <= settings.threshold and not is_inside(a)):
        _sent[2] += 1  # AS_BEFORE
        return a.__reduce_ex__(pickles_at if pickles_at >= 0 else <int>pickle.DEFAULT_PROTOCOL)
    if settings is not None and message_here != NULL and not by_value_here and not settings.private:
        reduced = _reduce_plain(settings, <Message>message_here, a)
        if reduced is not None:
            return reduced
    return _reduce_larger(a)


# ---- the protocol of a pickler: it decides what pickle keeps of an array (pickled.py) ----

cdef extern from *:
    """
    static _Thread_local int pickles_at = -1; /* the protocol of the ForkingPickler at work here; -1: there is none */
    """
    int pickles_at


def pickle_at(int protocol):
    """What this thread pickles from now on is for that protocol; -1: not by a ForkingPickler. Returns the one before."""
    global pickles_at
    before = pickles_at
    pickles_at = protocol
    return before


def protocol_here():
    """The one that a value is reduced for; pickle's own where no ForkingPickler is at work."""
    return pickles_at if pickles_at >= 0 else pickle.DEFAULT_PROTOCOL


def forking_protocol():
    """The same, but -1 where none is."""
    return pickles_at


# ---- the bytes of a reference ----

DESCRIPTION_VERSION = 1

cdef enum:
    VERSION = 1
    READONLY = 1  # flags of a description; another one says that its dtype is pickled
    STRIDED = 2
    PLAIN_DIMS = 32
    PLAIN_DTYPE = 8  # bytes; longer texts are not plain
    BUILTIN_NUM = 24  # below it numpy's own dtypes of numbers, but none that an extension package made
    ARRAY_BYTES = 5  # of the kind of an np.ndarray, "array"

cdef struct Reference:
    uint8_t region[16]
    uint64_t page, id, lease
    int64_t nbytes

cdef struct Description:  # description.py has it as a struct.Struct
    uint8_t version, flags, ndim, kind_bytes
    uint32_t dtype_bytes
    uint64_t extra_bytes
    int64_t offset

cdef struct Heads:
    Reference reference
    Description description

cdef dict _plain_texts = {}  # dtype -> itself, "array" and what numpy calls it, b"" if that does not say all


cdef bytes _plain_text(object dtype):
    found = _plain_texts.get(dtype)
    if found is not None and (<tuple>found)[0] is dtype:  # one with metadata is equal to one without
        return <bytes>(<tuple>found)[1]
    text = b""
    if dtype.kind in "biufc" and dtype.num < BUILTIN_NUM and dtype.fields is None and dtype.metadata is None:
        text = b"array" + dtype.str.encode()
    if len(text) > ARRAY_BYTES + PLAIN_DTYPE:
        text = b""
    if len(_plain_texts) < 256:
        _plain_texts[dtype] = (dtype, text)
    return text


cdef bytes _packed_where(CoreRegion region, object where):
    """What attach.where_of() gave, pickled: once, but for processes that are being started."""
    if where is not region._where:
        return pickle.dumps(where)
    if region.where_told is not where:
        region.where_packed = pickle.dumps(where)
        region.where_told = where
    return region.where_packed


cdef void _refer(Reference *out, CoreRegion region, Holding holding, uint64_t lease) noexcept:
    memcpy(out.region, region.id_, 16)
    out.page, out.id, out.lease, out.nbytes = holding.page, holding.id, lease, holding.nbytes


def pack_reference(Holding holding not None, uint64_t lease, bytes description not None, where):
    """A reference to the pages of `holding`; `lease`: one that its first load claims, or 0."""
    cdef CoreRegion region = holding._region
    cdef Reference head
    _refer(&head, region, holding, lease)
    return (<char *>&head)[:sizeof(Reference)] + description + _packed_where(region, where)


cpdef bytes pack_plain(array, bint readonly, Message message=None):
    """The same, with a lease, of a C-contiguous array of numbers that owns its pages. None: not of that kind.

    `message` notes it. Whatever fails leaves no lease.
    """
    cdef Py_buffer view
    cdef Heads heads
    cdef ArrayOwner owner
    cdef CoreRegion region
    cdef bytes text, packed
    cdef uint64_t lease
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
        where_packed = _packed_where(region, where)
        memset(&heads.description, 0, sizeof(Description))
        heads.description.version = VERSION
        heads.description.flags = READONLY if readonly or view.readonly else 0
        heads.description.ndim = <uint8_t>view.ndim
        heads.description.kind_bytes = ARRAY_BYTES
        heads.description.dtype_bytes = <uint32_t>(len(text) - ARRAY_BYTES)
        heads.description.offset = 0  # also of what is empty, where numpy lets it lie anywhere
        if view.len:
            heads.description.offset = <char *>view.buf - <char *>vm_pointer(region.r, owner.page)
        region.lease_of(owner, &lease, True)
        try:
            _refer(&heads.reference, region, owner, lease)
            packed = <bytes>(<char *>&heads)[:sizeof(Heads)]
            packed = packed + (<char *>view.shape)[:view.ndim * sizeof(int64_t)] + text + where_packed
            if message is not None:
                message.went(packed, owner, array)
        except BaseException:
            region._drop_lease(lease)
            raise
        _sent[0] += 1  # BY_REFERENCE
        return packed
    finally:
        PyBuffer_Release(&view)


# ---- arrays beside one that went before them in the same message ----
#
# The first array of a range goes as a reference with a lease. Those after it go as a description and the first one
# itself, which a pickler writes as two bytes, since it has it in its memo. So a range has one lease in a message,
# and is adopted once, however many views of it there are.

cdef class Message:
    """A message while it is pickled."""
    cdef readonly list references  # with leases of their own
    cdef public bint starts_process  # then references carry a descriptor, too
    cdef public bint has_no_lease  # the region had none left for it
    cdef dict firsts  # owner or block -> the array of its pages that was sent first
    cdef readonly dict others  # a type and a range -> the value there, no array, that was sent first
    cdef object last_holding, last_first

    def __init__(self):
        self.references, self.firsts, self.others = [], {}, {}

    cpdef object went(self, bytes packed, Holding holding, first):
        """Note a reference; `first`: an np.ndarray, or None for what others cannot go beside."""
        self.references.append(packed)
        if first is not None:
            self.firsts[holding] = self.last_first = first
            self.last_holding = holding

    cpdef object first_of(self, holding):
        """The array that another one of these pages can go beside, or None."""
        if holding is not self.last_holding:
            self.last_first = self.firsts.get(holding)
            self.last_holding = holding
        return self.last_first


cdef object _class_of_arrays():
    if _ndarray is None:
        import numpy
        learn_numpy(numpy)
    return _ndarray


cdef object _reduce_beside(Message message, object array, bint readonly):
    """For a pickler, an array beside an earlier one with the same dtype. None: it has to go another way."""
    cdef Py_buffer view
    if not message.firsts:
        return None
    base = array.base
    if type(base) is _class_of_arrays():
        base = base.base
    if type(base) is not ArrayOwner:
        return None
    first = message.first_of(base)
    if first is None or first is array or first.dtype is not array.dtype:  # itself again: a pickler without memo
        return None
    try:
        PyObject_GetBuffer(array, &view, PyBUF_STRIDES)
    except (BufferError, ValueError):  # dates and the like
        return None
    try:
        described = _describe_beside(&view, <ArrayOwner>base, readonly)
    finally:
        PyBuffer_Release(&view)
    if described is None:
        return None
    _sent[0] += 1  # BY_REFERENCE
    return load_beside, (first, described)


cdef object _describe_beside(Py_buffer *view, ArrayOwner owner, bint readonly):
    """None for what does not lie in the owner's pages."""
    cdef Description head
    cdef bint is_strided = view.len != 0 and not PyBuffer_IsContiguous(view, b"C")
    cdef Py_ssize_t offset = 0
    if view.len:
        offset = <char *>view.buf - <char *>vm_pointer(owner._region.r, owner.page)
    if view.ndim > PLAIN_DIMS or not _lies_within(
            view.ndim, <int64_t *>view.shape, <int64_t *>view.strides, view.itemsize, offset, owner.nbytes):
        return None
    memset(&head, 0, sizeof(Description))
    head.version = VERSION
    head.flags = (READONLY if readonly or view.readonly else 0) | (STRIDED if is_strided else 0)
    head.ndim = <uint8_t>view.ndim
    head.kind_bytes = ARRAY_BYTES
    head.offset = offset
    numbers = (<char *>view.shape)[:view.ndim * sizeof(int64_t)]
    if is_strided:
        numbers += (<char *>view.strides)[:view.ndim * sizeof(int64_t)]
    return (<char *>&head)[:sizeof(Description)] + numbers + b"array"


cdef bint _lies_within(int ndim, const int64_t *shape, const int64_t *strides, Py_ssize_t itemsize, Py_ssize_t offset,
                       Py_ssize_t nbytes) noexcept:
    """Whether all elements do, in numbers that do not overflow. An array without elements does if its offset does."""
    cdef Py_ssize_t low = offset, high = offset, far
    cdef bint is_empty = False
    cdef int i
    if offset < 0 or offset > nbytes:
        return False
    for i in range(ndim):
        if shape[i] < 0:
            return False
        is_empty = is_empty or shape[i] == 0
    if is_empty:
        return True
    for i in range(ndim):
        if shape[i] == 1 or strides[i] == 0:
            continue
        if strides[i] > nbytes or strides[i] < -nbytes or shape[i] - 1 > nbytes:  # each of them reaches beyond
            return False
        far = nbytes // (strides[i] if strides[i] > 0 else -strides[i])
        if shape[i] - 1 > far:
            return False
        if strides[i] > 0:
            high += strides[i] * (shape[i] - 1)
        else:
            low += strides[i] * (shape[i] - 1)
        if low < 0 or high > nbytes:
            return False
    return high <= nbytes - itemsize


def load_beside(first, bytes described not None):
    """An array that came beside `first`. StaleReference."""
    cdef Description head
    cdef size_t size = len(described)
    cdef const char *at = described
    if type(first) is not _class_of_arrays() or type(first.base) is not ArrayOwner:
        raise errors.StaleReference(f"a {type(first).__name__} lies in no pages that an array came beside")
    if _described_bytes(at, size, &head) != size or not _is_beside(at, &head):
        from vmalloc.reference import load_described_beside
        return load_described_beside(first, described)
    return _rebuild_beside(first, <ArrayOwner>first.base, at, &head)


cdef bint _is_beside(const char *at, Description *head) noexcept:
    cdef size_t numbers = head.ndim * sizeof(int64_t) * (2 if head.flags & STRIDED else 1)
    return (head.flags & ~(READONLY | STRIDED) == 0 and head.ndim <= PLAIN_DIMS and head.extra_bytes == 0
            and head.dtype_bytes == 0 and head.kind_bytes == ARRAY_BYTES
            and memcmp(at + sizeof(Description) + numbers, b"array", ARRAY_BYTES) == 0)


cdef object _rebuild_beside(object first, ArrayOwner owner, const char *at, Description *head):
    cdef int64_t shape[PLAIN_DIMS]
    cdef int64_t strides[PLAIN_DIMS]
    cdef Py_ssize_t itemsize, step
    cdef int i
    dtype = first.dtype
    itemsize = step = dtype.itemsize
    memcpy(shape, at + sizeof(Description), head.ndim * sizeof(int64_t))
    if head.flags & STRIDED:
        memcpy(strides, at + sizeof(Description) + head.ndim * sizeof(int64_t), head.ndim * sizeof(int64_t))
    else:
        for i in range(head.ndim - 1, -1, -1):
            strides[i] = step
            step = step * shape[i] if 0 < shape[i] and step <= LARGEST // shape[i] else LARGEST
    if not _lies_within(head.ndim, shape, strides, itemsize, head.offset, owner.nbytes):
        raise errors.StaleReference(f"the reference tells of no array within its {owner.nbytes} bytes")
    dims = tuple([shape[i] for i in range(head.ndim)])
    try:
        if head.flags & STRIDED:
            array = _ndarray(dims, dtype, owner, head.offset, tuple([strides[i] for i in range(head.ndim)]))
        else:
            array = array_on(owner, dims, dtype, head.offset)
    except (ArithmeticError, MemoryError, TypeError, ValueError) as e:  # one that is empty and too large
        raise errors.StaleReference(f"the reference tells of no array within its {owner.nbytes} bytes: {e}") from None
    if head.flags & READONLY:
        array.flags.writeable = False
    return array


# What pickle.dumps() makes of load_reference(packed), but for frames and memo: a pickler takes longer to make
# than everything else here together.
_BEFORE = (b"\x80\x04"  # protocol 4
           + b"".join(b"\x8c" + bytes([len(word)]) + word for word in (__name__.encode(), b"load_reference"))
           + b"\x93B")  # that global, then bytes after their number in 32 bits
_AFTER = b"\x85R."  # called with them; the end


cpdef object pickled_reference(bytes packed):
    """A whole message that is one reference, as any unpickler loads it: in a buffer, as ForkingPickler's are."""
    return BytesIO(_BEFORE + len(packed).to_bytes(4, "little") + packed + _AFTER).getbuffer()


cdef size_t _described_bytes(const char *at, size_t size, Description *head) noexcept:
    """How long the description is that begins there, or 0: it is cut off, or none."""
    cdef size_t room
    if size < sizeof(Description):
        return 0
    memcpy(head, at, sizeof(Description))
    room = size - sizeof(Description)
    if head.extra_bytes > room or head.dtype_bytes > room:
        return 0
    cdef size_t dims = head.ndim * sizeof(int64_t) * (2 if head.flags & STRIDED else 1)
    cdef size_t rest = dims + head.kind_bytes + head.dtype_bytes + <size_t>head.extra_bytes
    return sizeof(Description) + rest if head.version == VERSION and rest <= room else 0


cdef size_t _unpack(bytes packed, Reference *reference, Description *description) except 0:
    """Where the pickled where begins."""
    cdef size_t size = len(packed)
    cdef size_t described = 0
    if size > sizeof(Reference):
        memcpy(reference, <char *>packed, sizeof(Reference))
        described = _described_bytes(<char *>packed + sizeof(Reference), size - sizeof(Reference), description)
    if described == 0 or reference.nbytes < 0:
        raise errors.StaleReference(f"a reference of {size} bytes that is cut off, or another version's")
    return sizeof(Reference) + described


def split_reference(bytes packed not None):
    """(page, id, lease, nbytes, description, pickled where). StaleReference."""
    cdef Reference reference
    cdef Description description
    cdef size_t where_at = _unpack(packed, &reference, &description)
    return (reference.page, reference.id, reference.lease, reference.nbytes,
            packed[sizeof(Reference):where_at], packed[where_at:])


cpdef object drop_reference(bytes packed):
    """End the lease of a message that will not be sent."""
    cdef Reference reference
    cdef Description description
    _unpack(packed, &reference, &description)
    region = _attached.find(reference.region[:16])
    if region is not None:
        (<CoreRegion>region)._drop_lease(reference.lease)


cdef extern from *:
    """
    static _Thread_local PyObject *loaded_here; /* owned; NULL: nobody wants to know */
    """
    PyObject *loaded_here


def noting_loads():
    """The list that this thread's load_reference() adds to, or None."""
    return <object>loaded_here if loaded_here != NULL else None


def note_loads(list into):
    """To `into` this thread's load_reference() adds (reference, what it gave); None: to none. Returns the one before."""
    global loaded_here
    before = None
    if loaded_here != NULL:
        before = <object>loaded_here
        Py_DECREF(before)
    loaded_here = NULL
    if into is not None:
        Py_INCREF(into)
        loaded_here = <PyObject *>into
    return before


def load_reference(bytes packed not None):
    """What a reference refers to. Within a message nothing is raised: a stand-in is loaded instead, whose use raises."""
    try:
        found = _load(packed)
    except Exception as e:
        from vmalloc.stand_in import instead_of
        found = instead_of(packed, e)
    if loaded_here != NULL:
        (<list>loaded_here).append((packed, found))
    return found


cdef object _load(bytes packed):
    """StaleReference, RegionUnavailable."""
    cdef Reference reference
    cdef Description description
    cdef CoreRegion region
    cdef size_t where_at = _unpack(packed, &reference, &description)
    found = _attached.find(reference.region[:16])
    if found is None or not (<CoreRegion>found).has_pages:
        from vmalloc.region import region_at
        found = region_at(pickle.loads(packed[where_at:]))
    if not _is_plain(<char *>packed + sizeof(Reference), &description):
        from vmalloc.reference import load_described
        return load_described(found, *split_reference(packed)[:5])
    owner = _adopt_plain(found, &reference)
    return _rebuild_plain(owner, <char *>packed + sizeof(Reference), &description)


cdef ArrayOwner _adopt_plain(CoreRegion region, Reference *reference):
    """RegionReferences._adopt(), of numbers that are in range as they are."""
    cdef vm_range got
    cdef ArrayOwner owner
    cdef Call c
    cdef int rc
    region.pages_check()
    c.page, c.id, c.lease = reference.page, reference.id, reference.lease
    c.out = &got
    rc = region.result_of(call_adopt, &c)
    if rc < 0:
        raise region.fail(rc, f"reference to page {reference.page}, id {reference.id}")
    owner = ArrayOwner.__new__(ArrayOwner)
    owner.bind(region, &got, reference.nbytes)
    if <uint64_t>reference.nbytes > got.nr_pages * region.granule:
        raise errors.StaleReference(f"reference to page {reference.page}, id {reference.id}: "
                                    f"{reference.nbytes} bytes named, the range has {got.nr_pages} pages")
    return owner


cdef bint _is_plain(const char *at, Description *head) noexcept:
    return (head.flags & ~READONLY == 0 and head.ndim <= PLAIN_DIMS and head.extra_bytes == 0
            and 0 < head.dtype_bytes <= PLAIN_DTYPE
            and head.kind_bytes == ARRAY_BYTES
            and memcmp(at + sizeof(Description) + head.ndim * sizeof(int64_t), b"array", ARRAY_BYTES) == 0)


cdef object _rebuild_plain(ArrayOwner owner, const char *at, Description *head):
    """What adapters.array would make of the same description."""
    cdef const char *shape_at = at + sizeof(Description)
    cdef const char *dtype_at = shape_at + head.ndim * sizeof(int64_t) + head.kind_bytes
    cdef int64_t shape[PLAIN_DIMS]
    cdef Py_ssize_t nbytes, offset = head.offset
    cdef Kind kind
    cdef int i
    memcpy(shape, shape_at, head.ndim * sizeof(int64_t))
    try:
        dims = tuple([shape[i] for i in range(head.ndim)])
        kind = kind_of(dtype_at[:head.dtype_bytes].decode())
        nbytes = 0 if 0 in dims else bytes_of(dims, kind)
        if not 0 <= offset <= owner.nbytes - nbytes:  # numpy's own check can overflow
            raise ValueError(f"offset {offset}, shape {dims}")
        array = array_on(owner, dims, kind.dtype, offset)
    except (ArithmeticError, LookupError, MemoryError, SyntaxError, TypeError, ValueError) as e:
        raise errors.StaleReference(
            f"the reference tells of no array within its {owner.nbytes} bytes: {e}") from None
    if head.flags & READONLY:
        array.flags.writeable = False
    return array


def rebuild_plain(ArrayOwner owner not None, bytes description not None):
    """For tests: what load_reference() makes of a description by itself; None if it leaves it to others."""
    cdef Description head
    cdef size_t size = len(description)
    if _described_bytes(<char *>description, size, &head) != size or not _is_plain(<char *>description, &head):
        return None
    return _rebuild_plain(owner, <char *>description, &head)


# ---- where a message's bytes are ----

cdef extern from *:
    """
    static _Thread_local unsigned long long pickles_for; /* the channel that messages made here are for; 0: not known */
    """
    uint64_t pickles_for


def pickling_for():
    """The channel that this thread pickles for, or 0."""
    return pickles_for


def pickle_for(uint64_t channel):
    """What this thread pickles from now on is for that channel: see channel_of(). Returns the one before."""
    global pickles_for
    before = pickles_for
    pickles_for = channel
    return before


def channel_of(int fd):
    """A number for the pipe, or for the other end of the socket, that `fd` is; 0: neither, or it cannot be told."""
    cdef uint64_t channel
    with nogil:
        channel = vm_channel_of(fd)
    return channel


def holds_id(message, bytes id not None):
    """Whether a message seems to hold references to that region."""
    cdef Py_buffer view
    cdef bint found
    PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
    try:
        found = view.len >= <Py_ssize_t>sizeof(Reference) and memmem(view.buf, view.len, <char *>id, 16) != NULL
    finally:
        PyBuffer_Release(&view)
    return found


def leases_of(message, bytes id not None):
    """The leases of that region's references in a message; the region need not be attached."""
    cdef Py_buffer view
    cdef Reference reference
    cdef const char *at
    cdef const char *end
    found = []
    PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
    try:
        end = <const char *>view.buf + view.len
        at = <const char *>memmem(view.buf, view.len, <char *>id, 16)
        while at != NULL and end - at >= <Py_ssize_t>sizeof(Reference):
            memcpy(&reference, at, sizeof(Reference))
            found.append(reference.lease)
            at += 16
            at = <const char *>memmem(at, end - at, <char *>id, 16)
    finally:
        PyBuffer_Release(&view)
    return found


cdef enum:
    FEW = 32  # references of a message, without a list of them


cdef size_t _next_leases(Py_buffer *view, size_t *at, CoreRegion region, vm_lease_name *names) noexcept:
    """The next FEW, from *at on: whatever stands behind the region's id; the core compares it with its table."""
    cdef Reference reference
    cdef const char *start = <const char *>view.buf
    cdef const char *found
    cdef size_t nr = 0, size = <size_t>view.len
    while nr < FEW and at[0] < size:
        found = <const char *>memmem(start + at[0], size - at[0], region.id_, 16)
        if found == NULL or start + size - found < <Py_ssize_t>sizeof(Reference):
            at[0] = size
            break
        memcpy(&reference, found, sizeof(Reference))
        if reference.lease:
            names[nr].page, names[nr].id, names[nr].lease = reference.page, reference.id, reference.lease
            nr += 1
        at[0] = found - start + 16
    return nr


cdef size_t _move_of(Py_buffer *view, CoreRegion region, int move, uint64_t channel) noexcept:
    cdef vm_lease_name names[FEW]
    cdef size_t at = 0, total = 0, nr = FEW
    while nr == FEW and region.r != NULL:  # another thread may close it meanwhile
        nr = _next_leases(view, &at, region, names)
        total += nr
        if nr and not (move == <int>VM_MOVE_SENDING and vm_are_being_sent(region.r, names, nr, channel)):
            with nogil:
                vm_move_leases(region.r, names, nr, <vm_move>move, channel)
    return total


cdef bint _has_leases() except -1:
    """Whether any region has one."""
    cdef CoreRegion region
    for ref in _attached.all:
        region = ref()
        if region is not None and region.r != NULL and not region.readonly and vm_has_leases(region.r):
            return True
    return False


cdef size_t _move_leases(message, int move, uint64_t channel) except? 0:
    """Note where a message is. Quiet: if that fails it is kept for longer. Returns how many references it seems to hold.

    Only regions that have a lease are looked for.
    """
    cdef Py_buffer view
    cdef size_t nr = 0
    cdef CoreRegion region
    PyObject_GetBuffer(message, &view, PyBUF_SIMPLE)
    try:
        if view.len >= <Py_ssize_t>sizeof(Reference):
            for ref in _attached.all:
                region = ref()
                if region is not None and region.r != NULL and not region.readonly and vm_has_leases(region.r):
                    nr += _move_of(&view, region, move, channel)
    finally:
        PyBuffer_Release(&view)
    return nr


cdef object send_noted(object send, object connection, object message, uint64_t channel):
    """send(connection, message), whose leases know meanwhile that it is on its way, and then that it is there."""
    if _move_leases(message, VM_MOVE_SENDING, channel) == 0:
        send(connection, message)
        return
    try:
        send(connection, message)
    finally:
        _move_leases(message, VM_MOVE_SENT, channel)


cdef bint note_received(object message) except -1:
    """The leases of what was read, a BytesIO, are this process's. Returns whether it seems to have any."""
    return _move_leases(message.getbuffer(), VM_MOVE_RECEIVED, 0) != 0


cdef object note_lost(object message):
    """What was read, a BytesIO, could not be loaded, and nobody else has seen it: its leases end."""
    _move_leases(message.getbuffer(), VM_MOVE_LOST, 0)


# ---- leases of Refs ----

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
        region.lease_of(holding, &self.lease, False)
        self.page, self.id = holding.page, holding.id
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
