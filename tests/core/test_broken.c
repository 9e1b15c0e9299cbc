/* SPDX-License-Identifier: MIT */
/*
 * BROKEN: would the tests notice a recovery that forgets something?
 *
 * test_crash.c shows that after every death check() is content. Here the same kind of deaths is
 * followed by recoveries that leave one step out, made from outside, by writing into the region what
 * such a recovery would leave there. Each kind must be noticed: by check(), or by pages that are missing
 * after everything was freed.
 */
#include "kit.h"

static void work_and_die(vm_region *r, int64_t k)
{
    vm_range a[12], s;
    vm_fault_arm(k);
    for (int i = 0; i < 12; i++)
        a[i] = take(r, (uint64_t)i % 3 + 1);
    vm_free_bulk(r, 12, a);
    s = take(r, 300);
    vm_share(r, s.page, s.id);
    for (int i = 0; i < 4; i++)
        a[i] = take(r, 2);
    vm_free_bulk(r, 4, a);
    vm_purge(r, NULL);
    take(r, 1);
    kill(getpid(), SIGKILL);
}

static uint32_t dead_process(vm_region *r)
{
    for (uint32_t p = 0; p < VM_PROCESS_NAMES; p++)
        if (p != r->process && r->processes[p].state & VM_PROCESS_LIVE)
            return p;
    return VM_PROCESSES;
}

/* ---- what each leaves out ---- */

static void recover_nothing(vm_region *r) { (void)r; }

static void free_the_slots_without_looking_at_the_words(vm_region *r)
{
    uint32_t p = dead_process(r);
    if (p == VM_PROCESSES)
        return;
    vm__retire_threads(r, p, NULL);
    r->processes[p].state = ((r->processes[p].state >> 32) + 1) << 32;
    r->h->purge_needs_scan = 0;
    vm_recover(r, NULL);
}

static void break_open_the_space_lock(vm_region *r)
{
    r->h->space_lock.owner = 0; /* and no word of needs_repair */
    vm_recover(r, NULL);
}

static void break_open_the_pools(vm_region *r)
{
    r->nodes[0].pool_lock.owner = 0;
    for (int i = 0; i < VM_POOL_PAGES_MAX; i++)
        r->nodes[0].pool[i].in_use = 0;
    vm_recover(r, NULL);
}

static void forget_the_lists(vm_region *r)
{
    r->nodes[0].lazy_head = 0;
    memset(r->h->shelf, 0, sizeof r->h->shelf);
    for (int i = 0; i < VM_POOL_PAGES_MAX; i++)
        r->nodes[0].pool[i].head = 0;
}

static void let_holders_live_on(vm_region *r)
{
    uint32_t p = dead_process(r);
    if (p < VM_PROCESSES)
        r->processes[p].state = ((r->processes[p].state >> 32) + 1) << 32; /* free, before its bits are cleared */
    vm_recover(r, NULL);
}

static void believe_the_counter(vm_region *r)
{
    uint64_t before = r->h->lazy_pages;
    vm_recover(r, NULL);
    r->h->lazy_pages = before + 1;
}

static void leave_neighbours_apart(vm_region *r)
{
    vm_recover(r, NULL);
    uint64_t page = vm__index_find(r, 0, 2), start = vm__index_run_start(r, page);
    vm_word w = r->heads[start].word;
    r->heads[start + 1].word = vm__word(VM_FREE, 0, vm__len(w) - 1, 0, 0);
    r->heads[start].word = vm__word(VM_FREE, 0, 1, 0, 0);
}

static void hand_out_twice(vm_region *r)
{
    vm_recover(r, NULL);
    uint64_t page = vm__index_find(r, 0, 2); /* in space for the index, busy for the words */
    uint64_t start = vm__index_run_start(r, page);
    r->heads[start].word = vm__thread(r)->busy | vm__len(r->heads[start].word) << VM_WORD_LEN_SHIFT;
}

/* ---- does anybody notice? ---- */

static bool is_noticed(vm_region *r)
{
    vm_stats s;
    vm_set_lock_timeout(r, 0.05);
    return vm_check(r, true, false, NULL, NULL) != 0 || vm_shrink(r, NULL) != 0 || vm_get_stats(r, &s) != 0
           || s.free_pages != s.nr_pages;
}

static bool one_death_is_noticed(vm_pools d, int64_t k, void (*broken)(vm_region *))
{
    vm_region *r = MAKE(.nr_pages = 1000, .pools = d, SMALL);
    pid_t pid;
    vm__thread(r);
    CHILD(pid, work_and_die(r, k));
    CHECK(WIFSIGNALED(end_of(pid)));
    broken(r);
    bool noticed = is_noticed(r);
    r->h->corrupt = 1; /* nothing more to do for a detach */
    CHECK_EQ(vm_detach(r), 0);
    return noticed;
}

/* Some deaths need nothing done; among a few hundred some must need the step that is missing. */
static void a_recovery_that_forgets_something_is_noticed(vm_pools d, size_t kind, void (*broken)(vm_region *))
{
    for (int64_t k = 5; k < 400; k++)
        if (one_death_is_noticed(d, k, broken))
            return;
    fprintf(stderr, "kind %zu not noticed with pools %s\n", kind, design_name[d]);
    CHECK(false);
}

static void a_proper_recovery_is_not(vm_pools d)
{
    for (int64_t k = 5; k < 400; k += 37 * SLOWER) {
        vm_region *r = MAKE(.nr_pages = 1000, .pools = d, SMALL);
        pid_t pid;
        CHILD(pid, work_and_die(r, k));
        CHECK(WIFSIGNALED(end_of(pid)));
        CHECK_EQ(vm_recover(r, NULL), 0);
        FINISH(r);
    }
}

static void (*const kinds[])(vm_region *) = {
    recover_nothing,
    free_the_slots_without_looking_at_the_words,
    break_open_the_space_lock,
    break_open_the_pools,
    forget_the_lists,
    let_holders_live_on,
    believe_the_counter,
    leave_neighbours_apart,
    hand_out_twice,
};

int main(void)
{
    FOR_EACH_DESIGN (d) {
        a_proper_recovery_is_not(d);
        for (size_t i = 0; i < LENGTH(kinds) && SLOWER == 1; i++)
            if (d == VM_POOLS_LOCKED || kinds[i] != break_open_the_pools) /* a scan needs no lists */
                a_recovery_that_forgets_something_is_noticed(d, i, kinds[i]);
    }
    return 0;
}
