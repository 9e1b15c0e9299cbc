/* SPDX-License-Identifier: MIT */
/*
 * Pools per CPU: the thread's third answer. Each possible CPU has a slab of ready ranges of each size, shared by all
 * processes; behind the slabs stand the locked pools of the nodes (pool_locked.c).
 *
 * A slab is a stack of page numbers, taken from and put on by restartable sequences (rseq.c) on its own CPU alone: no
 * lock to be preempted in, no line to bounce. The word is the truth: a range of a slab is POOLED, its owner VM_NODES_MAX +
 * CPU; a put writes that first; what was taken is claimed by CAS. So an entry is a hint. Who empties a slab, for a decay
 * or a scan, claims the words and leaves the entries: they are stale, and cost whoever comes to them one look.
 *
 * A thread without sequences, or on a CPU past the table, never writes a slab and uses the pools behind. A sequence that
 * never comes to its end, as under a debugger, is given up after a few tries, and the pools behind are used.
 *
 * Idle is what lies below the fewest entries of this turn and the last: a stack's bottom (mend/decay.c). Nobody comes to the
 * slabs of a CPU that is off-line, or on which no process may run: these go sooner (decay_unused_cpus()).
 * Death: between the word and the entry the range is POOLED in no slab; a scan takes all ranges of slabs.
 * After: the per-CPU caches of tcmalloc; the sheaves of Linux 6.18's SLUB.
 */
#include "cache.h"

#define TRIES 8

extern const vm_pools_kept vm__pools_locked;

static uint32_t slab_cap(uint64_t nr_pages)
{
    uint64_t cap = VM_SLAB_CAP_PAGES / nr_pages;
    return cap < VM_SLAB_CAP_MIN ? (uint32_t)VM_SLAB_CAP_MIN
           : cap > VM_SLAB_CAP   ? (uint32_t)VM_SLAB_CAP
                                 : (uint32_t)cap;
}

static vm_word ready(uint32_t cpu, uint64_t nr_pages)
{
    return vm__word(VM_POOLED, VM_WORD_DIRTY, nr_pages, VM_NODES_MAX + cpu, 0);
}
static bool claim(vm_region *r, uint64_t page, uint64_t nr_pages, uint32_t cpu, vm_word mine)
{
    return vm__is_within(r, page, nr_pages) && VM_CAS(&r->map.heads[page].word, ready(cpu, nr_pages), mine);
}

/* This thread's CPU now, if it has a slab. */
static bool here(const vm_region *r, uint32_t *cpu)
{
    *cpu = (uint32_t)vm__sequence_cpu();
    return *cpu < r->map.nr_cpus;
}
static vm_slab *slab_of(const vm_region *r, uint32_t cpu, uint64_t nr_pages)
{
    return &r->map.cpus[cpu].slab[vm__pool_index(nr_pages)];
}

static void note_low(vm_slab *s)
{
    uint32_t count = VM_RELAXED(&s->count);
    if (count < VM_RELAXED(&s->low))
        VM_PUT(&s->low, count);
}

/* As in the kernel only the first is looked at; a misaligned one is a miss. */
static bool newest_is_aligned(const vm_slab *s, uint64_t align_pages)
{
    uint32_t count = VM_RELAXED(&s->count);
    return count - 1 < VM_SLAB_CAP && !(VM_RELAXED(&s->page[count - 1]) & (align_pages - 1));
}

/* The newest entry of this CPU's slab whose word says that it is one; MOVING(t). */
static uint32_t take_here(vm_thread *t, uint64_t nr_pages, uint64_t align_pages, uint64_t *pages)
{
    vm_region *r = t->region;
    uint32_t cpu, page;
    for (int tries = 0, looks = 0; tries < TRIES && looks <= VM_SLAB_CAP && here(r, &cpu);) {
        vm_slab *s = slab_of(r, cpu, nr_pages);
        if (align_pages != 1 && !newest_is_aligned(s, align_pages))
            return 0;
        vm_sequence how = vm__slab_pop(cpu, s, &page);
        tries += how == VM_SEQUENCE_MOVED;
        if (how == VM_SEQUENCE_REFUSED)
            return 0;
        if (how != VM_SEQUENCE_DONE)
            continue;
        looks++;
        note_low(s);
        if (!claim(r, page, nr_pages, cpu, vm__moving(t, nr_pages)))
            continue;
        pages[0] = page;
        if (!(page & (align_pages - 1)))
            return 1;
        vm__lazy_put(t, page, nr_pages); /* another one came on top meanwhile */
        return 0;
    }
    return 0;
}

