/* SPDX-License-Identifier: MIT */
/*
 * Channel: where the bytes of a message are, and when nobody can load it any more.
 *
 * Who sends a message notes in its leases the pipe or socket, and when it is done with writing; who reads notes that it has
 * the bytes. Both are stores, no system calls. Later, when a message is old enough for somebody to wonder, a tick looks
 * where its bytes are (base/pipe.c):
 *
 *     on their way     its sender is at it, or died                        in doubt when nobody can read the channel
 *     in the channel   unread bytes in it                                  in doubt when nobody can read the channel
 *     out of it        the channel was empty once, so they were read       in doubt
 *     received         a process has them                                  over when that process died, or says that
 *                                                                          loading them failed
 *     in several       the same bytes were written to more than one        never by itself
 *
 * A message in doubt may be between a reader's read() and its note, or its channel's descriptors may be on their way to another
 * process. It ends when it was in doubt for VM_CHANNEL_GRACE_MS, unless a process has the channel that reads without
 * a note. Doubts are private: another process that ticks has its own.
 */
#include "share.h"

#include <stdlib.h>

#define AGE_NS (VM_CHANNEL_AGE_MS * 1000000ull)
#define GRACE_NS (VM_CHANNEL_GRACE_MS * 1000000ull)
#define PAUSE_SHARE 20 /* looks take at most one such part of a CPU */

typedef struct vm_doubt {
    uint64_t id, channel, since_ns;
    bool was_empty; /* not only unreachable: for good */
} vm_doubt;

struct vm_doubts {
    uint32_t nr_ticks;
    uint64_t next_ns; /* no look before */
    size_t nr;
    vm_doubt *doubt; /* sorted by id */
};

typedef struct vm_suspect {
    uint64_t id, channel;
    uint32_t owner;
    bool is_over;
} vm_suspect;

struct vm_lost {
    size_t nr;
    vm_suspect lease[];
};

/* ---- who is looked at ---- */

static bool is_of_the_dead(vm_region *r, uint32_t owner)
{
    return vm__incarnation_is_dead(r, owner & 0xffff, owner >> 16 & VM_INC_MASK);
}

/* A hint: whoever ends one looks again under the lock. Leases of one process mostly stand together: the system is asked
 * once for them. */
static size_t collect(vm_region *r, vm_suspect *suspect, size_t room)
{
    size_t nr = 0;
    uint64_t now = vm__now_ns();
    uint32_t asked = 0;
    bool is_asked = false, is_dead = false;
    for (uint32_t i = 0; i < vm__leases_used(r) && nr < room; i++) {
        const vm_lease_entry *e = &r->map.leases[i];
        uint64_t id = VM_ACQUIRE(&e->id), channel = VM_ACQUIRE(&e->channel);
        uint32_t owner = VM_ACQUIRE(&e->owner);
        if (!id || !channel || channel & VM_CHANNEL_SEVERAL || now - VM_RELAXED(&e->made_ns) < AGE_NS)
            continue;
        bool is_received = channel & VM_CHANNEL_RECEIVED;
        if (is_received && (!is_asked || owner != asked)) {
            is_dead = is_of_the_dead(r, owner);
            asked = owner;
            is_asked = true;
        }
        if (!is_received || is_dead)
            suspect[nr++] = (vm_suspect){id, channel, owner, is_received};
    }
    return nr;
}

static vm_pipe pipe_of(uint64_t channel)
{
    return (vm_pipe){.inode = channel & VM_CHANNEL_INODE, .is_socket = channel & VM_CHANNEL_SOCKET};
}

/* Each of them once. */
static size_t list_pipes(const vm_suspect *suspect, size_t nr, vm_pipe *pipes)
{
    size_t nr_pipes = 0, nr_kept = 0;
    for (size_t i = 0; i < nr; i++)
        if (!suspect[i].is_over)
            pipes[nr_pipes++] = pipe_of(suspect[i].channel);
    qsort(pipes, nr_pipes, sizeof *pipes, vm__compare_pipes);
    for (size_t i = 0; i < nr_pipes; i++)
        if (!nr_kept || vm__compare_pipes(&pipes[nr_kept - 1], &pipes[i]) != 0)
            pipes[nr_kept++] = pipes[i];
    return nr_kept;
}

/* ---- what is in doubt ---- */

