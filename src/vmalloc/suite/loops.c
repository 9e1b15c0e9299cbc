/* SPDX-License-Identifier: MIT */
/*
 * The tests themselves, in the order of their bits; each is what lib/test_vmalloc.c does, and where the
 * kernel's meaning needs a kernel, its comment says what stands in. Who runs them is in worker.c.
 *
 * A range is stamped after it was handed out and unstamped before it is given back, with plain loads
 * and stores: the allocator must order them, and a stamp that is not as expected fails the test.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "calls.h"
#include "loops.h"

#include <errno.h>
#include <string.h>

#define STOP_EVERY 1024 /* loops */
#define THREAD_ALIGN 16384
#define HUGE_BYTES (2u << 20)
#define PCPU_UNIT_BYTES 32768 /* the kernel's PCPU_MIN_UNIT_SIZE */
#define PCPU_GROUPS 2
#define PCPU_GAP_PAGES 512

typedef struct worker {
    vm_region *r;
    const vm_suite_job *job;
    uint64_t random;
    uint64_t page_bytes;
    vm_suite_stamp stamp;
} worker;

/* splitmix64 */
static uint64_t next_random(worker *w)
{
    uint64_t x = w->random += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}
static uint64_t random_below(worker *w, uint64_t n) { return next_random(w) % n; }

static bool should_stop(const worker *w, uint64_t i) { return i % STOP_EVERY == 0 && *w->job->stop; }

/* ---- stamps ---------------------------------------------------------------------------------- */

typedef vm_suite_stamp lanes __attribute__((vector_size(16), aligned(sizeof(vm_suite_stamp)), may_alias));
typedef vm_suite_stamp few_lanes __attribute__((vector_size(8), aligned(sizeof(vm_suite_stamp)), may_alias));
typedef uint64_t halves __attribute__((vector_size(16)));
enum { LANES = sizeof(lanes) / sizeof(vm_suite_stamp), FEW_LANES = sizeof(few_lanes) / sizeof(vm_suite_stamp) };

/* Vectors, because for a range of 100 pages this would otherwise cost more than the magazine does. */
static __attribute__((noinline)) bool restamp_many(vm_suite_stamp *stamp, uint64_t nr, vm_suite_stamp from,
                                                   vm_suite_stamp to)
{
    lanes wrongs = {0};
    few_lanes few_wrongs = {0};
    vm_suite_stamp wrong = 0;
    for (; nr >= LANES; nr -= LANES, stamp += LANES) {
        wrongs |= *(lanes *)stamp ^ ((lanes){0} + from);
        *(lanes *)stamp = (lanes){0} + to;
    }
    for (; nr >= FEW_LANES; nr -= FEW_LANES, stamp += FEW_LANES) {
        few_wrongs |= *(few_lanes *)stamp ^ ((few_lanes){0} + from);
        *(few_lanes *)stamp = (few_lanes){0} + to;
    }
    for (; nr; nr--, stamp++) {
        wrong |= *stamp ^ from;
        *stamp = to;
    }
    halves both = (halves)wrongs;
    return (both[0] | both[1] | (uint64_t)few_wrongs | wrong) == 0;
}

/* Were all of them `from`? They are `to` afterwards. */
static inline bool restamp(vm_suite_stamp *stamp, uint64_t nr, vm_suite_stamp from, vm_suite_stamp to)
{
    if (nr != 1)
        return restamp_many(stamp, nr, from, to);
    vm_suite_stamp was = *stamp;
    *stamp = to;
    return was == from;
}
static int stamp_range(const worker *w, const vm_range *v)
{
    return restamp(w->job->stamps + v->page, v->nr_pages, 0, w->stamp) ? 0 : VM_SUITE_OVERLAP;
}
static int unstamp(const worker *w, uint64_t page, uint64_t nr_pages)
{
    return restamp(w->job->stamps + page, nr_pages, w->stamp, 0) ? 0 : VM_SUITE_OVERLAP;
}

/* ---- what every test is made of -------------------------------------------------------------- */

