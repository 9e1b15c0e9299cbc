/* SPDX-License-Identifier: MIT */
/*
 * Record: switch the events of a region on, and read them while they are written.
 *
 * One process at a time records; all attached ones write, each thread into the ring of its slot (cache/ring.c). Reading takes
 * no lock and writes nothing, and another process may watch what somebody records. A ring is overwritten, so what was copied
 * counts only if the writer had not come round to it by then: its count is looked at again afterwards. What a neighbour
 * scribbled may say anything; it leads nowhere outside the ring.
 */
#include "face.h"

typedef struct vm_cursor {
    vm_ring *ring; /* NULL: nothing was ever written for this recording */
    uint64_t next; /* to read */
} vm_cursor;

struct vm_recorder {
    vm_region *r; /* NULL: a child's, of who watches */
    uint64_t recording; /* as the header had it while it was on */
    bool only_watches;  /* somebody else's; in memory that is wiped in a child */
    vm_cursor cursor[]; /* by thread slot */
};

static size_t recorder_bytes(const vm_region *r) { return sizeof(vm_recorder) + r->map.nr_threads * sizeof(vm_cursor); }

static bool is_taken(vm_region *r, uint64_t recording)
{
    if (recording && vm__recorder_is_dead(r, recording)) {
        vm__recording_end(r, recording);
        recording = VM_ACQUIRE(&r->map.h->recording);
    }
    return recording != 0;
}

/* One who was killed a moment ago may have his lock yet. */
static bool is_free_to_record(vm_region *r)
{
    return !is_taken(r, VM_ACQUIRE(&r->map.h->recording))
           || (vm__await_gone(r) && !is_taken(r, VM_ACQUIRE(&r->map.h->recording)));
}

static int switch_on(vm_recorder *rec, bool exact)
{
    vm_region *r = rec->r;
    vm_header *h = r->map.h;
    if (!is_free_to_record(r))
        return -EBUSY;
    uint32_t number = (VM_ADD(&h->nr_recordings, 1) + 1) << VM_RECORDING_SHIFT;
    number |= VM_RECORDING_ON | (exact ? VM_RECORDING_EXACT : 0);
    rec->recording = number | (uint64_t)vm__lease_owner(r->process, r->process_inc) << VM_RECORDING_OWNER_SHIFT;
    if (!VM_CAS(&h->recording, 0, rec->recording))
        return -EBUSY;
    vm__recording_spread(r, number);
    return 0;
}

int vm_record_start(vm_region *r, bool exact, vm_recorder **out)
{
    if (r->readonly)
        return -EROFS;
    vm_thread *t = vm__thread(r);
    int rc = t ? vm__health(r) : vm__thread_error(r);
    if (rc)
        return rc;
    if (r->map.flags & VM_FLAG_NO_RINGS)
        return -EFBIG;
    vm_recorder *rec = calloc(1, recorder_bytes(r));
    if (!rec)
        return -ENOMEM;
    rec->r = r;
    rc = switch_on(rec, exact);
    if (rc) {
        free(rec);
        return rc;
    }
    vm__enter(t); /* this thread follows at once, the others with their next operation */
    vm__leave(t);
    *out = rec;
    return 0;
}

/* Not in a child, which is another process and has none of the mappings. */
static bool is_ours(const vm_recorder *rec)
{
    if (rec->only_watches || !rec->r)
        return rec->r != NULL;
    return rec->recording >> VM_RECORDING_OWNER_SHIFT == vm__lease_owner(rec->r->process, rec->r->process_inc);
}

/* A request takes a look at its slot in any case, a free that hits once in a batch: nothing else ends what a thread writes
 * that only frees. */
int vm__event_of_batch(vm_thread *t, vm_event_kind kind, uint64_t page, uint64_t nr_pages)
{
    if (VM_ACQUIRE(&t->slot->recording) == t->quiet >> VM_DISTURBED_SHIFT)
        return vm__event_of_hit(t, kind, page, nr_pages);
    vm__ring_close(t);
    return 0;
}

/* Nobody writes any more but who is in the middle of an event, or only frees: to the end of his batch. */
void vm_record_stop(vm_recorder *rec)
{
    vm_region *r = rec->r;
    if (!rec->only_watches && is_ours(rec)
        && VM_CAS(&r->map.h->recording, rec->recording, rec->recording & ~(uint64_t)VM_RECORDING_ON))
        vm__recording_withdraw(r, rec->recording);
}

static void unmap_rings(vm_recorder *rec)
{
    for (uint32_t i = 0; is_ours(rec) && i < rec->r->map.nr_threads; i++)
        if (rec->cursor[i].ring)
            vm__ring_unmap(rec->cursor[i].ring);
}

