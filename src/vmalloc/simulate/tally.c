/* SPDX-License-Identifier: MIT */
#include "parts.h"

#include <string.h>

enum { WARM_SHARE = 10 };

/* 16 steps for each doubling, in thousandths of a us. */
static uint32_t bucket(int64_t ps)
{
    uint64_t v = ps > 0 ? (uint64_t)ps : 0;
    if (v < 16)
        return (uint32_t)v;
    uint32_t log = 63 - (uint32_t)__builtin_clzll(v);
    return (log - 3) * 16 + (uint32_t)(v >> (log - 4) & 15);
}

/* The rule: a tenth of the pairs and so many purges, or half of the pairs. */
static void look_whether_warm(sim_sim *s, int64_t now)
{
    uint64_t pairs = s->result.pairs;
    bool has_purged = s->result.purges >= s->plan.warm_purges;
    if (s->is_warm || !((pairs * WARM_SHARE >= s->total_pairs && has_purged) || 2 * pairs >= s->total_pairs))
        return;
    s->is_warm = true;
    s->result.warm_ps = now;
    memset(s->result.lock, 0, sizeof s->result.lock);
}

static void sample(sim_sim *s)
{
    const sim_twin *t = s->twin;
    sim_result *r = &s->result;
    r->lazy_max = t->lazy_pages > r->lazy_max ? t->lazy_pages : r->lazy_max;
    r->pooled_max = t->pooled_pages > r->pooled_max ? t->pooled_pages : r->pooled_max;
    r->live_max = t->live_pages > r->live_max ? t->live_pages : r->live_max;
    r->ranges_max = t->space.free.nr > r->ranges_max ? t->space.free.nr : r->ranges_max;
    s->pooled_sum += (double)t->pooled_pages;
    s->lazy_sum += (double)t->lazy_pages;
    s->nr_samples++;
}

void sim_operation_ends(sim_sim *s, thread *th)
{
    sim_result *r = &s->result;
    if (!th->is_alloc) {
        r->pairs++;
        if (r->pairs % 64 == 0) {
            sample(s);
            look_whether_warm(s, th->at);
        }
    }
    if (s->is_warm) {
        r->warm_pairs += !th->is_alloc;
        (th->is_alloc ? r->alloc_ps : r->free_ps)[bucket(th->at - th->began)]++;
    }
}
