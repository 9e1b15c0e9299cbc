/* SPDX-License-Identifier: MIT */
/* Steps of operations.c: what deaths and neighbours leave behind, made by hand where it would be a matter of luck. */
#include "steps.h"

/* ---- what deaths leave behind, made by hand where a death in the right place is a matter of luck ---- */

static vm_token dead_token(stage *s) { return vm__token(s->r->map.nr_threads - 1, 0x3ff0); }
void leave_a_mess(stage *s)
{
    vm_region *r = s->r;
    vm_head *gift = &r->map.heads[s->gift[0].page];
    share_gifts(s);
    r->map.heads[s->gift[1].page].word =
        vm__word(VM_FREEING, VM_WORD_DIRTY, 2, 200, 0x3ff0); /* was about to share it */
    gift->word = vm__word(VM_FREEING, VM_WORD_SHARED | VM_WORD_DIRTY, 2, 200, 0x3ff0); /* a dead one was freeing it */
    vm__hold_for_name(r, s->gift[2].page); /* half named */
    r->map.h->names_lock.needs_mending = 1;
    r->map.h->lease_lock.needs_mending = 1;
    r->map.h->lease_high = 3;
    r->map.h->lease_unused = 2;
    r->map.h->nr_leases = 5;
    r->map.sharings[s->gift[2].page].nr_leases = 2; /* counted, and not yet made */
    r->map.leases[1] = /* of what is gone */
        (vm_lease_entry){.id = 1 << VM_LEASE_BITS | 1, .page = s->gift[2].page, .range_id = 1};
    r->map.h->purge_lock.needs_mending = 1;
    r->map.h->purge_needs_scan = 1;
    r->map.h->lazy_pages += 5;
    uint64_t page = vm__index_find(&r->map, 0, 100), start = vm__index_run_start(&r->map, page); /* not yet merged */
    vm_word w = r->map.heads[start].word;
    r->map.heads[start + 10].word = vm__word(VM_FREE, w & VM_WORD_DIRTY, vm__len(w) - 10, 0, 0);
    r->map.heads[start].word = vm__word(VM_FREE, w & VM_WORD_DIRTY, 10, 0, 0);
    r->map.h->high_pages = 0;
    r->map.h->space_lock.needs_mending = 1;
    for (uint32_t i = vm__first_thread(r); i < r->map.nr_threads; i++)
        r->map.slots[i].drain = dead_token(s);
    r->map.h->high_slot = r->map.nr_threads;
}
/* A child of the survivor's, so it holds all that this one holds; and it dies of its own. */
static void work_and_be_killed(stage *s)
{
    uint64_t lease;
    wait_for_cue(&s->victim[1].cue, CUE_RUN, 0); /* its parent is through with the fork */
    vm_range a = take(s->r, 3), b = take(s->r, 300);
    CHECK_EQ(vm_lease(s->r, a.page, a.id, &lease), 0);
    GIVE_BACK(s->r, a);
    CHECK_EQ(vm_share(s->r, b.page, b.id), 0);
    kill(getpid(), SIGKILL);
}
static void lock_warm_and_be_killed(stage *s)
{
    vm_warm *w = &s->r->map.h->warm;
    wait_for_cue(&s->victim[1].cue, CUE_RUN, 0);
    CHECK_EQ(vm__warm_lock(vm__thread(s->r), 0), 0);
    vm_shelf *shelf = s->r->map.shelves;
    shelf->list[0].head = shelf->list[0].tail = 7; /* half-way through something */
    w->unsorted = 9;
    s->r->map.nodes[0].lazy_head = 11;
    kill(getpid(), SIGKILL);
}
static void close_warm_and_be_killed(stage *s)
{
    vm_region *r = s->r;
    wait_for_cue(&s->victim[1].cue, CUE_RUN, 0);
    CHECK_EQ(vm__lock(vm__thread(r), &r->map.h->purge_lock, 0), 0);
    CHECK_EQ(vm__warm_close(vm__thread(r), 0), 0);
    kill(getpid(), SIGKILL);
}
static void lock_space_and_be_killed(stage *s)
{
    wait_for_cue(&s->victim[1].cue, CUE_RUN, 0);
    CHECK_EQ(vm__lock(vm__thread(s->r), &s->r->map.h->space_lock, 0), 0);
    kill(getpid(), SIGKILL);
}
static void let_die(stage *s, void (*live)(stage *))
{
    pid_t pid;
    s->victim[1].cue = CUE_NONE;
    CHILD(pid, live(s));
    give_cue(&s->victim[1].cue, CUE_RUN);
    CHECK(WIFSIGNALED(end_of(pid)));
}
void let_another_be_killed(stage *s) { let_die(s, work_and_be_killed); }
void die_with_the_warm_lock(stage *s) { let_die(s, lock_warm_and_be_killed); }
void die_with_closed_lists(stage *s) { let_die(s, close_warm_and_be_killed); }
void die_with_the_space_lock(stage *s) { let_die(s, lock_space_and_be_killed); }
void leave_pools_in_use(stage *s)
{
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 4; i++)
            s->r->map.nodes[n].pool[i].in_use = dead_token(s);
}
void leave_pushes_half_done(stage *s) /* the first of a pool and the third: linked, and never made POOLED */
{
    uint64_t page[3];
    vm_thread *t = vm__thread(s->r);
    for (int i = 0; i < 3; i++) {
        page[i] = take(s->r, 3).page;
        s->r->map.heads[page[i]].word = vm__moving(t, 3);
    }
    CHECK_EQ(s->r->design->kept->give(t, &s->r->map.nodes[0], 3, 3, page), 3);
    for (int i = 0; i < 3; i += 2)
        s->r->map.heads[page[i]].word = vm__word(VM_MOVING, VM_WORD_DIRTY, 3, s->r->map.nr_threads - 1, 0x3ff0);
}
void shrink_and_take(stage *s)
{
    shrink(s);
    take_and_free_many(s);
}
void hold_two_and_forget_slabs(stage *s) /* as if nothing of their size was ever put there */
{
    hold_two(s);
    for (uint32_t cpu = 0; cpu < s->r->map.nr_cpus; cpu++)
        s->r->map.cpus[cpu].used[0] &= ~2ull;
}
void hold_two_and_break_slabs(stage *s)
{
    hold_two(s);
    for (uint32_t cpu = 0; cpu < s->r->map.nr_cpus; cpu++) {
        s->r->map.cpus[cpu].used[0] |= 2;
        s->r->map.cpus[cpu].slab[1].count = VM_SLAB_CAP + 1;
    }
}
void hold_more_than_a_slab(stage *s) /* freed before: a free of theirs is a hit while there is a place */
{
    hold(s, 250, 2 * VM_SLAB_CAP_MIN + 2);
    let_go(s);
    hold(s, 250, 2 * VM_SLAB_CAP_MIN + 2);
}
void set_in_motion(stage *s) /* we are alive, between a word and a list */
{
    s->r->map.heads[s->gift[1].page].word = vm__thread(s->r)->moving | 2ull << VM_WORD_LEN_SHIFT;
    s->r->map.h->purge_needs_scan = 1;
}
void come_to_rest(stage *s)
{
    s->r->map.heads[s->gift[1].page].word = vm__thread(s->r)->busy | 2ull << VM_WORD_LEN_SHIFT;
}
void drain_myself(stage *s)
{
    hold(s, 2, 2);
    vm__thread(s->r)->slot->drain = dead_token(s);
}
void hold_warm(stage *s)
{
    hold(s, 2, 2);
    let_go(s);
    hold(s, 2, 2);
}
void free_aligned_first(stage *s)
{
    hold(s, 2, 8);
    let_go(s);
    hold(s, 2, 2);
    if (s->held[0].page % 4) { /* the aligned one below the other */
        vm_range other = s->held[0];
        s->held[0] = s->held[1];
        s->held[1] = other;
    }
    let_go(s);
}
void take_aligned(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_alloc(s->r, 2, 4, 0, &a), 0);
}

