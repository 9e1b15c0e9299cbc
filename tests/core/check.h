/* SPDX-License-Identifier: MIT */
/*
 * CHECK: what a C test asserts. A false one prints where and what, and ends the process with 1;
 * a program whose main() returns 0 passed. Kept apart from assert() so that no build drops it.
 */
#ifndef VM_TESTS_CHECK_H
#define VM_TESTS_CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(cond)                                                                  \
    do {                                                                             \
        if (!(cond)) {                                                               \
            fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #cond); \
            exit(1);                                                                 \
        }                                                                            \
    } while (0)

/* Two integers that must be equal; both are printed if not. */
#define CHECK_EQ(got, want)                                                                                         \
    do {                                                                                                            \
        uint64_t got_ = (uint64_t)(got), want_ = (uint64_t)(want);                                                  \
        if (got_ != want_) {                                                                                        \
            fprintf(stderr, "%s:%d: %s is %" PRIu64 " (0x%" PRIx64 "), not %s = %" PRIu64 "\n", __FILE__, __LINE__, \
                    #got, got_, got_, #want, want_);                                                                \
            exit(1);                                                                                                \
        }                                                                                                           \
    } while (0)

#endif
