/* SPDX-License-Identifier: MIT */
/* Steps of operations.c: ranges: alloc, free, resize, and what must be there first. */
#include "steps.h"

/* ---- alloc, free, resize ---- */

void hold(stage *s, uint64_t nr_pages, size_t count)
{
    CHECK(s->nr_held + count <= HELD_MAX);
    for (size_t i = 0; i < count; i++) {
        s->held[s->nr_held] = take(s->r, nr_pages);
        stamp_range(s, &s->held[s->nr_held++]);
    }
}
void let_go(stage *s)
{
    CHECK_EQ(vm_free_bulk(s->r, s->nr_held, s->held), 0);
    s->nr_held = 0;
}
void let_go_inline(stage *s)
{
    for (; s->nr_held; s->nr_held--) {
        const vm_range *a = &s->held[s->nr_held - 1];
        CHECK_EQ(vm_free_inline(s->r, a->page, a->id, 0), 0);
    }
}
void let_go_and_keep(stage *s)
{
    for (size_t i = 0; i < s->nr_held; i++) {
        vm_range a = s->held[i];
        CHECK_EQ(vm_free_kept(s->r, a.page, a.id, 0, &s->held[i]), 0);
        CHECK(s->held[i].page == a.page && s->held[i].id != a.id);
    }
    let_go(s);
}
void prefault(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_alloc_cold(s->r, 300, 1, &a), 0);
    CHECK_EQ(vm_populate(s->r, a.page, a.nr_pages), 0);
    CHECK_EQ(vm_keep_warm(s->r, a.nr_pages), 0);
    GIVE_BACK(s->r, a);
}
void forget_the_floor(stage *s) { s->r->map.h->floor_pages = 0; }
void harden(stage *s)
{
    s->r->map.flags |= VM_FLAG_HARDENED;
    vm__set_hit_keys(s->r);
}
void soften(stage *s)
{
    s->r->map.flags &= ~(uint32_t)VM_FLAG_HARDENED;
    vm__set_hit_keys(s->r);
}
void warm_up(stage *s)
{
    hold(s, 1, 2);
    let_go(s);
}
void take_one(stage *s) { take(s->r, 1); }
void take_one_inline(stage *s) { CHECK(vm_take_inline(s->r, 1).id != 0); }
/* As in a region where no slot was used that is not used now. */
void forget_slots(stage *s)
{
    uint32_t high = vm__first_thread(s->r);
    for (uint32_t i = high; i < s->r->map.nr_threads; i++)
        high = s->r->map.slots[i].state & 1 ? i + 1 : high;
    s->r->map.h->high_slot = high;
}
/* Whatever was ready is in space, and the next that comes from there comes with a run. */
void empty_and_ask_for_much(stage *s)
{
    CHECK_EQ(vm_shrink(s->r, NULL), 0);
    seem_to_have_space(s);
    vm__magazine_tighten(vm__thread(s->r), false);
    vm__thread(s->r)->has_waited = true;
    vm__thread(s->r)->cold_pages = VM_RUN_SHARE * VM_RUN_PAGES_MAX;
}
void have_a_run(stage *s)
{
    empty_and_ask_for_much(s);
    vm_range a = take(s->r, 50);
    GIVE_BACK(s->r, a);
    CHECK(!vm__thread(s->r)->fast_pages || vm__thread(s->r)->slot->run);
}
/* Of a size of which nothing is ready; a run is a small part of what is free. */
void take_more_than_a_run(stage *s) { take(s->r, PAGES / VM_RUN_FREE_SHARE + 20); }
void drain_the_others(stage *s) { vm__drain_all(vm__thread(s->r)); }
void ask_for_much_while_drained(stage *s)
{
    empty_and_ask_for_much(s);
    vm__thread(s->r)->slot->drain = vm__thread(s->r)->token; /* of somebody who lives */
}
void take_first_aligned(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_alloc(s->r, 5, 64, 0, &a), 0);
}
void warm_up_forty(stage *s)
{
    hold(s, 2, 40);
    let_go(s);
}
void take_forty(stage *s) { hold(s, 2, 40); }
void hold_forty(stage *s) { hold(s, 2, 40); }
void shelve(stage *s)
{
    hold(s, 300, 2);
    let_go(s);
}
void take_large_warm(stage *s) { take(s->r, 290); }
void free_one_twice_as_long(stage *s)
{
    hold(s, 700, 1);
    let_go(s);
}
void free_neighbours(stage *s)
{
    hold(s, 300, 3);
    let_go(s);
    take(s->r, 300); /* sorts */
}
void take_their_sum(stage *s) { take(s->r, 600); }
void free_small_ones(stage *s)
{
    hold(s, 1, 70);
    let_go(s);
    hold(s, 256, 20);
    let_go(s);
}
void use_up_most(stage *s)
{
    vm_range a;
    hold(s, 1000, 7);
    hold(s, 256, 10);
    hold(s, 3, 5);
    for (int i = 0; i < 7; i += 2)
        GIVE_BACK(s->r, s->held[i]);
    for (int i = 7; i < 22; i++)
        GIVE_BACK(s->r, s->held[i]);
    while (vm_alloc(s->r, 700, 1, VM_NO_PURGE, &a) == 0)
        ;
}
void ask_for_too_much(stage *s)
{
    vm_range a;
    vm_alloc(s->r, 4000, 1, 0, &a);
}
/* Nothing is left but pairs of pages side by side, and those are kept for requests of two pages. */
void leave_only_pairs(stage *s)
{
    static const uint64_t sizes[] = {1000, 200, 40, 8, 3, 1};
    vm_range a;
    hold(s, 2, 60);
    for (size_t i = 0; i < LENGTH(sizes); i++)
        while (vm_alloc(s->r, sizes[i], 1, VM_NO_PURGE, &a) == 0)
            ;
    let_go(s);
}
void join_pairs(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_alloc(s->r, 20, 1, 0, &a), 0);
}
void leave_dirty_space(stage *s)
{
    leave_only_pairs(s);
    join_pairs(s);
}
/* The peak is as if nothing had ever been used: the next request from space raises it. */
void leave_much_ready(stage *s)
{
    hold(s, 200, 15);
    for (size_t i = 0; i < s->nr_held; i++)
        memset(vm_pointer(s->r, s->held[i].page), 1, 200 * 4096);
    let_go(s);
    s->r->map.h->used_peak = 0;
    s->r->map.h->drained_peak = 0;
}
void take_what_is_ready(stage *s) { take(s->r, 2000); }
void take_bulk(stage *s) { CHECK_EQ(vm_alloc_bulk(s->r, 3, 1, 10, s->held), 0); }
void take_congruent(stage *s)
{
    CHECK_EQ(vm_alloc_congruent(s->r, 3, (uint64_t[]){0, 32, 64}, (uint64_t[]){5, 20, 300}, 16, s->held), 0);
}
/* At places where few such requests fit: what is free between them stays so. */
void hold_far_apart(stage *s)
{
    for (s->nr_held = 0; s->nr_held < 2; s->nr_held++) {
        CHECK_EQ(vm_alloc(s->r, 3, 2 * VM_POOL_PAGES_MAX, 0, &s->held[s->nr_held]), 0);
        stamp_range(s, &s->held[s->nr_held]);
    }
}
/* No thread may be at two; so by hand. What no pool takes becomes lazy, several at once. */
static void set_pool_owner(stage *s, vm_token owner)
{
    for (uint32_t i = 0; i < vm__nodes_used(s->r); i++)
        s->r->map.nodes[i].pool_lock.owner = owner;
}
void seem_to_be_at_the_pools(stage *s) { set_pool_owner(s, vm__thread(s->r)->token); }
void leave_the_pools(stage *s) { set_pool_owner(s, 0); }
void hold_twenty(stage *s) { hold(s, 20, 1); }
void hold_large(stage *s) { hold(s, 700, 1); }
void resize_to_ten(stage *s) { CHECK_EQ(vm_resize(s->r, &s->held[0], 10), 0); }
void resize_to_fifty(stage *s) { CHECK_EQ(vm_resize(s->r, &s->held[0], 50), 0); }

