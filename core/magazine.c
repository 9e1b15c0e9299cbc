/* SPDX-License-Identifier: MIT */
/*
 * Magazines: ready ranges of one exact size, owned by one thread slot.
 *
 * alloc.c and free.c hold the hit paths. Here is the rest: refill from the pools in batches, overflow
 * of the older half to the pools, flush at thread exit, and drain, by which a neighbour who is out of
 * memory empties magazines that are not its own. A magazine is a hint: an entry counts only while the
 * range's word says CACHED by this very slot and incarnation.
 *
 * Drain: the owner marks whatever takes ranges out of a magazine with plain stores, the hit in the
 * magazine's header, the rest in in_operation, and then looks at `drain`; the drainer sets `drain`, runs
 * a membarrier in all attached processes and waits for the marks to go: from then on the owner takes
 * nothing. It may still add; the drainer changes words, by CAS from CACHED, and no magazine.
 * After: Bonwick & Adams, "Magazines and Vmem" (USENIX 2001).
 */
#include "internal.h"

#include <linux/membarrier.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#define REFILL_MAX 16
#define DRAIN_ROUNDS 200
#define STOCK_PAGES 256

/* Caps start at one range and double when a magazine overflows, as long as the growth of all caps stays
 * within the thread's budget: what a thread may hoard is bounded, and the hot path need not count it. */
void vm__magazine_init(vm_thread *t)
{
    memset(t->cap, 1, sizeof t->cap);
    t->cap_pages = 0;
}

static bool grow_cap(vm_region *r, vm_thread *t, uint64_t nr_pages)
{
    uint8_t *cap = &t->cap[nr_pages];
    uint32_t wanted = *cap * 2 > VM_MAGAZINE_CAP ? VM_MAGAZINE_CAP : *cap * 2u;
    uint64_t more = (wanted - *cap) * nr_pages;
    if (t->cap_pages + more > r->budget_pages)
        return false;
    t->cap_pages += more;
    *cap = (uint8_t)wanted;
    return true;
}

static bool entry_is_ours(const vm_region *r, const vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    return vm__is_within(r, page, nr_pages)
           && VM_PEEK(&r->heads[page].word) == (t->cached | nr_pages << VM_WORD_LEN_SHIFT);
}

static void leave_magazines(vm_thread *t)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    VM_STORE(&t->slot->in_operation, 0);
}

/* Between these two the slot's magazines are ours alone. False: somebody drains; keep off. */
static bool enter_magazines(vm_region *r, vm_thread *t)
{
    vm_slot *slot = t->slot;
    VM_PUT(&slot->in_operation, 1);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    vm_token drainer = VM_LOAD(&slot->drain);
    if (drainer && vm__owner_is_dead(r, drainer) && VM_CAS(&slot->drain, drainer, 0))
        drainer = 0;
    if (!drainer)
        return true;
    leave_magazines(t);
    return false;
}

/* Change the count only; ids go on, in a new block if need be. Between enter and leave. */
static void set_count(vm_region *r, vm_magazine *m, uint32_t count)
{
    uint64_t serial = VM_PEEK(&m->header) >> 8;
    if (vm__serial_is_spent(serial))
        serial = vm__new_serials(r);
    VM_STORE(&m->header, serial << 8 | count);
}

/* A range of that size and alignment from the magazine, wherever it stands there: what the hit path
 * leaves to us, also when its ids were spent or stale entries lay on top. */
