# SPDX-License-Identifier: MIT
# Declarations of loops.h.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from vmalloc._core cimport c_bool, vm_region


cdef extern from "loops.h" nogil:
    enum:
        VM_SUITE_TESTS
        VM_SUITE_LONG_BUSY
        VM_SUITE_OVERLAP
        VM_SUITE_CONTENTS
        VM_SUITE_STOPPED

    ctypedef struct vm_suite_result:
        uint64_t passed, failed, xfailed
        uint64_t ns, lock_wait_ns
        int64_t error

    ctypedef struct vm_suite_worker:
        vm_suite_result test[13]
        uint64_t cycles, ended_ns

    ctypedef struct vm_suite_board:
        uint32_t is_open, nr_workers, nr_ready, nr_done
        int stop
        uint64_t opened_ns
        vm_suite_worker worker[1]

    ctypedef struct vm_suite_job:
        uint32_t worker
        c_bool use_huge, touch
        uint64_t nr_loops, nr_pages, nr_objects, nr_fit, seed

    size_t vm_suite_board_bytes(uint32_t nr_workers, uint64_t nr_pages)
    int vm_suite_prepare(vm_suite_board *board, uint32_t nr_workers, c_bool has_mutex)
    void vm_suite_open(vm_suite_board *board)
    int vm_suite_work(vm_region *r, vm_suite_board *board, vm_suite_job *job, const uint8_t *order, size_t nr_tests)
