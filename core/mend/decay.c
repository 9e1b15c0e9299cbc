/* SPDX-License-Identifier: MIT */
/*
 * Decay: what nobody used for a while goes back by itself, and the dead are noticed. One tick is one round of it.
 *
 * What is idle is what lay unused through a whole turn of some ticks and since then: the fewest lazy pages, the fewest
 * ranges in each pool, and magazines from which nothing was taken. Whoever takes pages notes the fewest, so work that
 * comes back within a turn loses nothing. Of what is idle each tick gives back a share, the oldest first.
 *
 * A process that ticks keeps its watch privately; two at once only decay faster. Nothing here waits long for a neighbour
 * (VM_LOCK_BRIEF: enough to notice a dead one): what cannot be had now is for the next tick.
 * After: the working set of the depot in Bonwick & Adams, "Magazines and Vmem" (USENIX 2001); decay by time as in jemalloc.
 */
#include "mend.h"

#define TICK_NS (VM_TICK_MS * 1000000ull)
#define SOON_NS (TICK_NS - TICK_NS / 8) /* who waits for a tick's time looks at the clock before we do */

void vm__watch_free(vm_region *r)
{
    if (!r->watch)
        return;
    free(r->watch->low);
    free(r->watch->slot);
    free(r->watch);
    r->watch = NULL;
}

static vm_watch *watch_of(vm_region *r)
{
    if (r->watch)
        return r->watch;
    r->watch = calloc(1, sizeof *r->watch);
    if (!r->watch)
        return NULL;
    r->watch->low = calloc((size_t)r->map.nr_nodes * VM_POOL_PAGES_MAX, sizeof *r->watch->low);
    r->watch->slot = calloc(r->map.nr_threads, sizeof *r->watch->slot);
    if (!r->watch->low || !r->watch->slot)
        vm__watch_free(r);
    return r->watch;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }
static uint64_t lazy_pages(const vm_region *r)
{
    int64_t lazy = (int64_t)VM_RELAXED(&r->map.h->lazy_pages);
    return lazy > 0 ? least((uint64_t)lazy, r->map.nr_pages) : 0;
}

/* ---- what is idle ---- */

/* Of what is idle, or of everything when memory is short. */
static uint64_t share_of_idle(uint64_t before, uint64_t since, uint64_t now, vm_pressure pressure)
{
    uint64_t idle = least(least(before, since), now);
    if (pressure == VM_PRESSURE_SOME)
        return least(since, now);
    return vm__percent_up(pressure == VM_PRESSURE_HIGH ? now : idle, VM_IDLE_DECAY_PERCENT);
}

/* Lazy pages to give back now: what is idle, above the threshold or above the soft limit; never below the floor. */
static uint64_t lazy_quota(const vm_region *r, const vm_watch *w, vm_pressure pressure)
{
    const vm_header *h = r->map.h;
    uint64_t lazy = lazy_pages(r), since = VM_RELAXED(&h->lazy_low), soft = VM_RELAXED(&h->soft_limit_pages);
    uint64_t goes = share_of_idle(w->lazy_low, since, lazy, pressure);
    uint64_t idle = least(least(w->lazy_low, since), lazy), most = vm__lazy_pages_max(r);
    uint64_t used = r->map.nr_pages - least(VM_RELAXED(&h->free_pages), r->map.nr_pages);
    if (goes < VM_IDLE_DECAY_PAGES_MIN)
        goes = least(idle > goes ? idle : goes, VM_IDLE_DECAY_PAGES_MIN);
    if (lazy > most && lazy - most > goes)
        goes = lazy - most;
    if (soft && used > soft && used - soft > goes)
        goes = used - soft;
    uint64_t floor = pressure == VM_PRESSURE_HIGH ? 0 : VM_RELAXED(&h->floor_pages);
    return lazy > floor ? least(goes, lazy - floor) : 0;
}

static void lower(uint64_t *mark, uint64_t pages)
{
    uint64_t old = VM_RELAXED(mark);
    VM_PUT(mark, old > pages ? old - pages : 0);
}

static uint64_t decay_lazy(vm_thread *t, vm_watch *w, vm_pressure pressure, bool (*go_on)(vm_thread *))
{
    vm_region *r = t->region;
    uint64_t quota = lazy_quota(r, w, pressure), given = 0;
    while (given < quota && go_on(t)) {
        uint64_t pages = vm__purge_step(t, least(quota - given, VM_TICK_STEP_PAGES), VM_TICK_STEP_RANGES, 0);
        if (!pages)
            break;
        given += pages;
    }
    w->lazy_low -= least(w->lazy_low, given);
    lower(&r->map.h->lazy_low, given);
    return given;
}

