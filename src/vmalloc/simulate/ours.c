/* SPDX-License-Identifier: MIT */
#include "parts.h"

static void due(thread *th, lock *at, int64_t hold)
{
    if (hold > 0 && th->nr_todo < TODO_MAX)
        th->todo[th->nr_todo++] = (visit_due){at, hold};
}

static int64_t pool_cost(const sim_sim *s)
{
    uint32_t discipline = s->plan.design.discipline;
    return sim_cost(s, discipline == SIM_LLIST    ? SIM_ours_llist
                       : discipline == SIM_TAGGED ? SIM_ours_tagged
                                                  : SIM_ours_locked);
}

/* What one operation did, as visits to locks; the time of a lock that nobody wants is in the costs. */
static void price(sim_sim *s, thread *th, const sim_work *did)
{
    uint32_t node = th->cpu % s->nodes, away = did->level == SIM_NEIGHBOUR ? did->nodes_asked - 1 : 0;
    bool is_pool = did->level == SIM_POOL || did->level == SIM_NEIGHBOUR;
    th->nr_todo = th->at_todo = 0;
    if (did->level == SIM_MAGAZINE)
        sim_own_work(s, th, sim_cost(s, SIM_ours_magazine));
    if (did->level == SIM_SLAB)
        sim_own_work(s, th, sim_cost(s, SIM_ours_percpu));
    if (did->nodes_asked > 1)
        sim_own_work(s, th, (did->nodes_asked - 1) * sim_cost(s, SIM_line_cluster));
    if (is_pool || did->moved)
        due(th, &s->pool[(node + away) % s->nodes], pool_cost(s) + did->moved * sim_cost(s, SIM_ours_move));
    if (did->sorted || did->level == SIM_LAZY)
        due(th, &s->upkeep, (did->sorted + 1) * sim_cost(s, SIM_ours_sort));
    if (did->space_calls)
        due(th, &s->space, sim_cost(s, SIM_ours_space) + did->space_calls * sim_cost(s, SIM_ours_move));
    if (did->to_lazy)
        due(th, &s->lazy[node], did->to_lazy * sim_cost(s, SIM_ours_lazy));
    if (did->given) {
        due(th, &s->upkeep, did->given * (sim_cost(s, SIM_ours_sort) + sim_cost(s, SIM_ours_discard)));
        due(th, &s->space, did->given * sim_cost(s, SIM_ours_give));
    }
    th->phase = th->nr_todo ? TODO : NEXT;
}

static void ours_alloc_phase(sim_sim *s, thread *th)
{
    sim_work did;
    uint32_t start = sim_caching_alloc(s->twin, th->cpu, th->id, th->pages, th->align, &did);
    sim_note(s, SIM_CALL_ALLOC, th->cpu << 3 | did.level, th->pages | (uint32_t)__builtin_ctz(th->align) << 24, th->id,
             start);
    if (start == SIM_NONE)
        s->result.error = 1;
    th->slot[th->in_slot] = start;
    price(s, th, &did);
}

static void ours_free_phase(sim_sim *s, thread *th)
{
    sim_work did;
    sim_note(s, SIM_CALL_FREE, th->cpu, 0, th->id, th->slot[th->in_slot]);
    sim_caching_release(s->twin, th->cpu, th->id, th->slot[th->in_slot], &did);
    th->slot[th->in_slot] = SIM_NONE;
    price(s, th, &did);
}

static void todo_phase(sim_sim *s, thread *th)
{
    visit_due *v = &th->todo[th->at_todo++];
    sim_visit(s, th, v->at, v->hold);
    if (th->at_todo == th->nr_todo)
        th->phase = NEXT;
}

void sim_ours_step(sim_sim *s, thread *th)
{
    if (th->phase == OURS_ALLOC)
        ours_alloc_phase(s, th);
    else if (th->phase == OURS_FREE)
        ours_free_phase(s, th);
    else
        todo_phase(s, th);
}