void vm_record_end(vm_recorder *rec)
{
    vm_region *r = rec->r;
    if (!r)
        return; /* a child's: nothing of it is there */
    unmap_rings(rec);
    if (rec->only_watches) {
        vm__private_free(rec, recorder_bytes(r));
        return;
    }
    vm_record_stop(rec);
    uint64_t ended = rec->recording & ~(uint64_t)VM_RECORDING_ON;
    if (is_ours(rec) && VM_ACQUIRE(&r->map.h->recording) == ended)
        vm__recording_end(r, ended);
    free(rec);
}

void vm_record_clock(uint64_t *ns, uint64_t *ticks)
{
    *ns = vm__now_ns();
    *ticks = vm__ticks();
}

uint32_t vm_record_slots(const vm_recorder *rec) { return rec->r ? rec->r->map.nr_threads : 0; }

uint32_t vm_record_pid(const vm_recorder *rec, uint32_t slot)
{
    if (slot >= vm_record_slots(rec) || !is_ours(rec))
        return 0;
    uint64_t state = VM_ACQUIRE(&rec->r->map.slots[slot].state);
    return state & 1 ? VM_RELAXED(&rec->r->map.processes[vm__slot_process(rec->r, state)].pid) : 0;
}

/* A look at the ring of who never wrote would give it a page. */
static bool has_ring(vm_recorder *rec, uint32_t slot)
{
    const vm_region *r = rec->r;
    vm_cursor *c = &rec->cursor[slot];
    if (!c->ring && vm__slot_was_used(r, slot) && VM_ACQUIRE(&r->map.slots[slot].followed) == (uint32_t)rec->recording)
        c->ring = vm__ring_map(r, slot);
    return c->ring && VM_ACQUIRE(&c->ring->recording) == (uint32_t)rec->recording;
}

/* Where to begin: not so far back that it is overwritten. A count that goes back, or jumps, is a scribble. */
static uint64_t catch_up(vm_cursor *c, uint64_t next, uint64_t *lost)
{
    uint64_t behind = next - c->next;
    if (behind > VM_EVENT_RING) {
        bool is_count = behind < 1ull << 48;
        *lost += is_count ? behind - VM_EVENT_RING : 1;
        c->next = next < VM_EVENT_RING ? 0 : next - VM_EVENT_RING;
        c->next = is_count ? c->next : next;
    }
    return next - c->next;
}

uint32_t vm_record_read(vm_recorder *rec, uint32_t slot, uint32_t room, uint64_t *out, uint64_t *lost)
{
    if (slot >= vm_record_slots(rec) || !is_ours(rec) || !has_ring(rec, slot))
        return 0;
    vm_cursor *c = &rec->cursor[slot];
    const vm_ring *ring = c->ring;
    uint64_t nr = catch_up(c, VM_ACQUIRE(&ring->next), lost), from = c->next;
    nr = nr < room ? nr : room;
    for (uint64_t i = 0; i < nr; i++) {
        const vm_event *e = &ring->event[(from + i) % VM_EVENT_RING];
        out[2 * i] = VM_ACQUIRE(&e->what);
        out[2 * i + 1] = VM_ACQUIRE(&e->when);
    }
    /* The writer may be at the event `now`, in the place of the one a ring before. */
    uint64_t now = VM_ACQUIRE(&ring->next), first = now < VM_EVENT_RING ? 0 : now - VM_EVENT_RING + 1;
    uint64_t gone = first <= from ? 0 : first - from < nr ? first - from : nr;
    memmove(out, out + 2 * gone, (nr - gone) * 2 * sizeof *out);
    *lost += gone;
    c->next = from + nr;
    return (uint32_t)(nr - gone);
}

/* ---- who watches ---- */

bool vm_record_is_on(const vm_recorder *rec)
{
    return is_ours(rec) && VM_ACQUIRE(&rec->r->map.h->recording) == rec->recording;
}

int vm_record_watch(vm_region *r, vm_recorder **out)
{
    uint64_t recording = VM_ACQUIRE(&r->map.h->recording);
    if (!vm__recording_of(recording))
        return -ENODATA;
    vm_recorder *rec = vm__private_pages(recorder_bytes(r), true);
    if (!rec)
        return -ENOMEM;
    rec->r = r;
    rec->recording = recording;
    rec->only_watches = true;
    for (uint32_t i = 0; i < r->map.nr_threads; i++)
        if (has_ring(rec, i))
            rec->cursor[i].next = VM_ACQUIRE(&rec->cursor[i].ring->next);
    *out = rec;
    return 0;
}