bool vm__magazine_take(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
{
    if (!t->fast_pages || !enter_magazines(r, t))
        return false;
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint32_t count = vm__magazine_count(VM_PEEK(&m->header)), i = count;
    bool is_found = false;
    while (i > 0 && !is_found) {
        uint64_t page = VM_PEEK(&m->page[--i]);
        if (!entry_is_ours(r, t, page, nr_pages)) {
            count = i + 1 == count ? i : count; /* stale and on top */
        } else if ((page & (align_pages - 1)) == 0) {
            vm__hand_out(r, t, page, nr_pages, false, out);
            is_found = true;
            count--;
            for (; i < count; i++)
                VM_PUT(&m->page[i], VM_PEEK(&m->page[i + 1]));
        }
    }
    set_count(r, m, count);
    leave_magazines(t);
    return is_found;
}

/* Move the older `nr` entries of a magazine to the pools. Returns how many stay. */
static uint32_t flush_oldest(vm_region *r, vm_thread *t, uint64_t nr_pages, uint32_t nr)
{
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint32_t count = vm__magazine_count(VM_PEEK(&m->header)), moved = 0;
    uint64_t pages[VM_MAGAZINE_CAP];
    if (nr > count)
        nr = count;
    for (uint32_t i = 0; i < nr; i++) {
        uint64_t page = VM_PEEK(&m->page[i]);
        if (entry_is_ours(r, t, page, nr_pages)) {
            VM_STORE(&r->heads[page].word, t->moving | nr_pages << VM_WORD_LEN_SHIFT);
            pages[moved++] = page;
        }
    }
    for (uint32_t i = nr; i < count; i++)
        VM_PUT(&m->page[i - nr], VM_PEEK(&m->page[i]));
    set_count(r, m, count - nr);
    vm__pool_give(r, t, nr_pages, moved, pages);
    return count - nr;
}

/* Between enter and leave: room for one more; returns how many there are. */
static uint32_t make_room(vm_region *r, vm_thread *t, vm_magazine *m, uint64_t nr_pages)
{
    uint32_t count = vm__magazine_count(VM_PEEK(&m->header));
    if (count < t->cap[nr_pages])
        return count;
    grow_cap(r, t, nr_pages);
    uint32_t cap = t->cap[nr_pages];
    if (count < cap)
        return count;
    return flush_oldest(r, t, nr_pages, count - cap / 2);
}

/* Keep a range whose word is MOVING(t), making room if needed. False: the slot is being drained. */
bool vm__magazine_put_slow(vm_region *r, vm_thread *t, uint64_t page, uint64_t nr_pages)
{
    if (!enter_magazines(r, t))
        return false;
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint32_t count = make_room(r, t, m, nr_pages);
    VM_STORE(&r->heads[page].word, t->cached | nr_pages << VM_WORD_LEN_SHIFT);
    VM_PUT(&m->page[count], (uint32_t)page);
    set_count(r, m, count + 1);
    leave_magazines(t);
    return true;
}

/* Keep a range another process holds, with the one CAS by which a free of it wins. ENOENT: another
 * free did. EAGAIN: the slot is being drained. */
int vm__magazine_put_foreign(vm_region *r, vm_thread *t, uint64_t page, vm_word w)
{
    uint64_t nr_pages = vm__len(w);
    if (!enter_magazines(r, t))
        return -EAGAIN;
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint32_t count = make_room(r, t, m, nr_pages);
    bool is_ours = VM_CAS(&r->heads[page].word, w, t->cached | nr_pages << VM_WORD_LEN_SHIFT);
    if (is_ours) {
        VM_PUT(&m->page[count], (uint32_t)page);
        set_count(r, m, count + 1);
    }
    leave_magazines(t);
    return is_ours ? 0 : -ENOENT;
}

/* Put ranges, MOVING(t), as far as there is room without overflow. Returns how many. */
static uint32_t put_many(vm_region *r, vm_thread *t, uint64_t nr_pages, uint32_t nr, const uint64_t *pages)
{
    uint32_t put = 0;
    if (!nr || !enter_magazines(r, t))
        return 0;
    vm_magazine *m = &t->slot->magazine[nr_pages];
    uint32_t count = vm__magazine_count(VM_PEEK(&m->header));
    for (; put < nr && count < t->cap[nr_pages]; put++, count++) {
        VM_STORE(&r->heads[pages[put]].word, t->cached | nr_pages << VM_WORD_LEN_SHIFT);
        VM_PUT(&m->page[count], (uint32_t)pages[put]);
    }
    set_count(r, m, count);
    leave_magazines(t);
    return put;
}

/* Keep what was taken beyond the one to hand out: in the magazine as far as it goes, then in a pool. */
static void keep(vm_region *r, vm_thread *t, uint64_t nr_pages, uint32_t nr, const uint64_t *pages)
{
    uint32_t put = put_many(r, t, nr_pages, nr, pages);
    if (put < nr)
        vm__pool_give(r, t, nr_pages, nr - put, pages + put);
}

/* Hand out a range and put a few more of its size into the magazine. Called after a miss. Who misses
 * again and again, because others free what it takes, gets larger batches. */
int vm__magazine_refill(vm_region *r, vm_thread *t, uint64_t nr_pages, uint64_t align_pages, vm_range *out)
{
    uint64_t pages[REFILL_MAX];
    uint32_t room = t->cap[nr_pages] / 2 + 1, want = room < REFILL_MAX ? room : REFILL_MAX;
    uint32_t got = vm__pool_take(r, t, nr_pages, align_pages, want, pages);
    if (!got)
        return -ENOSPC;
    if (got == want)
        grow_cap(r, t, nr_pages);
    vm__hand_out(r, t, pages[0], nr_pages, false, out);
    keep(r, t, nr_pages, got - 1, pages + 1);
    return 0;
}

/* Hand out a range from space and stock up: who keeps asking for a size gets twice as many at a time,
 * up to STOCK_PAGES, for one turn at the space lock, and half as many after a failure. ENOSPC: not that
 * many; ask for one. */
int vm__magazine_stock(vm_region *r, vm_thread *t, uint64_t nr_pages, unsigned flags, vm_range *out)
{
    uint64_t pages[STOCK_PAGES];
    uint32_t want = 1u << t->stock[nr_pages];
    uint32_t got = want > 1 ? vm__space_take_many(r, t, nr_pages, want, flags, pages) : 0;
    if (want > 1 && !got)
        t->stock[nr_pages]--;
    else if (nr_pages << (t->stock[nr_pages] + 1) <= STOCK_PAGES)
        t->stock[nr_pages]++;
    if (!got)
        return -ENOSPC;
    vm__hand_out(r, t, pages[0], nr_pages, false, out);
    while (t->cap[nr_pages] < VM_MAGAZINE_CAP && t->cap[nr_pages] < got && grow_cap(r, t, nr_pages))
        ;
    keep(r, t, nr_pages, got - 1, pages + 1);
    return 0;
}

/* Everything back to the pools; `slot` is t's own. False: somebody drains it. */
bool vm__magazine_flush_all(vm_region *r, vm_thread *t, vm_slot *slot)
{
    if (!t->fast_pages)
        return true;
    if (!enter_magazines(r, t))
        return false;
    for (uint32_t n = 1; n <= VM_POOL_PAGES_MAX; n++)
        if (vm__magazine_count(VM_PEEK(&slot->magazine[n].header)))
            flush_oldest(r, t, n, VM_MAGAZINE_CAP);
    leave_magazines(t);
    return true;
}

/* False: stopped in the middle; never robbed. */
static bool out_of_operation(const vm_slot *slot, const vm_magazine *m)
{
    for (int i = 0; i < DRAIN_ROUNDS; i++) {
        if (!VM_LOAD(&slot->in_operation) && VM_LOAD(&m->header) != VM_MAGAZINE_TAKING)
            return true;
        if (i > DRAIN_ROUNDS / 2)
            usleep(50);
        else
            sched_yield();
    }
    return false;
}

/* Only the words change: the entries stay, stale, for the owner to skip; it may be adding to them. */
static void take_all(vm_region *r, vm_thread *t, const vm_magazine *m, uint64_t nr_pages, vm_word cached)
{
    uint32_t count = vm__magazine_count(VM_LOAD(&m->header));
    for (uint32_t k = 0; k < count; k++) {
        uint64_t page = VM_PEEK(&m->page[k]), len = nr_pages << VM_WORD_LEN_SHIFT;
        if (vm__is_within(r, page, nr_pages) && VM_CAS(&r->heads[page].word, cached | len, t->moving | len))
            vm__lazy_put(r, t, page, nr_pages);
    }
}

/* What the words say is CACHED by a slot whose owner takes nothing now, wherever it is. Returns the pages. */
static uint64_t take_by_words(vm_region *r, vm_thread *t, vm_word cached)
{
    uint64_t page = 0, pages = 0;
    if (vm__space_lock(r, t, 0) != 0)
        return 0;
    for (vm_word w; (w = vm__scan(r, page)); page += vm__len(w)) {
        vm_word len = w & VM_WORD_LEN_MASK;
        if (w == (cached | len) && VM_CAS(&r->heads[page].word, w, t->moving | len)) {
            vm__lazy_put(r, t, page, vm__len(w));
            pages += vm__len(w);
        }
    }
    vm__space_unlock(r, t);
    return pages;
}

/* Empty a live neighbour's magazines into the lazy list; `lost`: and count here what is CACHED by it but in
 * none of them. EAGAIN: it is in the middle of something. */
static int drain(vm_region *r, vm_thread *t, uint32_t index, uint64_t *lost)
{
    vm_slot *slot = &r->slots[index];
    uint64_t state = VM_LOAD(&slot->state);
    vm_token drainer = VM_LOAD(&slot->drain);
    if (!(state & 1))
        return 0;
    if (drainer && (!vm__owner_is_dead(r, drainer) || !VM_CAS(&slot->drain, drainer, 0)))
        return -EAGAIN;
    if (!VM_CAS(&slot->drain, 0, t->token))
        return -EAGAIN;
    vm_word cached = vm__word(VM_CACHED, VM_WORD_DIRTY, 0, index, (uint32_t)(state >> 32));
    syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0);
    int rc = VM_LOAD(&slot->state) == state ? 0 : -EAGAIN;
    for (uint64_t n = 1; n <= VM_POOL_PAGES_MAX && rc == 0; n++) {
        if (out_of_operation(slot, &slot->magazine[n]))
            take_all(r, t, &slot->magazine[n], n, cached);
        else
            rc = -EAGAIN;
    }
    if (rc == 0 && lost)
        *lost += take_by_words(r, t, cached);
    VM_CAS(&slot->drain, t->token, 0);
    return rc;
}

