/* SPDX-License-Identifier: MIT */
/* Leases: what a message names lasts until it is claimed, dropped, or its sender has been dead for a while. */
#include "kit.h"

#define LONG_S 1e6
#define SHORT_S 1e-9 /* over as soon as somebody looks */

static vm_region *make(vm_pools d, double ttl_s)
{
    return MAKE(.nr_pages = 3000, .pools = d, .lease_ttl_s = ttl_s, SMALL);
}

static uint64_t lease_of(vm_region *r, vm_range a)
{
    uint64_t lease = 0;
    CHECK_EQ(vm_lease(r, a.page, a.id, &lease), 0);
    CHECK(lease != 0);
    return lease;
}
static uint64_t expire(vm_region *r, bool all)
{
    uint64_t nr = UINT64_MAX;
    CHECK_EQ(vm_expire_leases(r, all, &nr), 0);
    return nr;
}

static void a_lease_keeps_what_its_maker_lets_go(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    vm_range a = take(r, 3), b;
    memset(vm_pointer(r, a.page), 7, 3 * 4096);
    uint64_t lease = lease_of(r, a);
    GIVE_BACK(r, a);
    CHECK(vm_free(r, a.page, a.id, 0) < 0); /* that was our only reference */
    CHECK_EQ(stats_of(r).busy_pages, 3);
    CHECK_EQ(stats_of(r).nr_leases, 1);
    CHECK_CLEAN(r);
    CHECK_EQ(vm_claim(r, a.page, a.id, lease, &b), 0);
    CHECK(b.page == a.page && b.id == a.id && b.nr_pages == 3);
    CHECK_EQ(((char *)vm_pointer(r, b.page))[3 * 4096 - 1], 7);
    CHECK_EQ(stats_of(r).nr_leases, 0);
    GIVE_BACK(r, b);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

typedef struct message {
    vm_range range;
    uint64_t lease;
    int is_sent;
} message;

static void another_process_claims_what_was_sent(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    message *m = shared_memory(sizeof *m);
    pid_t child;
    CHILD(child, { /* it is there before the range is, so it inherits nothing */
                   vm_range b;
                   while (!__atomic_load_n(&m->is_sent, __ATOMIC_ACQUIRE))
                       sched_yield();
                   CHECK_EQ(vm_free(r, m->range.page, m->range.id, 0), -ENOENT);
                   CHECK_EQ(vm_claim(r, m->range.page, m->range.id, m->lease, &b), 0);
                   CHECK_EQ(*(char *)vm_pointer(r, b.page), 7);
                   GIVE_BACK(r, b);
    });
    m->range = take(r, 300);
    *(char *)vm_pointer(r, m->range.page) = 7;
    m->lease = lease_of(r, m->range);
    GIVE_BACK(r, m->range);
    __atomic_store_n(&m->is_sent, 1, __ATOMIC_RELEASE);
    ended_well(child);
    CHECK_EQ(stats_of(r).nr_leases, 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

static void a_lease_that_is_gone_is_no_error_while_the_range_is_there(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    vm_range a = take(r, 2), b;
    uint64_t lease = lease_of(r, a);
    CHECK_EQ(vm_drop_lease(r, lease), 0);
    CHECK_EQ(vm_claim(r, a.page, a.id, lease, &b), 0);
    GIVE_BACK(r, a);
    GIVE_BACK(r, a); /* one for the allocation, one for the claim */
    CHECK_EQ(vm_claim(r, a.page, a.id, lease, &b), -ESTALE);
    CHECK_EQ(vm_claim(r, UINT64_MAX, a.id, lease, &b), -ESTALE);
    FINISH(r);
}

static void a_claim_ends_only_the_lease_of_its_own_range(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    vm_range a = take(r, 2), b = take(r, 2), got;
    uint64_t of_a = lease_of(r, a), of_b = lease_of(r, b);
    CHECK_EQ(vm_claim(r, a.page, a.id, of_b, &got), 0);
    CHECK_EQ(stats_of(r).nr_leases, 2);
    GIVE_BACK(r, a);
    GIVE_BACK(r, a);
    GIVE_BACK(r, b);
    CHECK_EQ(stats_of(r).busy_pages, 4);
    CHECK_EQ(vm_drop_lease(r, of_a), 0);
    CHECK_EQ(vm_drop_lease(r, of_b), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void only_who_holds_a_range_can_lease_it(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    vm_range a = take(r, 2);
    uint64_t lease = 0;
    CHECK_EQ(vm_lease(r, a.page, a.id + 1, &lease), -ESTALE);
    CHECK_EQ(vm_lease(r, a.page + 1, a.id, &lease), -ENOENT);
    CHECK_EQ(vm_lease(r, UINT64_MAX, a.id, &lease), -ENOENT);
    CHECK_EQ(vm_share(r, a.page, a.id), 0);
    IN_CHILD({
        uint64_t nr;
        CHECK_EQ(vm_drop_inherited(r, &nr), 0);
        CHECK_EQ(nr, 1);
        CHECK_EQ(vm_lease(r, a.page, a.id, &lease), -ENOENT);
    });
    CHECK_EQ(lease, 0); /* untouched on failure */
    CHECK_EQ(stats_of(r).nr_leases, 0);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

static void the_last_of_several_leases_frees(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    vm_range a = take(r, 3);
    uint64_t first = lease_of(r, a), second = lease_of(r, a);
    GIVE_BACK(r, a);
    CHECK_EQ(vm_drop_lease(r, first), 0);
    CHECK_EQ(stats_of(r).busy_pages, 3);
    CHECK_EQ(vm_drop_lease(r, first), -ENOENT);
    CHECK_EQ(vm_drop_lease(r, second), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    CHECK_EQ(vm_drop_lease(r, 0), -ENOENT);
    CHECK_EQ(vm_drop_lease(r, UINT64_MAX), -ENOENT);
    FINISH(r);
}

static void a_lease_is_never_named_like_an_earlier_one(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    vm_range a = take(r, 1);
    uint64_t last = 0;
    for (int i = 0; i < 100; i++) {
        uint64_t lease = lease_of(r, a);
        CHECK(lease > last);
        CHECK_EQ(vm_drop_lease(r, lease), 0);
        last = lease;
    }
    GIVE_BACK(r, a);
    FINISH(r);
}

static void at_the_limit_of_leases_one_must_end_first(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    vm_range a = take(r, 1);
    uint64_t lease = 0, none = 0;
    for (uint32_t i = 0; i < VM_LEASES_MAX; i++)
        lease = lease_of(r, a);
    CHECK_EQ(stats_of(r).nr_leases, VM_LEASES_MAX);
    CHECK_EQ(vm_lease(r, a.page, a.id, &none), -EXFULL);
    CHECK_EQ(none, 0);
    CHECK_EQ(vm_drop_lease(r, lease), 0);
    lease_of(r, a);
    CHECK_EQ(expire(r, true), VM_LEASES_MAX);
    GIVE_BACK(r, a);
    FINISH(r);
}

/* ---- whose sender dies ---- */

static void send_and_die(vm_region *r, uint64_t nr_pages, message *out)
{
    IN_CHILD({
        out->range = take(r, nr_pages);
        out->lease = lease_of(r, out->range);
        GIVE_BACK(r, out->range);
    });
}

static void a_lease_outlives_its_sender_for_its_time(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    message *m = shared_memory(sizeof *m);
    vm_range b;
    send_and_die(r, 3, m);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK_EQ(expire(r, false), 0);
    CHECK_EQ(stats_of(r).nr_leases, 1);
    CHECK_EQ(vm_claim(r, m->range.page, m->range.id, m->lease, &b), 0);
    GIVE_BACK(r, b);
    CHECK_EQ(stats_of(r).nr_leases, 0);
    FINISH(r);
}

static void a_lease_whose_time_is_over_ends_at_the_next_purge(vm_pools d)
{
    vm_region *r = make(d, SHORT_S);
    message *m = shared_memory(sizeof *m);
    vm_range b;
    send_and_die(r, 3, m);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK_EQ(stats_of(r).nr_leases, 0);
    CHECK_EQ(vm_claim(r, m->range.page, m->range.id, m->lease, &b), -ESTALE);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void a_request_that_would_fail_ends_what_is_over(vm_pools d)
{
    vm_region *r = make(d, SHORT_S);
    message *m = shared_memory(sizeof *m);
    send_and_die(r, 2900, m);
    vm_range a = take(r, 2900);
    GIVE_BACK(r, a);
    FINISH(r);
}

/* As one that was killed after it put its message into a queue. */
static void send_message_and_die(vm_region *r, uint64_t nr_pages, message *out)
{
    IN_CHILD({
        out->range = take(r, nr_pages);
        CHECK_EQ(vm_lease_message(r, out->range.page, out->range.id, 0, &out->lease), 0);
        GIVE_BACK(r, out->range);
    });
    CHECK_EQ(vm_recover(r, NULL), 0);
}

static void a_message_outlives_its_sender_until_somebody_asks(vm_pools d)
{
    vm_region *r = make(d, SHORT_S);
    message *m = shared_memory(sizeof *m);
    vm_range b;
    send_message_and_die(r, 3, m);
    CHECK_EQ(vm_purge(r, NULL), 0);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK_EQ(vm_tick(r), 0);
    CHECK_EQ(vm_alloc(r, 3000, 1, 0, &b), -ENOSPC);
    CHECK_EQ(vm_claim(r, m->range.page, m->range.id, m->lease, &b), 0);
    GIVE_BACK(r, b);
    send_message_and_die(r, 3, m);
    CHECK_EQ(expire(r, false), 1);
    CHECK_EQ(vm_claim(r, m->range.page, m->range.id, m->lease, &b), -ESTALE);
    FINISH(r);
}

static void who_dies_over_a_claim_leaves_no_message(vm_pools d)
{
    vm_region *r = make(d, SHORT_S);
    message *m = shared_memory(sizeof *m);
    send_message_and_die(r, 3, m);
    vm_lease_entry *e = &r->map.leases[m->lease % VM_LEASES_MAX];
    e->owner &= ~VM_LEASE_KEPT; /* what its loader wrote before it died */
    e->deadline_ns = 0;
    r->map.h->purge_needs_scan = 1;
    CHECK_EQ(vm_purge(r, NULL), 0); /* finds it, and */
    CHECK_EQ(vm_purge(r, NULL), 0); /* ends it */
    CHECK_EQ(stats_of(r).nr_leases, 0);
    FINISH(r);
}

static void messages_of_the_dead_end_oldest_first_and_no_more_than_needed(vm_pools d)
{
    vm_region *r = make(d, SHORT_S);
    message *m = shared_memory(4 * sizeof *m);
    uint64_t nr = 0;
    vm_range b, own = take(r, 2);
    for (int i = 0; i < 3; i++)
        send_message_and_die(r, 10, &m[i]);
    CHECK_EQ(vm_lease_message(r, own.page, own.id, 0, &m[3].lease), 0); /* ours, and we live */
    CHECK_EQ(vm_end_oldest(r, 11, &nr), 0);
    CHECK_EQ(nr, 2);
    CHECK_EQ(vm_claim(r, m[0].range.page, m[0].range.id, m[0].lease, &b), -ESTALE);
    CHECK_EQ(vm_claim(r, m[1].range.page, m[1].range.id, m[1].lease, &b), -ESTALE);
    CHECK_EQ(vm_claim(r, m[2].range.page, m[2].range.id, m[2].lease, &b), 0);
    GIVE_BACK(r, b);
    CHECK_EQ(vm_end_oldest(r, 3000, &nr), 0);
    CHECK_EQ(nr, 0);
    CHECK_EQ(vm_drop_lease(r, m[3].lease), 0);
    GIVE_BACK(r, own);
    FINISH(r);
}

static void the_living_keep_their_leases(vm_pools d)
{
    vm_region *r = make(d, SHORT_S);
    vm_range a = take(r, 3), b;
    uint64_t lease = lease_of(r, a);
    GIVE_BACK(r, a);
    CHECK_EQ(expire(r, false), 0);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK_EQ(vm_claim(r, a.page, a.id, lease, &b), 0);
    lease_of(r, b);
    GIVE_BACK(r, b);
    CHECK_EQ(expire(r, true), 1); /* unless somebody says: all */
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

static void who_claims_has_it_whatever_becomes_of_the_sender(vm_pools d)
{
    vm_region *r = make(d, SHORT_S);
    message *m = shared_memory(sizeof *m);
    vm_range b;
    send_and_die(r, 3, m); /* and nobody has noticed yet: it has no deadline */
    CHECK_EQ(vm_claim(r, m->range.page, m->range.id, m->lease, &b), 0);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(vm_shrink(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 3);
    GIVE_BACK(r, b);
    FINISH(r);
}

/* Not before its parent is through with the fork, for that one would recover a child that is dead already. */
static void die_with_the_lease_lock(vm_region *r)
{
    int *may_go = shared_memory(4096);
    pid_t child;
    CHILD(child, {
        while (!__atomic_load_n(may_go, __ATOMIC_ACQUIRE))
            sched_yield();
        CHECK_EQ(vm__lock(vm__thread(r), &r->map.h->lease_lock, 0), 0);
    });
    __atomic_store_n(may_go, 1, __ATOMIC_RELEASE);
    ended_well(child);
}

static void the_table_of_one_who_died_over_it_is_mended(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    vm_range a = take(r, 3), b;
    uint64_t lease = lease_of(r, a);
    GIVE_BACK(r, a);
    die_with_the_lease_lock(r);
    r->map.sharings[a.page].nr_leases++; /* it had counted one and not made it, */
    r->map.h->nr_leases += 2;
    r->map.h->lease_unused = 1; /* and torn the chain: entry 0 is in use */
    b = take(r, 2);
    uint64_t another = lease_of(r, b);
    CHECK(another % VM_LEASES_MAX != lease % VM_LEASES_MAX);
    CHECK_EQ(stats_of(r).nr_leases, 2);
    GIVE_BACK(r, b);
    CHECK_EQ(vm_drop_lease(r, lease), 0);
    CHECK_EQ(vm_drop_lease(r, another), 0);
    CHECK_EQ(vm_recover(r, NULL), 0);
    CHECK_EQ(stats_of(r).busy_pages, 0);
    FINISH(r);
}

/* ---- many at once ---- */

enum { SENDERS = 3, MESSAGES = 2000 / SLOWER };
typedef struct line { /* one message deep */
    vm_region *r;
    message m;
} line;

static void *send_all(void *arg)
{
    line *l = arg;
    for (int i = 0; i < MESSAGES; i++) {
        while (__atomic_load_n(&l->m.is_sent, __ATOMIC_ACQUIRE))
            sched_yield();
        l->m.range = take(l->r, (uint64_t)i % 4 + 1);
        /* atomic for TSan alone: it does not see that another process freed the page in between */
        __atomic_store_n((uint64_t *)vm_pointer(l->r, l->m.range.page), l->m.range.id, __ATOMIC_RELAXED);
        l->m.lease = lease_of(l->r, l->m.range);
        GIVE_BACK(l->r, l->m.range);
        __atomic_store_n(&l->m.is_sent, 1, __ATOMIC_RELEASE);
    }
    return NULL;
}
static void *claim_all(void *arg)
{
    line *l = arg;
    vm_range b;
    for (int i = 0; i < MESSAGES; i++) {
        while (!__atomic_load_n(&l->m.is_sent, __ATOMIC_ACQUIRE))
            sched_yield();
        CHECK_EQ(vm_claim(l->r, l->m.range.page, l->m.range.id, l->m.lease, &b), 0);
        CHECK_EQ(__atomic_load_n((uint64_t *)vm_pointer(l->r, b.page), __ATOMIC_RELAXED), b.id);
        GIVE_BACK(l->r, b);
        __atomic_store_n(&l->m.is_sent, 0, __ATOMIC_RELEASE);
    }
    return NULL;
}

static void many_messages_at_once_all_arrive(vm_pools d)
{
    vm_region *r = make(d, LONG_S);
    line *lines = shared_memory(SENDERS * sizeof *lines);
    pthread_t sender[SENDERS];
    pid_t receiver[SENDERS];
    for (int i = 0; i < SENDERS; i++) {
        lines[i].r = r;
        CHILD(receiver[i], claim_all(&lines[i]));
    }
    for (int i = 0; i < SENDERS; i++)
        CHECK_EQ(pthread_create(&sender[i], NULL, send_all, &lines[i]), 0);
    for (int i = 0; i < SENDERS; i++) {
        pthread_join(sender[i], NULL);
        ended_well(receiver[i]);
    }
    CHECK_EQ(stats_of(r).nr_leases, 0);
    CHECK_EQ(vm_recover(r, NULL), 0);
    FINISH(r);
}

int main(void)
{
    FOR_EACH_DESIGN (d) {
        a_lease_keeps_what_its_maker_lets_go(d);
        another_process_claims_what_was_sent(d);
        a_lease_that_is_gone_is_no_error_while_the_range_is_there(d);
        a_claim_ends_only_the_lease_of_its_own_range(d);
        only_who_holds_a_range_can_lease_it(d);
        the_last_of_several_leases_frees(d);
        a_lease_is_never_named_like_an_earlier_one(d);
        a_lease_outlives_its_sender_for_its_time(d);
        a_lease_whose_time_is_over_ends_at_the_next_purge(d);
        a_request_that_would_fail_ends_what_is_over(d);
        a_message_outlives_its_sender_until_somebody_asks(d);
        who_dies_over_a_claim_leaves_no_message(d);
        messages_of_the_dead_end_oldest_first_and_no_more_than_needed(d);
        the_living_keep_their_leases(d);
        who_claims_has_it_whatever_becomes_of_the_sender(d);
        the_table_of_one_who_died_over_it_is_mended(d);
        many_messages_at_once_all_arrive(d);
    }
    at_the_limit_of_leases_one_must_end_first(VM_POOLS_MAGAZINE);
    return 0;
}