static uint64_t align_pages_of(const worker *w, uint64_t align_bytes)
{
    return align_bytes > w->page_bytes ? align_bytes / w->page_bytes : 1;
}

static int take(const worker *w, uint64_t nr_pages, uint64_t align_pages, unsigned flags, vm_range *out)
{
    int rc = vm_suite_alloc(w->r, w->job, nr_pages, align_pages, flags, out);
    if (rc)
        return rc;
    if (out->page & (align_pages - 1) || out->nr_pages < nr_pages)
        return VM_SUITE_CONTENTS;
    return stamp_range(w, out); /* an overlapped range stays allocated: it is somebody else's */
}

/* Plain pages that need not say whether they are zeros. */
static inline int take_plain(const worker *w, uint64_t nr_pages, vm_range *out)
{
    int rc = vm_suite_take(w->r, w->job, nr_pages, out);
    return rc ? rc : stamp_range(w, out);
}

static int give(const worker *w, const vm_range *v)
{
    int rc = unstamp(w, v->page, v->nr_pages);
    return rc ? rc : vm_suite_free(w->r, w->job, v->page, v->id, 0);
}

static void touch(const worker *w, const vm_range *v, char value)
{
    volatile char *byte = w->job->touch ? vm_pointer(w->r, v->page) : NULL;
    if (byte)
        *byte = value;
}

/* __GFP_ZERO */
static void zero(const worker *w, const vm_range *v)
{
    if (w->job->touch && !v->zeroed && vm_pointer(w->r, v->page))
        memset(vm_pointer(w->r, v->page), 0, v->nr_pages * w->page_bytes);
}

static int take_touch_give(const worker *w, uint64_t nr_pages, uint64_t align_pages, unsigned flags, char value)
{
    vm_range v;
    int rc = align_pages == 1 && !flags ? take_plain(w, nr_pages, &v) : take(w, nr_pages, align_pages, flags, &v);
    if (rc)
        return rc;
    touch(w, &v, value);
    return give(w, &v);
}

static int take_zeroed_give(const worker *w, uint64_t nr_pages, uint64_t align_pages)
{
    vm_range v;
    int rc = take(w, nr_pages, align_pages, 0, &v);
    if (rc)
        return rc;
    zero(w, &v);
    return give(w, &v);
}

/* One page each; what could not be taken has length 0. */
static int take_many(const worker *w, vm_range *held, uint64_t count)
{
    memset(held, 0, count * sizeof *held);
    for (uint64_t i = 0; i < count; i++) {
        int rc = should_stop(w, i) ? VM_SUITE_STOPPED : take_plain(w, 1, &held[i]);
        if (rc) {
            held[i].nr_pages = 0;
            return rc;
        }
    }
    return 0;
}

static int give_many(const worker *w, vm_range *held, uint64_t count, uint64_t stride)
{
    int first = 0;
    for (uint64_t i = 0; i < count; i += stride) {
        int rc = held[i].nr_pages ? give(w, &held[i]) : 0;
        held[i].nr_pages = 0;
        first = first ? first : rc;
    }
    return first;
}

static int either(int first, int second) { return first ? first : second; }

/* The array the kernel's test keeps its pointers in is itself from vmalloc. */
static int take_array(const worker *w, uint64_t count, vm_range *out)
{
    return take_plain(w, (count * sizeof(void *) + w->page_bytes - 1) / w->page_bytes, out);
}

/* ---- the tests ------------------------------------------------------------------------------- */

/* use_huge: 2 MiB and more start at a multiple of 2 MiB. */
static int fix_size_alloc(worker *w)
{
    uint64_t nr_pages = w->job->nr_pages ? w->job->nr_pages : 1, align = 1;
    if (w->job->use_huge && nr_pages * w->page_bytes >= HUGE_BYTES)
        align = align_pages_of(w, HUGE_BYTES);
    for (uint64_t i = 0; i < w->job->nr_loops; i++) {
        int rc = should_stop(w, i) ? VM_SUITE_STOPPED : take_touch_give(w, nr_pages, align, 0, 0);
        if (rc)
            return rc;
    }
    return 0;
}