/* A process without memory for its own lists. */
static bool realloc_fails;
#if SLOWER == 1
extern void *__libc_realloc(void *, size_t);
void *realloc(void *p, size_t bytes)
{
    if (realloc_fails)
        return errno = ENOMEM, NULL;
    return __libc_realloc(p, bytes);
}
#endif
void purge_without_memory(stage *s)
{
    realloc_fails = true;
    CHECK_EQ(vm_purge(s->r, NULL), 0);
    realloc_fails = false;
}

/* Another process adopts just when the last holder has cleared its bit; another thread has freed and taken
 * again what is about to be shared. */
void between_writes(stage *s)
{
    vm_region *r = s->r;
    uint64_t page = s->gift[0].page, any = 0;
    if (s->reuses_in_between) {
        r->map.heads[s->held[0].page].aux = s->held[1].id;
        s->reuses_in_between = false;
    }
    if (!s->adopts_in_between)
        return;
    for (uint32_t i = 0; i < vm__nr_holders(r); i++)
        any |= *vm__holders(r, page, i);
    if (any == 0 && vm__state(VM_ACQUIRE(&r->map.heads[page].word)) == VM_BUSY) {
        *vm__holder_word(r, page, s->survivor) |= vm__holder_bit(r, s->survivor);
        s->adopts_in_between = false;
    }
}
void drop_gifts_while_adopted(stage *s)
{
    s->adopts_in_between = true;
    drop_gifts(s);
    s->adopts_in_between = false;
}
void share_while_reused(stage *s)
{
    s->reuses_in_between = true;
    CHECK_EQ(vm_share(s->r, s->held[0].page, s->held[0].id), -ESTALE);
}
void take_over(stage *s)
{
    s->adopts_in_between = false;
    vm_range a;
    s->gift_is_ours[0] = vm_adopt(s->r, s->gift[0].page, s->gift[0].id, &a) == 0;
}

