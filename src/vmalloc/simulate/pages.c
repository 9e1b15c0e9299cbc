/* SPDX-License-Identifier: MIT */
#include "parts.h"

/* Pages come from this CPU's list; a list that runs out takes a batch from the zone. */
static void pages_phase(sim_sim *s, thread *th)
{
    cpu_state *c = &s->cpu[th->cpu];
    if (c->listed_pages < th->pages) {
        sim_visit(s, th, &s->zone, sim_cost(s, SIM_zone_page) * sim_cost(s, SIM_zone_batch));
        c->listed_pages += (uint32_t)sim_cost(s, SIM_zone_batch);
        return;
    }
    c->listed_pages -= th->pages;
    sim_own_work(s, th, th->pages * sim_cost(s, SIM_page_alloc));
    th->phase = NEXT;
}

static void zone_phase(sim_sim *s, thread *th)
{
    cpu_state *c = &s->cpu[th->cpu];
    sim_visit(s, th, &s->zone, sim_cost(s, SIM_zone_page) * sim_cost(s, SIM_zone_batch));
    c->listed_pages -= (uint32_t)sim_cost(s, SIM_zone_batch);
    if (c->listed_pages <= (uint64_t)sim_cost(s, SIM_zone_high))
        th->phase = NEXT;
}

void sim_pages_step(sim_sim *s, thread *th)
{
    if (th->phase == PAGES)
        pages_phase(s, th);
    else
        zone_phase(s, th);
}
