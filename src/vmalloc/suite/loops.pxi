# SPDX-License-Identifier: MIT
# Part of _core.pyx: `vmalloc suite`, the loops of loops.c, run without the interpreter lock.

SUITE_LONG_BUSY = VM_SUITE_LONG_BUSY


cdef vm_suite_board *_board(Py_buffer *view, object board, uint64_t nr_pages) except NULL:
    """The board a writable buffer holds, if it is large enough; the caller releases `view`."""
    PyObject_GetBuffer(board, view, PyBUF_WRITABLE)
    cdef vm_suite_board *b = <vm_suite_board *>view.buf
    if <size_t>view.len < vm_suite_board_bytes(0, 0) or \
            <size_t>view.len < vm_suite_board_bytes(b.nr_workers, nr_pages):
        PyBuffer_Release(view)
        raise ValueError(f"the board has {view.len} bytes, too few for its workers and {nr_pages} pages")
    return b


def suite_board_bytes(uint32_t nr_workers, uint64_t nr_pages):
    """What workers share beside a region of nr_pages: starts as zeros, then suite_prepare()."""
    return vm_suite_board_bytes(nr_workers, nr_pages)


def suite_prepare(board, uint32_t nr_workers):
    cdef Py_buffer view
    cdef vm_suite_board *b = _board(&view, board, 0)
    b.nr_workers = nr_workers
    PyBuffer_Release(&view)


def suite_open(board):
    """Let the workers that wait at the gate start."""
    cdef Py_buffer view
    vm_suite_open(_board(&view, board, 0))
    PyBuffer_Release(&view)


def suite_stop(board):
    """Tell the workers to end soon."""
    cdef Py_buffer view
    _board(&view, board, 0).stop = 1
    PyBuffer_Release(&view)


def suite_state(board):
    """(workers at the gate, tests ended)"""
    cdef Py_buffer view
    cdef vm_suite_board *b = _board(&view, board, 0)
    state = b.nr_ready, b.nr_done
    PyBuffer_Release(&view)
    return state


def suite_results(board):
    """(opened_ns, [(cycles, ended_ns, [(passed, failed, xfailed, ns, lock_wait_ns, error) per test])])"""
    cdef Py_buffer view
    cdef vm_suite_board *b = _board(&view, board, 0)
    cdef vm_suite_result *t
    cdef uint32_t i, k
    workers = []
    for i in range(b.nr_workers):
        tests = []
        for k in range(VM_SUITE_TESTS):
            t = &b.worker[i].test[k]
            tests.append((t.passed, t.failed, t.xfailed, t.ns, t.lock_wait_ns, t.error))
        workers.append((b.worker[i].cycles, b.worker[i].ended_ns, tests))
    found = b.opened_ns, workers
    PyBuffer_Release(&view)
    return found


def suite_work(CoreRegion region, board, uint32_t worker, bytes order, *, uint64_t nr_loops, uint64_t nr_pages,
               uint64_t nr_objects, uint64_t nr_fit, uint64_t seed, bint use_huge, bint touch):
    """One worker: wait at the board's gate, run the tests of `order` (numbers), write results to the board."""
    cdef vm_suite_job job
    cdef Py_buffer view
    cdef vm_suite_board *b
    cdef const uint8_t *numbers = order
    cdef size_t nr_tests = len(order)
    cdef vm_info info
    cdef int rc
    region.open_check()
    vm_describe(region.r, &info)
    b = _board(&view, board, info.nr_pages)
    memset(&job, 0, sizeof(job))
    job.worker = worker
    job.nr_loops, job.nr_pages, job.nr_objects = nr_loops, nr_pages, nr_objects
    job.nr_fit, job.seed, job.use_huge, job.touch = nr_fit, seed, use_huge, touch
    try:
        if worker >= b.nr_workers:
            raise ValueError(f"worker {worker} of {b.nr_workers}")
        with nogil:
            rc = vm_suite_work(region.r, b, &job, numbers, nr_tests)
    finally:
        PyBuffer_Release(&view)
    return rc
