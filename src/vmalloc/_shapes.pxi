# SPDX-License-Identifier: MIT
# Part of _core.pyx: what callers give as shapes, dtypes and sizes, checked and in bytes.

cdef Py_ssize_t LARGEST = <Py_ssize_t>1 << 62  # bytes; more than any region has

cdef object _ndarray = None  # numpy's; imported by the first array function, not by the package
cdef dict _kinds = {}  # what callers give as dtype -> what it means


@cython.final
cdef class Kind:
    """A dtype as it was given, and what numpy makes of it."""
    cdef object given, dtype
    cdef Py_ssize_t itemsize


cdef Kind kind_of(object given):
    """Cached: np.dtype() alone takes as long as all the rest of an allocation."""
    cdef Kind kind
    try:
        kind = _kinds.get(given)
    except TypeError:  # a list of fields
        return new_kind(given)
    if kind is not None and (kind.given is given or type(given) is str):
        return kind
    kind = new_kind(given)
    if len(_kinds) < 256:
        _kinds[given] = kind
    return kind


cdef Kind new_kind(object given):
    try:
        import numpy
    except ModuleNotFoundError as e:
        if e.name != "numpy":
            raise
        raise ModuleNotFoundError("arrays need numpy: pip install 'vmalloc[numpy]'; "
                                  "alloc() and named blocks work without it", name="numpy") from None
    cdef Kind kind = Kind.__new__(Kind)
    learn_numpy(numpy)
    kind.given, kind.dtype = given, numpy.dtype(given)
    kind.itemsize = kind.dtype.itemsize
    if kind.dtype.hasobject:
        raise TypeError(f"dtype {kind.dtype} holds Python objects, which are private to a process: "
                        "send such an array by value, or convert it to numbers or text of a fixed length")
    return kind


cdef Py_ssize_t bytes_of(object shape, Kind kind) except -1:
    """What an array of that shape (an int or a tuple) takes."""
    cdef Py_ssize_t total = kind.itemsize
    try:
        if type(shape) is not tuple:
            return times(total, shape)
        for n in <tuple>shape:
            total = times(total, n)
        return total
    except OverflowError:
        raise errors.OutOfPages(f"shape {shape} of {kind.dtype} is larger than any region") from None


cdef inline Py_ssize_t times(Py_ssize_t total, Py_ssize_t n) except -1:
    if n < 0:
        raise ValueError(f"negative dimension {n} in the shape")
    if n and total > LARGEST // n:
        raise OverflowError
    return total * n


cdef object plain_shape(object shape):
    """An int or a tuple."""
    if type(shape) is tuple or type(shape) is int:
        return shape
    try:
        return index(shape)
    except TypeError:
        return tuple(shape)


cdef inline bint is_good_size(Py_ssize_t nbytes, Py_ssize_t align) noexcept:
    return 0 < nbytes <= LARGEST and 0 < align <= LARGEST and align & (align - 1) == 0


def _bad_size(nbytes, align):
    if nbytes <= 0:
        return ValueError(f"nbytes must be positive, not {nbytes}")
    if not 0 < align <= LARGEST or align & (align - 1):
        return ValueError(f"align must be a power of two up to 2**62, not {align}")
    return errors.OutOfPages(f"{nbytes} bytes are more than any region has")


def _bad_bulk(nbytes, align, count):
    if count < 0:
        return ValueError(f"count must not be negative, not {count}")
    if count > LARGEST:
        return errors.OutOfPages(f"{count} blocks of {nbytes} bytes are more than any region has")
    return _bad_size(nbytes, align)