static uint64_t decay_pools(vm_thread *t, const vm_watch *w, uint32_t node, vm_pressure pressure)
{
    vm_node *n = &t->region->map.nodes[node];
    uint32_t *before = w->low + (size_t)node * VM_POOL_PAGES_MAX, quota[VM_POOL_PAGES_MAX], any = 0;
    for (uint32_t k = 0; k < VM_POOL_PAGES_MAX; k++) {
        uint32_t nr = vm__pool_count(t->region, &n->pool[k]), since = VM_RELAXED(&n->low[k]);
        quota[k] = (uint32_t)share_of_idle(before[k], since, nr, pressure);
        any |= quota[k];
    }
    uint64_t pages = any || t->region->design->kept->turn ? vm__purge_pools(t, node, quota) : 0;
    for (uint32_t k = 0; pages && k < VM_POOL_PAGES_MAX; k++) {
        before[k] -= (uint32_t)least(before[k], quota[k]);
        if (quota[k])
            VM_PUT(&n->low[k], VM_RELAXED(&n->low[k]) - (uint32_t)least(VM_RELAXED(&n->low[k]), quota[k]));
    }
    return pages;
}

/* A process is where its first thread may run: threads may be pinned apart from it, so what was used stays. */
static uint64_t decay_unused_cpus(vm_thread *t)
{
    const vm_region *r = t->region;
    vm_cpus online, may_run = {{0}};
    if (!r->design->kept->decay_unused_cpus)
        return 0;
    vm__cpus_online(&online);
    for (uint32_t p = 0; p < vm__high_process(r); p++)
        if (VM_ACQUIRE(&r->map.processes[p].state) & VM_PROCESS_LIVE)
            vm__cpus_of_process(VM_RELAXED(&r->map.processes[p].pid), &may_run);
    return vm__purge_unused_cpus(t, &online, &may_run);
}

/* ---- turning ---- */

/* Of the magazines and the run. */
static uint64_t sum_of_headers(const vm_slot *s)
{
    uint64_t sum = VM_RELAXED(&s->run);
    bool is_empty = !sum;
    for (uint32_t n = vm__next_opened(s, 1); n <= VM_POOL_PAGES_MAX; n = vm__next_opened(s, n + 1)) {
        uint64_t header = VM_RELAXED(&s->magazine[n].header);
        is_empty = is_empty && !(uint8_t)header;
        sum = sum * 0x9e3779b97f4a7c15ull + header;
    }
    return is_empty ? 0 : sum;
}

/* Magazines and a run from which nothing was taken for a turn are emptied; what was in the magazines is idle. */
static void turn_slot(vm_thread *t, vm_watch *w, uint32_t i)
{
    vm_region *r = t->region;
    vm_slot *s = &r->map.slots[i];
    vm_slot_seen now = {VM_ACQUIRE(&s->state), 0, false}, *before = &w->slot[i];
    if (!(now.state & 1))
        return;
    now.headers = sum_of_headers(s);
    bool is_same = now.headers && now.headers == before->headers && now.state == before->state;
    now.is_drained = is_same && (before->is_drained || vm__magazine_drain(t, i) == 0);
    *before = now;
}

/* Each may wait a little for its owner, so it may be broken off: the rest turn next time. */
static void turn_each_slot(vm_thread *t, vm_watch *w, bool (*go_on)(vm_thread *))
{
    const vm_region *r = t->region;
    uint32_t first = vm__first_thread(r);
    uint64_t high = least(VM_ACQUIRE(&r->map.h->high_slot), r->map.nr_threads);
    uint32_t nr = high > first ? (uint32_t)high - first : 0;
    for (uint32_t n = 0; n < nr && go_on(t); n++) {
        uint32_t i = first + w->slot_at % nr;
        w->slot_at = (w->slot_at + 1) % nr;
        if (i != t->index)
            turn_slot(t, w, i);
    }
}

static void turn_slots(vm_thread *t, vm_watch *w, bool (*go_on)(vm_thread *))
{
    vm_region *r = t->region;
    if (!r->design->has_magazines || !r->can_drain)
        return;
    uint64_t lazy = lazy_pages(r);
    turn_each_slot(t, w, go_on);
    uint64_t after = lazy_pages(r), drained = after > lazy ? after - lazy : 0;
    w->lazy_low += drained;
    VM_PUT(&r->map.h->lazy_low, VM_RELAXED(&r->map.h->lazy_low) + drained);
}

/* The recent peak sinks towards the most that was in use during this turn and the last. */
static void sink_to_use(vm_thread *t, uint64_t high)
{
    vm_header *h = t->region->map.h;
    if (vm__space_lock(t, VM_NO_WAIT) != 0)
        return;
    if (h->used_peak > high)
        vm__space_sink_peak(t, high);
    vm__space_unlock(t);
}

