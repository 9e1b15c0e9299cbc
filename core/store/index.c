/* SPDX-License-Identifier: MIT */
/*
 * The free index: where is the lowest run of n free pages?
 *
 * One bit a page (1 = not in space) in leaves of VM_LEAF_PAGES, and above them a tree of summaries in
 * plain arrays: free run at the low end, longest run, free run at the high end, each stored as what
 * is missing to "all free". Find, set and neighbour look-up touch VM_FANOUT entries a level, so they
 * are O(log region). All of it is a hint: a pure function of the words, rebuilt by space.c.
 *
 * All but vm__index_init() under space_lock. After: Go's page allocator (proposal 35112).
 */
#include "store.h"

#define WORDS_PER_LEAF (VM_LEAF_PAGES / 64)

static uint64_t level_pages(uint32_t level) { return (uint64_t)VM_LEAF_PAGES << 3 * level; }
_Static_assert(VM_FANOUT == 1 << 3, "level_pages()");

static vm_summary *entry(const vm_map *m, uint32_t level, uint64_t i)
{
    return &m->summaries[m->level_offset[level] + i];
}

typedef struct runs {
    uint64_t start, max, end;
} runs;

/* What a neighbour scribbled into a hint must not lead us out of bounds: clamp. */
static runs read_runs(const vm_map *m, uint32_t level, uint64_t i)
{
    const vm_summary *s = entry(m, level, i);
    uint64_t pages = level_pages(level);
    uint64_t start = VM_RELAXED(&s->start_missing), max = VM_RELAXED(&s->max_missing),
             end = VM_RELAXED(&s->end_missing);
    return (runs){start > pages ? 0 : pages - start, max > pages ? 0 : pages - max, end > pages ? 0 : pages - end};
}

/* Writes only what differs: untouched metadata stays untouched. Returns whether anything did. */
static bool write_runs(vm_map *m, uint32_t level, uint64_t i, runs v)
{
    vm_summary *s = entry(m, level, i);
    uint32_t pages = (uint32_t)level_pages(level);
    uint32_t start = pages - (uint32_t)v.start, max = pages - (uint32_t)v.max, end = pages - (uint32_t)v.end;
    bool changed = false;
    if (VM_RELAXED(&s->start_missing) != start) {
        VM_PUT(&s->start_missing, start);
        changed = true;
    }
    if (VM_RELAXED(&s->max_missing) != max) {
        VM_PUT(&s->max_missing, max);
        changed = true;
    }
    if (VM_RELAXED(&s->end_missing) != end) {
        VM_PUT(&s->end_missing, end);
        changed = true;
    }
    return changed;
}

/* Longest run of ones in w, if longer than `known`; else `known`. */
static uint64_t longest_run(uint64_t w, uint64_t known)
{
    for (;;) {
        uint64_t m = w, have = 1, want = known + 1;
        if (want > 64)
            return known;
        while (have < want && m) { /* after this a one in m starts a run of `have` ones */
            uint64_t step = want - have < have ? want - have : have;
            m &= m >> step;
            have += step;
        }
        if (!m)
            return known;
        known = want;
    }
}

static runs leaf_runs(const vm_map *m, uint64_t leaf)
{
    const uint64_t *bits = &m->bits[leaf * WORDS_PER_LEAF];
    runs v = {0, 0, 0};
    uint64_t current = 0;
    bool at_start = true;
    for (int i = 0; i < WORDS_PER_LEAF; i++) {
        uint64_t free = ~VM_RELAXED(&bits[i]);
        if (free == ~0ull) {
            current += 64;
            continue;
        }
        current += free ? (uint64_t)__builtin_ctzll(~free) : 0;
        if (at_start) {
            v.start = current;
            at_start = false;
        }
        if (current > v.max)
            v.max = current;
        v.max = longest_run(free, v.max);
        current = (uint64_t)__builtin_clzll(~free);
    }
    if (at_start)
        v.start = current;
    if (current > v.max)
        v.max = current;
    v.end = current;
    return v;
}

/* A summary from its children; children past the last one count as taken. */
static runs inner_runs(const vm_map *m, uint32_t level, uint64_t i)
{
    uint64_t child_pages = level_pages(level - 1), nr_children = m->level_nr[level - 1];
    runs v = {0, 0, 0};
    uint64_t current = 0;
    bool at_start = true;
    for (uint64_t c = i * VM_FANOUT; c < (i + 1) * VM_FANOUT; c++) {
        runs child = c < nr_children ? read_runs(m, level - 1, c) : (runs){0, 0, 0};
        if (child.start == child_pages) {
            current += child_pages;
            continue;
        }
        current += child.start;
        if (at_start) {
            v.start = current;
            at_start = false;
        }
        if (current > v.max)
            v.max = current;
        if (child.max > v.max)
            v.max = child.max;
        current = child.end;
    }
    if (at_start)
        v.start = current;
    if (current > v.max)
        v.max = current;
    v.end = current;
    return v;
}

