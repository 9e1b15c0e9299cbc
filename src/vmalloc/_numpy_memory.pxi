# SPDX-License-Identifier: MIT
# Part of _core.pyx: numpy's large arrays on region pages, by its allocation handlers (NEP 49).
#
# An array keeps the handler that made it, and with it the region, so it may outlive the context, close(), and the
# interpreter. The handler frees by address: what lies in its region there, all else as numpy does by default. Numpy
# calls it with the interpreter lock held. A range's id is kept beside, a private table by page: in a forked child
# that let go of what it inherited, the pages may be somebody else's. If they are another array's of this child, the
# address does not tell which of the two is freed: the range stays until all that began there are. In a hardened
# region the handler calls Python, as each alloc and free there does.

cdef extern from "malloc.h":
    size_t malloc_usable_size(void *) noexcept nogil

ctypedef struct Allocator:  # PyDataMemAllocator
    void *context
    void *(*malloc)(void *context, size_t nbytes) noexcept
    void *(*calloc)(void *context, size_t n, size_t nbytes) noexcept
    void *(*realloc)(void *context, void *old, size_t nbytes) noexcept
    void (*free)(void *context, void *old, size_t nbytes) noexcept

ctypedef struct DataHandler:  # PyDataMem_Handler
    char name[127]
    uint8_t version
    Allocator allocator

ctypedef struct NumpyRange:  # what a page is the first one of
    uint64_t id
    uint32_t fork_epoch
    uint32_t nr_let_go  # arrays of ranges that began there before, which the process let go of; numpy frees them yet

ctypedef struct NumpyMemory:
    DataHandler handler
    Allocator other  # numpy's own
    vm_region **region  # NULL there: it was unmapped
    bint *closed
    NumpyRange **ranges
    void *owner
    size_t least  # bytes of an array that goes to the region
    size_t start, nbytes  # its data
    uint64_t granule, nr_pages
    uint64_t guard_bytes  # of a hardened region; else 0

ctypedef void *(*SetHandler)(void *)

cdef unsigned long _nr_numpy_arrays_calls = 0
cdef size_t UNCACHED = <size_t>1 << 40  # a size of which numpy keeps no freed memory


