/* SPDX-License-Identifier: MIT */
/*
 * Find: which range, held by this process, is an address in?
 *
 * Only a range's first word counts, and what stands at its other pages is what was absorbed when ranges were joined:
 * a word that was not BUSY then, and that nobody writes to since; or what one that died in the middle of a split wrote
 * in its own name. So from a page of a live range downwards, the first word that is BUSY and shared or of this process
 * is the range's own. The nearest few words are looked at. Further down that would touch as much metadata
 * as the range is long, so whoever holds a longer range notes it (vm_note()): a mark at its first page, in two levels
 * of bits that belong to this process. Marks are hints and are not taken back: one whose word is not BUSY goes when a
 * search meets it.
 *
 * Locks: none. A mark is set after the word became BUSY, and cleared before the word is looked at again.
 */
#include "face.h"

#define NEAR_PAGES VM_NOTED_PAGES

struct vm_marks {
    uint64_t nr_words; /* of `pages`; `words` follows in the same mapping */
    uint64_t *pages;   /* a bit a page                                    */
    uint64_t *words;   /* a bit a word of `pages` that is not 0           */
};

static uint64_t words_for(uint64_t bits) { return (bits + 63) / 64; }

static size_t mapped_bytes(const vm_region *r)
{
    uint64_t nr_words = words_for(r->map.nr_pages);
    return sizeof(vm_marks) + (nr_words + words_for(nr_words)) * 8;
}

/* NULL: no memory. Two threads may make them at once: one of them wins. */
static vm_marks *marks_of(vm_region *r)
{
    vm_marks *m = VM_ACQUIRE(&r->marks);
    if (vm_likely(m))
        return m;
    vm_marks *made = vm__private_pages(mapped_bytes(r), false);
    if (!made)
        return NULL;
    made->nr_words = words_for(r->map.nr_pages);
    made->pages = (uint64_t *)(made + 1);
    made->words = made->pages + made->nr_words;
    if (__atomic_compare_exchange_n(&r->marks, &m, made, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        return made;
    vm__private_free(made, mapped_bytes(r));
    return m;
}

void vm__forget_marks(vm_region *r)
{
    if (r->marks)
        vm__private_free(r->marks, mapped_bytes(r));
    r->marks = NULL;
}

static bool set_bit(uint64_t *bits, uint64_t i)
{
    uint64_t bit = 1ull << i % 64;
    return __atomic_load_n(&bits[i / 64], __ATOMIC_SEQ_CST) & bit
           || __atomic_fetch_or(&bits[i / 64], bit, __ATOMIC_SEQ_CST) & bit;
}
static uint64_t clear_bit(uint64_t *bits, uint64_t i)
{
    return __atomic_and_fetch(&bits[i / 64], ~(1ull << i % 64), __ATOMIC_SEQ_CST);
}

static void mark(vm_marks *m, uint64_t page)
{
    set_bit(m->pages, page);
    set_bit(m->words, page / 64);
}

void vm_note(vm_region *r, const vm_range *range)
{
    vm_marks *m = range->nr_pages > NEAR_PAGES && range->page < r->map.nr_pages ? marks_of(r) : NULL;
    if (m)
        mark(m, range->page);
}

static vm_word word_at(const vm_region *r, uint64_t page)
{
    return __atomic_load_n(&r->map.heads[page].word, __ATOMIC_SEQ_CST);
}

static bool is_live(const vm_region *r, vm_word w)
{
    if (vm__state(w) != VM_BUSY && vm__state(w) != VM_FREEING)
        return false;
    return w & VM_WORD_SHARED || (vm__owner(w) == r->process && vm__inc(w) == (r->process_inc & VM_INC_MASK));
}

/* Not if its range has become live in the meantime. */
static void unmark(vm_region *r, vm_marks *m, uint64_t page)
{
    if (clear_bit(m->pages, page) == 0) {
        clear_bit(m->words, page / 64);
        if (__atomic_load_n(&m->pages[page / 64], __ATOMIC_SEQ_CST))
            set_bit(m->words, page / 64);
    }
    if (is_live(r, word_at(r, page)))
        mark(m, page);
}

/* The highest bit at or below `i`, in words of 64; VM_NONE. */
static uint64_t bit_below(const uint64_t *bits, uint64_t i)
{
    uint64_t w = __atomic_load_n(&bits[i / 64], __ATOMIC_SEQ_CST) & (~0ull >> (63 - i % 64));
    for (uint64_t at = i / 64;; w = __atomic_load_n(&bits[--at], __ATOMIC_SEQ_CST)) {
        if (w)
            return at * 64 + 63 - (uint64_t)__builtin_clzll(w);
        if (at == 0)
            return VM_NONE;
    }
}

static uint64_t mark_below(const vm_marks *m, uint64_t page)
{
    uint64_t w = __atomic_load_n(&m->pages[page / 64], __ATOMIC_SEQ_CST) & (~0ull >> (63 - page % 64));
    if (w)
        return page / 64 * 64 + 63 - (uint64_t)__builtin_clzll(w);
    for (uint64_t at = page / 64; at && (at = bit_below(m->words, at - 1)) != VM_NONE;) {
        w = __atomic_load_n(&m->pages[at], __ATOMIC_SEQ_CST);
        if (w)
            return at * 64 + 63 - (uint64_t)__builtin_clzll(w);
    }
    return VM_NONE;
}

/* The first page of the live range that `page` lies in, or of one below it; VM_NONE. */
static uint64_t head_of(vm_region *r, uint64_t page)
{
    uint64_t lowest = page > NEAR_PAGES ? page - NEAR_PAGES : 0;
    for (uint64_t at = page;; at--) {
        if (is_live(r, word_at(r, at)))
            return at;
        if (at == lowest)
            break;
    }
    vm_marks *m = VM_ACQUIRE(&r->marks);
    uint64_t at = m && lowest ? mark_below(m, lowest) : VM_NONE;
    for (; at != VM_NONE && !is_live(r, word_at(r, at)); at = at ? mark_below(m, at - 1) : VM_NONE)
        unmark(r, m, at);
    return at;
}

int vm_find(vm_region *r, const void *address, vm_range *out)
{
    uintptr_t data = (uintptr_t)r->map.data, at = (uintptr_t)address;
    if (!r->map.data || at < data || (at - data) >> r->map.page_shift >= r->map.nr_pages)
        return -ENOENT;
    uint64_t page = (at - data) >> r->map.page_shift, head = head_of(r, page);
    if (head == VM_NONE)
        return -ENOENT;
    vm_word w = word_at(r, head);
    uint64_t id = VM_ACQUIRE(&r->map.heads[head].aux), nr_pages = vm__len(w);
    if (!is_live(r, w) || page - head >= nr_pages || nr_pages > r->map.nr_pages - head)
        return -ENOENT;
    if (w & VM_WORD_SHARED && !vm__holds(r, head, id))
        return -ENOENT;
    *out = (vm_range){head, nr_pages, id, false};
    return 0;
}
