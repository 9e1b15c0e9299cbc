/* SPDX-License-Identifier: MIT */
#include "twin.h"

static int stamp_of(const sim_twin *t, uint32_t cpu)
{
    return t->design.nr_nodes > 1 ? (int)(cpu % t->design.nr_nodes) : -1;
}

uint32_t sim_kernel_pooled(const sim_twin *t, uint32_t cpu, uint32_t pages)
{
    if (t->design.nr_nodes == 1 || pages >= SIM_POOL_SIZES)
        return 0;
    const sim_pool *p = t->pool[cpu % t->design.nr_nodes * SIM_POOL_SIZES + pages];
    return p ? p->nr : 0;
}

uint32_t sim_kernel_pool(sim_twin *t, uint32_t cpu, uint32_t pages, uint32_t align)
{
    if (!sim_kernel_pooled(t, cpu, pages))
        return SIM_NONE;
    uint32_t start = sim_pool_take(sim_pool_of(t, cpu % t->design.nr_nodes, pages), align, t->design.discipline);
    if (start != SIM_NONE) {
        t->nr_pooled--;
        t->pooled_pages -= pages;
        sim_now_busy(t, start, pages, t->stamp[start], SIM_POOL);
    }
    return start;
}

uint32_t sim_kernel_space(sim_twin *t, uint32_t cpu, uint32_t pages, uint32_t align)
{
    /* The kernel searches for size + align - 1 bytes; whole pages hold that if they hold this many. */
    uint32_t length = align <= 1 || pages == t->design.window_pages ? pages : pages + align;
    uint32_t start = sim_space_find(&t->space, pages, align, length);
    if (start == SIM_NONE) {
        t->served[SIM_NOTHING]++;
        return SIM_NONE;
    }
    sim_space_take(&t->space, start, pages);
    sim_now_busy(t, start, pages, stamp_of(t, cpu), SIM_SPACE);
    return start;
}

int sim_kernel_free(sim_twin *t, uint32_t start)
{
    if (start >= t->known || !t->is_busy[start])
        return -1;
    t->is_busy[start] = 0;
    t->live_pages -= t->pages[start];
    t->lazy_pages += t->pages[start];
    int node = t->stamp[start] >= 0 ? t->stamp[start] : (int)sim_busy_node(t, start);
    sim_push(&t->lazy[node], start);
    return node;
}
