/* SPDX-License-Identifier: MIT */
/*
 * Threads: a slot per thread that allocates.
 *
 * A thread finds its slot through one thread-local pointer, whose attachment must be the region's. It points to memory
 * the kernel wipes in a child, so that not even a raw clone writes through its parent's slot. Slots
 * below vm__first_thread() belong to the process of that number and serve its threads that got no slot of their own.
 */
#include "cache.h"

static vm_thread nobody = {.attachment = UINT64_MAX, .here_key = VM_HIT_KEY_NOBODY, .hit.key = VM_HIT_KEY_NOBODY};
_Thread_local vm_thread *vm__current __attribute__((tls_model("initial-exec"))) = &nobody;
/* The same for programs that hit by themselves; a name of its own, so that what the core itself uses is its own. */
extern VM_API _Thread_local vm_thread *vm_inline_thread
    __attribute__((tls_model("initial-exec"), alias("vm__current")));
static _Thread_local vm_thread *my_threads; /* this thread in each of its regions */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_key;

static void fill_thread(vm_thread *t, uint32_t index, uint64_t state)
{
    vm_region *r = t->region;
    vm__ring_close(t);
    t->region = r;
    t->index = index;
    t->slot = &r->map.slots[index];
    uint32_t incarnation = (uint32_t)(state >> 32) & VM_INC_MASK;
    t->token = vm__token(index, incarnation);
    t->busy = vm__word(VM_BUSY, VM_WORD_DIRTY, 0, r->process, r->process_inc);
    t->cached = vm__word(VM_CACHED, VM_WORD_DIRTY, 0, index, incarnation);
    t->moving = vm__word(VM_MOVING, VM_WORD_DIRTY, 0, index, incarnation);
    t->purging = vm__word(VM_PURGING, VM_WORD_DIRTY, 0, index, incarnation);
    t->common = index < vm__first_thread(r);
    t->flow_node = NULL;
    t->flow_page = VM_NONE;
    t->here_key = VM_HIT_KEY_NOBODY;
    t->fast_pages = !t->common && r->design->has_magazines ? VM_POOL_PAGES_MAX : 0;
    t->hit = (vm_hit_thread){VM_HIT_KEY_NOBODY, t->slot->magazine, t->busy, t->cached, t->busy ^ t->cached, {0}};
    vm__magazine_init(t);
    vm__recording_note(r, index);
}

/* Before a slot's first use, so that whoever looks for used ones finds it. */
static void raise_high_slot(vm_region *r, uint32_t i)
{
    uint64_t seen;
    while ((seen = VM_ACQUIRE(&r->map.h->high_slot)) <= i && !VM_CAS(&r->map.h->high_slot, seen, (uint64_t)i + 1))
        ;
}

/* What the last owner of a slot left in it: its ids must not go on, its marks stopped a drainer. What its ids counted is
 * added up first; in_operation says to who looks that it changes. */
static void forget_magazines(vm_slot *s)
{
    VM_STORE(&s->in_operation, 1);
    for (uint32_t n = vm__next_opened(s, 1); n <= VM_POOL_PAGES_MAX; n = vm__next_opened(s, n + 1)) {
        uint64_t header = VM_RELAXED(&s->magazine[n].header);
        uint64_t hits = vm__ids_given(header >> 8);
        if (hits)
            VM_STORE(&s->nr_magazine_hit, VM_RELAXED(&s->nr_magazine_hit) + hits);
        if (header)
            VM_STORE(&s->magazine[n].header, 0);
    }
    for (uint32_t i = 0; i < VM_POOL_PAGES_MAX / 64; i++)
        if (VM_RELAXED(&s->opened[i]))
            VM_STORE(&s->opened[i], 0);
    VM_PUT(&s->run, 0);
    VM_STORE(&s->in_operation, 0);
}

static bool claim_slot(vm_thread *t, uint32_t i)
{
    vm_region *r = t->region;
    vm_slot *s = &r->map.slots[i];
    uint64_t state = VM_ACQUIRE(&s->state), mine = (state >> 32) << 32 | (uint64_t)r->process << 1 | 1;
    vm_token drainer = VM_ACQUIRE(&s->drain);
    if (drainer && !vm__owner_is_dead(r, drainer))
        return false; /* a neighbour still empties what the last owner left */
    if (state & 1 || !VM_CAS(&s->state, state, mine))
        return false;
    forget_magazines(s);
    if (drainer)
        VM_CAS(&s->drain, drainer, 0);
    fill_thread(t, i, mine);
    return true;
}

/* From where the first free one should be, round to it again: each that is looked at costs this process a page. */
static bool claim_thread(vm_thread *t)
{
    vm_region *r = t->region;
    uint64_t first = vm__first_thread(r), nr = r->map.nr_threads - first, high = VM_ACQUIRE(&r->map.h->high_slot);
    uint64_t hint = VM_RELAXED(&r->map.h->free_slot), at = hint < high ? hint : high;
    at = at > first ? at - first : 0;
    for (uint64_t k = 0; k < nr; k++) {
        uint32_t i = (uint32_t)(first + (at + k) % nr);
        raise_high_slot(r, i);
        if (claim_slot(t, i)) {
            VM_PUT(&r->map.h->free_slot, (uint64_t)i + 1);
            return true;
        }
    }
    return false;
}

/* Where t has a slot of its own, the hit paths are open to it. */
static void open_hits(vm_thread *t)
{
    uint64_t key = vm__hit_key(t->attachment);
    t->hit.key = t->fast_pages ? key : VM_HIT_KEY_NOBODY;
    t->here_key = !t->common && t->region->design->kept->take_here ? key : VM_HIT_KEY_NOBODY;
}

