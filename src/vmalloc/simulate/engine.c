/* SPDX-License-Identifier: MIT */
#include "parts.h"

#include <stdlib.h>
#include <string.h>

/* ---- threads ---------------------------------------------------------------------------------- */

/* The next operation begins; up to its first arrival. False when the thread has done all its tests. */
static bool begin_op(sim_sim *s, thread *th)
{
    if (th->began >= 0)
        sim_operation_ends(s, th);
    th->began = th->at;
    if (!sim_next_op(s, th)) {
        th->ended = th->at;
        s->nr_done++;
        return false;
    }
    if (th->order[th->test] == LOOKUP) {
        th->looks = s->plan.lookups;
        sim_own_work(s, th, s->plan.request_ps);
        th->phase = th->looks ? LOOK : NEXT;
    } else if (s->plan.design.is_caching) {
        th->phase = th->is_alloc ? OURS_ALLOC : OURS_FREE;
    } else if (th->is_alloc) {
        sim_own_work(s, th, sim_cost(s, SIM_alloc_work));
        bool is_pooled = sim_kernel_pooled(s->twin, th->cpu, th->pages + s->plan.guard_pages) > 0;
        th->phase = is_pooled ? POOL : SPACE;
    } else {
        th->start = th->slot[th->in_slot];
        th->pages = s->twin->pages[th->start] - s->plan.guard_pages;
        sim_own_work(s, th, sim_cost(s, SIM_free_work));
        th->phase = FREE_BUSY;
    }
    return true;
}

/* Whoever waits for this CPU gets it now. */
static thread *switch_to_next(sim_sim *s, const thread *th)
{
    cpu_state *c = &s->cpu[th->cpu];
    if (!c->nr)
        return NULL;
    thread *next = &s->thread[c->waiting[c->head]];
    c->head = (c->head + 1) % s->threads;
    c->nr--;
    next->at = th->at + sim_cost(s, SIM_switch_thread);
    c->slice_end = next->at + sim_cost(s, SIM_slice);
    return next;
}

static thread *next_thread(sim_sim *s, thread *th)
{
    cpu_state *c = &s->cpu[th->cpu];
    if (!begin_op(s, th))
        return switch_to_next(s, th);
    if (c->nr && th->at >= c->slice_end) {
        c->waiting[(c->head + c->nr++) % s->threads] = th->id;
        return switch_to_next(s, th);
    }
    return th;
}

/* One event; who goes on instead, NULL for nobody. */
static thread *step(sim_sim *s, thread *th)
{
    switch (th->phase) {
    case NEXT:
        break;
    case PAGES:
    case ZONE:
        sim_pages_step(s, th);
        break;
    case OURS_ALLOC:
    case OURS_FREE:
    case TODO:
        sim_ours_step(s, th);
        break;
    case DECAY:
    case RECLAIM:
    case DETACH:
    case FLUSH:
    case FILL:
    case SETTLE:
    case GIVE:
    case PRESSURE:
        return sim_purge_step(s, th) ? th : NULL;
    default:
        sim_request_step(s, th);
        break;
    }
    return th->phase == NEXT ? next_thread(s, th) : th;
}

/* ---- the face --------------------------------------------------------------------------------- */

static void shuffle(thread *th) /* as the kernel's test does */
{
    for (uint32_t i = th->nr_tests - 1u; i > 0 && i < SIM_TESTS; i--) {
        uint32_t j = sim_below(th, i);
        uint8_t kept = th->order[i];
        th->order[i] = th->order[j];
        th->order[j] = kept;
    }
}

static void init_thread(sim_sim *s, uint32_t id, uint64_t *random)
{
    const sim_plan *p = &s->plan;
    thread *th = &s->thread[id];
    th->id = id;
    th->cpu = id % s->cpus;
    th->random = sim_next_random(random);
    th->at = th->test_began = (int64_t)(sim_next_random(random) % (uint64_t)PS_PER_US); /* nobody starts at once */
    th->began = -1;
    for (uint32_t test = 0; test < SIM_TESTS; test++)
        if (p->mask >> test & 1)
            th->order[th->nr_tests++] = (uint8_t)test;
    if (!p->in_order)
        shuffle(th);
    uint64_t held = 2ull * p->full_fit > p->long_busy ? 2ull * p->full_fit : p->long_busy;
    th->slot = sim_grow(NULL, (held + 2) * sizeof *th->slot);
    memset(th->slot, 0xff, (held + 2) * sizeof *th->slot);
}

static void init_cpu(sim_sim *s, uint32_t cpu)
{
    const sim_topology *t = &s->plan.topology;
    uint32_t cores = s->cpus / t->smt, used = s->threads < s->cpus ? s->threads : s->cpus;
    bool has_neighbour = false; /* a thread on another CPU of this core */
    for (uint32_t i = sim_core_of(s, cpu); i < used; i += cores)
        has_neighbour |= i != cpu;
    uint32_t cores_used = used < cores ? used : cores;
    int64_t slower = (sim_cost(s, SIM_all_core_percent) - 100) * cores_used / cores;
    s->cpu[cpu].percent = (uint32_t)((100 + slower) * (has_neighbour ? sim_cost(s, SIM_busy_percent) : 100) / 100);
    s->cpu[cpu].slice_end = sim_cost(s, SIM_slice);
    if (s->threads > s->cpus)
        s->cpu[cpu].waiting = sim_grow(NULL, s->threads * sizeof(uint32_t));
}

