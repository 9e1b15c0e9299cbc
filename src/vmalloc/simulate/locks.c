/* SPDX-License-Identifier: MIT */
#include "parts.h"

#include <stdlib.h>

/* What it costs that a line comes from one CPU to another. */
static int64_t distance(const sim_sim *s, uint32_t from, uint32_t to)
{
    const sim_topology *t = &s->plan.topology;
    uint32_t a = sim_core_of(s, from), b = sim_core_of(s, to);
    if (a == b)
        return sim_cost(s, from == to ? SIM_locked_instruction : SIM_line_core);
    if (a / t->cores == b / t->cores)
        return sim_cost(s, SIM_line_cluster);
    bool same_socket = a / (t->cores * t->clusters) == b / (t->cores * t->clusters);
    return sim_cost(s, same_socket ? SIM_line_socket : SIM_line_remote);
}

static void arrive(lock *l, int64_t end)
{
    if (l->nr == l->room) {
        uint32_t room = l->room ? 2 * l->room : 4;
        int64_t *ends = sim_grow(NULL, room * sizeof *ends);
        for (uint32_t i = 0; i < l->nr; i++)
            ends[i] = l->ends[(l->head + i) & (l->room - 1)];
        free(l->ends);
        l->ends = ends;
        l->room = room;
        l->head = 0;
    }
    l->ends[(l->head + l->nr++) & (l->room - 1)] = end;
}

/* From the one before to this one: by the number of those who wait, and by the distance. */
static int64_t handover(const sim_sim *s, const lock *l, const thread *th)
{
    int64_t far = distance(s, l->cpu, th->cpu) - sim_cost(s, SIM_line_socket);
    int64_t few = sim_cost(s, SIM_handover_few), waiters = l->nr > few ? l->nr : few;
    return sim_cost(s, SIM_handover_floor) + sim_cost(s, SIM_handover_queue) / waiters + (far > 0 ? far : 0);
}

/* A user-space holder whose slice ends within the lock keeps it until its next one. The others of its CPU come to
 * the same lock soon, spin for a while and sleep. */
static int64_t preempted(const sim_sim *s, const thread *th, int64_t begin, int64_t end)
{
    const cpu_state *c = &s->cpu[th->cpu];
    bool is_hit = s->plan.design.is_caching && c->nr && begin < c->slice_end && end >= c->slice_end;
    return is_hit ? c->nr * (sim_cost(s, SIM_spin_limit) + sim_cost(s, SIM_switch_thread)) : 0;
}

/* Arrive at a lock, wait, hold it, leave: the thread's time is that of the leaving afterwards. */
void sim_visit(sim_sim *s, thread *th, lock *l, int64_t hold)
{
    int64_t now = th->at, begin = now;
    while (l->nr && l->ends[l->head] <= now) {
        l->head = (l->head + 1) & (l->room - 1);
        l->nr--;
    }
    bool is_contended = l->nr > 0;
    if (l->kind == SIM_COUNTER)
        begin = (is_contended ? l->free_at : now) + distance(s, l->cpu, th->cpu);
    else if (is_contended)
        begin = l->free_at + (l->is_atomic ? distance(s, l->cpu, th->cpu) : handover(s, l, th));
    else if (l->cpu != th->cpu || !s->plan.design.is_caching)
        begin = now + distance(s, l->cpu, th->cpu);
    int64_t end = begin + hold;
    end += l->is_atomic ? 0 : preempted(s, th, begin, end);
    arrive(l, end);
    l->free_at = end;
    l->cpu = th->cpu;
    bool slept = s->plan.design.is_caching && !l->is_atomic && begin - now > sim_cost(s, SIM_spin_limit);
    th->at = end + (slept ? sim_cost(s, SIM_wake) : 0); /* meanwhile the lock is somebody else's */
    sim_lock_stats *stats = &s->result.lock[l->kind];
    stats->visits++;
    stats->hold_ps += hold;
    if (is_contended) {
        stats->contended++;
        stats->wait_ps += begin - now;
    }
}

