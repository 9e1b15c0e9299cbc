/* SPDX-License-Identifier: MIT */
/*
 * What a hit knows of the region, of a thread and of a process: layout.h and base.h have the rest. The hits are in
 * vmalloc_inline.h. C and C++, for they are compiled into programs too.
 *
 * A program may meet a library that is not the one it was compiled with. So each side has a key, at a place that stays
 * where it is in every layout, and there are hits only where the keys fit.
 */
#ifndef VMALLOC_HIT_H
#define VMALLOC_HIT_H

#include "vmalloc_types.h"

/* ---- the region, as far as a hit knows it; layout.h has the rest ---- */

/* One per page; only a range's first counts. `aux` is the allocation's id while BUSY, and the link
 * (page + 1 of the next, 0 at the end) while POOLED, LAZY or MOVING through a list. */
typedef struct vm_head {
    uint64_t word;
    uint64_t aux;
} vm_head;

enum {
    VM_WORD_LEN_SHIFT = 7, /* of a word, where its length is */
    VM_MAGAZINE_TAKING = 0xff,
    VM_MAGAZINE_CELLS = 32,
    VM_ID_SIZE_BITS = 9,
    VM_ID_BLOCK = 1 << 16,
};

/* Ready ranges of one size, the one freed last on top. The owner writes `header` whole: the number of
 * entries in the low byte, above it the number of the next id; VM_MAGAZINE_TAKING in that byte while it takes one.
 * So a hit has one word to load and one to store for mark, count and id, and what it took of ids counts hits. */
typedef union vm_magazine {
    __extension__ struct {
        uint64_t header __attribute__((aligned(64)));
        uint32_t page[VM_MAGAZINE_CAP];
    };
    uint32_t cell[VM_MAGAZINE_CELLS]; /* the same; the header is cells 0 and 1 */
    uint8_t mark; /* the same: the header's low byte */
} vm_magazine;

/* In front of a slot's magazines: not 0 while somebody empties them, then keep off, or records. */
static inline const uint64_t *vm__disturbed_of(const vm_magazine *magazine)
{
    return (const uint64_t *)(const void *)magazine - 1;
}

/* Where the newest entry is, whatever the header says; at count 0 half of the header itself, which can
 * be no range of this magazine. */
static inline const uint32_t *vm__magazine_top(const vm_magazine *m, uint64_t header)
{
    return &m->cell[(header + 1) % VM_MAGAZINE_CELLS];
}

/* An id is a number, never used twice, and below it the size asked for if a magazine may keep it (else
 * 0 or VM_ID_APART): so a free finds its magazine without waiting for the word. Numbers are taken in blocks. */
static inline uint64_t vm__id_pages(uint64_t id) { return id & ((1u << VM_ID_SIZE_BITS) - 1); }
/* The first number of a block is not given out: it says that the block is used up. */
static inline bool vm__number_is_spent(uint64_t number) { return number % VM_ID_BLOCK == 0; }

/* ---- what a thread and a process know, as far as a hit does ---- */

/* Of a thread, this far behind where vm__current points. Not at its beginning: a load is delayed by a store in flight
 * that agrees with it in the low 12 bits of the address, and by much if some bits above agree too. A range's
 * head is stored 16 bytes times its page, so this lies where the heads of pages are that few ranges begin at. */
#define VM_HIT_THREAD_AT 2064
typedef struct vm_hit_thread {
    uint64_t key; /* first, in every layout */
    vm_magazine *magazine; /* by size */
    uint64_t busy, cached; /* the words of a range of ours and of one in our magazine, without its length ... */
    uint64_t flip; /* ... and by what they differ */
    uint8_t cap[VM_POOL_PAGES_MAX + 1]; /* ranges each magazine may hold now; grows on demand */
} vm_hit_thread;

/* Of a process, at the beginning of its vm_region. */
typedef struct vm_hit_region {
    uint64_t key; /* first, in every layout */
    vm_head *heads;
    uint64_t nr_pages;
} vm_hit_region;

/* By what the two keys differ where the hits are open: to this thread, in this region, in this layout. Whatever is
 * changed above or in the hits has another one: INLINE_LAYOUT, or FORMAT if it is in the region. */
#define VM_HIT_LAYOUT (((uint64_t)VM_INLINE_LAYOUT << 16 | VM_FORMAT) << 32)
static inline bool vm__hits_are_open(const vm_hit_thread *t, const vm_hit_region *r)
{
    return (t->key ^ r->key) == VM_HIT_LAYOUT;
}

#endif
