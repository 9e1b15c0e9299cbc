# SPDX-License-Identifier: MIT
# Part of _core.pyx: Block.__dlpack__(). DLPack's ABI, version 0 (dmlc/dlpack, dlpack.h).
ctypedef struct DLDevice:
    int device_type
    int device_id

ctypedef struct DLDataType:
    unsigned char code
    unsigned char bits
    unsigned short lanes

ctypedef struct DLTensor:
    void *data
    DLDevice device
    int ndim
    DLDataType dtype
    long long *shape
    long long *strides
    unsigned long long byte_offset

ctypedef struct DLManagedTensor:
    DLTensor dl_tensor
    void *manager_ctx
    void (*deleter)(DLManagedTensor *) noexcept with gil


ctypedef struct Export:
    DLManagedTensor managed
    Py_buffer view
    long long shape


cdef void _dlpack_delete(DLManagedTensor *managed) noexcept with gil:
    cdef Export *export = <Export *>managed.manager_ctx
    PyBuffer_Release(&export.view)
    c_free(export)


cdef void _dlpack_unused(object capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor"):
        managed = <DLManagedTensor *>PyCapsule_GetPointer(capsule, "dltensor")
        managed.deleter(managed)


cdef object _dlpack_capsule(Block block):
    cdef Export *export = <Export *>c_malloc(sizeof(Export))
    if export == NULL:
        raise MemoryError
    memset(export, 0, sizeof(Export))
    try:
        PyObject_GetBuffer(block, &export.view, PyBUF_WRITABLE)
    except BaseException:
        c_free(export)
        raise
    export.shape = export.view.len
    export.managed.dl_tensor.data = export.view.buf
    export.managed.dl_tensor.device.device_type = 1
    export.managed.dl_tensor.ndim = 1
    export.managed.dl_tensor.dtype.code = 1
    export.managed.dl_tensor.dtype.bits = 8
    export.managed.dl_tensor.dtype.lanes = 1
    export.managed.dl_tensor.shape = &export.shape
    export.managed.manager_ctx = export
    export.managed.deleter = _dlpack_delete
    return PyCapsule_New(&export.managed, "dltensor", _dlpack_unused)