/* A thread that found every slot taken has looked at all of them. One may be free by now: now and then look at a few. */
static void ask_again(vm_thread *t)
{
    uint32_t first = vm__first_thread(t->region), nr = t->region->map.nr_threads - first;
    if (t->may_not_ask || ++t->nr_without_slot % VM_THREAD_ASK_OPERATIONS)
        return;
    for (uint32_t i = 0; i < VM_THREAD_ASK_SLOTS && i < nr; i++)
        if (claim_slot(t, first + t->ask_at++ % nr)) {
            open_hits(t);
            return;
        }
}

static void leave_region(vm_thread *t)
{
    vm_region *r = t->region;
    uint64_t state = VM_ACQUIRE(&t->slot->state);
    if (t->common || !(state & 1) || (state >> 32 & VM_INC_MASK) != vm__token_inc(t->token))
        return; /* none of its own, or retired: another thread of ours is detaching the region */
    bool is_empty = vm__magazine_flush_all(t);
    vm__ring_look(t);
    vm__event(t, VM_EVENT_DETACH, vm__pid(), 0);
    vm__ring_close(t);
    vm__free_slot(r, t->index, state);
    if (!is_empty) /* a drainer was at it; what it leaves is found by the words */
        VM_PUT(&r->map.h->purge_needs_scan, 1);
}

/* Give this thread's slot back and go on in the process's: that one ends with the process slot, so a
 * detach that dies right after freeing the process slot leaves no thread slot without a process. */
void vm__give_up_slot(vm_thread *t)
{
    vm_region *r = t->region;
    leave_region(t);
    t->may_not_ask = true;
    fill_thread(t, r->process, VM_ACQUIRE(&r->map.slots[r->process].state));
}

static void thread_exits(void *unused)
{
    (void)unused;
    vm__current = &nobody;
    vm__registry_lock();
    while (my_threads) {
        vm_thread *t = my_threads;
        my_threads = t->next;
        if (vm__is_registered(t->region, t->attachment))
            leave_region(t);
        vm__ring_close(t);
        vm__context_drop(t);
    }
    vm__registry_unlock();
}
static void make_exit_key(void) { pthread_key_create(&exit_key, thread_exits); }

/* Drop what this thread knew of regions the process has detached since. */
static void forget_detached(void)
{
    vm__registry_lock();
    for (vm_thread **at = &my_threads; *at;) {
        vm_thread *t = *at;
        if (vm__is_registered(t->region, t->attachment)) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        vm__ring_close(t);
        vm__context_drop(t);
    }
    vm__registry_unlock();
}

static void find_slot(vm_thread *t)
{
    if (!claim_thread(t))
        fill_thread(t, t->region->process, VM_ACQUIRE(&t->region->map.slots[t->region->process].state));
}

void vm__thread_borrow(vm_region *r, vm_thread *t)
{
    *t = (vm_thread){.region = r, .attachment = r->attachment, .may_not_ask = true};
    find_slot(t);
    if (!t->common)
        VM_OR(&t->slot->state, VM_SLOT_HELPER);
}

void vm__thread_return(vm_thread *t)
{
    leave_region(t);
    vm__ring_close(t);
}

static vm_thread *join_region(vm_region *r)
{
    vm_thread *t = vm__context_new();
    if (!t)
        return NULL;
    pthread_once(&once, make_exit_key);
    t->region = r;
    find_slot(t);
    t->attachment = r->attachment;
    open_hits(t);
    t->next = my_threads;
    my_threads = t;
    pthread_setspecific(exit_key, t);
    return vm__current = t;
}

/* This thread in a region that it used before, from now on its last one. */
static vm_thread *go_over(const vm_region *r)
{
    for (vm_thread *t = my_threads; t; t = t->next)
        if (t->attachment == r->attachment)
            return vm__current = t;
    return NULL;
}

/* `may_forget`: the registry is not ours yet. */
vm_thread *vm__thread_find(vm_region *r, bool may_forget)
{
    if (*r->wiped == 0 || r->process >= VM_PROCESSES)
        return NULL;
    vm_thread *t = go_over(r);
    if (t)
        return t;
    vm__current = &nobody;
    if (my_threads && may_forget)
        forget_detached();
    return join_region(r);
}

/* So that hits are hits for a thread that goes from region to region and back. */
bool vm__thread_switch(vm_region *r)
{
    return vm__current->region != r && *r->wiped != 0 && r->process < VM_PROCESSES && go_over(r);
}

vm_thread *vm__thread_slow(vm_region *r) { return vm__thread_find(r, true); }

int vm__thread_error(vm_region *r)
{
    if (r->readonly)
        return -EROFS;
    return *r->wiped == 0 ? -EOWNERDEAD : r->process >= VM_PROCESSES ? -ENOLCK : -ENOMEM;
}

/* Threads without a slot of their own take turns with the process's. */
void vm__enter(vm_thread *t)
{
    if (vm_unlikely(t->common))
        ask_again(t);
    if (vm_unlikely(t->common))
        vm__mutex_lock(t->region, &t->region->common_mutex, VM_RANK_COMMON);
    vm__ring_look(t);
}
void vm__leave(vm_thread *t)
{
    if (vm_unlikely(t->common))
        vm__mutex_unlock(t->region, &t->region->common_mutex, VM_RANK_COMMON);
}

/* In a child: the threads were the parent's, and giving their slots back is not ours to do. */
void vm__forget_threads(void)
{
    my_threads = NULL;
    vm__current = &nobody;
    vm__contexts_forget();
}