static int by_id(const void *a, const void *b)
{
    const vm_doubt *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static bool may_be_lost(vm_region *r, const vm_suspect *s, const vm_pipe *p, bool was_empty)
{
    bool is_sending = s->channel & VM_CHANNEL_SENDING && !is_of_the_dead(r, s->owner);
    return !p->is_open || was_empty || (!is_sending && !p->is_unread);
}

/* Of one suspect: the doubt to remember, if any; its end is decided here. */
static bool judge(vm_region *r, vm_suspect *s, const vm_pipe *p, vm_doubt *out)
{
    vm_doubts *d = r->doubts;
    const vm_doubt key = {.id = s->id};
    const vm_doubt *before = d->nr ? bsearch(&key, d->doubt, d->nr, sizeof key, by_id) : NULL;
    if (before && before->channel != s->channel)
        before = NULL; /* it was passed on */
    if (!may_be_lost(r, s, p, before && before->was_empty))
        return false;
    uint64_t now = vm__now_ns();
    *out = before ? *before : (vm_doubt){s->id, s->channel, now, false};
    out->was_empty = out->was_empty || (p->is_open && !p->is_unread);
    s->is_over = now - out->since_ns >= GRACE_NS && !p->is_strange;
    return true;
}

/* Returns how many are over; they come first. */
static size_t judge_all(vm_region *r, vm_suspect *suspect, size_t nr, const vm_pipe *pipes, size_t nr_pipes)
{
    vm_doubt *doubt = nr_pipes ? malloc((nr + 1) * sizeof *doubt) : NULL;
    size_t nr_doubts = 0, nr_over = 0;
    for (size_t i = 0; i < nr; i++) {
        vm_suspect *s = &suspect[i];
        vm_pipe key = pipe_of(s->channel);
        const vm_pipe *p = s->is_over || !doubt ? NULL : bsearch(&key, pipes, nr_pipes, sizeof key, vm__compare_pipes);
        if (p && judge(r, s, p, &doubt[nr_doubts]))
            nr_doubts++;
        if (s->is_over)
            suspect[nr_over++] = *s;
    }
    if (!doubt)
        return nr_over; /* no news: doubts stay as they are */
    qsort(doubt, nr_doubts, sizeof *doubt, by_id);
    free(r->doubts->doubt);
    r->doubts->doubt = doubt;
    r->doubts->nr = nr_doubts;
    return nr_over;
}

/* ---- the look ---- */

static bool is_due(vm_region *r)
{
    if (!r->doubts)
        r->doubts = calloc(1, sizeof *r->doubts);
    return r->doubts && VM_RELAXED(&r->map.h->nr_leases) && r->doubts->nr_ticks++ % VM_CHANNEL_TICKS == 0
           && vm__now_ns() >= r->doubts->next_ns;
}

static size_t look(vm_thread *t, vm_suspect *suspect, size_t nr, bool (*go_on)(vm_thread *))
{
    vm_region *r = t->region;
    vm_pipe *pipes = malloc((nr + 1) * sizeof *pipes);
    size_t nr_pipes = pipes ? list_pipes(suspect, nr, pipes) : 0;
    if (nr_pipes && vm__look_at_pipes(t, pipes, nr_pipes, go_on) != 0)
        nr_pipes = 0; /* no news of the others */
    size_t nr_over = judge_all(r, suspect, nr, pipes, nr_pipes);
    free(pipes);
    return nr_over;
}

vm_lost *vm__look_at_channels(vm_thread *t, bool (*go_on)(vm_thread *))
{
    vm_region *r = t->region;
    VM_ASSERT_RANK_HELD(r, VM_RANK_TICK);
    if (!is_due(r))
        return NULL;
    size_t room = VM_RELAXED(&r->map.h->nr_leases);
    room = room < VM_LEASES_MAX ? room : VM_LEASES_MAX;
    vm_lost *lost = malloc(sizeof *lost + room * sizeof lost->lease[0]);
    if (!lost)
        return NULL;
    uint64_t began = vm__cpu_ns(); /* by the clock it takes long where others are busy; that is no reason to wait */
    size_t nr = collect(r, lost->lease, room);
    lost->nr = nr ? look(t, lost->lease, nr, go_on) : 0;
    r->doubts->next_ns = vm__now_ns() + (vm__cpu_ns() - began) * PAUSE_SHARE;
    if (lost->nr)
        return lost;
    free(lost);
    return NULL;
}

void vm__end_lost(vm_thread *t, vm_lost *lost)
{
    if (vm__lease_lock(t, VM_LOCK_BRIEF) == 0) { /* else the next look finds them again */
        for (size_t i = 0; i < lost->nr; i++)
            vm__end_lease_of(t, lost->lease[i].id, lost->lease[i].channel, lost->lease[i].owner);
        vm__unlock(t, &t->region->map.h->lease_lock);
    }
    free(lost);
}

void vm__doubts_free(vm_region *r)
{
    if (r->doubts)
        free(r->doubts->doubt);
    free(r->doubts);
    r->doubts = NULL;
}