/* Bring the summaries above leaves [first, last] up to date; stops where nothing changed, unless a
 * death may have left any level behind the one below it (`all`). */
static void update_above(vm_map *m, uint64_t first, uint64_t last, bool changed, bool all)
{
    for (uint32_t level = 1; level < m->nr_levels && (changed || all); level++) {
        first /= VM_FANOUT;
        last /= VM_FANOUT;
        changed = false;
        for (uint64_t i = first; i <= last; i++)
            changed |= write_runs(m, level, i, inner_runs(m, level, i));
    }
}

void vm__index_write_bits(vm_map *m, uint64_t page, uint64_t nr_pages, bool taken)
{
    uint64_t end = page + nr_pages;
    while (page < end) {
        uint64_t bit = page % 64, n = 64 - bit < end - page ? 64 - bit : end - page;
        uint64_t mask = (n == 64 ? ~0ull : (1ull << n) - 1) << bit;
        uint64_t *word = &m->bits[page / 64], old = VM_RELAXED(word), new = taken ? old | mask : old & ~mask;
        if (new != old)
            VM_PUT(word, new);
        page += n;
    }
}

void vm__index_set(vm_map *m, uint64_t page, uint64_t nr_pages, bool taken)
{
    uint64_t first = page / VM_LEAF_PAGES, last = (page + nr_pages - 1) / VM_LEAF_PAGES;
    bool changed = false;
    if (taken && page + nr_pages > VM_RELAXED(&m->h->high_pages))
        VM_PUT(&m->h->high_pages, page + nr_pages);
    vm__index_write_bits(m, page, nr_pages, taken);
    for (uint64_t leaf = first; leaf <= last; leaf++) {
        bool whole = leaf * VM_LEAF_PAGES >= page && (leaf + 1) * VM_LEAF_PAGES <= page + nr_pages;
        uint64_t all = taken ? 0 : VM_LEAF_PAGES;
        changed |= write_runs(m, 0, leaf, whole ? (runs){all, all, all} : leaf_runs(m, leaf));
    }
    update_above(m, first, last, changed, false);
}

/* Only the right edge is written: pages past the region count as taken. */
void vm__index_init(vm_map *m)
{
    uint64_t last = m->level_nr[0] - 1, past = (last + 1) * VM_LEAF_PAGES - m->nr_pages;
    if (past)
        vm__index_write_bits(m, m->nr_pages, past, true);
    write_runs(m, 0, last, leaf_runs(m, last));
    update_above(m, last, last, true, true);
}

void vm__index_summarise_all(vm_map *m)
{
    uint64_t high = VM_RELAXED(&m->h->high_pages);
    if (high > m->nr_pages)
        high = m->nr_pages;
    uint64_t last = high ? (high - 1) / VM_LEAF_PAGES : 0;
    for (uint64_t leaf = 0; leaf <= last; leaf++)
        write_runs(m, 0, leaf, leaf_runs(m, leaf));
    update_above(m, 0, last, true, true);
    vm__index_init(m);
}

/* How many summaries differ from what lies below them; where the first one is. Only what was ever touched is
 * looked at: up to high_pages, and the right edge. [space_lock] */
uint64_t vm__index_nr_wrong(const vm_map *m, uint32_t *first_level, uint64_t *first_entry)
{
    uint64_t high = VM_RELAXED(&m->h->high_pages), nr = 0;
    if (high > m->nr_pages)
        high = m->nr_pages;
    uint64_t last = high ? (high - 1) / VM_LEAF_PAGES : 0;
    for (uint32_t level = 0; level < m->nr_levels; level++, last /= VM_FANOUT)
        for (uint64_t i = 0, edge = m->level_nr[level] - 1; i <= edge; i = i == last && i < edge ? edge : i + 1) {
            runs is = read_runs(m, level, i), should = level ? inner_runs(m, level, i) : leaf_runs(m, i);
            if (is.start == should.start && is.max == should.max && is.end == should.end)
                continue;
            if (nr++ == 0)
                *first_level = level, *first_entry = i;
        }
    return nr;
}

bool vm__index_is_free(const vm_map *m, uint64_t page)
{
    return page < m->nr_pages && !(VM_RELAXED(&m->bits[page / 64]) >> page % 64 & 1);
}

uint64_t vm__index_largest(const vm_map *m) { return read_runs(m, m->nr_levels - 1, 0).max; }

/* A free run that reaches the current position from the left. */
typedef struct carry {
    uint64_t start, pages;
} carry;

static void carry_free(carry *c, uint64_t page, uint64_t nr_pages)
{
    if (!c->pages)
        c->start = page;
    c->pages += nr_pages;
}

