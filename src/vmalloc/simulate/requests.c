/* SPDX-License-Identifier: MIT */
#include "parts.h"

static void allocated(sim_sim *s, thread *th, uint32_t start, enum sim_level level)
{
    sim_note(s, SIM_CALL_ALLOC, th->cpu << 3 | level, th->pages + s->plan.guard_pages, th->align, start);
    th->start = th->slot[th->in_slot] = start;
    th->phase = BUSY;
    if (s->is_warm) {
        uint32_t quarter = (uint32_t)((uint64_t)(th->cpu % s->nodes) * 4 / s->nodes);
        s->result.quarter_calls[quarter]++;
        s->result.quarter_hits[quarter] += level == SIM_POOL;
    }
}

static void pool_phase(sim_sim *s, thread *th)
{
    uint32_t pages = th->pages + s->plan.guard_pages, node = th->cpu % s->nodes;
    bool had_some = sim_kernel_pooled(s->twin, th->cpu, pages) > 0;
    int64_t hold = sim_cost(s, SIM_pool_hold);
    if (s->plan.design.discipline == SIM_LLIST) /* the chain is walked to find its end, then put back */
        hold += (int64_t)sim_kernel_pooled(s->twin, th->cpu, pages) * sim_cost(s, SIM_level_cached);
    uint32_t start = sim_kernel_pool(s->twin, th->cpu, pages, th->align);
    sim_visit(s, th, &s->pool[node], hold);
    th->phase = SPACE;
    if (start != SIM_NONE)
        allocated(s, th, start, SIM_POOL);
    else if (had_some)
        sim_note(s, SIM_CALL_POOL, th->cpu, pages, th->align, 0);
}

static void space_phase(sim_sim *s, thread *th)
{
    uint32_t start = sim_kernel_space(s->twin, th->cpu, th->pages + s->plan.guard_pages, th->align);
    sim_visit(s, th, &s->space, sim_change_space(s));
    if (start == SIM_NONE)
        s->result.error = 1;
    else
        allocated(s, th, start, SIM_SPACE);
}

static void busy_phase(sim_sim *s, thread *th)
{
    uint32_t node = sim_busy_node(s->twin, th->start);
    sim_visit(s, th, &s->busy[node], sim_change_busy(s, ++s->nr_busy[node]));
    th->phase = s->plan.setup_twice ? SETUP : PAGES;
}

static void setup_phase(sim_sim *s, thread *th)
{
    sim_visit(s, th, &s->busy[sim_busy_node(s->twin, th->start)], sim_cost(s, SIM_setup_hold));
    th->phase = PAGES;
}

static void free_busy_phase(sim_sim *s, thread *th)
{
    uint32_t node = sim_busy_node(s->twin, th->start);
    sim_visit(s, th, &s->busy[node], sim_change_busy(s, s->nr_busy[node]--));
    sim_own_work(s, th, th->pages * sim_cost(s, SIM_page_free));
    th->phase = COUNTER;
}

static void lazy_phase(sim_sim *s, thread *th)
{
    sim_note(s, SIM_CALL_FREE, th->cpu, 0, 0, th->start);
    int node = sim_kernel_free(s->twin, th->start);
    sim_visit(s, th, &s->lazy[node], sim_change(s, s->twin->lazy[node].nr, s->nodes));
    th->slot[th->in_slot] = SIM_NONE;
    if (s->twin->lazy_pages > s->plan.design.lazy_pages_max && !s->is_purging)
        sim_wake_purge(s, th);
    s->cpu[th->cpu].listed_pages += th->pages;
    th->phase = s->cpu[th->cpu].listed_pages > (uint64_t)sim_cost(s, SIM_zone_high) ? ZONE : NEXT;
}

static void look_phase(sim_sim *s, thread *th)
{
    sim_visit(s, th, &s->busy[sim_below(th, s->nodes)], sim_descent(s, s->plan.looked_at / s->nodes, s->nodes));
    if (--th->looks == 0)
        th->phase = NEXT;
}

void sim_request_step(sim_sim *s, thread *th)
{
    switch (th->phase) {
    case POOL:
        pool_phase(s, th);
        break;
    case SPACE:
        space_phase(s, th);
        break;
    case BUSY:
        busy_phase(s, th);
        break;
    case SETUP:
        setup_phase(s, th);
        break;
    case FREE_BUSY:
        free_busy_phase(s, th);
        break;
    case COUNTER:
        sim_visit(s, th, &s->counter, sim_cost(s, SIM_locked_instruction));
        th->phase = LAZY;
        break;
    case LAZY:
        lazy_phase(s, th);
        break;
    case LOOK:
        look_phase(s, th);
        break;
    default:
        break;
    }
}
