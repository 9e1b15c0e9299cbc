/* SPDX-License-Identifier: MIT */
/* Map: where everything lies in a region of given sizes. */
#include "base.h"

static uint64_t align_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* Words of holders a range has beyond the first: together one bit a process slot. */
static uint32_t further_holders(const vm_header *h) { return (h->nr_processes + 1) / 64 - 1; }

/* Where everything lies, from the sizes alone: creator and attacher compute the same. */
void vm__lay_out(vm_header *h)
{
    uint64_t at = align_up(sizeof *h, 4096), nr = align_up(h->nr_pages, VM_LEAF_PAGES) / VM_LEAF_PAGES, index = 0;
    h->off_processes = at;
    at = align_up(at + (h->nr_processes + 1) * sizeof(vm_process), 4096);
    h->off_nodes = at;
    at = align_up(at + h->nr_nodes * sizeof(vm_node), 4096);
    h->off_shelves = at;
    at = align_up(at + h->nr_groups * sizeof(vm_shelf), 4096);
    h->off_slabs = at;
    at = align_up(at + h->nr_cpus * sizeof(vm_cpu), 4096);
    h->off_names = at;
    at = align_up(at + VM_NAMES_MAX * sizeof(vm_name), 4096);
    h->off_leases = at;
    at = align_up(at + VM_LEASES_MAX * sizeof(vm_lease_entry), 4096);
    h->off_threads = at;
    at = align_up(at + h->nr_threads * sizeof(vm_slot), 4096);
    h->off_bits = at;
    at = align_up(at + nr * VM_LEAF_PAGES / 8, 4096);
    for (h->nr_levels = 0;; nr = (nr + VM_FANOUT - 1) / VM_FANOUT) {
        h->level_offset[h->nr_levels++] = index;
        index += nr;
        if (nr == 1)
            break;
    }
    h->off_summaries = at;
    at = align_up(at + index * sizeof(vm_summary), 4096);
    h->off_heads = at += 64; /* no multiple of a page: see vm_slot.unaliased */
    at = align_up(at + h->nr_pages * sizeof(vm_head), 4096);
    h->off_sharings = at;
    at = align_up(at + h->nr_pages * sizeof(vm_sharing), 4096);
    h->off_holders = at;
    at = align_up(at + h->nr_pages * further_holders(h) * sizeof(uint64_t), 4096);
    bool has_data = !(h->flags & VM_FLAG_NO_DATA);
    h->off_data = has_data ? align_up(at, VM_MAP_ALIGN) : at;
    h->off_rings = align_up(h->off_data + (has_data ? h->nr_pages * h->granule_bytes : 0), VM_RING_ALIGN);
    h->total_bytes = h->off_rings + (h->flags & VM_FLAG_NO_RINGS ? 0 : h->nr_threads * sizeof(vm_ring));
}

/* All but the rings, which only who records maps. */
uint64_t vm__mapped_bytes(const vm_header *h)
{
    return h->flags & VM_FLAG_NO_DATA ? h->off_data : h->off_data + h->nr_pages * h->granule_bytes;
}

bool vm__same_layout(const vm_header *a, const vm_header *b)
{
    return a->off_processes == b->off_processes && a->off_nodes == b->off_nodes && a->off_names == b->off_names
           && a->off_leases == b->off_leases && a->off_threads == b->off_threads && a->off_bits == b->off_bits
           && a->off_summaries == b->off_summaries && a->off_heads == b->off_heads && a->off_sharings == b->off_sharings
           && a->off_shelves == b->off_shelves && a->off_slabs == b->off_slabs && a->off_holders == b->off_holders
           && a->off_data == b->off_data && a->off_rings == b->off_rings && a->nr_levels == b->nr_levels
           && a->total_bytes == b->total_bytes;
}

/* Fill the process's own view; the header was checked. */
void vm__point(vm_map *m, void *at, const vm_header *h)
{
    uint8_t *base = at;
    m->h = (vm_header *)base;
    m->processes = (vm_process *)(base + h->off_processes);
    m->nodes = (vm_node *)(base + h->off_nodes);
    m->shelves = (vm_shelf *)(base + h->off_shelves);
    m->cpus = (vm_cpu *)(base + h->off_slabs);
    m->names = (vm_name *)(base + h->off_names);
    m->leases = (vm_lease_entry *)(base + h->off_leases);
    m->slots = (vm_slot *)(base + h->off_threads);
    m->bits = (uint64_t *)(base + h->off_bits);
    m->summaries = (vm_summary *)(base + h->off_summaries);
    m->heads = (vm_head *)(base + h->off_heads);
    m->sharings = (vm_sharing *)(base + h->off_sharings);
    m->holders = (uint64_t *)(base + h->off_holders);
    m->further_holders = further_holders(h);
    m->flags = h->flags;
    m->data = h->flags & VM_FLAG_NO_DATA ? NULL : base + h->off_data;
    m->nr_pages = h->nr_pages;
    m->nr_nodes = h->nr_nodes;
    m->nr_groups = h->nr_groups;
    m->nodes_each = h->nr_nodes / h->nr_groups;
    m->nr_cpus = h->nr_cpus;
    m->nr_processes = h->nr_processes;
    m->nr_threads = h->nr_threads;
    m->nr_levels = h->nr_levels;
    m->pools = h->pools;
    m->mapped_bytes = vm__mapped_bytes(h);
    m->rings_offset = h->off_rings;
    m->data_offset = h->off_data;
    m->page_shift = (uint32_t)__builtin_ctzll(h->granule_bytes);
    uint64_t nr = align_up(h->nr_pages, VM_LEAF_PAGES) / VM_LEAF_PAGES;
    for (uint32_t level = 0; level < h->nr_levels; level++, nr = (nr + VM_FANOUT - 1) / VM_FANOUT) {
        m->level_nr[level] = nr;
        m->level_offset[level] = h->level_offset[level];
    }
}