/* What the pools behind do not keep becomes lazy. */
static void give_behind(vm_thread *t, vm_node *n, uint64_t nr_pages, uint32_t count, const uint64_t *pages)
{
    uint32_t kept = count ? vm__pools_locked.give(t, n, nr_pages, count, pages) : 0;
    if (kept < count)
        vm__lazy_put_many(t, nr_pages, count - kept, pages + kept, vm__node_here(t->region));
}

/* The older half of a full slab goes to the pools behind: for one turn at the lock, and what is hot stays. */
static void make_room(vm_thread *t, vm_node *n, uint64_t nr_pages, uint32_t cpu)
{
    vm_region *r = t->region;
    vm_slab *s = slab_of(r, cpu, nr_pages);
    uint32_t page[VM_SLAB_CAP], nr = 0, keep = slab_cap(nr_pages) / 2, out = 0;
    uint64_t pages[VM_SLAB_CAP];
    while (nr < VM_SLAB_CAP && vm__slab_pop(cpu, s, &page[nr]) == VM_SEQUENCE_DONE)
        nr++;
    for (uint32_t i = nr; i-- > 0;) {
        if (i < keep && vm__slab_push(cpu, s, page[i], VM_SLAB_CAP) == VM_SEQUENCE_DONE)
            continue;
        if (claim(r, page[i], nr_pages, cpu, vm__moving(t, nr_pages)))
            pages[out++] = page[i];
    }
    give_behind(t, n, nr_pages, out, pages);
}

static void note_used(vm_region *r, uint32_t cpu, uint64_t nr_pages)
{
    uint32_t k = vm__pool_index(nr_pages);
    uint64_t *used = &r->map.cpus[cpu].used[k / 64];
    if (!(VM_RELAXED(used) & 1ull << k % 64))
        VM_OR(used, 1ull << k % 64);
}

static bool is_full(const vm_region *r, uint32_t cpu, uint64_t nr_pages)
{
    return VM_RELAXED(&slab_of(r, cpu, nr_pages)->count) >= slab_cap(nr_pages);
}

/* Into the slab of this CPU. False: it was full, or the thread was moved; its word is MOVING(t). */
static bool push(vm_thread *t, uint32_t cpu, uint64_t nr_pages, uint64_t page)
{
    vm_region *r = t->region;
    note_used(r, cpu, nr_pages);
    VM_STORE(&r->map.heads[page].word, ready(cpu, nr_pages));
    return vm__slab_push(cpu, slab_of(r, cpu, nr_pages), (uint32_t)page, slab_cap(nr_pages)) == VM_SEQUENCE_DONE
           || !claim(r, page, nr_pages, cpu, vm__moving(t, nr_pages)); /* a decay or a scan has it by now */
}

/* Into this CPU's slab, which makes room. False: its word is as it was, or MOVING(t). */
static bool put(vm_thread *t, vm_node *n, uint64_t nr_pages, uint64_t page)
{
    vm_region *r = t->region;
    uint32_t cpu;
    for (int tries = 0; tries < TRIES && here(r, &cpu); tries++) {
        if (is_full(r, cpu, nr_pages))
            make_room(t, n, nr_pages, cpu);
        if (push(t, cpu, nr_pages, page))
            return true;
    }
    return false;
}

static bool put_here(vm_thread *t, uint64_t nr_pages, uint64_t page)
{
    vm_region *r = t->region;
    uint32_t cpu;
    for (int tries = 0; tries < TRIES && here(r, &cpu) && !is_full(r, cpu, nr_pages); tries++)
        if (push(t, cpu, nr_pages, page))
            return true;
    VM_STORE(&r->map.heads[page].word, vm__moving(t, nr_pages));
    return false;
}

