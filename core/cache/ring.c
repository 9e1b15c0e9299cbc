/* SPDX-License-Identifier: MIT */
/*
 * Ring: a thread's part in a recording, and its beginning and end in all slots.
 *
 * Who records (face/record.c) writes vm_header.recording and then the same into every slot that was ever used; a slot
 * that is claimed later takes it from the header. A thread sees it in its slot, in a line that its hits read anyway, at the
 * latest with its next operation that is no hit. It maps its ring then and closes its hit paths, so that a hit of others
 * costs nothing; what it records goes a way of its own (face/alloc.c, face/free.c).
 *
 * A ring lies behind the region's data and is a hole in the file until it is written to; the end of the recording makes it one
 * again. Death of who records: whoever recovers it ends the recording.
 */
#include "cache.h"

/* One that nobody inherits. NULL: it cannot be had. Through a number of our own that is proved to be the region's. */
vm_ring *vm__ring_map(const vm_region *r, uint32_t slot)
{
    vm_view view;
    int fd = r->map.flags & VM_FLAG_NO_RINGS ? -1 : vm__open_region(r);
    if (fd < 0)
        return NULL;
    int rc = vm__pages_view(fd, r->map.rings_offset + slot * sizeof(vm_ring), sizeof(vm_ring), r->readonly, &view);
    bool is_region = vm__is_ours(r, fd);
    vm__close_ours(r, fd);
    if (rc)
        return NULL;
    if (is_region && vm__pages_keep_from_children(&view) == 0)
        return view.at;
    vm__pages_unview(&view);
    return NULL;
}

void vm__ring_unmap(vm_ring *ring) { vm__private_free(ring, sizeof *ring); }

void vm__ring_close(vm_thread *t)
{
    if (t->ring)
        vm__ring_unmap(t->ring);
    if (t->recorded_key)
        t->hit.key = t->recorded_key;
    t->ring = NULL;
    t->is_exact = false;
    t->recorded_key = t->coarse_key = t->quiet = 0;
}

/* The slot says what the header does. Who records writes the header first, so one of us two comes last. */
uint32_t vm__recording_note(vm_region *r, uint32_t slot)
{
    uint32_t now;
    do {
        now = vm__recording_of(VM_ACQUIRE(&r->map.h->recording));
        (void)VM_SWAP(&r->map.slots[slot].recording, now);
    } while (vm__recording_of(__atomic_load_n(&r->map.h->recording, __ATOMIC_SEQ_CST)) != now);
    return now;
}

/* A thread that had this slot before us may have written for this recording: then ours come after its events. */
static void begin_ring(vm_thread *t, uint32_t recording)
{
    vm_ring *ring = t->ring;
    if (VM_ACQUIRE(&ring->recording) != recording) {
        VM_STORE(&ring->recording, 0);
        VM_STORE(&ring->next, 0);
        VM_STORE(&ring->recording, recording);
    }
    VM_STORE(&t->slot->followed, recording);
}

/* The slot says something else than before. What a neighbour scribbled there the header puts right. */
void vm__ring_follow(vm_thread *t)
{
    vm__ring_close(t);
    uint32_t recording = vm__recording_note(t->region, t->index);
    t->ring = recording ? vm__ring_map(t->region, t->index) : NULL;
    if (!t->ring && !t->common) { /* then hits go on as before */
        if (recording)
            VM_CAS(&t->slot->recording, recording, 0);
        return;
    }
    t->quiet = (uint64_t)recording << VM_DISTURBED_SHIFT;
    if (!t->ring)
        return; /* the slot is others', too: it stays as it is, and this thread does not try again */
    t->is_exact = recording & VM_RECORDING_EXACT;
    if (t->hit.key == vm__hit_key(t->attachment)) {
        t->recorded_key = t->hit.key;
        t->coarse_key = t->is_exact ? 0 : t->hit.key;
        t->hit.key = VM_HIT_KEY_NOBODY;
    }
    begin_ring(t, recording);
    vm__event_stamp(t);
    vm__event(t, VM_EVENT_ATTACH, vm__pid(), 0);
}

/* ---- all of them ---- */

/* Only what says that recording: who is late with it, since another one ends it too, switches no later one off. */
void vm__recording_withdraw(vm_region *r, uint64_t recording)
{
    uint32_t number = (uint32_t)recording | VM_RECORDING_ON;
    for (uint32_t i = 0; i < r->map.nr_threads; i++)
        if (vm__slot_was_used(r, i) && VM_RELAXED(&r->map.slots[i].recording) == number)
            VM_CAS(&r->map.slots[i].recording, number, 0);
}

void vm__recording_spread(vm_region *r, uint32_t recording)
{
    for (uint32_t i = 0; i < r->map.nr_threads; i++)
        if (vm__slot_was_used(r, i) && VM_RELAXED(&r->map.slots[i].recording) != recording)
            (void)VM_SWAP(&r->map.slots[i].recording, recording);
}

static void discard_ring(const vm_region *r, uint32_t slot)
{
    vm_ring *ring = vm__ring_map(r, slot);
    if (!ring)
        return;
    vm__pages_remove(ring, sizeof *ring);
    vm__ring_unmap(ring);
}

/* Who ends it owns it from then on: nobody else is at it, who might discard the rings of the next recording. If he dies in
 * it, whoever recovers him goes on: all of it can be done twice. Off in the header first: there everybody looks who is told
 * by his slot. A thread in the middle of an event may write it yet, and one that only frees to the end of its batch; these
 * pages stay until the next recording ends. */
void vm__recording_end(vm_region *r, uint64_t recording)
{
    uint32_t number = (uint32_t)recording | VM_RECORDING_ON;
    uint64_t here = (uint64_t)vm__lease_owner(r->process, r->process_inc) << VM_RECORDING_OWNER_SHIFT;
    uint64_t ended = here | (number & ~VM_RECORDING_ON);
    if (!VM_CAS(&r->map.h->recording, recording, ended))
        return; /* somebody else ends it, or has ended it */
    vm__recording_withdraw(r, recording);
    for (uint32_t i = 0; i < r->map.nr_threads; i++)
        if (vm__slot_was_used(r, i) && VM_ACQUIRE(&r->map.slots[i].followed) == number) {
            discard_ring(r, i);
            VM_CAS(&r->map.slots[i].followed, number, 0);
        }
    VM_CAS(&r->map.h->recording, ended, 0);
}

bool vm__recorder_is_dead(vm_region *r, uint64_t recording)
{
    uint32_t owner = (uint32_t)(recording >> VM_RECORDING_OWNER_SHIFT);
    uint32_t process = owner & 0xffff, incarnation = owner >> 16 & VM_INC_MASK;
    return process >= r->map.nr_processes || vm__incarnation_is_dead(r, process, incarnation);
}

/* If who records is dead, or is this process, which leaves. */
void vm__recording_end_of_dead(vm_region *r, bool ours_too)
{
    uint64_t recording = VM_ACQUIRE(&r->map.h->recording);
    uint32_t here = vm__lease_owner(r->process, r->process_inc);
    bool is_ours = recording >> VM_RECORDING_OWNER_SHIFT == here;
    if (recording && (is_ours ? ours_too : vm__recorder_is_dead(r, recording)))
        vm__recording_end(r, recording);
}
