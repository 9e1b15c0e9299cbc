/* SPDX-License-Identifier: MIT */
/*
 * AUDIT: does the region say the same as the board? Everybody rests, or is dead.
 *
 *   Of each claim the range is there, with its stamps, held by the claimant.
 *   Of each busy range there is a claim, a name, a lease; else it is lost. Of each of its holders, too.
 *   Of each lease there is a message; else it would never end.
 *
 * What the dead had may still be there (`may_be_dead`), until they are recovered.
 */
#include "soak.h"

typedef struct auditor {
    vm_region *r;
    bool may_be_dead;
    int32_t row_of[VM_PROCESSES];         /* the living, by process slot; -1: nobody */
    uint64_t (*claimed)[VM_PROCESSES / 64]; /* by page: which process slots say that they have it */
    uint8_t *is_explained;                /* by page: named, leased, or undecided */
} auditor;

static const row *living(const auditor *a, uint32_t process)
{
    return a->row_of[process] >= 0 ? &the_board->rows[a->row_of[process]] : NULL;
}

static bool is_dead(const auditor *a, uint32_t process) { return !living(a, process) && process != a->r->process; }

/* ---- claims ---- */

static bool has_bit(const auditor *a, uint64_t page, uint32_t process)
{
    return VM_ACQUIRE(vm__holder_word(a->r, page, process)) & vm__holder_bit(a->r, process);
}

static void check_claim(auditor *a, uint32_t i, const claim *c)
{
    const row *w = &the_board->rows[i];
    char found[160];
    if (c->page >= a->r->map.nr_pages) {
        violation("row %u claims page %" PRIu64, i, c->page);
        return;
    }
    vm_word word = VM_ACQUIRE(&a->r->map.heads[c->page].word);
    uint64_t id = VM_ACQUIRE(&a->r->map.heads[c->page].aux);
    bool is_there = vm__state(word) == VM_BUSY && vm__len(word) == c->nr_pages && id == c->id;
    bool is_his = word & VM_WORD_SHARED ? has_bit(a, c->page, w->process) : vm__owner(word) == w->process;
    if (!is_there || !is_his)
        violation("row %u claims pages %" PRIu64 " + %" PRIu64 ", id %" PRIx64 ", but the word is %" PRIx64
                  ", id %" PRIx64 "%s",
                  i, c->page, c->nr_pages, c->id, word, id, is_his ? "" : ", not his");
    else if (!stamps_are(a->r, c->page, c->nr_pages, c->id, found, sizeof found))
        violation("row %u claims pages %" PRIu64 " + %" PRIu64 ", id %" PRIx64 ", but %s", i, c->page, c->nr_pages,
                  c->id, found);
    a->claimed[c->page][w->process / 64] |= 1ull << w->process % 64;
}

static void check_row(auditor *a, uint32_t i)
{
    const row *w = &the_board->rows[i];
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < CELLS; k++) {
            const claim *c = &w->claims[lane][k];
            uint32_t kind = kind_of(c->mark);
            if (kind == HELD || kind == SHOWN || kind == OFFERED)
                check_claim(a, i, c);
            else if (kind == TAKEN && c->page < a->r->map.nr_pages)
                a->is_explained[c->page] = 1; /* by one who died at it */
        }
}

/* ---- leases and names ---- */

static bool has_message(uint64_t lease)
{
    for (int k = 0; k < MESSAGES; k++) {
        const message *m = &the_board->messages[k];
        if ((kind_of(m->mark) == FULL || kind_of(m->mark) == TAKEN) && m->lease == lease)
            return true;
    }
    return false;
}

