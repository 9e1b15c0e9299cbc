/* SPDX-License-Identifier: MIT */
#include "engine.h"

#include <stdlib.h>
#include <string.h>

enum phase {
    NEXT,
    POOL, /* the kernel's: an allocation ... */
    SPACE,
    BUSY,
    SETUP,
    PAGES,
    FREE_BUSY, /* ... and a free */
    COUNTER,
    LAZY,
    ZONE,
    OURS_ALLOC,
    OURS_FREE,
    TODO,
    LOOK,
    DECAY, /* the purge worker's */
    RECLAIM,
    DETACH,
    FLUSH,
    FILL,
    SETTLE,
    GIVE,
    PRESSURE,
};
enum { FILL_CHUNK = 64, TODO_MAX = 6, WARM_SHARE = 10, TRACE_WORDS = 5, THREAD_ALIGN_PAGES = 8, FEW_PAGES = 12 };
enum { FIX_SIZE, FULL_FIT, LONG_BUSY, RANDOM_SIZE, FIX_ALIGN, RANDOM_SIZE_ALIGN, ALIGN_SHIFT, LOOKUP };
#define PS_PER_US 1000000ll

typedef struct lock {
    int64_t free_at;
    int64_t *ends; /* when those leave who have arrived and not left: a ring */
    uint32_t head, nr, room;
    uint32_t cpu;
    enum sim_kind kind;
    bool is_atomic; /* no lock: one compare-exchange, tried again by who comes second */
} lock;

typedef struct visit_due {
    lock *at;
    int64_t hold;
} visit_due;

typedef struct thread {
    int64_t at, began, ended;
    uint64_t random;
    uint32_t id, cpu;
    enum phase phase;
    uint8_t order[SIM_TESTS], nr_tests, test, stage;
    uint32_t i;
    int64_t test_began;
    uint32_t *slot;
    /* the operation under way */
    bool is_alloc;
    uint32_t pages, align, in_slot, start, looks;
    visit_due todo[TODO_MAX];
    uint32_t nr_todo, at_todo;
    /* of a purge worker */
    uint32_t node, last_node;
    int64_t node_began;
} thread;

typedef struct cpu_state {
    uint32_t *waiting; /* a ring of threads */
    uint32_t head, nr;
    int64_t slice_end;
    uint32_t listed_pages; /* on this CPU's page list */
    uint32_t percent;      /* own work takes so much of what it takes alone */
} cpu_state;

typedef struct entry {
    int64_t at;
    uint32_t id;
} entry;

struct sim_sim {
    sim_plan plan;
    sim_twin *twin;
    uint32_t cpus, nodes, threads;
    thread *thread; /* then the purge worker, its helpers, pressure */
    uint32_t worker, pressure;
    cpu_state *cpu;
    entry *heap;
    uint32_t nr_heap;
    lock space, counter, zone, upkeep;
    lock *busy, *lazy, *pool;
    uint32_t *nr_busy;
    bool is_purging;
    uint32_t *work, nr_work; /* nodes that this purge fills */
    uint32_t nr_filling;
    uint32_t next_shrunk; /* the node where a scan that rotates begins */
    uint64_t purged;
    bool is_warm;
    uint64_t total_pairs;
    uint32_t nr_done;
    double pooled_sum, lazy_sum;
    uint64_t nr_samples;
    uint32_t *trace;
    uint32_t nr_trace, room_trace;
    sim_result result;
};

static int64_t cost(const sim_sim *s, int name) { return s->plan.cost[name]; }