/* log2 in 1/256, straight between two powers. */
static int64_t log2_256(uint64_t n)
{
    uint32_t log = 63 - (uint32_t)__builtin_clzll(n);
    return (int64_t)log * 256 + (int64_t)(((n << 8) >> log) - 256);
}

/* Of a tree of so many areas, what this cache keeps: so many `trees` share it. */
static uint64_t cached_of(const sim_sim *s, uint32_t trees)
{
    uint64_t cached = (uint64_t)sim_cost(s, SIM_cached_areas) / trees;
    return cached > 1 ? cached : 1;
}

/* A way down a tree. */
int64_t sim_descent(const sim_sim *s, uint64_t areas, uint32_t trees)
{
    if (areas < 2)
        return sim_cost(s, SIM_level_cached);
    uint64_t cached = cached_of(s, trees), near = areas < cached ? areas : cached;
    int64_t levels = log2_256(near), far = log2_256(areas) - levels;
    return (levels * sim_cost(s, SIM_level_cached) + far * sim_cost(s, SIM_level_missed)) / 256;
}

/* And a change at its end: the lines beside the way are in the cache as often as any area is. */
int64_t sim_change(const sim_sim *s, uint64_t areas, uint32_t trees)
{
    uint64_t cached = cached_of(s, trees);
    int64_t lines = sim_cost(s, SIM_change_lines) * sim_cost(s, SIM_level_missed);
    int64_t missed = areas > cached ? (int64_t)((double)lines * (double)(areas - cached) / (double)areas) : 0;
    return sim_descent(s, areas, trees) + sim_cost(s, SIM_tree_change) + missed;
}

/* The same in a tree whose areas stand for so many more in the workload meant. */
int64_t sim_change_busy(const sim_sim *s, uint32_t areas)
{
    return sim_change(s, (uint64_t)areas * s->plan.shrunk, s->nodes);
}
int64_t sim_change_space(const sim_sim *s)
{
    return sim_change(s, (uint64_t)sim_space_nr(&s->twin->space) * s->plan.shrunk, 1);
}

static void init_lock(lock *l, enum sim_kind kind, uint32_t cpu)
{
    l->kind = kind;
    l->cpu = cpu;
}

bool sim_init_locks(sim_sim *s)
{
    s->busy = calloc(s->nodes, sizeof *s->busy);
    s->lazy = calloc(s->nodes, sizeof *s->lazy);
    s->pool = calloc(s->nodes, sizeof *s->pool);
    for (uint32_t n = 0; n < s->nodes && s->busy && s->lazy && s->pool; n++) {
        init_lock(&s->busy[n], SIM_BUSY_LOCK, n);
        init_lock(&s->lazy[n], SIM_LAZY_LOCK, n);
        init_lock(&s->pool[n], SIM_POOL_LOCK, n);
        s->pool[n].is_atomic = s->plan.design.discipline == SIM_TAGGED;
    }
    init_lock(&s->space, SIM_SPACE_LOCK, 0);
    init_lock(&s->counter, SIM_COUNTER, 0);
    init_lock(&s->zone, SIM_ZONE_LOCK, 0);
    init_lock(&s->upkeep, SIM_UPKEEP, 0);
    return s->busy && s->lazy && s->pool;
}

void sim_free_locks(sim_sim *s)
{
    lock *single[] = {&s->space, &s->counter, &s->zone, &s->upkeep};
    for (uint32_t i = 0; i < 4; i++)
        free(single[i]->ends);
    for (uint32_t n = 0; s->busy && s->lazy && s->pool && n < s->nodes; n++) {
        free(s->busy[n].ends);
        free(s->lazy[n].ends);
        free(s->pool[n].ends);
    }
    free(s->busy);
    free(s->lazy);
    free(s->pool);
}