void create(stage *s)
{
    (void)s;
    vm_region *r = MAKE(.nr_pages = 1000, .nr_nodes = 2, .nr_threads = 2);
    take(r, 1);
}
void check_and_repair(stage *s) { vm_repair(s->r, NULL, NULL); }

/* Damage that no death leaves, but a scribbling neighbour: vm_repair() mends it. */
void damage(stage *s)
{
    vm_region *r = s->r;
    uint32_t stranger = 60, unused_slot = r->map.nr_threads - 1;
    vm_range *named = &s->gift[2];
    share_gifts(s);
    CHECK_EQ(vm_name_set(r, "unheld", named->page, named->id, NULL, 0), 0);
    *vm__holder_word(r, named->page, r->map.nr_processes) &= ~vm__holder_bit(r, r->map.nr_processes);
    for (int i = VM_NAMES_MAX - 1; i > VM_NAMES_MAX - 3; i--)
        r->map.names[i].state = 1 << 20; /* of what is gone, at page 0 */
    *vm__holder_word(r, s->gift[0].page, stranger) |= vm__holder_bit(r, stranger);
    vm__hold_for_name(r, s->gift[0].page);
    r->map.slots[unused_slot].state |= stranger << 1 | 1;
    r->map.h->high_slot = r->map.nr_threads;
    r->map.h->high_process = 0;
    r->map.h->next_id = VM_ID_BLOCK;
    for (uint32_t n = 1; n <= 3; n++) /* what this one keeps is in no magazine now */
        vm__thread(r)->hit.magazine[n].header &= ~0xffull;
    for (uint32_t cpu = 0; cpu < r->map.nr_cpus; cpu++) {
        r->map.cpus[cpu].used[0] |= 1;
        r->map.cpus[cpu].slab[0].count = VM_SLAB_CAP + 1;
    }
    r->map.h->corrupt = 1;
}
void repair(stage *s) { CHECK(vm_repair(s->r, NULL, NULL) >= 0); }