/* ---- chance, time, logs ----------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

static void note(sim_sim *s, uint32_t call, uint32_t cpu, uint32_t pages, uint32_t align, uint32_t start)
{
    if (!s->plan.log_calls)
        return;
    if (s->nr_trace + TRACE_WORDS > s->room_trace) {
        s->room_trace = s->room_trace ? 2 * s->room_trace : 1 << 14;
        s->trace = sim_grow(s->trace, s->room_trace * sizeof *s->trace);
    }
    uint32_t *to = s->trace + s->nr_trace;
    to[0] = call;
    to[1] = cpu;
    to[2] = pages;
    to[3] = align;
    to[4] = start;
    s->nr_trace += TRACE_WORDS;
}

/* 16 steps for each doubling, in thousandths of a us. */
static uint32_t bucket(int64_t ps)
{
    uint64_t v = ps > 0 ? (uint64_t)ps : 0;
    if (v < 16)
        return (uint32_t)v;
    uint32_t log = 63 - (uint32_t)__builtin_clzll(v);
    return (log - 3) * 16 + (uint32_t)(v >> (log - 4) & 15);
}

static void sift_down(sim_sim *s, uint32_t i)
{
    entry moving = s->heap[i];
    for (;;) {
        uint32_t child = 4 * i + 1, least = child;
        if (child >= s->nr_heap)
            break;
        uint32_t end = child + 4 < s->nr_heap ? child + 4 : s->nr_heap;
        for (uint32_t c = child + 1; c < end; c++)
            if (s->heap[c].at < s->heap[least].at
                || (s->heap[c].at == s->heap[least].at && s->heap[c].id < s->heap[least].id))
                least = c;
        entry *e = &s->heap[least];
        if (moving.at < e->at || (moving.at == e->at && moving.id < e->id))
            break;
        s->heap[i] = *e;
        i = least;
    }
    s->heap[i] = moving;
}

static void wake(sim_sim *s, thread *th)
{
    uint32_t i = s->nr_heap++;
    entry moving = {th->at, th->id};
    while (i) {
        entry *parent = &s->heap[(i - 1) / 4];
        if (parent->at < moving.at || (parent->at == moving.at && parent->id < moving.id))
            break;
        s->heap[i] = *parent;
        i = (i - 1) / 4;
    }
    s->heap[i] = moving;
}

/* ---- shared things ---------------------------------------------------------------------------- */

static uint32_t core_of(const sim_sim *s, uint32_t cpu) { return cpu % (s->cpus / s->plan.topology.smt); }

/* What it costs that a line comes from one CPU to another. */
static int64_t distance(const sim_sim *s, uint32_t from, uint32_t to)
{
    const sim_topology *t = &s->plan.topology;
    uint32_t a = core_of(s, from), b = core_of(s, to);
    if (a == b)
        return cost(s, from == to ? SIM_locked_instruction : SIM_line_core);
    if (a / t->cores == b / t->cores)
        return cost(s, SIM_line_cluster);
    bool same_socket = a / (t->cores * t->clusters) == b / (t->cores * t->clusters);
    return cost(s, same_socket ? SIM_line_socket : SIM_line_remote);
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
    int64_t far = distance(s, l->cpu, th->cpu) - cost(s, SIM_line_socket);
    int64_t few = cost(s, SIM_handover_few), waiters = l->nr > few ? l->nr : few;
    return cost(s, SIM_handover_floor) + cost(s, SIM_handover_queue) / waiters + (far > 0 ? far : 0);
}

/* A user-space holder whose slice ends within the lock keeps it until its next one. The others of its CPU come to
 * the same lock soon, spin for a while and sleep. */
static int64_t preempted(const sim_sim *s, const thread *th, int64_t begin, int64_t end)
{
    const cpu_state *c = &s->cpu[th->cpu];
    bool is_hit = s->plan.design.is_caching && c->nr && begin < c->slice_end && end >= c->slice_end;
    return is_hit ? c->nr * (cost(s, SIM_spin_limit) + cost(s, SIM_switch_thread)) : 0;
}

/* Arrive at a lock, wait, hold it, leave: the thread's time is that of the leaving afterwards. */
static void visit(sim_sim *s, thread *th, lock *l, int64_t hold)
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
    bool slept = s->plan.design.is_caching && !l->is_atomic && begin - now > cost(s, SIM_spin_limit);
    th->at = end + (slept ? cost(s, SIM_wake) : 0); /* meanwhile the lock is somebody else's */
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
    uint64_t cached = (uint64_t)cost(s, SIM_cached_areas) / trees;
    return cached > 1 ? cached : 1;
}

