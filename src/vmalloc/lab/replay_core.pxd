# SPDX-License-Identifier: MIT
# Declarations of replay_core.h.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from vmalloc._core cimport vm_region


cdef extern from "replay_core.h" nogil:
    ctypedef struct vm_replay_request:
        uint32_t slot, nr_pages, align_pages

    ctypedef struct vm_replay_board:
        uint32_t nr_ready, stop

    ctypedef struct vm_replay_result:
        uint64_t started_ns, ended_ns, cpu_ns, wait_ns, nr_waits, nr_failed
        int64_t error

    size_t vm_replay_board_bytes(size_t nr_slots)
    int vm_replay_work(vm_region *r, vm_replay_board *board, uint32_t nr_threads, const vm_replay_request *request,
                       size_t nr_requests, vm_replay_result *out)
