/* SPDX-License-Identifier: MIT */
#include "parts.h"

enum { THREAD_ALIGN_PAGES = 8, FEW_PAGES = 12 };

static void alloc_op(thread *th, uint32_t pages, uint32_t align, uint32_t slot)
{
    th->is_alloc = true;
    th->pages = pages;
    th->align = align;
    th->in_slot = slot;
}

static void free_op(thread *th, uint32_t slot)
{
    th->is_alloc = false;
    th->in_slot = slot;
}

static void random_op(const sim_sim *s, thread *th, uint32_t test)
{
    if (th->i & 1) {
        free_op(th, 0);
    } else if (test == FIX_SIZE) {
        alloc_op(th, s->plan.nr_pages, 1, 0);
    } else if (test == RANDOM_SIZE) {
        alloc_op(th, 1 + sim_below(th, 100), 1, 0);
    } else if (test == FIX_ALIGN) {
        alloc_op(th, 5, THREAD_ALIGN_PAGES, 0);
    } else {
        uint32_t r = sim_below(th, 256), shift = r % 23;
        alloc_op(th, r % 10 + 1, shift > FEW_PAGES ? 1u << (shift - FEW_PAGES) : 1, 0);
    }
}

/* One stage of a test: whether it has an operation number i. */
static bool stage_op(const sim_sim *s, thread *th, uint32_t test)
{
    uint32_t i = th->i, loops = s->plan.loops, held = s->plan.long_busy, holes = s->plan.full_fit;
    switch (test * 4 + th->stage) {
    case FULL_FIT * 4:
        return i < 2 * holes && (alloc_op(th, 1, 1, i), true);
    case FULL_FIT * 4 + 1:
        return i < holes && (free_op(th, 2 * i + 1), true);
    case FULL_FIT * 4 + 2:
        if (i & 1)
            free_op(th, 2 * holes);
        else
            alloc_op(th, 1, 1, 2 * holes);
        return i < 2 * loops;
    case FULL_FIT * 4 + 3:
        return i < holes && (free_op(th, 2 * i), true);
    case LONG_BUSY * 4:
        return i < held && (alloc_op(th, 1, 1, i), true);
    case LONG_BUSY * 4 + 1:
        if (i % 4 < 2)
            alloc_op(th, i % 4 ? 1 : 100, 1, held + i % 4);
        else
            free_op(th, held + i % 4 - 2);
        return i < 4 * loops;
    case LONG_BUSY * 4 + 2:
        return i < held && (free_op(th, i), true);
    case FIX_SIZE * 4:
    case RANDOM_SIZE * 4:
    case FIX_ALIGN * 4:
    case RANDOM_SIZE_ALIGN * 4:
        if (i < 2 * loops)
            random_op(s, th, test);
        return i < 2 * loops;
    case LOOKUP * 4: /* no test of the suite: requests that only ask which area an address lies in */
        th->is_alloc = false;
        return i < loops;
    default:
        return false;
    }
}

bool sim_next_op(sim_sim *s, thread *th)
{
    while (th->test < th->nr_tests) {
        uint32_t test = th->order[th->test];
        if (stage_op(s, th, test)) {
            th->i++;
            s->result.calls[test] += th->is_alloc;
            return true;
        }
        th->i = 0;
        if (++th->stage == 4) {
            s->result.test_ps[test] += th->at - th->test_began;
            th->test_began = th->at;
            th->stage = 0;
            th->test++;
        }
    }
    return false;
}

uint64_t sim_pairs_of(const sim_plan *p)
{
    uint64_t pairs = 0;
    for (uint32_t test = 0; test < SIM_TESTS; test++) {
        if (!(p->mask >> test & 1) || test == ALIGN_SHIFT)
            continue;
        uint64_t extra = test == FULL_FIT ? 2ull * p->full_fit : test == LONG_BUSY ? p->long_busy : 0;
        pairs += (test == LONG_BUSY ? 2ull : 1ull) * p->loops + extra;
    }
    return pairs * p->threads;
}
