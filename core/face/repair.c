/* SPDX-License-Identifier: MIT */
/*
 * Repair: make hints, holders and counts agree with the words again. Hints are rebuilt from words, never words from
 * hints. Nothing is reported before every lock is let go: whoever listens may allocate.
 */
#include "face.h"

#define P(x) ((unsigned long long)(x))

/* Counted before the index is rebuilt. */
static int report_index(vm_region *r, vm_report *report)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_SPACE);
    uint64_t page = 0, free_pages = 0, nr_bits = 0, nr_split = 0, nr_wrong, counted = VM_RELAXED(&r->map.h->free_pages),
             entry;
    uint32_t level;
    bool was_free = false;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        bool is_free = vm__state(w) == VM_FREE;
        nr_bits += vm__wrong_bits(r, page, vm__len(w), is_free);
        nr_split += is_free && was_free;
        free_pages += is_free ? vm__len(w) : 0;
        was_free = is_free;
    }
    if (page != r->map.nr_pages)
        return -EUCLEAN; /* words are not made from hints */
    if ((nr_wrong = vm__index_nr_wrong(&r->map, &level, &entry)))
        vm__report(report, "index: %llu summaries rewritten", P(nr_wrong));
    if (nr_bits)
        vm__report(report, "index: %llu pages' bits rewritten", P(nr_bits));
    if (nr_split)
        vm__report(report, "space: %llu times two free ranges made one", P(nr_split));
    if (counted != free_pages)
        vm__report(report, "free pages: counter was %llu, is %llu", P(counted), P(free_pages));
    return 0;
}

static int repair_space(vm_thread *t, vm_report *report)
{
    vm_region *r = t->region;
    int rc = vm__lock(t, &r->map.h->space_lock, 0); /* not vm__space_lock(): it would mend before we looked */
    if (rc)
        return rc;
    rc = report_index(r, report);
    if (rc == 0) {
        VM_PUT(&r->map.h->high_pages, r->map.nr_pages); /* whoever scribbled may have done so anywhere */
        rc = vm__space_rebuild(t);
    }
    VM_PUT(&r->map.h->space_lock.needs_mending, rc != 0);
    vm__unlock(t, &r->map.h->space_lock);
    return rc;
}

static void drop_names_of_nothing(vm_region *r, vm_report *report)
{
    uint64_t nr = 0;
    for (uint32_t i = 0; i < VM_NAMES_MAX; i++) {
        uint64_t id = VM_ACQUIRE(&r->map.names[i].state), page = VM_RELAXED(&r->map.names[i].page);
        if (!id)
            continue;
        vm_word w = page < r->map.nr_pages ? VM_ACQUIRE(&r->map.heads[page].word) : 0;
        bool is_there = vm__is_shared(w) && VM_ACQUIRE(&r->map.heads[page].aux) == id;
        if (is_there && !vm__names_hold(r, page)) {
            vm__hold_for_name(r, page);
            vm__report(report, "name %u: page %llu is held for it again", i, P(page));
        }
        if (!is_there) {
            VM_STORE(&r->map.names[i].state, 0);
            nr++;
        }
    }
    if (nr)
        vm__report(report, "names: %llu dropped whose ranges are gone", P(nr));
}

static void drop_stray_holders(vm_region *r, vm_report *report)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_NAMES);
    VM_ASSERT_RANK_HELD(r, VM_RANK_LEASE);
    VM_ASSERT_RANK_HELD(r, VM_RANK_SPACE);
    uint64_t page = 0, nr = 0, nr_named = 0;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        if (!vm__is_shared(w))
            continue;
        for (uint32_t i = 0; i < vm__nr_holders(r); i++) {
            uint64_t *bits = vm__holders(r, page, i), stray = vm__stray_bits(r, VM_ACQUIRE(bits), i);
            if (stray) {
                VM_AND(bits, ~stray);
                nr += (uint64_t)__builtin_popcountll(stray);
            }
        }
        nr_named += vm__unhold_unnamed(r, page);
    }
    if (nr)
        vm__report(report, "holders: %llu bits of process slots dropped that nobody uses", P(nr));
    if (nr_named)
        vm__report(report, "names: %llu holder bits dropped that no name stood for", P(nr_named));
}

