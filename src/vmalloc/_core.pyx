# SPDX-License-Identifier: MIT
# cython: language_level=3, freethreading_compatible=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic
"""The only module that knows both C and Python. It is one module in parts, the .pxi files included below;
docs/decisions/0014-one-extension-module.md says why.

A region is a chain of classes, one for each thing it does, each the base of the next: RegionHandle,
RegionUpkeep, RegionReferences, CoreRegion. Holding is one reference to a busy range; Block and ArrayOwner
differ in what a user may do with it.

A request first tries the magazine with the interpreter lock held, since that is a few nanoseconds and takes
no lock of the region; everything else runs without it, in slices, so that signals are seen: RegionHandle.run().
No Python object is made or dropped while a lock of the core is held.
"""

import os
import pickle
import weakref
from io import BytesIO
from time import monotonic
from operator import index
from contextlib import suppress
from sys import is_finalizing, modules

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.exc cimport PyErr_CheckSignals, PyErr_Fetch, PyErr_Restore, PyErr_SetInterrupt
from cpython.ref cimport Py_INCREF
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EBUSY, EINTR, ENOLCK, ENOMEM, ENOSPC, EPROTO
from posix.time cimport nanosleep, timespec
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free as c_free, malloc as c_malloc, realloc as c_realloc
from libc.string cimport memcmp, memcpy, memset, strlen

from vmalloc.lab.replay_core cimport (
    vm_replay_board, vm_replay_board_bytes, vm_replay_request, vm_replay_result, vm_replay_work,
)
from vmalloc.suite.loops cimport (
    VM_SUITE_LONG_BUSY, VM_SUITE_TESTS, vm_suite_board, vm_suite_board_bytes, vm_suite_job, vm_suite_open,
    vm_suite_prepare, vm_suite_result, vm_suite_work,
)

from vmalloc import errors
from vmalloc.facts import FORMAT, PAGES_MAX, POOL_PAGES_MAX, POOLS, PROCESSES_MAX
from vmalloc.log import INFO, log
from vmalloc.results import error_of, log_refusal, shortage_error, size_text


cdef extern from "<string.h>" nogil:
    void *memmem(const void *, size_t, const void *, size_t)

cdef extern from *:
    const char *VM_VERSION  # meson.build holds it


cdef extern from "errno.h":
    enum:
        EDQUOT
        EROFS
        EUCLEAN


cdef extern from "Python.h":
    int PyObject_GetBuffer(object, Py_buffer *, int) except -1
    void PyBuffer_Release(Py_buffer *)
    int Py_AddPendingCall(int (*call)(void *) noexcept, void *arg) nogil
    ctypedef struct PyObject:
        pass
    ctypedef struct PyFrameObject:
        pass
    PyFrameObject *PyEval_GetFrame()
    PyFrameObject *PyFrame_GetBack(PyFrameObject *)
    void Py_XDECREF(void *)
    int PyBuffer_IsContiguous(Py_buffer *, char)
    int PyBuffer_FillInfo(Py_buffer *, object, void *, Py_ssize_t, int, int) except -1

cdef extern from "sys/mman.h":
    void *mmap(void *at, size_t nbytes, int prot, int flags, int fd, int64_t offset) nogil
    int munmap(void *at, size_t nbytes) nogil
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    void *MAP_FAILED


cdef extern from *:
    """
    #ifdef VM_HOOKS
    void vm_clock_hold(uint64_t s);
    static bool hold_clock(uint64_t s) { vm_clock_hold(s); return true; }
    #else
    static bool hold_clock(uint64_t s) { (void)s; return false; }
    #endif
    """
    c_bool hold_clock(uint64_t s) nogil

cdef unsigned long fork_epoch = 0  # raised in every forked child: what it inherited is counted apart


def _after_fork_in_child():
    global fork_epoch
    fork_epoch += 1


# os.fork() warns of threads that it sees when its hooks have run, so helpers start again when it has returned: that is
# when the frame that called it goes on.
cdef PyFrameObject *forking_frame = NULL  # compared, and never looked into


def _before_fork():
    global forking_frame
    forking_frame = PyEval_GetFrame()


cdef bint is_in_a_hook() noexcept:
    """Of the fork: the frame that called it waits somewhere below."""
    cdef PyFrameObject *frame = PyEval_GetFrame()
    cdef PyFrameObject *back
    if frame == NULL or frame == forking_frame:
        return False
    back = PyFrame_GetBack(frame)
    while back != NULL and back != forking_frame:
        frame, back = back, PyFrame_GetBack(back)
        Py_XDECREF(frame)
    Py_XDECREF(back)
    return back != NULL


cdef int resume_helpers(void *unused) noexcept:
    if is_in_a_hook():
        Py_AddPendingCall(resume_helpers, NULL)
    else:
        vm_helpers_resume()
    return 0


def _after_fork_in_parent():
    Py_AddPendingCall(resume_helpers, NULL)


os.register_at_fork(
    before=_before_fork, after_in_child=_after_fork_in_child, after_in_parent=_after_fork_in_parent
)


def _hold_clock(uint64_t seconds):
    """For tests: ages are as at this second from now on; 0: as time goes. False in a build without hooks."""
    return hold_clock(seconds)


include "_shapes.pxi"
include "_arrays.pxi"
include "_calls.pxi"
include "_attached.pxi"
include "_handle.pxi"
include "_ranges.pxi"
include "_upkeep.pxi"
include "_references.pxi"
include "_requests.pxi"
include "_holding.pxi"
include "_find.pxi"
include "_rows.pxi"
include "_numpy_memory.pxi"
include "_private.pxi"
include "_message.pxi"
include "_wrappers.pxi"
include "_window.pxi"
include "_monitor.pxi"
include "_record.pxi"
include "_dlpack.pxi"
include "suite/loops.pxi"
include "lab/replay_core.pxi"
include "lab/vmallocinfo_scan.pxi"
