/* SPDX-License-Identifier: MIT */
/*
 * Windows: receive without a mapping of the region and without a process slot.
 *
 * For a process that can have neither: all slots are taken, its address space is limited, or it cannot open the region a
 * second time. Of the region it maps single pages for a moment, and what it receives is copied out through a
 * descriptor. It takes no lock and holds no range: the lease keeps the range meanwhile, and where there is none the range's
 * word and id are compared before and after. When it has its copy, it writes the lease's own id into the entry. Whoever next
 * has lease_lock for it ends such a lease (lease.c). The mark names the lease, so late it marks nothing.
 */
#include "face.h"

struct vm_window {
    vm_header h; /* as checked once; offsets are ours */
    int fd;      /* of the file that it was then */
    uint64_t inode, device;
};

int vm_window_open(int fd, bool is_given, vm_window **out)
{
    uint64_t file_bytes;
    bool is_allowed;
    vm_window *w = calloc(1, sizeof *w);
    if (!w)
        return -ENOMEM;
    w->fd = -1;
    int rc = vm__pages_open(fd, &w->fd, &w->h, &file_bytes, &is_allowed);
    if (rc == 0)
        rc = vm__identify(w->fd, &w->inode, &w->device);
    if (rc == 0)
        rc = vm__check_header(&w->h, file_bytes);
    if (rc == 0 && !is_allowed && !is_given)
        rc = -EACCES;
    if (rc == 0 && w->h.flags & VM_FLAG_NO_DATA)
        rc = -EINVAL;
    if (rc) {
        vm_window_close(w);
        return rc;
    }
    *out = w;
    return 0;
}

void vm_window_close(vm_window *w)
{
    vm__close_same(w->fd, w->inode, w->device);
    free(w);
}

int vm_window_fd(const vm_window *w) { return w->fd; }

/* Is it the shared range `id`, of at least so many bytes? One that is just being freed is still as it was. */
static bool is_there(const vm_window *w, const vm_head *head, uint64_t page, uint64_t id, uint64_t bytes)
{
    vm_word word = VM_ACQUIRE(&head->word);
    uint64_t len = vm__len(word);
    return vm__is_shared(word) && VM_ACQUIRE(&head->aux) == id && len <= w->h.nr_pages - page
           && bytes <= len * w->h.page_bytes;
}

static int read_range(const vm_window *w, uint64_t page, uint64_t id, uint64_t at, uint64_t bytes, void *out)
{
    vm_view view;
    uint64_t data = w->h.off_data + page * w->h.page_bytes;
    int rc = vm__pages_view(w->fd, w->h.off_heads + page * sizeof(vm_head), sizeof(vm_head), true, &view);
    if (rc)
        return rc;
    rc = is_there(w, view.at, page, id, at + bytes) ? vm__pages_read(w->fd, data + at, bytes, out) : -ESTALE;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (rc == 0 && !is_there(w, view.at, page, id, at + bytes))
        rc = -ESTALE;
    vm__pages_unview(&view);
    return rc;
}

/* A plain store, into another lease's entry at the worst: that one is kept for longer. */
void vm_window_keep(const vm_window *w, uint64_t lease)
{
    vm_view view;
    uint64_t at = w->h.off_leases + lease % VM_LEASES_MAX * sizeof(vm_lease_entry);
    if (vm__pages_view(w->fd, at, sizeof(vm_lease_entry), false, &view) != 0)
        return;
    vm_lease_entry *e = view.at;
    if (VM_ACQUIRE(&e->id) == lease)
        VM_STORE(&e->channel, 0);
    vm__pages_unview(&view);
}

void vm_window_done(const vm_window *w, uint64_t lease)
{
    vm_view entry, header;
    uint64_t at = w->h.off_leases + lease % VM_LEASES_MAX * sizeof(vm_lease_entry);
    if (vm__pages_view(w->fd, at, sizeof(vm_lease_entry), false, &entry) != 0)
        return;
    vm_lease_entry *e = entry.at;
    if (VM_ACQUIRE(&e->id) == lease && vm__pages_view(w->fd, 0, sizeof(vm_header), false, &header) == 0) {
        VM_STORE(&e->read_id, lease);
        VM_STORE(&((vm_header *)header.at)->leases_read, 1);
        vm__pages_unview(&header);
    }
    vm__pages_unview(&entry);
}

int vm_window_read(const vm_window *w, uint64_t page, uint64_t id, uint64_t at, uint64_t bytes, void *out)
{
    if (page >= w->h.nr_pages || at > INT64_MAX || bytes > INT64_MAX - at)
        return -ESTALE;
    return read_range(w, page, id, at, bytes, out);
}