/* How many pages' counts differ from the lease table. */
static void report_leases(vm_region *r, vm_report *report)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_LEASE);
    VM_ASSERT_RANK_HELD(r, VM_RANK_SPACE);
    vm_check_state quiet = {.r = r};
    uint64_t page = 0, nr = 0;
    size_t at = 0;
    vm__collect_leases(&quiet);
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w))
        if (vm__is_shared(w))
            nr += VM_ACQUIRE(&r->map.sharings[page].nr_leases) != vm__leases_of(&quiet, page, &at);
    if (nr || quiet.report.nr)
        vm__report(report, "leases: counted again; %llu ranges had another count, %d entries or counters were wrong",
                   P(nr), quiet.report.nr);
    free(quiet.leased);
    vm__report_end(&quiet.report, NULL, NULL);
}

static int repair_tables(vm_thread *t, vm_report *report)
{
    vm_region *r = t->region;
    int rc = vm__names_lock(t, 0);
    if (rc)
        return rc;
    rc = vm__lock(t, &r->map.h->lease_lock, 0);
    if (rc == 0) {
        rc = vm__space_lock(t, 0);
        if (rc == 0) {
            drop_names_of_nothing(r, report);
            drop_stray_holders(r, report);
            report_leases(r, report);
            vm__space_unlock(t);
        }
        VM_PUT(&r->map.h->lease_lock.needs_mending, 1);
        vm__unlock(t, &r->map.h->lease_lock);
    }
    if (rc == 0 && (rc = vm__lease_lock(t, 0)) == 0)
        vm__unlock(t, &r->map.h->lease_lock);
    vm__unlock(t, &r->map.h->names_lock);
    return rc;
}

/* Is any list of this node other than its counters and the words say? Nobody uses its pools just now. */
static void report_pools(const vm_region *r, uint32_t node, void *report)
{
    vm_report quiet = {0};
    r->design->kept->check(r, node, &quiet);
    if (quiet.nr)
        vm__report(report, "node %u: pools rebuilt; %d lists or counters were wrong", node, quiet.nr);
    vm__report_end(&quiet, NULL, NULL);
}

static int repair_pools(vm_thread *t, vm_report *report)
{
    vm_region *r = t->region;
    const vm_pools_kept *kept = r->design->kept;
    int rc = 0;
    for (uint32_t i = 0; kept->doubt && i < vm__nodes_used(r) && rc == 0; i++)
        rc = kept->doubt(t, &r->map.nodes[i], report_pools, report);
    return rc;
}

static int repair_warm(vm_thread *t, vm_report *report)
{
    vm_region *r = t->region;
    vm_report quiet = {0};
    int rc = vm__lock(t, &r->map.h->warm.lock, 0);
    if (rc)
        return rc;
    vm__warm_check(r, &quiet);
    if (quiet.nr)
        vm__report(report, "warm ranges: lists rebuilt; %d were wrong", quiet.nr);
    vm__report_end(&quiet, NULL, NULL);
    VM_PUT(&r->map.h->warm.lock.needs_mending, 1); /* whoever comes first rebuilds */
    vm__unlock(t, &r->map.h->warm.lock);
    return 0;
}

static int sum_lazy(vm_thread *t, uint64_t *sum, uint64_t *largest_number)
{
    vm_region *r = t->region;
    uint64_t page = 0;
    int rc = vm__space_lock(t, 0);
    if (rc)
        return rc;
    *sum = *largest_number = 0;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w)) {
        uint64_t id = VM_ACQUIRE(&r->map.heads[page].aux), number = id >> VM_ID_SIZE_BITS;
        *sum += vm__state(w) == VM_LAZY ? vm__len(w) : 0;
        if (vm__state(w) == VM_BUSY && number > *largest_number && vm__is_id_of(r, page, w, id))
            *largest_number = number;
    }
    vm__space_unlock(t);
    return 0;
}

