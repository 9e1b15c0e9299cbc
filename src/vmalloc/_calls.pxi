# SPDX-License-Identifier: MIT
# Part of _core.pyx: every call of the core that may wait, in the form that RegionHandle.run() takes.
#
# EINTR means that nothing was done yet, so each may be called again with the same arguments.

cdef int call_alloc(vm_region *r, Call *c) noexcept nogil:
    return vm_alloc(r, c.nr_pages, c.align_pages, c.flags, c.out)


cdef int call_alloc_bulk(vm_region *r, Call *c) noexcept nogil:
    return vm_alloc_bulk(r, c.nr_pages, c.align_pages, c.count, c.out)


cdef int call_free_kept(vm_region *r, Call *c) noexcept nogil:
    return vm_free_kept(r, c.page, c.id, c.flags, c.out)


cdef int call_alloc_cold(vm_region *r, Call *c) noexcept nogil:
    return vm_alloc_cold(r, c.nr_pages, c.align_pages, c.out)


cdef int call_free(vm_region *r, Call *c) noexcept nogil:
    return vm_free(r, c.page, c.id, c.flags)


cdef int call_share(vm_region *r, Call *c) noexcept nogil:
    return vm_share(r, c.page, c.id)


cdef int call_lease(vm_region *r, Call *c) noexcept nogil:
    if c.is_message:
        return vm_lease_message(r, c.page, c.id, c.channel, c.new_lease)
    return vm_lease(r, c.page, c.id, c.new_lease)


cdef int call_end_oldest(vm_region *r, Call *c) noexcept nogil:
    return vm_end_oldest(r, c.nr_pages, &c.nr)


cdef int call_adopt(vm_region *r, Call *c) noexcept nogil:
    return vm_claim(r, c.page, c.id, c.lease, c.out) if c.lease else vm_adopt(r, c.page, c.id, c.out)


cdef int call_expire_leases(vm_region *r, Call *c) noexcept nogil:
    return vm_expire_leases(r, c.older_than_ns, &c.nr)


cdef int call_drop_inherited(vm_region *r, Call *c) noexcept nogil:
    return vm_drop_inherited(r, &c.nr)


cdef int call_name_set(vm_region *r, Call *c) noexcept nogil:
    if c.must_be_new:
        return vm_name_new(r, c.name, c.page, c.id, c.meta, c.meta_bytes)
    return vm_name_set(r, c.name, c.page, c.id, c.meta, c.meta_bytes)


cdef int call_name_get(vm_region *r, Call *c) noexcept nogil:
    return vm_name_get(r, c.name, c.out, c.meta_out, &c.meta_bytes)


cdef int call_name_delete(vm_region *r, Call *c) noexcept nogil:
    return vm_name_delete(r, c.name)


cdef int call_purge(vm_region *r, Call *c) noexcept nogil:
    return vm_purge(r, &c.nr)


cdef int call_shrink(vm_region *r, Call *c) noexcept nogil:
    return vm_shrink(r, &c.nr)


cdef int call_recover(vm_region *r, Call *c) noexcept nogil:
    return vm_recover(r, &c.nr)


cdef int call_tick(vm_region *r, Call *c) noexcept nogil:
    return vm_tick(r)


cdef int call_check(vm_region *r, Call *c) noexcept nogil:
    c.found.nr = c.found.nbytes = 0  # what an interrupted look found, the next one finds
    return vm_check(r, c.at_rest, append_text, c.found)


cdef int call_repair(vm_region *r, Call *c) noexcept nogil:
    return vm_repair(r, append_text, c.found)  # what was mended before an interruption stays told


cdef int call_stats(vm_region *r, Call *c) noexcept nogil:
    return vm_get_stats(r, c.stats)


cdef int call_explain(vm_region *r, Call *c) noexcept nogil:
    return vm_explain(r, c.nr_pages, c.error, c.shortage)


cdef int call_holdings(vm_region *r, Call *c) noexcept nogil:
    return vm_holdings(r, c.count, c.holdings)


cdef int call_processes(vm_region *r, Call *c) noexcept nogil:
    return vm_processes(r, c.count, c.holdings)


cdef int call_walk(vm_region *r, Call *c) noexcept nogil:
    c.found.nr = c.found.nbytes = 0
    return vm_walk(r, append_range, c.found)


cdef int call_name_list(vm_region *r, Call *c) noexcept nogil:
    c.found.nr = c.found.nbytes = 0
    return vm_name_list(r, append_name, c.found)


# ---- what the core calls back, when it holds no lock: collected without the interpreter, made Python objects afterwards ----

cdef int append_bytes(Found *found, const void *data, size_t nbytes) noexcept nogil:
    cdef size_t room
    cdef void *grown
    if found.nbytes + nbytes > found.room:
        room = max(2 * found.room, found.nbytes + nbytes, 4096)
        grown = c_realloc(found.data, room)
        if grown == NULL:
            found.is_short = True
            return -ENOMEM
        found.data, found.room = <char *>grown, room
    memcpy(found.data + found.nbytes, data, nbytes)
    found.nbytes += nbytes
    found.nr += 1
    return 0


cdef void append_text(void *found, const char *text) noexcept nogil:
    append_bytes(<Found *>found, text, strlen(text) + 1)


cdef int append_name(void *found, const char *name, uint64_t page) noexcept nogil:
    return append_bytes(<Found *>found, name, strlen(name) + 1)


cdef int append_range(void *found, const vm_range_info *i) noexcept nogil:
    return append_bytes(<Found *>found, i, sizeof(i[0]))


cdef list texts_of(Found *found):
    cdef list texts = []
    cdef size_t at = 0
    while at < found.nbytes:
        texts.append((found.data + at).decode(errors="replace"))
        at += strlen(found.data + at) + 1
    return texts


cdef list ranges_of(Found *found):
    """Of vmalloc.stats.Range, made as its own constructor makes them."""
    from vmalloc.stats import Range as kind
    new = tuple.__new__
    cdef const vm_range_info *i = <const vm_range_info *>found.data
    cdef size_t nr_states = len(STATES)
    cdef list ranges = []
    cdef size_t n
    for n in range(found.nr):
        state = STATES[i[n].state] if i[n].state < nr_states else f"state {i[n].state}"  # scribbled over; check() tells
        ranges.append(new(kind, (i[n].page, i[n].page + i[n].nr_pages, state, i[n].owner, i[n].id, i[n].shared, i[n].dirty)))
    return ranges