/* A way down a tree. */
static int64_t descent(const sim_sim *s, uint64_t areas, uint32_t trees)
{
    if (areas < 2)
        return cost(s, SIM_level_cached);
    uint64_t cached = cached_of(s, trees), near = areas < cached ? areas : cached;
    int64_t levels = log2_256(near), far = log2_256(areas) - levels;
    return (levels * cost(s, SIM_level_cached) + far * cost(s, SIM_level_missed)) / 256;
}

/* And a change at its end: the lines beside the way are in the cache as often as any area is. */
static int64_t change(const sim_sim *s, uint64_t areas, uint32_t trees)
{
    uint64_t cached = cached_of(s, trees);
    int64_t lines = cost(s, SIM_change_lines) * cost(s, SIM_level_missed);
    int64_t missed = areas > cached ? (int64_t)((double)lines * (double)(areas - cached) / (double)areas) : 0;
    return descent(s, areas, trees) + cost(s, SIM_tree_change) + missed;
}

/* The same in a tree whose areas stand for so many more in the workload meant. */
static int64_t change_busy(const sim_sim *s, uint32_t areas)
{
    return change(s, (uint64_t)areas * s->plan.shrunk, s->nodes);
}
static int64_t change_space(const sim_sim *s)
{
    return change(s, (uint64_t)s->twin->space.nr_ranges * s->plan.shrunk, 1);
}

/* Work that nobody else takes part in. */
static void work(sim_sim *s, thread *th, int64_t alone) { th->at += alone * s->cpu[th->cpu].percent / 100; }

/* ---- the test suite --------------------------------------------------------------------------- */

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

static uint32_t below(thread *th, uint32_t n) { return (uint32_t)(next_random(&th->random) % n); }