static uint32_t give(vm_thread *t, vm_node *n, uint64_t nr_pages, uint32_t count, const uint64_t *pages)
{
    uint32_t kept = 0;
    while (kept < count && put(t, n, nr_pages, pages[kept]))
        kept++;
    return kept == count ? kept : kept + vm__pools_locked.give(t, n, nr_pages, count - kept, pages + kept);
}

/* From the pools behind, a few more for the slab. */
static uint32_t take(vm_thread *t, vm_node *n, uint64_t nr_pages, uint64_t align_pages, uint32_t max, uint64_t *pages)
{
    uint64_t batch[VM_MAGAZINE_REFILL_MAX];
    uint32_t cpu, want = slab_cap(nr_pages) / 2;
    if (max > 1 || align_pages > 1 || !here(t->region, &cpu))
        return vm__pools_locked.take(t, n, nr_pages, align_pages, max, pages);
    uint32_t got =
        vm__pools_locked.take(t, n, nr_pages, 1, want < VM_MAGAZINE_REFILL_MAX ? want : VM_MAGAZINE_REFILL_MAX, batch);
    for (uint32_t i = got; i-- > 1;) /* the newest on top again */
        if (!put(t, n, nr_pages, batch[i]))
            give_behind(t, n, nr_pages, 1, &batch[i]);
    if (got)
        pages[0] = batch[0];
    return got != 0;
}

/* ---- by words, from anywhere ---- */

/* The first slab from k on that was ever put to; VM_POOL_PAGES_MAX: there is none. */
static uint32_t next_used(const vm_region *r, uint32_t cpu, uint32_t k)
{
    for (; k < VM_POOL_PAGES_MAX; k = (k / 64 + 1) * 64) {
        uint64_t used = VM_RELAXED(&r->map.cpus[cpu].used[k / 64]) >> k % 64;
        if (used)
            return k + (uint32_t)__builtin_ctzll(used);
    }
    return VM_POOL_PAGES_MAX;
}
#define FOR_EACH_SLAB(r, node, cpu, k, s)                                                            \
    for (uint32_t cpu = (node); cpu < (r)->map.nr_cpus; cpu += (r)->map.nr_nodes)                    \
        for (uint32_t k = next_used(r, cpu, 0); k < VM_POOL_PAGES_MAX; k = next_used(r, cpu, k + 1)) \
            for (vm_slab *s = &(r)->map.cpus[cpu].slab[k]; s; s = NULL)

static uint32_t count_of(const vm_slab *s)
{
    uint32_t count = VM_ACQUIRE(&s->count);
    return count <= VM_SLAB_CAP ? count : 0;
}
static uint64_t entry_of(const vm_region *r, const vm_slab *s, uint32_t i, uint32_t cpu, uint64_t nr_pages)
{
    uint64_t page = VM_RELAXED(&s->page[i]);
    bool is_one = vm__is_within(r, page, nr_pages) && VM_ACQUIRE(&r->map.heads[page].word) == ready(cpu, nr_pages);
    return is_one ? page : VM_NONE;
}
/* Entries below `end` that are none any more are not counted. */
static uint32_t live_of(const vm_region *r, const vm_slab *s, uint32_t end, uint32_t cpu, uint64_t nr_pages)
{
    uint32_t live = 0;
    for (uint32_t i = 0; i < end; i++)
        live += entry_of(r, s, i, cpu, nr_pages) != VM_NONE;
    return live;
}

/* Up to `goes` ranges of the oldest `end` entries. */
static void claim_oldest(vm_thread *t, const vm_slab *s, uint32_t cpu, uint64_t nr_pages, uint32_t end, uint64_t goes,
                         vm_batch *out)
{
    VM_ASSERT_RANK_HELD(t->region, VM_RANK_PURGE);
    for (uint32_t i = 0; i < end && goes; i++) {
        uint64_t page = VM_RELAXED(&s->page[i]);
        if (!claim(t->region, page, nr_pages, cpu, vm__purging(t, nr_pages)))
            continue;
        vm__batch_add(t, out, page, nr_pages);
        goes--;
    }
}