static void turn(vm_thread *t, vm_watch *w, bool (*go_on)(vm_thread *))
{
    vm_region *r = t->region;
    vm_header *h = r->map.h;
    uint64_t high = VM_RELAXED(&h->live_high), lazy = lazy_pages(r), free_pages = VM_RELAXED(&h->free_pages);
    sink_to_use(t, high > w->live_high ? high : w->live_high);
    w->live_high = high;
    VM_PUT(&h->live_high, r->map.nr_pages - least(free_pages + lazy, r->map.nr_pages));
    w->lazy_low = VM_RELAXED(&h->lazy_low);
    VM_PUT(&h->lazy_low, lazy);
    for (uint32_t i = 0; i < vm__nodes_used(r); i++) {
        if (r->design->kept->turn)
            r->design->kept->turn(r, i);
        for (uint32_t k = 0; k < VM_POOL_PAGES_MAX; k++) {
            vm_node *n = &r->map.nodes[i];
            uint32_t low = VM_RELAXED(&n->low[k]), nr = vm__pool_count(r, &n->pool[k]);
            w->low[(size_t)i * VM_POOL_PAGES_MAX + k] = low;
            if (low != nr)
                VM_PUT(&n->low[k], nr);
        }
    }
    turn_slots(t, w, go_on);
}

/* ---- the round ---- */

/* Files are read for it: not at every tick. */
static vm_pressure look_at_memory(vm_region *r, vm_watch *w)
{
    if (w->nr_ticks % VM_RECOVER_TICKS == 0) {
        uint32_t sources = 0;
        w->pressure = vm__memory_pressure(&sources);
        VM_PUT(&r->map.h->pressure, w->pressure);
        VM_PUT(&r->map.h->pressure_sources, sources);
    }
    return w->pressure;
}

static void look_for_deaths(vm_thread *t, const vm_watch *w)
{
    if (w->nr_ticks % VM_RECOVER_TICKS == 0)
        vm__recover_dead(t, VM_LOCK_BRIEF, NULL);
    if (vm__purge_is_behind(t->region))
        vm__purge_scan(t, VM_LOCK_BRIEF, NULL, NULL);
}

/* What went to space with its pages while that was short: once over all of it, or what a turn before left of that. What the
 * system does not take back (locked memory, no address space for a second mapping) is as dirty afterwards. */
static uint64_t discard_dirty(vm_thread *t, vm_watch *w, bool (*go_on)(vm_thread *))
{
    uint64_t pages = 0;
    bool more = VM_RELAXED(&t->region->map.h->dirty_pages) != 0;
    while (more && go_on(t))
        more = vm__purge_dirty(t, &w->dirty_at, &pages);
    return pages;
}

static uint64_t decay(vm_thread *t, vm_watch *w, bool (*go_on)(vm_thread *))
{
    vm_region *r = t->region;
    vm_pressure pressure = look_at_memory(r, w);
    uint64_t pages = decay_lazy(t, w, pressure, go_on);
    pages += decay_unused_cpus(t);
    for (uint32_t i = 0; i < vm__nodes_used(r) && go_on(t); i++)
        pages += decay_pools(t, w, i, pressure);
    if (w->nr_ticks % VM_TURN_TICKS == 0) {
        pages += vm__is_tight(r) ? 0 : discard_dirty(t, w, go_on);
        turn(t, w, go_on);
    }
    return pages;
}

/* One round, if the last was a tick ago, else only leases; `go_on` is asked in between. 1: it was a round. ENOMEM: this process has no memory for a watch. */
int vm__tick(vm_thread *t, bool (*go_on)(vm_thread *))
{
    vm_region *r = t->region;
    VM_ASSERT_RANK_HELD(r, VM_RANK_TICK);
    vm_watch *w = watch_of(r);
    uint64_t now = vm__now_ns();
    if (!w)
        return -ENOMEM;
    vm__expire_leases(t, VM_NO_WAIT, 0, NULL);
    if (w->ticked_ns && now - w->ticked_ns < SOON_NS)
        return 0;
    w->ticked_ns = now;
    look_for_deaths(t, w);
    uint64_t pages = r->map.flags & VM_FLAG_NO_DATA || !go_on(t) ? 0 : decay(t, w, go_on);
    w->nr_ticks++;
    vm__count_tick(t, pages);
    return 1;
}

/* More is lazy than may be, and frees leave it to a helper. */
void vm__clear_backlog(vm_thread *t, bool (*go_on)(vm_thread *))
{
    while (vm__lazy_is_due(t->region) && go_on(t))
        if (!vm__purge_step(t, VM_TICK_STEP_PAGES, VM_TICK_STEP_RANGES, 0))
            break;
}
