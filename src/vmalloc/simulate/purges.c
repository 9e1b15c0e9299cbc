/* SPDX-License-Identifier: MIT */
#include "parts.h"

enum { FILL_CHUNK = 64 };

void sim_wake_purge(sim_sim *s, const thread *by)
{
    thread *w = &s->thread[s->worker];
    s->is_purging = true;
    w->cpu = by->cpu;
    w->at = by->at + sim_cost(s, SIM_purge_wake);
    w->phase = DECAY;
    w->node = 0;
    s->nr_work = 0;
    s->purged = 0;
    sim_wake(s, w);
}

static void worker_work(sim_sim *s, thread *w, int64_t alone)
{
    bool is_shared = s->threads >= s->cpus;
    w->at += is_shared ? alone * sim_cost(s, SIM_shared_percent) / 100 : alone;
}

static void decay_phase(sim_sim *s, thread *w)
{
    if (w->node == 0) {
        sim_purge_begin(s->twin, s->plan.purge_is_full);
        sim_note(s, SIM_CALL_BEGIN, 0, s->plan.purge_is_full, 0, 0);
    }
    sim_note(s, SIM_CALL_DECAY, w->node, 0, 0, 0);
    uint32_t cut = sim_purge_decay(s->twin, w->node);
    if (cut)
        sim_visit(s, w, &s->pool[w->node], sim_cost(s, SIM_pool_hold));
    worker_work(s, w, cut * sim_cost(s, SIM_purge_area));
    w->phase = RECLAIM;
}

static void reclaim_phase(sim_sim *s, thread *w)
{
    sim_note(s, SIM_CALL_RECLAIM, w->node, 0, 0, 0);
    uint32_t nr = sim_purge_reclaim(s->twin);
    if (nr)
        sim_visit(s, w, &s->space, nr * sim_change_space(s));
    w->phase = DETACH;
}

static void detach_phase(sim_sim *s, thread *w)
{
    sim_note(s, SIM_CALL_DETACH, w->node, 0, 0, 0);
    uint32_t nr = sim_purge_detach(s->twin, w->node);
    s->purged += nr;
    if (nr) {
        sim_visit(s, w, &s->lazy[w->node], sim_cost(s, SIM_setup_hold));
        s->work[s->nr_work++] = w->node;
    }
    worker_work(s, w, sim_cost(s, SIM_purge_node));
    w->phase = ++w->node < s->nodes ? DECAY : FLUSH;
}

/* One flush for all of them; then helpers take the first nodes, one each, and the worker the rest. */
static void flush_phase(sim_sim *s, thread *w)
{
    worker_work(s, w, sim_cost(s, SIM_flush) + s->cpus * sim_cost(s, SIM_flush_cpu));
    uint32_t helpers = sim_purge_helpers(s->twin, s->nr_work);
    s->nr_filling = 1;
    for (uint32_t h = 0; h < helpers; h++) {
        thread *helper = &s->thread[s->worker + 1 + h];
        helper->cpu = s->work[h] % s->cpus; /* node i's work is queued on CPU i */
        helper->at = helper->node_began = w->at + sim_cost(s, SIM_purge_wake);
        helper->phase = FILL;
        helper->node = h;
        helper->last_node = h;
        s->nr_filling++;
        sim_wake(s, helper);
    }
    s->result.helped += helpers;
    w->node = helpers;
    w->last_node = s->nr_work - 1;
    w->phase = FILL;
    w->node_began = w->at;
}

static bool fill_phase(sim_sim *s, thread *w)
{
    if (s->nr_work == 0 || w->node > w->last_node) {
        if (--s->nr_filling == 0) {
            sim_purge_end(s->twin, s->purged);
            s->result.purges++;
            s->is_purging = false;
        }
        return false;
    }
    uint32_t node = s->work[w->node], most = s->plan.atomic_per_area ? 1 : FILL_CHUNK;
    uint32_t nr = sim_purge_fill(s->twin, node, most);
    sim_note(s, SIM_CALL_FILL, node, nr, 0, 0);
    worker_work(s, w, nr * sim_cost(s, SIM_purge_area));
    if (nr && s->plan.atomic_per_area)
        sim_visit(s, w, &s->counter, sim_cost(s, SIM_locked_instruction));
    if (nr < most)
        w->phase = SETTLE;
    return true;
}

static void settle_phase(sim_sim *s, thread *w)
{
    uint32_t node = s->work[w->node];
    sim_note(s, SIM_CALL_SETTLE, node, 0, 0, 0);
    sim_purge_settle(s->twin, node);
    if (!s->plan.atomic_per_area)
        sim_visit(s, w, &s->counter, sim_cost(s, SIM_locked_instruction));
    w->phase = GIVE;
}

static void give_phase(sim_sim *s, thread *w)
{
    uint32_t node = s->work[w->node];
    sim_note(s, SIM_CALL_GIVE, node, 0, 0, 0);
    uint32_t nr = sim_purge_give_back(s->twin, node);
    if (nr)
        sim_visit(s, w, &s->space, nr * sim_change_space(s));
    int64_t took = w->at - w->node_began;
    s->result.node_purge_ps += took;
    s->result.node_purge_max_ps = took > s->result.node_purge_max_ps ? took : s->result.node_purge_max_ps;
    s->result.node_purges++;
    w->node++;
    w->node_began = w->at;
    w->phase = FILL;
}

static bool pressure_phase(sim_sim *s, thread *w)
{
    if (s->nr_done == s->threads)
        return false;
    if (!s->is_purging) {
        uint32_t nr = s->plan.shrink_nodes && s->plan.shrink_nodes < s->nodes ? s->plan.shrink_nodes : s->nodes;
        uint32_t first = s->plan.shrink_rotates ? s->next_shrunk : 0;
        sim_note(s, SIM_CALL_SHRINK, first, nr, 0, 0);
        uint64_t moved = 0;
        for (uint32_t n = 0; n < nr; n++)
            moved += sim_shrink_node(s->twin, (first + n) % s->nodes);
        s->next_shrunk = (first + nr) % s->nodes;
        if (moved)
            sim_visit(s, w, &s->space, (int64_t)moved * sim_change_space(s));
    }
    w->at += s->plan.shrink_every_us * PS_PER_US;
    return true;
}

bool sim_purge_step(sim_sim *s, thread *w)
{
    switch (w->phase) {
    case DECAY:
        decay_phase(s, w);
        return true;
    case RECLAIM:
        reclaim_phase(s, w);
        return true;
    case DETACH:
        detach_phase(s, w);
        return true;
    case FLUSH:
        flush_phase(s, w);
        return true;
    case SETTLE:
        settle_phase(s, w);
        return true;
    case GIVE:
        give_phase(s, w);
        return true;
    case FILL:
        return fill_phase(s, w);
    default:
        return pressure_phase(s, w);
    }
}