static void check_lease(auditor *a, const vm_lease_entry *e)
{
    uint32_t process = e->owner & 0xff;
    const row *w = living(a, process);
    bool is_lively = w && !vm__process_is_retired(a->r, process, e->owner >> 16 & VM_INC_MASK);
    if (is_lively && !has_message(e->id) && !w->is_uncertain)
        violation("lease %" PRIx64 " of row %d, for page %" PRIu64 ", is in no message", e->id, a->row_of[process],
                  e->page);
    if (!is_lively && !a->may_be_dead && !e->deadline_ns)
        violation("lease %" PRIx64 " of a dead process, for page %" PRIu64 ", has no deadline", e->id, e->page);
    if (e->page < a->r->map.nr_pages && VM_ACQUIRE(&a->r->map.heads[e->page].aux) == e->range_id)
        a->is_explained[e->page] = 1;
}

static int explain_name(void *arg, const char *name, uint64_t page)
{
    const auditor *a = arg;
    (void)name;
    if (page < a->r->map.nr_pages)
        a->is_explained[page] = 1;
    return 0;
}

/* ---- words ---- */

static bool is_excused(const auditor *a, uint32_t process)
{
    const row *w = living(a, process);
    return w ? w->is_uncertain != 0 : a->may_be_dead && is_dead(a, process);
}

static void check_holders(const auditor *a, uint64_t page, bool *is_held)
{
    for (uint32_t p = 0; p < a->r->map.nr_processes; p++) {
        if (!has_bit(a, page, p))
            continue;
        *is_held = true;
        bool says_so = a->claimed[page][p / 64] >> p % 64 & 1;
        if (!says_so && !is_excused(a, p))
            violation("page %" PRIu64 ", id %" PRIx64 ", is held by process slot %u (row %d), which does not know",
                      page, VM_ACQUIRE(&a->r->map.heads[page].aux), p, a->row_of[p]);
    }
}

static void check_busy(const auditor *a, uint64_t page, vm_word w)
{
    bool is_held = false, is_shared = w & VM_WORD_SHARED;
    uint32_t owner = vm__owner(w) % VM_PROCESSES;
    if (is_shared)
        check_holders(a, page, &is_held);
    else
        is_held = is_excused(a, owner) || a->claimed[page][owner / 64] >> owner % 64 & 1;
    if (!is_held && !a->is_explained[page] && !(is_shared && a->may_be_dead))
        violation("lost: pages %" PRIu64 " + %" PRIu64 ", id %" PRIx64 ", word %" PRIx64 ", holders %" PRIx64
                  ", %" PRIu64 " leases",
                  page, vm__len(w), VM_ACQUIRE(&a->r->map.heads[page].aux), w,
                  VM_ACQUIRE(&a->r->map.sharings[page].holders), VM_ACQUIRE(&a->r->map.sharings[page].nr_leases));
}

static void check_words(const auditor *a)
{
    uint64_t page = 0;
    for (vm_word w; (w = vm__word_at(a->r, page)); page += vm__len(w))
        if (vm__state(w) == VM_BUSY)
            check_busy(a, page, w);
    if (page != a->r->map.nr_pages)
        violation("the words stop parsing at page %" PRIu64, page);
}

bool audit(vm_region *r, bool may_be_dead)
{
    auditor a = {.r = r, .may_be_dead = may_be_dead};
    a.claimed = calloc(r->map.nr_pages, sizeof *a.claimed);
    a.is_explained = calloc(r->map.nr_pages, 1);
    CHECK(a.claimed && a.is_explained);
    memset(a.row_of, -1, sizeof a.row_of);
    for (uint32_t i = 0; i < ROWS; i++)
        if (the_board->rows[i].state == ROW_LIVE)
            a.row_of[the_board->rows[i].process] = (int32_t)i;
    for (uint32_t i = 0; i < ROWS; i++)
        if (the_board->rows[i].state == ROW_LIVE)
            check_row(&a, i);
    for (uint32_t i = 0; i < r->map.h->lease_high; i++)
        if (r->map.leases[i].id)
            check_lease(&a, &r->map.leases[i]);
    vm_name_list(r, explain_name, &a);
    check_words(&a);
    free(a.claimed);
    free(a.is_explained);
    return !is_over();
}