/* Counters that nobody locks: reported if they are off, before the scan mends them. */
static int repair_counters(vm_thread *t, vm_report *report)
{
    vm_region *r = t->region;
    uint64_t lazy, number, counted = VM_ACQUIRE(&r->map.h->lazy_pages), next = VM_ACQUIRE(&r->map.h->next_id);
    int rc = sum_lazy(t, &lazy, &number);
    if (rc)
        return rc;
    if (counted != lazy)
        vm__report(report, "lazy pages: counter was %lld, the words have %llu", (long long)counted, P(lazy));
    if (number >= next && number < UINT64_MAX >> VM_ID_SIZE_BITS) {
        uint64_t beyond = (number / VM_ID_BLOCK + 1) * VM_ID_BLOCK;
        VM_CAS(&r->map.h->next_id, next, beyond);
        vm__report(report, "ids: the next was %llu, is %llu", P(next), P(beyond));
    }
    for (uint32_t i = vm__first_thread(r); i < r->map.nr_threads && vm__slot_was_used(r, i); i++) {
        uint64_t state = VM_ACQUIRE(&r->map.slots[i].state);
        if (vm__is_stray_thread(r, i) && VM_CAS(&r->map.slots[i].state, state, ((state >> 32) + 1) << 32))
            vm__report(report, "thread slot %u: given back, its process slot is nobody's", i);
    }
    return 0;
}

static void repair_processes(vm_region *r, vm_report *report)
{
    uint32_t last = vm__beyond_high(r);
    if (last == r->map.nr_processes)
        return;
    vm__raise_high_process(r, last);
    vm__report(report, "process slot %u: it is used, and was said never to have been", last);
}

/* The last group that a process is of, or of which something lies ready. */
static uint32_t last_group(const vm_region *r)
{
    VM_ASSERT_RANK_HELD(r, VM_RANK_SPACE);
    uint32_t last = 0, group;
    uint64_t page = 0;
    for (uint32_t p = 0; p < vm__high_process(r); p++)
        if ((uint32_t)VM_ACQUIRE(&r->map.processes[p].state) && (group = vm__group_of_process(r, p)) > last)
            last = group;
    for (vm_word w; (w = vm__word_at(r, page)); page += vm__len(w))
        if ((vm__state(w) == VM_POOLED || vm__state(w) == VM_LAZY)
            && (group = vm__group_of_node(r, vm__owner(w))) > last)
            last = group;
    return last;
}

/* Pools and shelves from high_group up are not looked at: what lies there would be nobody's but that group's. */
static int repair_groups(vm_thread *t, vm_report *report)
{
    vm_region *r = t->region;
    int rc = vm__space_lock(t, 0);
    if (rc)
        return rc;
    uint32_t last = last_group(r);
    vm__space_unlock(t);
    if (last && VM_ACQUIRE(&r->map.h->high_group) <= last) {
        vm__raise_high_group(r, last);
        vm__report(report, "group %u of processes: it is used, and was said never to have been", last);
    }
    return 0;
}

static int repair(vm_thread *t, vm_report *report)
{
    vm_region *r = t->region;
    uint64_t line = VM_ACQUIRE(&r->map.h->corrupt);
    if (line) {
        VM_PUT(&r->map.h->corrupt, 0);
        vm__report(report, "the mark that line %llu set, by which the region took no more changes, is taken away",
                   P(line));
    }
    repair_processes(r, report);
    int rc = repair_space(t, report);
    if (rc == 0)
        rc = repair_groups(t, report);
    if (rc == 0)
        rc = repair_counters(t, report);
    if (rc == 0)
        rc = repair_tables(t, report);
    if (rc == 0)
        rc = repair_pools(t, report);
    if (rc == 0)
        rc = repair_warm(t, report);
    if (rc == 0) {
        uint64_t pages = vm__magazines_reclaim(t);
        if (pages)
            vm__report(report, "magazines: %llu pages that were in none taken back", P(pages));
    }
    VM_PUT(&r->map.h->purge_needs_scan, 1);
    return rc ? rc : vm__purge_scan(t, 0, NULL, NULL);
}

int vm_repair(vm_region *r, void (*say)(void *, const char *), void *arg)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    vm_report report = {0};
    vm__enter(t);
    int rc = repair(t, &report);
    vm__leave(t);
    int nr = vm__report_end(&report, say, arg);
    return rc ? rc : nr;
}