sim_sim *sim_new(const sim_plan *plan)
{
    const sim_topology *t = &plan->topology;
    sim_sim *s = sim_grow(NULL, sizeof *s);
    memset(s, 0, sizeof *s);
    s->plan = *plan;
    s->cpus = t->sockets * t->clusters * t->cores * t->smt;
    s->nodes = plan->design.nr_nodes;
    s->threads = plan->threads;
    s->worker = s->threads;
    s->pressure = s->worker + 1 + s->nodes;
    s->twin = sim_twin_new(&plan->design);
    s->thread = calloc(s->pressure + 1, sizeof *s->thread);
    s->heap = calloc(s->pressure + 1, sizeof *s->heap);
    s->cpu = calloc(s->cpus, sizeof *s->cpu);
    s->nr_busy = calloc(s->nodes, sizeof *s->nr_busy);
    s->work = calloc(s->nodes, sizeof *s->work);
    bool has_locks = sim_init_locks(s);
    if (!s->twin || !s->thread || !s->heap || !s->cpu || !s->nr_busy || !s->work || !has_locks) {
        sim_delete(s);
        return NULL;
    }
    if (plan->design.is_caching)
        sim_caching_init(s->twin, s->threads);
    for (uint32_t cpu = 0; cpu < s->cpus; cpu++)
        init_cpu(s, cpu);
    uint64_t random = plan->seed;
    for (uint32_t id = 0; id < s->threads; id++) {
        init_thread(s, id, &random);
        cpu_state *c = &s->cpu[s->thread[id].cpu];
        if (id < s->cpus)
            sim_wake(s, &s->thread[id]);
        else
            c->waiting[c->nr++] = id;
    }
    for (uint32_t id = s->worker; id <= s->pressure; id++)
        s->thread[id].id = id;
    if (plan->shrink_every_us && !plan->design.is_caching) {
        s->thread[s->pressure].phase = PRESSURE;
        s->thread[s->pressure].at = plan->shrink_every_us * PS_PER_US / plan->shrunk;
        sim_wake(s, &s->thread[s->pressure]);
    }
    s->total_pairs = sim_pairs_of(plan);
    return s;
}

bool sim_run(sim_sim *s, uint64_t events)
{
    for (; events && s->nr_heap && s->nr_done < s->threads && !s->result.error; events--) {
        thread *th = &s->thread[s->heap[0].id];
        thread *next = step(s, th);
        s->result.events++;
        /* A step may have woken others, but they are later than its own beginning: the first is still this. */
        if (next)
            s->heap[0] = (entry){next->at, next->id};
        else
            s->heap[0] = s->heap[--s->nr_heap];
        if (s->nr_heap)
            sim_sift_down(s, 0);
    }
    return s->nr_heap && s->nr_done < s->threads && !s->result.error;
}

double sim_progress(const sim_sim *s)
{
    return s->total_pairs ? (double)s->result.pairs / (double)s->total_pairs : 1.0;
}

const sim_result *sim_results(sim_sim *s)
{
    sim_result *r = &s->result;
    r->end_ps = r->thread_ps = 0;
    r->thread_end_min_ps = INT64_MAX;
    for (uint32_t id = 0; id < s->threads; id++) {
        int64_t end = s->thread[id].ended;
        r->end_ps = end > r->end_ps ? end : r->end_ps;
        r->thread_end_min_ps = end < r->thread_end_min_ps ? end : r->thread_end_min_ps;
        r->thread_ps += end > r->warm_ps ? end - r->warm_ps : 0;
    }
    memcpy(r->served, s->twin->served, sizeof r->served);
    r->purged = s->twin->nr_purged;
    r->top_pages = s->twin->top;
    r->pooled_mean = s->nr_samples ? s->pooled_sum / (double)s->nr_samples : 0;
    r->lazy_mean = s->nr_samples ? s->lazy_sum / (double)s->nr_samples : 0;
    return r;
}

const uint32_t *sim_log(const sim_sim *s, uint32_t *nr)
{
    *nr = s->nr_trace / TRACE_WORDS;
    return s->trace;
}

void sim_delete(sim_sim *s)
{
    sim_free_locks(s);
    for (uint32_t id = 0; s->thread && id < s->threads; id++)
        free(s->thread[id].slot);
    for (uint32_t cpu = 0; s->cpu && cpu < s->cpus; cpu++)
        free(s->cpu[cpu].waiting);
    if (s->twin)
        sim_twin_free(s->twin);
    free(s->thread);
    free(s->heap);
    free(s->cpu);
    free(s->nr_busy);
    free(s->work);
    free(s->trace);
    free(s);
}