static void random_op(const sim_sim *s, thread *th, uint32_t test)
{
    if (th->i & 1) {
        free_op(th, 0);
    } else if (test == FIX_SIZE) {
        alloc_op(th, s->plan.nr_pages, 1, 0);
    } else if (test == RANDOM_SIZE) {
        alloc_op(th, 1 + below(th, 100), 1, 0);
    } else if (test == FIX_ALIGN) {
        alloc_op(th, 5, THREAD_ALIGN_PAGES, 0);
    } else {
        uint32_t r = below(th, 256), shift = r % 23;
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

static bool next_op(sim_sim *s, thread *th)
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

static uint64_t pairs_of(const sim_plan *p)
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

/* ---- statistics ------------------------------------------------------------------------------- */

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
    r->ranges_max = t->space.nr_ranges > r->ranges_max ? t->space.nr_ranges : r->ranges_max;
    s->pooled_sum += (double)t->pooled_pages;
    s->lazy_sum += (double)t->lazy_pages;
    s->nr_samples++;
}

static void operation_ends(sim_sim *s, thread *th)
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

/* ---- the kernel ------------------------------------------------------------------------------- */

static void allocated(sim_sim *s, thread *th, uint32_t start, enum sim_level level)
{
    note(s, SIM_CALL_ALLOC, th->cpu << 3 | level, th->pages + s->plan.guard_pages, th->align, start);
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
    int64_t hold = cost(s, SIM_pool_hold);
    if (s->plan.design.discipline == SIM_LLIST) /* the chain is walked to find its end, then put back */
        hold += (int64_t)sim_kernel_pooled(s->twin, th->cpu, pages) * cost(s, SIM_level_cached);
    uint32_t start = sim_kernel_pool(s->twin, th->cpu, pages, th->align);
    visit(s, th, &s->pool[node], hold);
    th->phase = SPACE;
    if (start != SIM_NONE)
        allocated(s, th, start, SIM_POOL);
    else if (had_some)
        note(s, SIM_CALL_POOL, th->cpu, pages, th->align, 0);
}

static void space_phase(sim_sim *s, thread *th)
{
    uint32_t start = sim_kernel_space(s->twin, th->cpu, th->pages + s->plan.guard_pages, th->align);
    visit(s, th, &s->space, change_space(s));
    if (start == SIM_NONE)
        s->result.error = 1;
    else
        allocated(s, th, start, SIM_SPACE);
}

static void busy_phase(sim_sim *s, thread *th)
{
    uint32_t node = sim_busy_node(s->twin, th->start);
    visit(s, th, &s->busy[node], change_busy(s, ++s->nr_busy[node]));
    th->phase = s->plan.setup_twice ? SETUP : PAGES;
}

static void setup_phase(sim_sim *s, thread *th)
{
    visit(s, th, &s->busy[sim_busy_node(s->twin, th->start)], cost(s, SIM_setup_hold));
    th->phase = PAGES;
}

/* Pages come from this CPU's list; a list that runs out takes a batch from the zone. */
static void pages_phase(sim_sim *s, thread *th)
{
    cpu_state *c = &s->cpu[th->cpu];
    if (c->listed_pages < th->pages) {
        visit(s, th, &s->zone, cost(s, SIM_zone_page) * cost(s, SIM_zone_batch));
        c->listed_pages += (uint32_t)cost(s, SIM_zone_batch);
        return;
    }
    c->listed_pages -= th->pages;
    work(s, th, th->pages * cost(s, SIM_page_alloc));
    th->phase = NEXT;
}

static void free_busy_phase(sim_sim *s, thread *th)
{
    uint32_t node = sim_busy_node(s->twin, th->start);
    visit(s, th, &s->busy[node], change_busy(s, s->nr_busy[node]--));
    work(s, th, th->pages * cost(s, SIM_page_free));
    th->phase = COUNTER;
}

static void wake_purge(sim_sim *s, const thread *by)
{
    thread *w = &s->thread[s->worker];
    s->is_purging = true;
    w->cpu = by->cpu;
    w->at = by->at + cost(s, SIM_purge_wake);
    w->phase = DECAY;
    w->node = 0;
    s->nr_work = 0;
    s->purged = 0;
    wake(s, w);
}

static void lazy_phase(sim_sim *s, thread *th)
{
    note(s, SIM_CALL_FREE, th->cpu, 0, 0, th->start);
    int node = sim_kernel_free(s->twin, th->start);
    visit(s, th, &s->lazy[node], change(s, s->twin->lazy[node].nr, s->nodes));
    th->slot[th->in_slot] = SIM_NONE;
    if (s->twin->lazy_pages > s->plan.design.lazy_pages_max && !s->is_purging)
        wake_purge(s, th);
    s->cpu[th->cpu].listed_pages += th->pages;
    th->phase = s->cpu[th->cpu].listed_pages > (uint64_t)cost(s, SIM_zone_high) ? ZONE : NEXT;
}

static void zone_phase(sim_sim *s, thread *th)
{
    cpu_state *c = &s->cpu[th->cpu];
    visit(s, th, &s->zone, cost(s, SIM_zone_page) * cost(s, SIM_zone_batch));
    c->listed_pages -= (uint32_t)cost(s, SIM_zone_batch);
    if (c->listed_pages <= (uint64_t)cost(s, SIM_zone_high))
        th->phase = NEXT;
}

static void look_phase(sim_sim *s, thread *th)
{
    visit(s, th, &s->busy[below(th, s->nodes)], descent(s, s->plan.looked_at / s->nodes, s->nodes));
    if (--th->looks == 0)
        th->phase = NEXT;
}

/* ---- the purge worker ------------------------------------------------------------------------- */

static void worker_work(sim_sim *s, thread *w, int64_t alone)
{
    bool is_shared = s->threads >= s->cpus;
    w->at += is_shared ? alone * cost(s, SIM_shared_percent) / 100 : alone;
}

static void decay_phase(sim_sim *s, thread *w)
{
    if (w->node == 0) {
        sim_purge_begin(s->twin, s->plan.purge_is_full);
        note(s, SIM_CALL_BEGIN, 0, s->plan.purge_is_full, 0, 0);
    }
    note(s, SIM_CALL_DECAY, w->node, 0, 0, 0);
    uint32_t cut = sim_purge_decay(s->twin, w->node);
    if (cut)
        visit(s, w, &s->pool[w->node], cost(s, SIM_pool_hold));
    worker_work(s, w, cut * cost(s, SIM_purge_area));
    w->phase = RECLAIM;
}

static void reclaim_phase(sim_sim *s, thread *w)
{
    note(s, SIM_CALL_RECLAIM, w->node, 0, 0, 0);
    uint32_t nr = sim_purge_reclaim(s->twin);
    if (nr)
        visit(s, w, &s->space, nr * change_space(s));
    w->phase = DETACH;
}

static void detach_phase(sim_sim *s, thread *w)
{
    note(s, SIM_CALL_DETACH, w->node, 0, 0, 0);
    uint32_t nr = sim_purge_detach(s->twin, w->node);
    s->purged += nr;
    if (nr) {
        visit(s, w, &s->lazy[w->node], cost(s, SIM_setup_hold));
        s->work[s->nr_work++] = w->node;
    }
    worker_work(s, w, cost(s, SIM_purge_node));
    w->phase = ++w->node < s->nodes ? DECAY : FLUSH;
}

/* One flush for all of them; then helpers take the first nodes, one each, and the worker the rest. */
static void flush_phase(sim_sim *s, thread *w)
{
    worker_work(s, w, cost(s, SIM_flush) + s->cpus * cost(s, SIM_flush_cpu));
    uint32_t helpers = sim_purge_helpers(s->twin, s->nr_work);
    s->nr_filling = 1;
    for (uint32_t h = 0; h < helpers; h++) {
        thread *helper = &s->thread[s->worker + 1 + h];
        helper->cpu = s->work[h] % s->cpus; /* node i's work is queued on CPU i */
        helper->at = helper->node_began = w->at + cost(s, SIM_purge_wake);
        helper->phase = FILL;
        helper->node = h;
        helper->last_node = h;
        s->nr_filling++;
        wake(s, helper);
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
    note(s, SIM_CALL_FILL, node, nr, 0, 0);
    worker_work(s, w, nr * cost(s, SIM_purge_area));
    if (nr && s->plan.atomic_per_area)
        visit(s, w, &s->counter, cost(s, SIM_locked_instruction));
    if (nr < most)
        w->phase = SETTLE;
    return true;
}

static void settle_phase(sim_sim *s, thread *w)
{
    uint32_t node = s->work[w->node];
    note(s, SIM_CALL_SETTLE, node, 0, 0, 0);
    sim_purge_settle(s->twin, node);
    if (!s->plan.atomic_per_area)
        visit(s, w, &s->counter, cost(s, SIM_locked_instruction));
    w->phase = GIVE;
}

static void give_phase(sim_sim *s, thread *w)
{
    uint32_t node = s->work[w->node];
    note(s, SIM_CALL_GIVE, node, 0, 0, 0);
    uint32_t nr = sim_purge_give_back(s->twin, node);
    if (nr)
        visit(s, w, &s->space, nr * change_space(s));
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
        note(s, SIM_CALL_SHRINK, first, nr, 0, 0);
        uint64_t moved = 0;
        for (uint32_t n = 0; n < nr; n++)
            moved += sim_shrink_node(s->twin, (first + n) % s->nodes);
        s->next_shrunk = (first + nr) % s->nodes;
        if (moved)
            visit(s, w, &s->space, (int64_t)moved * change_space(s));
    }
    w->at += s->plan.shrink_every_us * PS_PER_US;
    return true;
}

/* ---- ours ------------------------------------------------------------------------------------- */

static void due(thread *th, lock *at, int64_t hold)
{
    if (hold > 0 && th->nr_todo < TODO_MAX)
        th->todo[th->nr_todo++] = (visit_due){at, hold};
}

static int64_t pool_cost(const sim_sim *s)
{
    uint32_t discipline = s->plan.design.discipline;
    return cost(s, discipline == SIM_LLIST    ? SIM_ours_llist
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
        work(s, th, cost(s, SIM_ours_magazine));
    if (did->level == SIM_SLAB)
        work(s, th, cost(s, SIM_ours_percpu));
    if (did->nodes_asked > 1)
        work(s, th, (did->nodes_asked - 1) * cost(s, SIM_line_cluster));
    if (is_pool || did->moved)
        due(th, &s->pool[(node + away) % s->nodes], pool_cost(s) + did->moved * cost(s, SIM_ours_move));
    if (did->sorted || did->level == SIM_LAZY)
        due(th, &s->upkeep, (did->sorted + 1) * cost(s, SIM_ours_sort));
    if (did->space_calls)
        due(th, &s->space, cost(s, SIM_ours_space) + did->space_calls * cost(s, SIM_ours_move));
    if (did->to_lazy)
        due(th, &s->lazy[node], did->to_lazy * cost(s, SIM_ours_lazy));
    if (did->given) {
        due(th, &s->upkeep, did->given * (cost(s, SIM_ours_sort) + cost(s, SIM_ours_discard)));
        due(th, &s->space, did->given * cost(s, SIM_ours_give));
    }
    th->phase = th->nr_todo ? TODO : NEXT;
}

static void ours_alloc_phase(sim_sim *s, thread *th)
{
    sim_work did;
    uint32_t start = sim_caching_alloc(s->twin, th->cpu, th->id, th->pages, th->align, &did);
    note(s, SIM_CALL_ALLOC, th->cpu << 3 | did.level, th->pages | (uint32_t)__builtin_ctz(th->align) << 24, th->id,
         start);
    if (start == SIM_NONE)
        s->result.error = 1;
    th->slot[th->in_slot] = start;
    price(s, th, &did);
}

static void ours_free_phase(sim_sim *s, thread *th)
{
    sim_work did;
    note(s, SIM_CALL_FREE, th->cpu, 0, th->id, th->slot[th->in_slot]);
    sim_caching_release(s->twin, th->cpu, th->id, th->slot[th->in_slot], &did);
    th->slot[th->in_slot] = SIM_NONE;
    price(s, th, &did);
}

static void todo_phase(sim_sim *s, thread *th)
{
    visit_due *v = &th->todo[th->at_todo++];
    visit(s, th, v->at, v->hold);
    if (th->at_todo == th->nr_todo)
        th->phase = NEXT;
}

/* ---- threads ---------------------------------------------------------------------------------- */

/* The next operation begins; up to its first arrival. False when the thread has done all its tests. */
static bool begin_op(sim_sim *s, thread *th)
{
    if (th->began >= 0)
        operation_ends(s, th);
    th->began = th->at;
    if (!next_op(s, th)) {
        th->ended = th->at;
        s->nr_done++;
        return false;
    }
    if (th->order[th->test] == LOOKUP) {
        th->looks = s->plan.lookups;
        work(s, th, s->plan.request_ps);
        th->phase = th->looks ? LOOK : NEXT;
    } else if (s->plan.design.is_caching) {
        th->phase = th->is_alloc ? OURS_ALLOC : OURS_FREE;
    } else if (th->is_alloc) {
        work(s, th, cost(s, SIM_alloc_work));
        bool is_pooled = sim_kernel_pooled(s->twin, th->cpu, th->pages + s->plan.guard_pages) > 0;
        th->phase = is_pooled ? POOL : SPACE;
    } else {
        th->start = th->slot[th->in_slot];
        th->pages = s->twin->pages[th->start] - s->plan.guard_pages;
        work(s, th, cost(s, SIM_free_work));
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
    next->at = th->at + cost(s, SIM_switch_thread);
    c->slice_end = next->at + cost(s, SIM_slice);
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
    case PAGES:
        pages_phase(s, th);
        break;
    case FREE_BUSY:
        free_busy_phase(s, th);
        break;
    case COUNTER:
        visit(s, th, &s->counter, cost(s, SIM_locked_instruction));
        th->phase = LAZY;
        break;
    case LAZY:
        lazy_phase(s, th);
        break;
    case ZONE:
        zone_phase(s, th);
        break;
    case OURS_ALLOC:
        ours_alloc_phase(s, th);
        break;
    case OURS_FREE:
        ours_free_phase(s, th);
        break;
    case TODO:
        todo_phase(s, th);
        break;
    case LOOK:
        look_phase(s, th);
        break;
    case DECAY:
        decay_phase(s, th);
        break;
    case RECLAIM:
        reclaim_phase(s, th);
        break;
    case DETACH:
        detach_phase(s, th);
        break;
    case FLUSH:
        flush_phase(s, th);
        break;
    case FILL:
        return fill_phase(s, th) ? th : NULL;
    case SETTLE:
        settle_phase(s, th);
        break;
    case GIVE:
        give_phase(s, th);
        break;
    case PRESSURE:
        return pressure_phase(s, th) ? th : NULL;
    case NEXT:
        break;
    }
    return th->phase == NEXT ? next_thread(s, th) : th;
}

/* ---- the face --------------------------------------------------------------------------------- */

static void shuffle(thread *th) /* as the kernel's test does */
{
    for (uint32_t i = th->nr_tests - 1u; i > 0 && i < SIM_TESTS; i--) {
        uint32_t j = below(th, i);
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
    th->random = next_random(random);
    th->at = th->test_began = (int64_t)(next_random(random) % (uint64_t)PS_PER_US); /* nobody starts at once */
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
    for (uint32_t i = core_of(s, cpu); i < used; i += cores)
        has_neighbour |= i != cpu;
    uint32_t cores_used = used < cores ? used : cores;
    int64_t slower = (cost(s, SIM_all_core_percent) - 100) * cores_used / cores;
    s->cpu[cpu].percent = (uint32_t)((100 + slower) * (has_neighbour ? cost(s, SIM_busy_percent) : 100) / 100);
    s->cpu[cpu].slice_end = cost(s, SIM_slice);
    if (s->threads > s->cpus)
        s->cpu[cpu].waiting = sim_grow(NULL, s->threads * sizeof(uint32_t));
}

static void init_lock(lock *l, enum sim_kind kind, uint32_t cpu)
{
    l->kind = kind;
    l->cpu = cpu;
}

static void init_locks(sim_sim *s)
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
    init_locks(s);
    if (!s->twin || !s->thread || !s->heap || !s->cpu || !s->nr_busy || !s->work || !s->busy || !s->lazy || !s->pool) {
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
            wake(s, &s->thread[id]);
        else
            c->waiting[c->nr++] = id;
    }
    for (uint32_t id = s->worker; id <= s->pressure; id++)
        s->thread[id].id = id;
    if (plan->shrink_every_us && !plan->design.is_caching) {
        s->thread[s->pressure].phase = PRESSURE;
        s->thread[s->pressure].at = plan->shrink_every_us * PS_PER_US / plan->shrunk;
        wake(s, &s->thread[s->pressure]);
    }
    s->total_pairs = pairs_of(plan);
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
            sift_down(s, 0);
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
    lock *single[] = {&s->space, &s->counter, &s->zone, &s->upkeep};
    for (uint32_t i = 0; i < 4; i++)
        free(single[i]->ends);
    for (uint32_t n = 0; s->busy && s->lazy && s->pool && n < s->nodes; n++) {
        free(s->busy[n].ends);
        free(s->lazy[n].ends);
        free(s->pool[n].ends);
    }
    for (uint32_t id = 0; s->thread && id < s->threads; id++)
        free(s->thread[id].slot);
    for (uint32_t cpu = 0; s->cpu && cpu < s->cpus; cpu++)
        free(s->cpu[cpu].waiting);
    if (s->twin)
        sim_twin_free(s->twin);
    free(s->busy);
    free(s->lazy);
    free(s->pool);
    free(s->thread);
    free(s->heap);
    free(s->cpu);
    free(s->nr_busy);
    free(s->work);
    free(s->trace);
    free(s);
}
