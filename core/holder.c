/* SPDX-License-Identifier: MIT */
/*
 * Holders: which processes reference a shared range.
 *
 * One bit per process slot; set and clear are idempotent, so a dead holder's reference is cleared by
 * a scan, without a log. How often a process holds a range is its own affair (`references`). Freeing
 * is two words, the range's and its holders', hence a handshake:
 *   last drop  clear my bit, move the word BUSY -> FREEING, read the holders again; if any, undo and
 *              look once more, because a drop in between left it to us;
 *   adopt      set my bit, then look whether the range is still BUSY under that id; else clear it.
 * Both sides write before they read, with full fences, so at least one sees the other.
 */
#include "internal.h"

#include <sched.h>
#include <sys/mman.h>

static uint64_t *holder_word(vm_region *r, uint64_t page, uint32_t process)
{
    return &r->sharings[page].holders[process / 64];
}
static uint64_t holder_bit(uint32_t process) { return 1ull << process % 64; }

static bool is_held(vm_region *r, uint64_t page)
{
    vm_sharing *s = &r->sharings[page];
    for (uint32_t i = 0; i < VM_PROCESSES / 64; i++)
        if (__atomic_load_n(&s->holders[i], __ATOMIC_SEQ_CST))
            return true;
    return __atomic_load_n(&s->nr_leases, __ATOMIC_SEQ_CST) != 0;
}

/* If nobody references the shared range any more, make its word `taken`. */
bool vm__take_if_unheld(vm_region *r, vm_thread *t, uint64_t page, vm_word taken)
{
    uint64_t freeing_flags = vm__word(VM_FREEING, VM_WORD_SHARED, 0, r->process, r->process_inc);
    (void)t;
    while (!is_held(r, page)) {
        vm_word w = VM_LOAD(&r->heads[page].word);
        if (vm__state(w) != VM_BUSY || !(w & VM_WORD_SHARED))
            return false; /* another one is at it */
        vm_word freeing = freeing_flags | (w & (VM_WORD_LEN_MASK | VM_WORD_DIRTY));
        if (!VM_CAS(&r->heads[page].word, w, freeing))
            continue;
        if (!is_held(r, page))
            return VM_CAS(&r->heads[page].word, freeing, taken | (w & VM_WORD_LEN_MASK));
        VM_CAS(&r->heads[page].word, freeing, w);
    }
    return false;
}

/* Per-page counts of this process; wiped in a forked child, which starts with none. [holder_mutex] */
static int need_references(vm_region *r)
{
    if (r->references)
        return 0;
    size_t bytes = r->nr_pages * sizeof *r->references;
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return -ENOMEM;
    madvise(p, bytes, MADV_WIPEONFORK);
    r->references = p;
    return 0;
}

/* This process is the range's only holder. */
static void hold_alone(vm_region *r, uint64_t page)
{
    for (uint32_t i = 0; i < VM_PROCESSES / 64; i++)
        VM_PUT(&r->sharings[page].holders[i], i == r->process / 64 ? holder_bit(r->process) : 0);
    VM_PUT(&r->sharings[page].nr_leases, 0);
}

static int share(vm_region *r, vm_thread *t, uint64_t page, uint64_t id)
{
    vm_word *word = &r->heads[page].word, w = VM_LOAD(word);
    if (vm__state(w) != VM_BUSY || vm__len(w) == 0)
        return -ENOENT;
    if (VM_LOAD(&r->heads[page].aux) != id)
        return -ESTALE;
    if (w & VM_WORD_SHARED)
        return r->references && r->references[page] ? 0 : -ENOENT;
    if (((w ^ t->busy) & ~(VM_WORD_LEN_MASK | VM_WORD_DIRTY)) != 0)
        return -ENOENT; /* another process's, and it did not share it */
    int rc = need_references(r);
    if (rc)
        return rc;
    /* Our bit before the flag, or a recovery would find the range unheld. The others' twice: what a stale
     * adopter who died left here long ago, and what one left while the range was not marked yet. */
    hold_alone(r, page);
    if (!VM_CAS(word, w, w | VM_WORD_SHARED))
        return -ENOENT;
    hold_alone(r, page);
    r->references[page] = 1;
    return 0;
}