void free_gift_0(stage *s) { GIVE_BACK(s->r, s->gift[0]); }
/* Its magazine has ids, and room. */
void open_a_magazine_for_gift_0(stage *s)
{
    hold(s, s->gift[0].nr_pages, 4);
    let_go(s);
    hold(s, s->gift[0].nr_pages, 2);
}
void free_gift_2(stage *s) { GIVE_BACK(s->r, s->gift[2]); }

/* Gift 3 is as long as what of others goes on in batches; one more is too many. */
void gather_a_batch(stage *s)
{
    uint64_t nr_pages = s->gift[3].nr_pages;
    CHECK(nr_pages >= VM_FLOW_PAGES);
    hold(s, nr_pages, vm__flow_pages(nr_pages) / nr_pages + 2);
    let_go(s);
}
void free_gift_3(stage *s) { GIVE_BACK(s->r, s->gift[3]); }
void share_gift_3(stage *s) { CHECK_EQ(vm_share(s->r, s->gift[3].page, s->gift[3].id), 0); }
void gather_a_batch_and_adopt(stage *s)
{
    vm_range a;
    gather_a_batch(s);
    CHECK_EQ(vm_adopt(s->r, s->gift[3].page, s->gift[3].id, &a), 0);
}
void drop_gift_3_here(stage *s)
{
    free_gift_3(s);
    s->gift_is_ours[3] = false;
}