cdef NumpyRange *range_at(NumpyMemory *m, void *p) noexcept:
    """NULL: it does not lie in the region. Where that was unmapped (_unmap()), other memory may lie by now."""
    cdef size_t at = <size_t>p - m.start
    cdef NumpyRange *found
    if at >= m.nbytes or m.ranges[0] == NULL:
        return NULL
    found = &m.ranges[0][at // m.granule]
    if m.region[0] == NULL and (at % m.granule or (found.id == 0 and found.nr_let_go == 0)):
        return NULL
    return found


cdef NumpyRange *numpy_ranges(NumpyMemory *m) noexcept:
    """By page; NULL: no memory."""
    if m.ranges[0] == NULL:
        at = mmap(NULL, m.nr_pages * sizeof(NumpyRange), PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if at != MAP_FAILED:
            m.ranges[0] = <NumpyRange *>at
    return m.ranges[0]


cdef bint guard_numpy(NumpyMemory *m, vm_range *got, size_t nbytes) noexcept:
    """Canary and record of a hardened region. False: a signal's handler raised, which numpy cannot pass on; it is told."""
    cdef CoreRegion region = <CoreRegion>m.owner
    try:
        region.guard_new(got, nbytes)
    except KeyboardInterrupt:
        PyErr_SetInterrupt()  # for whoever called numpy
        return False
    return True


cdef bint let_go_numpy(NumpyMemory *m, uint64_t page, NumpyRange *was) noexcept:
    """In a hardened region, as the owner of an array does it. False: it is no array's any more, or the end of Python."""
    cdef PyObject *kind
    cdef PyObject *value
    cdef PyObject *trace
    cdef vm_range now
    cdef ArrayOwner owner
    cdef bint is_done = False
    PyErr_Fetch(&kind, &value, &trace)  # an array may go while an error is on its way
    if not is_finalizing() and vm_lookup(m.region[0], page, &now) == 0 and now.id == was.id:
        owner = ArrayOwner.__new__(ArrayOwner)
        owner.bind(<CoreRegion>m.owner, &now, <Py_ssize_t>(now.nr_pages * m.granule - m.guard_bytes))
        owner.fork_epoch = was.fork_epoch
        owner = None
        is_done = True
    PyErr_Restore(kind, value, trace)
    return is_done


cdef bint take_numpy(NumpyMemory *m, size_t nbytes, vm_range *out) noexcept:
    cdef vm_region *r = m.region[0]
    cdef uint64_t nr_pages
    cdef NumpyRange *ranges
    cdef int rc
    if nbytes < m.least or r == NULL or m.closed[0]:
        return False
    ranges = numpy_ranges(m)
    if ranges == NULL:
        return False
    nr_pages = vm_pages_of(r, nbytes + m.guard_bytes)
    rc = vm_alloc(r, nr_pages, 1, VM_HIT_ONLY, out)
    if rc != 0:
        with nogil:
            rc = vm_alloc(r, nr_pages, 1, 0, out)
    if rc != 0 or (m.guard_bytes and not guard_numpy(m, out, nbytes)):
        return False
    if ranges[out.page].id != 0:
        ranges[out.page].nr_let_go += 1
    ranges[out.page].id, ranges[out.page].fork_epoch = out.id, <uint32_t>fork_epoch
    if out.nr_pages > VM_NOTED_PAGES:
        vm_note(r, out)
    return True


cdef void *numpy_malloc(void *context, size_t nbytes) noexcept:
    """Where the region has no room, numpy's own memory: code that knows nothing of us must not fail for it."""
    cdef NumpyMemory *m = <NumpyMemory *>context
    cdef vm_range got
    if take_numpy(m, nbytes, &got):
        return vm_pointer(m.region[0], got.page)
    return m.other.malloc(m.other.context, nbytes)


cdef void *numpy_calloc(void *context, size_t n, size_t each) noexcept:
    cdef NumpyMemory *m = <NumpyMemory *>context
    cdef vm_range got
    if each and n > <size_t>LARGEST // each:
        return NULL
    if not take_numpy(m, n * each, &got):
        return m.other.calloc(m.other.context, n, each)
    if not got.zeroed:
        with nogil:
            vm_zero(m.region[0], got.page, n * each)
    return vm_pointer(m.region[0], got.page)


cdef void *numpy_realloc(void *context, void *old, size_t nbytes) noexcept:
    """By a move, unless the pages are as many: others may hold the old ones. NULL for what was let go of."""
    cdef NumpyMemory *m = <NumpyMemory *>context
    cdef NumpyRange *was = range_at(m, old)
    cdef vm_range now
    cdef size_t had
    cdef bint fits
    if old == NULL:
        return numpy_malloc(context, nbytes)
    if was != NULL:
        if m.region[0] == NULL or vm_find(m.region[0], old, &now) != 0 or now.id != was.id:
            return NULL
        fits = vm_pages_of(m.region[0], nbytes) == now.nr_pages
        if nbytes >= m.least and not m.guard_bytes and was.nr_let_go == 0 and fits:
            return old
        had = now.nr_pages * m.granule - m.guard_bytes
    elif nbytes < m.least:
        return m.other.realloc(m.other.context, old, nbytes)
    else:
        had = malloc_usable_size(old)
    made = numpy_malloc(context, nbytes)
    if made != NULL:
        memcpy(made, old, min(had, nbytes))
        numpy_free(context, old, UNCACHED)
    return made


cdef void numpy_free(void *context, void *old, size_t nbytes) noexcept:
    cdef NumpyMemory *m = <NumpyMemory *>context
    cdef vm_region *r = m.region[0]
    cdef uint64_t page
    cdef NumpyRange *was = range_at(m, old)
    cdef NumpyRange freed
    cdef unsigned flags
    if was == NULL:
        m.other.free(m.other.context, old, nbytes)
        return
    page = (<size_t>old - m.start) // m.granule
    if was.nr_let_go != 0:
        was.nr_let_go -= 1
        return
    freed = was[0]
    was.id = 0
    if freed.id == 0 or r == NULL or (m.guard_bytes and let_go_numpy(m, page, &freed)):
        return
    flags = 0 if freed.fork_epoch == <uint32_t>fork_epoch else VM_INHERITED
    if flags or vm_free(r, page, freed.id, VM_HIT_ONLY) != 0:
        with nogil:
            vm_free(r, page, freed.id, flags)


cdef void forget_numpy_memory(object capsule) noexcept:
    cdef NumpyMemory *m = <NumpyMemory *>PyCapsule_GetPointer(capsule, "mem_handler")
    owner = m.owner
    c_free(m)
    Py_XDECREF(owner)


def numpy_handler(CoreRegion region not None, size_t least):
    """A handler, for set_numpy_handler(): arrays of at least `least` bytes go to the region."""
    cdef NumpyMemory *m
    cdef DataHandler *default
    region.pages_check()
    default = <DataHandler *>PyCapsule_GetPointer(<object>(<PyObject **>numpy_api()[API_DEFAULT_HANDLER])[0], "mem_handler")
    m = <NumpyMemory *>c_malloc(sizeof(NumpyMemory))
    if m == NULL:
        raise MemoryError
    memset(m, 0, sizeof(NumpyMemory))
    memcpy(m.handler.name, <const char *>b"vmalloc", 7)
    m.handler.version = 1
    m.handler.allocator.context = m
    m.handler.allocator.malloc = numpy_malloc
    m.handler.allocator.calloc = numpy_calloc
    m.handler.allocator.realloc = numpy_realloc
    m.handler.allocator.free = numpy_free
    m.other = default.allocator
    m.region, m.closed, m.ranges = &region.r, &region.closed, <NumpyRange **>&region.numpy_ranges
    m.least = max(least, 1)
    m.start, m.nbytes = <size_t>vm_pointer(region.r, 0), region.nr_pages_ * region.granule
    m.granule, m.nr_pages, m.guard_bytes = region.granule, region.nr_pages_, region.guard_bytes
    try:
        capsule = PyCapsule_New(m, "mem_handler", forget_numpy_memory)
    except BaseException:
        c_free(m)
        raise
    m.owner = <void *>region
    Py_INCREF(region)
    return capsule


def set_numpy_handler(handler):
    """Put a handler in force in this context. Returns the one before."""
    global _nr_numpy_arrays_calls
    cdef PyObject *before
    _nr_numpy_arrays_calls += 1
    before = <PyObject *>(<SetHandler>numpy_api()[API_SET_HANDLER])(<void *>handler)
    if before == NULL:
        PyErr_Occurred_raise()
    result = <object>before
    Py_XDECREF(before)
    return result


cdef int PyErr_Occurred_raise() except -1:
    return -1  # numpy has set the error
