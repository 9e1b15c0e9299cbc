/* SPDX-License-Identifier: MIT */
#include "parts.h"

uint64_t sim_next_random(uint64_t *state) /* splitmix64 */
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

void sim_log_call(sim_sim *s, uint32_t call, uint32_t cpu, uint32_t pages, uint32_t align, uint32_t start)
{
    if (s->nr_trace + TRACE_WORDS > s->room_trace) {
        s->room_trace = s->room_trace ? 2 * s->room_trace : 1 << 14;
        s->trace = sim_grow(s->trace, s->room_trace * sizeof *s->trace);
    }
    uint32_t *to = s->trace + s->nr_trace;
    to[0] = call;
    to[1] = cpu;
    to[2] = pages;
    to[3] = align;
    to[4] = start;
    s->nr_trace += TRACE_WORDS;
}

uint32_t sim_below(thread *th, uint32_t n) { return (uint32_t)(sim_next_random(&th->random) % n); }

void sim_sift_down(sim_sim *s, uint32_t i)
{
    entry moving = s->heap[i];
    for (;;) {
        uint32_t child = 4 * i + 1, least = child;
        if (child >= s->nr_heap)
            break;
        uint32_t end = child + 4 < s->nr_heap ? child + 4 : s->nr_heap;
        for (uint32_t c = child + 1; c < end; c++)
            if (s->heap[c].at < s->heap[least].at
                || (s->heap[c].at == s->heap[least].at && s->heap[c].id < s->heap[least].id))
                least = c;
        entry *e = &s->heap[least];
        if (moving.at < e->at || (moving.at == e->at && moving.id < e->id))
            break;
        s->heap[i] = *e;
        i = least;
    }
    s->heap[i] = moving;
}

void sim_wake(sim_sim *s, thread *th)
{
    uint32_t i = s->nr_heap++;
    entry moving = {th->at, th->id};
    while (i) {
        entry *parent = &s->heap[(i - 1) / 4];
        if (parent->at < moving.at || (parent->at == moving.at && parent->id < moving.id))
            break;
        s->heap[i] = *parent;
        i = (i - 1) / 4;
    }
    s->heap[i] = moving;
}