/* Somebody who lives is freeing it, and takes long. */
void stop_in_freeing(stage *s)
{
    lease_gift_0(s);
    vm_head *gift = &s->r->map.heads[s->gift[0].page];
    gift->word = vm__word(VM_FREEING, VM_WORD_SHARED | VM_WORD_DIRTY, 2, s->survivor, s->r->process_inc);
}
void go_on_from_freeing(stage *s)
{
    vm_head *gift = &s->r->map.heads[s->gift[0].page];
    gift->word = (gift->word & ~VM_WORD_STATE_MASK) | VM_BUSY;
}
void claim_impatiently(stage *s)
{
    vm_range a;
    vm_set_lock_timeout(s->r, 0.001);
    CHECK_EQ(vm_claim(s->r, s->gift[0].page, s->gift[0].id, s->lease, &a), -EBUSY);
}

/* A word that does not parse: whoever meets it marks the region corrupt. */
void break_a_word(stage *s)
{
    hold(s, 2, 1);
    s->r->map.heads[s->mine[4].page].word = 0;
}
void meet_it(stage *s)
{
    vm_stats stats;
    vm_get_stats(s->r, &stats);
}
void mend_the_word(stage *s)
{
    vm_thread *t = vm__thread(s->r);
    s->r->map.heads[s->mine[4].page].word = t->busy | s->mine[4].nr_pages << VM_WORD_LEN_SHIFT;
    s->r->map.h->corrupt = 0;
}

/* Hints that lie; the words know better. */
void let_the_index_lie(stage *s)
{
    hold(s, 300, 3);
    GIVE_BACK(s->r, s->held[1]);
    uint64_t left = s->held[1].page - 1;
    s->r->map.bits[left / 64] &= ~(1ull << left % 64);
}
void let_the_index_promise_too_much(stage *s)
{
    for (uint32_t i = 0; i < PAGES / 64; i++)
        s->r->map.bits[i] = 0;
    vm__index_summarise_all(&s->r->map);
}
void let_a_list_lie(stage *s)
{
    hold(s, 2, 1);
    s->r->map.nodes[0].lazy_head = (uint32_t)s->held[0].page + 1;
}
void let_warm_lists_lie(stage *s)
{
    vm_warm *w = &s->r->map.h->warm;
    vm_shelf *shelf = s->r->map.shelves;
    shelve(s);
    hold(s, 2, 1);
    w->unsorted = (uint32_t)s->held[s->nr_held - 1].page + 1; /* busy; its id is taken for the next link */
    for (int i = 0; i < VM_WARM_CLASSES; i++)
        shelf->list[i].head = shelf->list[i].tail = w->unsorted;
    memset(shelf->used, 0xff, sizeof shelf->used - sizeof shelf->used[0]);
}
void mend_hints(stage *s) { CHECK_EQ(vm_repair(s->r, NULL, NULL) >= 0, 1); }

/* A live neighbour in the way. */
static int blocker_holds;
static void *hold_the_space_lock(void *arg)
{
    stage *s = arg;
    vm_thread *t = vm__thread(s->r);
    CHECK_EQ(vm__lock(t, &s->r->map.h->space_lock, 0), 0);
    __atomic_store_n(&blocker_holds, 1, __ATOMIC_RELEASE);
    usleep(5000);
    vm__unlock(t, &s->r->map.h->space_lock);
    return NULL;
}
void take_while_locked(stage *s)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, hold_the_space_lock, s), 0);
    while (!__atomic_load_n(&blocker_holds, __ATOMIC_ACQUIRE))
        sched_yield();
    take(s->r, 77);
    pthread_join(thread, NULL);
}
void use_pools_forever(stage *s)
{
    s->r->map.nodes[1].pool[1].in_use = vm__thread(s->r)->token;
    s->r->map.h->purge_needs_scan = 1;
}
void stop_using_pools(stage *s) { s->r->map.nodes[1].pool[1].in_use = 0; }
void purge_impatiently(stage *s)
{
    vm_set_lock_timeout(s->r, 0.001);
    vm_purge(s->r, NULL);
}
void hold_space_lock(stage *s) { CHECK_EQ(vm__lock(vm__thread(s->r), &s->r->map.h->space_lock, 0), 0); }
void release_space_lock(stage *s) { vm__unlock(vm__thread(s->r), &s->r->map.h->space_lock); }