static uint64_t find_in_leaf(const vm_map *m, uint64_t leaf, uint64_t from, uint64_t nr_pages, carry *c)
{
    uint64_t page = leaf * VM_LEAF_PAGES;
    for (int i = 0; i < WORDS_PER_LEAF; i++, page += 64) {
        uint64_t free = ~VM_RELAXED(&m->bits[leaf * WORDS_PER_LEAF + (uint64_t)i]);
        if (page + 64 <= from)
            continue;
        if (page < from)
            free &= ~0ull << (from - page);
        for (uint64_t bit = 0; bit < 64;) {
            uint64_t rest = free >> bit;
            if (!(rest & 1)) {
                c->pages = 0;
                if (!rest)
                    break;
                bit += (uint64_t)__builtin_ctzll(rest);
                continue;
            }
            uint64_t n = ~rest ? (uint64_t)__builtin_ctzll(~rest) : 64;
            if (n > 64 - bit)
                n = 64 - bit;
            carry_free(c, page + bit, n);
            if (c->pages >= nr_pages)
                return c->start;
            bit += n;
        }
    }
    return VM_NONE;
}

/* Lowest run of nr_pages at or after `from` inside entry i of this level, or reaching into it. */
static uint64_t find_in(const vm_map *m, uint32_t level, uint64_t i, uint64_t from, uint64_t nr_pages, carry *c)
{
    if (level == 0)
        return find_in_leaf(m, i, from, nr_pages, c);
    uint64_t pages = level_pages(level - 1);
    for (uint64_t child = i * VM_FANOUT; child < (i + 1) * VM_FANOUT && child < m->level_nr[level - 1]; child++) {
        uint64_t base = child * pages;
        if (base + pages <= from)
            continue;
        if (base < from) {
            uint64_t found = find_in(m, level - 1, child, from, nr_pages, c);
            if (found != VM_NONE)
                return found;
            continue;
        }
        runs v = read_runs(m, level - 1, child);
        if (c->pages + v.start >= nr_pages)
            return c->pages ? c->start : base;
        if (v.max >= nr_pages)
            return find_in(m, level - 1, child, from, nr_pages, c);
        if (v.start == pages) {
            carry_free(c, base, pages);
        } else {
            *c = (carry){base + pages - v.end, v.end};
        }
    }
    return VM_NONE;
}

/* Lowest page >= from that starts nr_pages free ones, or VM_NONE. */
uint64_t vm__index_find(const vm_map *m, uint64_t from, uint64_t nr_pages)
{
    carry c = {0, 0};
    if (from >= m->nr_pages || vm__index_largest(m) < nr_pages)
        return VM_NONE;
    uint64_t found = find_in(m, m->nr_levels - 1, 0, from, nr_pages, &c);
    return found == VM_NONE || found > m->nr_pages - nr_pages ? VM_NONE : found;
}

/* ---- the lowest run that starts at a multiple of align_pages ----
 *
 * Holes that are long enough but lie askew are not tried one by one: a leaf answers for all of its own at once, and an
 * entry no larger than the alignment is looked at only where it begins. */

typedef struct wanted {
    uint64_t from, nr_pages, align_pages;
} wanted;

/* In a free run. */
static uint64_t place_in(const wanted *w, uint64_t start, uint64_t pages)
{
    uint64_t first = (start + w->align_pages - 1) & ~(w->align_pages - 1);
    return first + w->nr_pages <= start + pages ? first : VM_NONE;
}

/* bits &= bits >> by */
static void and_shifted(uint64_t *bits, uint64_t by)
{
    uint64_t whole = by / 64, rest = by % 64;
    if (!whole) {
        for (uint64_t i = 0; i + 1 < WORDS_PER_LEAF; i++)
            bits[i] &= bits[i] >> rest | bits[i + 1] << (64 - rest);
        bits[WORDS_PER_LEAF - 1] &= bits[WORDS_PER_LEAF - 1] >> rest;
        return;
    }
    for (uint64_t i = 0; i < WORDS_PER_LEAF; i++) {
        uint64_t low = i + whole < WORDS_PER_LEAF ? bits[i + whole] : 0;
        uint64_t high = i + whole + 1 < WORDS_PER_LEAF ? bits[i + whole + 1] : 0;
        bits[i] &= rest ? low >> rest | high << (64 - rest) : low;
    }
}

/* The lowest multiple of less than 64 bits that starts nr_pages ones, all within the leaf. */
static uint64_t find_in_bits(uint64_t *bits, const wanted *w)
{
    for (uint64_t have = 1, step; have < w->nr_pages; have += step) { /* a bit stays where `have` ones begin */
        step = w->nr_pages - have < have ? w->nr_pages - have : have;
        and_shifted(bits, step);
    }
    uint64_t starts = ~0ull / ((1ull << w->align_pages) - 1);
    for (uint64_t i = 0; i < WORDS_PER_LEAF; i++)
        if (bits[i] & starts)
            return i * 64 + (uint64_t)__builtin_ctzll(bits[i] & starts);
    return VM_NONE;
}