/* L pages kept and L junk pages between them; the junk goes, L holes stay. */
static int full_fit_alloc(worker *w)
{
    uint64_t nr_fit = w->job->nr_fit;
    vm_range *held = w->job->held, arrays[2];
    int rc = take_array(w, nr_fit, &arrays[0]);
    if (rc)
        return rc;
    rc = take_array(w, nr_fit, &arrays[1]);
    if (rc)
        return either(rc, give(w, &arrays[0]));
    rc = take_many(w, held, 2 * nr_fit);
    rc = either(rc, give_many(w, held + 1, 2 * nr_fit - 1, 2));
    for (uint64_t i = 0; rc == 0 && i < w->job->nr_loops; i++)
        rc = should_stop(w, i) ? VM_SUITE_STOPPED : take_touch_give(w, 1, 1, 0, 1);
    rc = either(rc, give_many(w, held, 2 * nr_fit, 1));
    return either(rc, either(give(w, &arrays[0]), give(w, &arrays[1])));
}

static int long_busy_once(const worker *w)
{
    vm_range large, small;
    int rc = take_plain(w, 100, &large);
    if (rc)
        return rc;
    rc = take_plain(w, 1, &small);
    if (rc)
        return either(rc, give(w, &large));
    touch(w, &large, 0);
    touch(w, &small, 1);
    rc = give(w, &large);
    return either(rc, give(w, &small));
}

static int long_busy_list_alloc(worker *w)
{
    vm_range *held = w->job->held, array;
    int rc = take_array(w, VM_SUITE_LONG_BUSY, &array);
    if (rc)
        return rc;
    rc = take_many(w, held, VM_SUITE_LONG_BUSY);
    for (uint64_t i = 0; rc == 0 && i < w->job->nr_loops; i++)
        rc = should_stop(w, i) ? VM_SUITE_STOPPED : long_busy_once(w);
    rc = either(rc, give_many(w, held, VM_SUITE_LONG_BUSY, 1));
    return either(rc, give(w, &array));
}

static int random_size_alloc(worker *w)
{
    for (uint64_t i = 0; i < w->job->nr_loops; i++) {
        uint64_t nr_pages = 1 + random_below(w, 100);
        int rc = should_stop(w, i) ? VM_SUITE_STOPPED : take_touch_give(w, nr_pages, 1, 0, 0);
        if (rc)
            return rc;
    }
    return 0;
}

static int fix_align_alloc(worker *w)
{
    uint64_t align = align_pages_of(w, 2 * THREAD_ALIGN);
    for (uint64_t i = 0; i < w->job->nr_loops; i++) {
        int rc = should_stop(w, i) ? VM_SUITE_STOPPED : take_zeroed_give(w, 5, align);
        if (rc)
            return rc;
    }
    return 0;
}

/* Size and alignment come from the same random byte, as there. */
static int random_size_align_alloc(worker *w)
{
    for (uint64_t i = 0; i < w->job->nr_loops; i++) {
        uint64_t byte = random_below(w, 256), align = align_pages_of(w, 1ull << byte % 23);
        int rc = should_stop(w, i) ? VM_SUITE_STOPPED : take_zeroed_give(w, byte % 10 + 1, align);
        if (rc)
            return rc;
    }
    return 0;
}

/* Supposed to fail at some shift. */
static int align_shift_alloc(worker *w)
{
    for (uint64_t i = 0; i < 64; i++) {
        int rc = take_touch_give(w, 1, align_pages_of(w, 1ull << i), 0, 0);
        if (rc)
            return rc == -EINVAL ? -ENOSPC : rc; /* an alignment larger than the region */
    }
    return 0;
}