/* With a quota, which says how many idle ranges of the pools behind go, as large a part of what is idle here. */
static int decay(vm_thread *t, vm_node *n, const uint32_t *quota, unsigned flags, vm_batch *out)
{
    vm_region *r = t->region;
    int rc = vm__pools_locked.decay(t, n, quota, flags, out);
    bool is_all = quota == vm__decay_all, only_idle = quota && !is_all;
    FOR_EACH_SLAB(r, vm__node_index(r, n), cpu, k, s)
    {
        uint32_t end = count_of(s), low = VM_RELAXED(&s->low), idle = VM_RELAXED(&s->idle);
        idle = idle < low ? idle : low;
        end = only_idle && idle < end ? idle : end;
        uint32_t live = live_of(r, s, end, cpu, k + 1);
        uint64_t goes = is_all ? live : vm__percent_up(live, quota ? VM_IDLE_DECAY_PERCENT : VM_DECAY_PERCENT);
        claim_oldest(t, s, cpu, k + 1, end, goes, out);
    }
    return rc;
}

static void decay_unused_cpus(vm_thread *t, const vm_cpus *online, const vm_cpus *may_run, vm_batch *out)
{
    const vm_region *r = t->region;
    for (uint32_t node = 0; node < r->map.nr_nodes; node++)
        FOR_EACH_SLAB(r, node, cpu, k, s)
        {
            if (vm__has_cpu(may_run, cpu))
                continue; /* nearly all: no look at what they keep */
            uint32_t end = count_of(s), low = VM_RELAXED(&s->low);
            if (vm__has_cpu(online, cpu))
                end = low < end ? low : end;
            claim_oldest(t, s, cpu, k + 1, end, end, out);
        }
}

static void turn(vm_region *r, uint32_t node)
{
    FOR_EACH_SLAB(r, node, cpu, k, s)
    {
        uint32_t low = VM_RELAXED(&s->low), count = count_of(s);
        if (VM_RELAXED(&s->idle) != low)
            VM_PUT(&s->idle, low);
        if (low != count)
            VM_PUT(&s->low, count);
    }
}

static uint64_t pages_here(const vm_region *r, uint32_t node)
{
    uint64_t pages = 0;
    FOR_EACH_SLAB(r, node, cpu, k, s)
    pages += (uint64_t)live_of(r, s, count_of(s), cpu, k + 1) * (k + 1);
    return pages;
}

static uint64_t check(const vm_region *r, uint32_t node, vm_report *report)
{
    uint64_t listed = vm__check_lists_of_pools(r, node, report);
    FOR_EACH_SLAB(r, node, cpu, k, s)
    {
        uint32_t count = count_of(s);
        if (VM_ACQUIRE(&s->count) > VM_SLAB_CAP)
            vm__report(report, "CPU %u, slab of %u pages: %u entries", cpu, k + 1, VM_ACQUIRE(&s->count));
        for (uint32_t i = 0; i < count; i++) { /* a stale entry may name a range that another one names too */
            uint64_t page = entry_of(r, s, i, cpu, k + 1);
            bool is_last = page != VM_NONE;
            for (uint32_t j = i + 1; j < count && is_last; j++)
                is_last = VM_RELAXED(&s->page[j]) != page;
            listed += is_last ? k + 1 : 0;
        }
    }
    return listed;
}

/* What is no count is nobody's: no sequence goes on from it. */
static int doubt(vm_thread *t, vm_node *n, void (*look)(const vm_region *, uint32_t, void *), void *arg)
{
    int rc = vm__pools_locked.doubt(t, n, look, arg);
    FOR_EACH_SLAB(t->region, vm__node_index(t->region, n), cpu, k, s)
    if (VM_ACQUIRE(&s->count) > VM_SLAB_CAP)
        VM_PUT(&s->count, 0);
    return rc;
}

static int before_scan(vm_thread *t, vm_node *n, unsigned flags) { return vm__pools_locked.before_scan(t, n, flags); }
static void after_scan(vm_thread *t, vm_node *n, vm_batch *out) { vm__pools_locked.after_scan(t, n, out); }

const vm_pools_kept vm__pools_percpu = {
    .take_here = take_here,
    .put_here = put_here,
    .take = take,
    .give = give,
    .decay = decay,
    .decay_unused_cpus = decay_unused_cpus,
    .turn = turn,
    .pages_here = pages_here,
    .before_scan = before_scan,
    .after_scan = after_scan,
    .scan_takes_from = VM_NODES_MAX,
    .doubt = doubt,
    .check = check,
};
