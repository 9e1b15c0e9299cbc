# SPDX-License-Identifier: MIT
# Part of _core.pyx: every call of the core that may wait, in the form that RegionHandle.run() takes.
#
# EINTR means that nothing was done yet, so each may be called again with the same arguments.

cdef int call_alloc(vm_region *r, Call *c) noexcept nogil:
    return vm_alloc(r, c.nr_pages, c.align_pages, c.flags, c.out)


cdef int call_alloc_bulk(vm_region *r, Call *c) noexcept nogil:
    return vm_alloc_bulk(r, c.nr_pages, c.align_pages, c.count, c.out)


cdef int call_free(vm_region *r, Call *c) noexcept nogil:
    return vm_free(r, c.page, c.id, c.flags)


cdef int call_share(vm_region *r, Call *c) noexcept nogil:
    return vm_share(r, c.page, c.id)


cdef int call_lease(vm_region *r, Call *c) noexcept nogil:
    if c.is_message:
        return vm_lease_message(r, c.page, c.id, c.new_lease)
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
    forget_texts(c.found)  # what an interrupted look found, the next one finds
    return vm_check(r, c.at_rest, append_text, c.found)


cdef int call_repair(vm_region *r, Call *c) noexcept nogil:
    return vm_repair(r, append_text, c.found)  # what was mended before an interruption stays told


cdef int call_stats(vm_region *r, Call *c) noexcept nogil:
    return vm_get_stats(r, c.stats)


cdef int call_explain(vm_region *r, Call *c) noexcept nogil:
    return vm_explain(r, c.nr_pages, c.error, c.shortage)


cdef int call_holdings(vm_region *r, Call *c) noexcept nogil:
    return vm_holdings(r, c.count, c.holdings)


cdef int call_walk(vm_region *r, Call *c) noexcept nogil:
    return vm_walk(r, append_range, c.found)


# ---- what the core calls back, when it holds no lock ----

cdef void forget_texts(void *found) noexcept with gil:
    (<list>found).clear()


cdef void append_text(void *found, const char *text) noexcept with gil:
    (<list>found).append(text.decode(errors="replace"))


cdef int append_name(void *found, const char *name, uint64_t page) noexcept with gil:
    (<list>found).append(name.decode(errors="replace"))
    return 0


cdef int append_range(void *found, const vm_range_info *i) noexcept with gil:
    (<list>found).append((i.page, i.nr_pages, i.id, i.state, i.owner, i.shared, i.dirty))
    return 0