int vm__magazine_drain(vm_region *r, vm_thread *t, uint32_t index) { return drain(r, t, index, NULL); }

/* Every slot's magazines, our own included. Without membarrier only our own. */
void vm__drain_all(vm_region *r, vm_thread *t)
{
    vm__magazine_flush_all(r, t, t->slot);
    if (r->pools != VM_POOLS_MAGAZINE || !r->can_drain)
        return;
    for (uint32_t i = VM_PROCESSES; i < r->nr_threads; i++)
        if (i != t->index && vm__slot_was_used(r, i))
            vm__magazine_drain(r, t, i);
}

/* Take back what is CACHED by a live slot but in no magazine, as scribbling over one leaves it. Returns the
 * pages; a slot that is in the middle of something keeps its own. */
uint64_t vm__magazines_reclaim(vm_region *r, vm_thread *t)
{
    uint64_t lost = 0;
    if (r->pools != VM_POOLS_MAGAZINE)
        return 0;
    if (t->fast_pages && vm__magazine_flush_all(r, t, t->slot))
        lost += take_by_words(r, t, t->cached);
    for (uint32_t i = VM_PROCESSES; r->can_drain && i < r->nr_threads; i++)
        if (i != t->index && vm__slot_was_used(r, i))
            drain(r, t, i, &lost);
    return lost;
}
