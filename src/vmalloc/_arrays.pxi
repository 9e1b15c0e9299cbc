# SPDX-License-Identifier: MIT
# Part of _core.pyx: arrays on a range's pages, made by numpy's C interface.
#
# The constructor, ndarray(shape, dtype, buffer), asks the buffer protocol, parses arguments and takes 60 % of an
# allocation. numpy is not needed to build this: its C interface is a table, whose entries have had these numbers
# since 1.22.

ctypedef object (*NewArray)(void *kind, void *dtype, int ndim, Py_ssize_t *shape, Py_ssize_t *strides, void *data,
                            int flags, void *like)
ctypedef int (*SetBase)(void *array, void *base) except -1

cdef enum:
    API_NEW_FROM_DESCR = 94
    API_SET_BASE_OBJECT = 282
    API_SET_HANDLER = 304
    API_DEFAULT_HANDLER = 306

cdef enum:  # numpy's flags of an array
    C_ORDER = 0x0001
    F_ORDER = 0x0002
    WRITEABLE = 0x0400

cdef enum:
    MAX_DIMS = 32  # numpy 2 has 64; what has more takes the constructor

cdef NewArray _new_from_descr = NULL  # set with _ndarray
cdef SetBase _set_base = NULL


cdef void **numpy_api() except NULL:
    try:
        from numpy._core._multiarray_umath import _ARRAY_API
    except ImportError:
        from numpy.core._multiarray_umath import _ARRAY_API
    return <void **>PyCapsule_GetPointer(_ARRAY_API, NULL)


cdef int learn_numpy(object numpy) except -1:
    global _ndarray, _new_from_descr, _set_base
    cdef void **api = numpy_api()
    _new_from_descr = <NewArray>api[API_NEW_FROM_DESCR]
    _set_base = <SetBase>api[API_SET_BASE_OBJECT]
    _ndarray = numpy.ndarray
    return 0


cdef object array_on(ArrayOwner owner, object shape, object dtype, Py_ssize_t offset=0, int order=C_ORDER):
    """A writable array of the owner's bytes from `offset` on, which is its base. The caller has seen that it fits.

    numpy sees to what is aligned and contiguous, and raises as its constructor does.
    """
    cdef Py_ssize_t dims[MAX_DIMS]
    cdef Py_ssize_t n
    cdef int ndim = 0
    if type(shape) is not tuple:
        shape = (shape,)
    if len(<tuple>shape) > MAX_DIMS or dtype.itemsize == 0:  # text of no length means another thing to this call
        return _ndarray(shape, dtype, owner, offset, None, "F" if order == F_ORDER else "C")
    for n in <tuple>shape:
        dims[ndim] = n
        ndim += 1
    Py_INCREF(dtype)  # the call keeps it, or lets it go when it fails
    array = _new_from_descr(<PyObject *>_ndarray, <PyObject *>dtype, ndim, dims, NULL,
                            <char *>vm_pointer(owner._region.r, owner.page) + offset, order | WRITEABLE, NULL)
    Py_INCREF(owner)  # so does this one
    _set_base(<PyObject *>array, <PyObject *>owner)
    return array
