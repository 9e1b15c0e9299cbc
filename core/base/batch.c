/* SPDX-License-Identifier: MIT */
/*
 * Batch: what a purge collects, their words PURGING(t). Private memory: what a dead purger held is in the words.
 */
#include "base.h"

#define BATCH_START 1024

/* Collect a range whose word is PURGING(t). Without memory to remember it, it is lazy again, in no
 * list: the next purge's scan finds it. */
void vm__batch_add_of(vm_thread *t, vm_batch *b, uint64_t page, uint64_t nr_pages, uint32_t node)
{
    vm_region *r = t->region;
    VM_ASSERT_HELD(t, &r->map.h->purge_lock);
    if (b->nr == b->room) {
        size_t room = b->room ? b->room * 2 : BATCH_START;
        vm_piece *grown = realloc(b->piece, room * sizeof *grown);
        if (!grown) {
            VM_ADD(&r->map.h->lazy_pages, nr_pages);
            VM_STORE(&r->map.heads[page].word, vm__word(VM_LAZY, VM_WORD_DIRTY, nr_pages, 0, 0));
            VM_PUT(&r->map.h->purge_needs_scan, 1);
            return;
        }
        b->piece = grown;
        b->room = room;
    }
    b->piece[b->nr++] = (vm_piece){page, (uint32_t)nr_pages, node};
}

void vm__batch_add(vm_thread *t, vm_batch *b, uint64_t page, uint64_t nr_pages)
{
    vm__batch_add_of(t, b, page, nr_pages, UINT32_MAX);
}

static int by_page(const void *a, const void *b)
{
    const vm_piece *x = a, *y = b;
    return x->page < y->page ? -1 : x->page > y->page;
}

void vm__batch_merge(vm_batch *b)
{
    size_t out = 0;
    if (b->nr == 0)
        return;
    qsort(b->piece, b->nr, sizeof *b->piece, by_page);
    for (size_t i = 1; i < b->nr; i++) {
        vm_piece *last = &b->piece[out];
        if (last->page + last->nr_pages == b->piece[i].page)
            last->nr_pages += b->piece[i].nr_pages;
        else
            b->piece[++out] = b->piece[i];
    }
    b->nr = out + 1;
}