int vm__share(vm_region *r, vm_thread *t, uint64_t page, uint64_t id)
{
    pthread_mutex_lock(&r->holder_mutex);
    int rc = page < r->nr_pages ? share(r, t, page, id) : -ENOENT;
    pthread_mutex_unlock(&r->holder_mutex);
    return rc;
}

int vm_share(vm_region *r, uint64_t page, uint64_t id)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    vm__enter(t);
    int rc = vm__share(r, t, page, id);
    vm__leave(t);
    return rc;
}

/* The word once nobody is in the middle of freeing it; a dead freer is recovered. */
static int settled_word(vm_region *r, vm_thread *t, uint64_t page, vm_word *out)
{
    uint64_t started = vm__now_ns();
    for (;;) {
        *out = __atomic_load_n(&r->heads[page].word, __ATOMIC_SEQ_CST);
        if (vm__state(*out) != VM_FREEING)
            return 0;
        if (vm__incarnation_is_dead(r, vm__owner(*out), vm__inc(*out)))
            VM_CAS(&r->heads[page].word, *out, (*out & ~VM_WORD_STATE_MASK) | VM_BUSY);
        int rc = vm__wait_slice(r, started, t->token);
        if (rc)
            return rc;
        sched_yield();
    }
}

/* Clear our bit. True: we were the last of a range that may be another one by now; it is MOVING(t). */
static bool clear_bit(vm_region *r, vm_thread *t, uint64_t page)
{
    VM_AND(holder_word(r, page, r->process), ~holder_bit(r->process));
    return vm__take_if_unheld(r, t, page, t->moving);
}

static int adopt(vm_region *r, vm_thread *t, uint64_t page, uint64_t id, vm_range *out, bool *is_last)
{
    vm_word w;
    int rc = need_references(r);
    if (rc)
        return rc;
    if (!r->references[page])
        VM_OR(holder_word(r, page, r->process), holder_bit(r->process));
    rc = settled_word(r, t, page, &w);
    uint64_t len = vm__len(w);
    bool is_it = rc == 0 && vm__state(w) == VM_BUSY && w & VM_WORD_SHARED && len && len <= r->nr_pages - page
                 && VM_LOAD(&r->heads[page].aux) == id;
    if (!is_it) {
        /* whoever freed it meanwhile may have seen our bit and left the rest to us */
        *is_last = !r->references[page] && clear_bit(r, t, page);
        return rc ? rc : -ESTALE;
    }
    r->references[page]++;
    *out = (vm_range){page, len, id, false};
    return 0;
}

int vm__adopt(vm_region *r, vm_thread *t, uint64_t page, uint64_t id, vm_range *out)
{
    if (page >= r->nr_pages || !(VM_LOAD(&r->heads[page].word) & VM_WORD_SHARED))
        return -ESTALE; /* do not touch the side table of what was never shared */
    bool is_last = false;
    pthread_mutex_lock(&r->holder_mutex);
    int rc = adopt(r, t, page, id, out, &is_last);
    pthread_mutex_unlock(&r->holder_mutex);
    if (is_last)
        vm__release(r, t, page, vm__len(VM_LOAD(&r->heads[page].word)));
    return rc;
}

/* Reference a range another process shared; pair each with a vm_free(). */
int vm_adopt(vm_region *r, uint64_t page, uint64_t id, vm_range *out)
{
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    vm__enter(t);
    int rc = vm__adopt(r, t, page, id, out);
    vm__leave(t);
    return rc;
}

int vm__drop_shared(vm_region *r, vm_thread *t, uint64_t page, uint64_t id)
{
    int rc = -ENOENT;
    bool is_last = false;
    pthread_mutex_lock(&r->holder_mutex);
    if (r->references && r->references[page] && VM_LOAD(&r->heads[page].aux) == id) {
        rc = 0;
        is_last = --r->references[page] == 0 && clear_bit(r, t, page);
    }
    pthread_mutex_unlock(&r->holder_mutex);
    if (is_last)
        vm__release(r, t, page, vm__len(VM_LOAD(&r->heads[page].word)));
    return rc;
}