void seem_short_of_space(stage *s) { s->r->map.h->tight_s = vm__now_s(); }
void seem_to_have_space(stage *s) { s->r->map.h->tight_s = 0; }
void free_one_a_little_longer(stage *s)
{
    hold(s, 72, 1);
    let_go(s);
}
void take_a_little_less(stage *s)
{
    seem_short_of_space(s); /* still */
    vm_range a = take(s->r, 64);
    stamp_range(s, &a);
}
void hold_thirtyfive_big(stage *s) { hold(s, 250, 35); }
void lower_the_threshold(stage *s)
{
    hold(s, 300, 2);
    s->r->map.h->lazy_pages_fixed = 100;
}
void take_cold_over_the_threshold(stage *s)
{
    let_go(s);
    take(s->r, 2000);
}
void raise_the_threshold(stage *s) { s->r->map.h->lazy_pages_fixed = 1u << 28; }

/* All thread slots seem taken by us: the victim's thread gets none. */
void occupy_slots(stage *s)
{
    for (uint32_t i = vm__first_thread(s->r); i < s->r->map.nr_threads; i++)
        if (!(s->r->map.slots[i].state & 1))
            s->r->map.slots[i].state |= (uint64_t)s->r->process << 1 | 1;
    s->r->map.h->high_slot = s->r->map.nr_threads;
}
void vacate_slots(stage *s)
{
    uint32_t own = vm__thread(s->r)->index;
    for (uint32_t i = vm__first_thread(s->r); i < s->r->map.nr_threads; i++)
        if (i != own && vm__slot_process(s->r, s->r->map.slots[i].state) == s->r->process)
            s->r->map.slots[i].state = ((s->r->map.slots[i].state >> 32) + 1) << 32;
}
void take_and_free_many(stage *s)
{
    for (uint64_t n = 1; n < 400; n *= 3)
        hold(s, n, 2);
    let_go(s);
}

void share_held(stage *s) { CHECK_EQ(vm_share(s->r, s->held[0].page, s->held[0].id), 0); }
void hold_two(stage *s) { hold(s, 2, 2); }
void share_gifts(stage *s)
{
    CHECK_EQ(vm_share(s->r, s->gift[0].page, s->gift[0].id), 0);
    CHECK_EQ(vm_share(s->r, s->gift[2].page, s->gift[2].id), 0);
}
void adopt_gifts(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_adopt(s->r, s->gift[0].page, s->gift[0].id, &a), 0);
    CHECK_EQ(vm_adopt(s->r, s->gift[2].page, s->gift[2].id, &a), 0);
}
void adopt_stale(stage *s)
{
    vm_range a;
    CHECK_EQ(vm_adopt(s->r, s->gift[0].page, s->gift[0].id + 1, &a), -ESTALE);
}
void drop_gifts(stage *s)
{
    GIVE_BACK(s->r, s->gift[0]);
    GIVE_BACK(s->r, s->gift[2]);
}
void drop_gifts_here(stage *s)
{
    drop_gifts(s);
    s->gift_is_ours[0] = s->gift_is_ours[2] = false;
}
void try_to_adopt(stage *s)
{
    vm_range a;
    vm_adopt(s->r, s->gift[0].page, s->gift[0].id, &a);
    vm_adopt(s->r, s->gift[2].page, s->gift[2].id, &a);
}
