# SPDX-License-Identifier: MIT
# Part of _core.pyx: `vmalloc replay --on core`, the loop of replay_core.c.

def replay_board_bytes(size_t nr_slots):
    """What the threads of a replay share: a page-aligned buffer of zeros with a slot for each allocation."""
    return vm_replay_board_bytes(nr_slots)


def replay_stop(board):
    """Tell the threads to end soon, those at the gate too."""
    cdef Py_buffer view
    PyObject_GetBuffer(board, &view, PyBUF_WRITABLE)
    if <size_t>view.len >= vm_replay_board_bytes(0):
        (<vm_replay_board *>view.buf).stop = 1
    PyBuffer_Release(&view)


def replay_work(CoreRegion region, board, uint32_t nr_threads, requests):
    """One thread of `nr_threads`: wait for the others, then serve its requests in order.

    requests: a buffer of (slot, nr_pages or 0 to free, align_pages), three uint32 each. Returns (started_ns,
    ended_ns, cpu_ns, wait_ns, nr_waits, nr_failed, error, rc).
    """
    cdef Py_buffer shared, own
    cdef vm_replay_board *b
    cdef const vm_replay_request *request
    cdef vm_replay_result out
    cdef size_t i, n
    cdef int rc
    region.open_check()
    memset(&out, 0, sizeof(out))
    PyObject_GetBuffer(board, &shared, PyBUF_WRITABLE)
    try:
        PyObject_GetBuffer(requests, &own, 0)
        try:
            b = <vm_replay_board *>shared.buf
            request = <const vm_replay_request *>own.buf
            n = own.len // sizeof(vm_replay_request)
            for i in range(n):
                if vm_replay_board_bytes(<size_t>request[i].slot + 1) > <size_t>shared.len:
                    raise ValueError(f"request {i} names slot {request[i].slot}; the board has fewer")
            with nogil:
                rc = vm_replay_work(region.r, b, nr_threads, request, n, &out)
        finally:
            PyBuffer_Release(&own)
    finally:
        PyBuffer_Release(&shared)
    return (out.started_ns, out.ended_ns, out.cpu_ns, out.wait_ns, out.nr_waits, out.nr_failed, out.error, rc)