/* A chunk of the percpu allocator: one unit per group, all at the same distance. */
static int take_chunk(const worker *w, vm_range *chunk)
{
    uint64_t unit = PCPU_UNIT_BYTES / w->page_bytes ? PCPU_UNIT_BYTES / w->page_bytes : 1;
    uint64_t offsets[PCPU_GROUPS], sizes[PCPU_GROUPS];
    for (uint64_t g = 0; g < PCPU_GROUPS; g++) {
        offsets[g] = g * PCPU_GAP_PAGES;
        sizes[g] = unit;
    }
    int rc = vm_suite_alloc_congruent(w->r, w->job, PCPU_GROUPS, offsets, sizes, 1, chunk);
    if (rc) {
        chunk[0].nr_pages = 0;
        return rc;
    }
    for (uint64_t g = 0; rc == 0 && g < PCPU_GROUPS; g++)
        rc = chunk[g].page - chunk[0].page != offsets[g] ? VM_SUITE_CONTENTS : stamp_range(w, &chunk[g]);
    return rc;
}

/* Objects of 1 byte to a quarter page, aligned to 2^1 .. half a page, are packed into chunks of
 * PCPU_GROUPS units; the chunks are what vm_alloc_congruent() gives. Not looped, as there. */
static int pcpu_alloc(worker *w)
{
    vm_range *held = w->job->held;
    uint64_t room = vm_suite_held_max(w->job, w->page_bytes), nr_held = 0, used = 0, unit_bytes = 0;
    uint32_t shifts = (uint32_t)__builtin_ctzll(w->page_bytes) - 1;
    int rc = 0;
    for (uint64_t i = 0; rc == 0 && i < w->job->nr_objects; i++) {
        uint64_t bytes = 1 + random_below(w, w->page_bytes / 4), align = 1ull << (1 + random_below(w, shifts));
        used = (used + align - 1) & ~(align - 1);
        if (should_stop(w, i)) {
            rc = VM_SUITE_STOPPED;
        } else if (used + bytes > unit_bytes) {
            rc = nr_held + PCPU_GROUPS > room ? -ENOMEM : take_chunk(w, &held[nr_held]);
            if (rc)
                break;
            unit_bytes = held[nr_held].nr_pages * w->page_bytes;
            nr_held += PCPU_GROUPS;
            used = 0;
        }
        if (rc == 0 && w->job->touch && vm_pointer(w->r, held[nr_held - PCPU_GROUPS].page))
            memset((char *)vm_pointer(w->r, held[nr_held - PCPU_GROUPS].page) + used, 0, bytes);
        used += bytes;
    }
    return either(rc, give_many(w, held, nr_held, 1));
}

static int unstamp_batch(const worker *w, const vm_range *range, uint64_t count, vm_suite_stamp stamp)
{
    int rc = 0;
    for (uint64_t i = 0; i < count; i++)
        if (!restamp(w->job->stamps + range[i].page, range[i].nr_pages, stamp, 0))
            rc = VM_SUITE_OVERLAP;
    return rc;
}

static int free_batch(const worker *w, const vm_range *range, uint64_t count, vm_suite_stamp stamp)
{
    int rc = unstamp_batch(w, range, count, stamp);
    return rc ? rc : vm_suite_free_bulk(w->r, w->job, count, range);
}

/* Deferred: a batch is freed when it is full, by the worker itself. */
static int kvfree_rcu_1_arg_vmalloc(worker *w)
{
    vm_range batch[VM_SUITE_BATCH];
    uint64_t count = 0;
    int rc = 0;
    for (uint64_t i = 0; rc == 0 && i < w->job->nr_loops; i++) {
        rc = should_stop(w, i) ? VM_SUITE_STOPPED : take_plain(w, 1, &batch[count]);
        if (rc)
            break;
        touch(w, &batch[count++], 'a');
        if (count == VM_SUITE_BATCH) {
            rc = free_batch(w, batch, count, w->stamp);
            count = 0;
        }
    }
    return either(rc, free_batch(w, batch, count, w->stamp));
}