/* The same for a multiple of 64 bits, where each word is all or nothing but for the last. */
static uint64_t find_in_words(const uint64_t *bits, const wanted *w)
{
    uint64_t whole = w->nr_pages / 64, rest = (1ull << w->nr_pages % 64) - 1, n;
    for (uint64_t i = 0; i * 64 + w->nr_pages <= VM_LEAF_PAGES; i += w->align_pages / 64) {
        for (n = 0; n < whole && bits[i + n] == ~0ull; n++)
            ;
        if (n == whole && (!rest || (bits[i + n] & rest) == rest))
            return i * 64;
    }
    return VM_NONE;
}

/* Runs that lie within the leaf. */
static uint64_t find_aligned_in_leaf(const vm_map *m, uint64_t leaf, const wanted *w)
{
    uint64_t bits[WORDS_PER_LEAF], page = leaf * VM_LEAF_PAGES;
    for (uint64_t i = 0; i < WORDS_PER_LEAF; i++, page += 64) {
        bits[i] = ~VM_RELAXED(&m->bits[leaf * WORDS_PER_LEAF + i]);
        if (page < w->from)
            bits[i] = page + 64 <= w->from ? 0 : bits[i] & ~0ull << (w->from - page);
    }
    uint64_t found = w->align_pages < 64 ? find_in_bits(bits, w) : find_in_words(bits, w);
    return found == VM_NONE ? VM_NONE : leaf * VM_LEAF_PAGES + found;
}

static uint64_t find_aligned_in(const vm_map *m, uint32_t level, uint64_t i, const wanted *w)
{
    if (level == 0)
        return w->nr_pages <= VM_LEAF_PAGES ? find_aligned_in_leaf(m, i, w) : VM_NONE;
    uint64_t pages = level_pages(level - 1), found = VM_NONE;
    carry c = {0, 0};
    for (uint64_t child = i * VM_FANOUT; child < (i + 1) * VM_FANOUT && child < m->level_nr[level - 1]; child++) {
        uint64_t base = child * pages;
        if (base + pages <= w->from)
            continue;
        bool is_cut = base < w->from;
        runs v = read_runs(m, level - 1, child);
        if (!is_cut)
            found = place_in(w, c.pages ? c.start : base, c.pages + v.start);
        if (found == VM_NONE && v.max >= w->nr_pages && pages > w->align_pages)
            found = find_aligned_in(m, level - 1, child, w);
        if (found != VM_NONE)
            return found;
        if (!is_cut && v.start == pages) {
            carry_free(&c, base, pages);
        } else {
            uint64_t start = base + pages - v.end;
            start = start > w->from ? start : w->from;
            c = (carry){start, base + pages - start};
        }
    }
    return VM_NONE;
}

/* Lowest multiple of align_pages, at or after `from`, which is one too, that starts nr_pages free ones; or VM_NONE. */
uint64_t vm__index_find_aligned(const vm_map *m, uint64_t from, uint64_t nr_pages, uint64_t align_pages)
{
    wanted w = {from, nr_pages, align_pages};
    if (align_pages == 1)
        return vm__index_find(m, from, nr_pages);
    if (from >= m->nr_pages || vm__index_largest(m) < nr_pages)
        return VM_NONE;
    uint64_t found = find_aligned_in(m, m->nr_levels - 1, 0, &w);
    return found == VM_NONE || found > m->nr_pages - nr_pages ? VM_NONE : found;
}

/* First page of the free run that `page`, itself free, belongs to. */
uint64_t vm__index_run_start(const vm_map *m, uint64_t page)
{
    uint64_t leaf = page / VM_LEAF_PAGES;
    while (page % VM_LEAF_PAGES) {
        uint64_t most = page % 64 ? page % 64 : 64;
        uint64_t below = VM_RELAXED(&m->bits[(page - 1) / 64]) << (64 - most); /* the page below is the top bit */
        uint64_t n = below ? (uint64_t)__builtin_clzll(below) : most;
        page -= n;
        if (n < most)
            return page;
    }
    for (uint32_t level = 0; page && level < m->nr_levels;) {
        uint64_t pages = level_pages(level), end = read_runs(m, level, leaf - 1).end;
        if (end < pages)
            return page - end;
        page -= pages;
        leaf--;
        while (leaf % VM_FANOUT == 0 && level + 1 < m->nr_levels) {
            leaf /= VM_FANOUT;
            level++;
        }
    }
    return page;
}