/* Leave our batch, take the one that lay there. False: somebody is at it. */
static bool exchange_batch(vm_suite_exchange *e, vm_range *batch, uint64_t *count, vm_suite_stamp *stamp)
{
    uint32_t expected = 0;
    if (!__atomic_compare_exchange_n(&e->is_taken, &expected, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        return false;
    vm_range got[VM_SUITE_BATCH];
    uint32_t got_count = e->count;
    vm_suite_stamp got_stamp = e->stamp;
    memcpy(got, e->range, got_count * sizeof *got);
    memcpy(e->range, batch, *count * sizeof *batch);
    e->count = (uint32_t)*count;
    e->stamp = *stamp;
    __atomic_store_n(&e->is_taken, 0, __ATOMIC_RELEASE);
    memcpy(batch, got, got_count * sizeof *got);
    *count = got_count;
    *stamp = got_stamp;
    return true;
}

/* Deferred to another: each full batch is left at an exchange and freed by the worker that comes there
 * next. Who ends takes along what lies there, so the last leaves nothing. */
static int kvfree_rcu_2_arg_vmalloc(worker *w)
{
    vm_suite_exchange *e = &w->job->exchange[w->job->worker % VM_SUITE_EXCHANGES];
    vm_range batch[VM_SUITE_BATCH];
    uint64_t count = 0;
    vm_suite_stamp stamp = w->stamp;
    int rc = 0;
    for (uint64_t i = 0; rc == 0 && i < w->job->nr_loops; i++) {
        rc = should_stop(w, i) ? VM_SUITE_STOPPED : take_plain(w, 1, &batch[count]);
        if (rc)
            break;
        touch(w, &batch[count++], 'a');
        if (count < VM_SUITE_BATCH)
            continue;
        exchange_batch(e, batch, &count, &stamp);
        rc = free_batch(w, batch, count, stamp);
        count = 0;
        stamp = w->stamp;
    }
    rc = either(rc, free_batch(w, batch, count, w->stamp));
    count = 0;
    while (!exchange_batch(e, batch, &count, &stamp) && !*w->job->stop)
        ;
    return either(rc, free_batch(w, batch, count, stamp));
}

/* A second view of one range: shared once, then adopted and dropped. */
static int vm_map_ram(worker *w)
{
    vm_range v, view;
    int rc = take_plain(w, w->job->nr_pages ? w->job->nr_pages : 1, &v);
    if (rc)
        return rc;
    rc = vm_suite_share(w->r, w->job, v.page, v.id);
    for (uint64_t i = 0; rc == 0 && i < w->job->nr_loops; i++) {
        rc = should_stop(w, i) ? VM_SUITE_STOPPED : vm_suite_adopt(w->r, w->job, v.page, v.id, &view);
        if (rc)
            break;
        touch(w, &view, 'a');
        rc = view.page == v.page && view.nr_pages == v.nr_pages ? 0 : VM_SUITE_CONTENTS;
        rc = either(rc, vm_suite_free(w->r, w->job, view.page, view.id, 0));
    }
    return either(rc, give(w, &v));
}

/* GFP_NOWAIT: no purge. GFP_ATOMIC: no wait for a lock either. Either may fail at once. */
static int no_block_alloc(worker *w)
{
    uint64_t nr_pages = w->job->nr_pages ? w->job->nr_pages : 1;
    for (uint64_t i = 0; i < w->job->nr_loops; i++) {
        unsigned flags = VM_NO_PURGE | (next_random(w) & 1 ? VM_NO_WAIT : 0);
        int rc = should_stop(w, i) ? VM_SUITE_STOPPED : take_touch_give(w, nr_pages, 1, flags, 0);
        if (rc)
            return rc;
    }
    return 0;
}

static int resize(const worker *w, vm_range *v, uint64_t nr_pages)
{
    if (nr_pages < v->nr_pages) {
        if (unstamp(w, v->page + nr_pages, v->nr_pages - nr_pages))
            return VM_SUITE_OVERLAP;
        return vm_suite_resize(w->r, w->job, v, nr_pages);
    }
    int rc = unstamp(w, v->page, v->nr_pages);
    rc = either(rc, vm_suite_resize(w->r, w->job, v, nr_pages));
    return either(stamp_range(w, v), rc);
}

static int check_contents(const worker *w, const vm_range *v, uint64_t value)
{
    const volatile uint64_t *first = vm_pointer(w->r, v->page);
    return !first || (first[0] == value && first[w->page_bytes / 8 - 1] == ~value) ? 0 : VM_SUITE_CONTENTS;
}

/* 1 page -> 4 -> 1 -> half -> 1; a half page is a page here. Writes even without `touch`. */
static int vrealloc_once(const worker *w, uint64_t value)
{
    static const uint64_t sizes[] = {4, 1, 1, 1};
    vm_range v;
    int rc = take_plain(w, 1, &v);
    if (rc)
        return rc;
    volatile uint64_t *first = vm_pointer(w->r, v.page);
    if (first) {
        first[0] = value;
        first[w->page_bytes / 8 - 1] = ~value;
    }
    for (size_t k = 0; rc == 0 && k < sizeof sizes / sizeof *sizes; k++) {
        rc = resize(w, &v, sizes[k]);
        rc = either(rc, check_contents(w, &v, value));
    }
    return either(rc, give(w, &v));
}

static int vrealloc(worker *w)
{
    for (uint64_t i = 0; i < w->job->nr_loops; i++) {
        int rc = should_stop(w, i) ? VM_SUITE_STOPPED : vrealloc_once(w, next_random(w));
        if (rc)
            return rc;
    }
    return 0;
}

static const struct {
    int (*run)(worker *w);
    bool may_fail; /* a failed allocation is expected */
} tests[] = {
    {fix_size_alloc, false},
    {full_fit_alloc, false},
    {long_busy_list_alloc, false},
    {random_size_alloc, false},
    {fix_align_alloc, false},
    {random_size_align_alloc, false},
    {align_shift_alloc, true},
    {pcpu_alloc, false},
    {kvfree_rcu_1_arg_vmalloc, false},
    {kvfree_rcu_2_arg_vmalloc, false},
    {vm_map_ram, false},
    {no_block_alloc, true},
    {vrealloc, false},
};
_Static_assert(sizeof tests / sizeof *tests == VM_SUITE_TESTS, "one entry per bit");

/* ---- one test -------------------------------------------------------------------------------- */

/* An object takes at most a quarter page and its alignment half a page more. */
uint64_t vm_suite_held_max(const vm_suite_job *job, uint64_t page_bytes)
{
    uint64_t unit = PCPU_UNIT_BYTES > page_bytes ? PCPU_UNIT_BYTES : page_bytes;
    uint64_t chunks = job->nr_objects / (unit / (page_bytes / 4 * 3)) + 1;
    uint64_t most = 2 * job->nr_fit > VM_SUITE_LONG_BUSY ? 2 * job->nr_fit : VM_SUITE_LONG_BUSY;
    return chunks * PCPU_GROUPS > most ? chunks * PCPU_GROUPS : most;
}

/* Of this thread, for locks of the allocator or for the suite's. */
static uint64_t lock_wait_ns(vm_region *r, const vm_suite_job *job)
{
    return job->mutex ? *job->mutex_wait_ns : vm_lock_wait_ns(r);
}

int vm_suite_run(vm_region *r, uint32_t test, const vm_suite_job *job, vm_suite_result *out)
{
    vm_info info;
    if (test >= VM_SUITE_TESTS)
        return -EINVAL;
    vm_describe(r, &info);
    worker w = {.r = r,
                .job = job,
                .random = job->seed + test,
                .page_bytes = info.granule_bytes,
                .stamp = (vm_suite_stamp)(job->worker + 1)};
    uint64_t waited = lock_wait_ns(r, job), started = vm_suite_now_ns();
    int rc = tests[test].run(&w);
    out->ns += vm_suite_now_ns() - started;
    out->lock_wait_ns += lock_wait_ns(r, job) - waited;
    bool is_expected = tests[test].may_fail && (rc == -ENOSPC || rc == -EAGAIN);
    out->passed += rc == 0;
    out->xfailed += is_expected;
    out->failed += rc != 0 && !is_expected && rc != VM_SUITE_STOPPED;
    if (rc)
        out->error = rc;
    return rc;
}
