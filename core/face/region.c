/* SPDX-License-Identifier: MIT */
/*
 * Regions: create, attach, detach, describe.
 *
 * Creating writes the header, one head word and the index's right edge; everything else is zero and
 * means "nothing yet" (layout.h), so a region of any size costs a few pages. Attaching trusts
 * nothing in the header before it was checked against the file.
 */
#include "face.h"

#define WIPED_BYTES 4096

static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ---- the header ---- */

static int check_options(const vm_options *o)
{
    if (o->nr_pages == 0 || o->nr_pages > VM_PAGES_MAX || !vm__pool_design((uint32_t)o->pools))
        return -EINVAL;
    if (o->granule_bytes && (!vm__is_power_of_two(o->granule_bytes) || o->huge))
        return -EINVAL;
    if (!(o->lease_ttl_s >= 0 && o->lease_ttl_s < 1e9))
        return -EINVAL;
    if (o->nr_nodes > VM_NODES_MAX || o->nr_threads > VM_THREADS_MAX || o->nr_processes > VM_PROCESSES_MAX)
        return -EINVAL;
    if (o->name && strlen(o->name) > VM_REGION_NAME_BYTES_MAX)
        return -EINVAL;
    return 0;
}

static uint32_t most_nodes(void)
{
    uint32_t cpus = vm__configured_cpus();
    return cpus < VM_NODES_MAX ? cpus : VM_NODES_MAX;
}

/* Only where there are pages to fault in, and not in the kernel's designs. */
static bool has_groups(bool no_data, uint32_t pools) { return !no_data && vm__pool_design(pools)->has_magazines; }

static uint32_t nr_groups(const vm_options *o, uint32_t nodes_each)
{
    uint32_t most = VM_NODES_OF_ALL_MAX / nodes_each;
    if (!has_groups(o->granule_bytes != 0, (uint32_t)o->pools))
        return 1;
    return most < VM_PROCESS_GROUPS ? most : VM_PROCESS_GROUPS;
}

static uint32_t most_slabs(void)
{
    uint32_t cpus = vm__configured_cpus();
    return cpus < VM_SLAB_CPUS_MAX ? cpus : VM_SLAB_CPUS_MAX;
}

/* Slots for processes: whole words of holders, see docs/decisions/0042. */
static uint32_t processes_of(const vm_options *o)
{
    uint32_t by_size = o->nr_pages < VM_PROCESSES_MANY_PAGES ? VM_PROCESSES_FEW : VM_PROCESSES_MAX;
    return vm__whole_processes(o->nr_processes ? o->nr_processes : by_size);
}

static int describe_new(const vm_options *o, vm_header *h)
{
    uint64_t page_bytes = vm__page_bytes();
    memset(h, 0, sizeof *h);
    h->magic = VM_MAGIC;
    h->format = VM_FORMAT;
    strncpy(h->version, VM_VERSION, sizeof h->version - 1);
    h->page_bytes = (uint32_t)page_bytes;
    h->nr_pages = o->nr_pages;
    h->granule_bytes = o->granule_bytes ? o->granule_bytes : page_bytes;
    h->base = o->base;
    h->limit_pages = o->limit_pages;
    h->lazy_pages_fixed = o->lazy_pages_max;
    h->pools = (uint32_t)o->pools;
    h->flags = (o->granule_bytes ? VM_FLAG_NO_DATA : 0) | (o->keep_on_death ? VM_FLAG_KEEP : 0)
               | (o->huge ? VM_FLAG_HUGE : 0) | (o->hardened ? VM_FLAG_HARDENED : 0);
    uint32_t nodes_each = o->nr_nodes ? o->nr_nodes : most_nodes();
    h->nr_groups = nr_groups(o, nodes_each);
    h->nr_nodes = nodes_each * h->nr_groups;
    h->nr_processes = processes_of(o);
    h->nr_threads = h->nr_processes + 1 + (o->nr_threads ? o->nr_threads : VM_THREADS_DEFAULT);
    h->nr_cpus = vm__pool_design(h->pools)->kept->take_here ? most_slabs() : 0;
    h->next_id = VM_ID_BLOCK; /* 0 is never an id */
    h->lease_ttl_ns = (uint64_t)((o->lease_ttl_s > 0 ? o->lease_ttl_s : VM_LEASE_TTL_S) * 1e9);
    vm__lay_out(h);
    return vm__random(h->id, sizeof h->id);
}

static bool is_size_of_slots(const vm_header *h)
{
    return h->nr_processes && h->nr_processes <= VM_PROCESSES_MAX
           && h->nr_processes == vm__whole_processes(h->nr_processes) && h->nr_threads > h->nr_processes
           && h->nr_threads - h->nr_processes - 1 <= VM_THREADS_MAX;
}

/* Everything that could lead a reader astray is compared with what the sizes imply. */
int vm__check_header(const vm_header *h, uint64_t file_bytes)
{
    vm_header expected = *h;
    if (h->magic != VM_MAGIC)
        return -ENOEXEC;
    if (h->format != VM_FORMAT || h->page_bytes != vm__page_bytes())
        return -EPROTO;
    if (!h->ready || h->nr_pages == 0 || h->nr_pages > VM_PAGES_MAX || h->nr_groups == 0
        || h->nr_groups > VM_PROCESS_GROUPS || h->nr_nodes == 0 || h->nr_nodes % h->nr_groups
        || h->nr_nodes / h->nr_groups > VM_NODES_MAX || h->nr_nodes > VM_NODES_OF_ALL_MAX
        || h->nr_cpus > VM_SLAB_CPUS_MAX || !is_size_of_slots(h) || !vm__is_power_of_two(h->granule_bytes)
        || (!(h->flags & VM_FLAG_NO_DATA) && h->granule_bytes != h->page_bytes) || !vm__pool_design(h->pools)
        || (h->nr_groups > 1 && !has_groups(h->flags & VM_FLAG_NO_DATA, h->pools)))
        return -EUCLEAN;
    vm__lay_out(&expected);
    return vm__same_layout(h, &expected) && h->total_bytes == file_bytes ? 0 : -EUCLEAN;
}

/* ---- create and attach ---- */

/* This process's own view of a region whose header was checked. */
static void point(vm_region *r, void *base, const vm_header *h)
{
    vm__point(&r->map, base, h);
    r->design = vm__pool_design(h->pools);
}

static int prepare_private(vm_region *r)
{
    r->wiped = vm__private_pages(WIPED_BYTES, true);
    if (!r->wiped)
        return -ENOMEM;
    *r->wiped = 1;
    r->attachment = vm__new_attachment();
    r->hit = (vm_hit_region){0, r->map.heads, r->map.nr_pages};
    vm__set_hit_keys(r);
    r->lock_timeout_ns = VM_LOCK_TIMEOUT_S * 1000000000ull;
    r->can_drain = vm__can_drain();
    pthread_mutex_init(&r->holder_mutex, NULL);
    pthread_mutex_init(&r->recover_mutex, NULL);
    pthread_mutex_init(&r->common_mutex, NULL);
    pthread_mutex_init(&r->tick_mutex, NULL);
    return 0;
}

static void forget(vm_region *r)
{
    free(r->inheritance.range);
    vm__watch_free(r);
    vm__forget_marks(r);
    vm__doubts_free(r);
    if (r->references)
        vm__private_free(r->references, r->map.nr_pages * sizeof *r->references);
    if (r->wiped)
        vm__private_free((void *)r->wiped, WIPED_BYTES);
    vm__untie(r, &r->tie);
    if (r->map.h)
        vm__pages_unmap(r->map.h, r->map.mapped_bytes);
    vm__close_ours(r, r->probe_fd);
    vm__close_ours(r, r->fd);
    free(r);
}

static void go_live(vm_region *r, const void *unused)
{
    (void)unused;
    uint64_t *state = &r->map.processes[r->process].state;
    VM_STORE(state, VM_ACQUIRE(state) >> 32 << 32 | VM_PROCESS_LIVE);
}

static int finish_join(vm_region *r, int joined)
{
    if (joined <= 0)
        return joined;
    vm_thread *t = vm__thread(r);
    if (!t)
        return vm__thread_error(r);
    /* No recovery finds the dead one any more. What cannot be had is left to vm_recover(). */
    vm__mend_tables(t, 0);
    int rc = vm__purge_scan(t, 0, go_live, NULL);
    if (rc == 0) /* LIVE by now: one who is taken for dead would not end it alone */
        vm__recording_end_of_dead(r, false);
    return rc;
}

/* The rest of create and attach: private state, a process slot, what the dead left. */
static int enter_region(vm_region *r, vm_region **out)
{
    int rc = prepare_private(r);
    if (rc)
        return rc;
    if (r->map.flags & VM_FLAG_HUGE)
        r->huge_error = -vm__pages_want_huge(r);
    pthread_once(&once, vm__register_fork);
    int joined = vm__register(r);
    if (joined < 0)
        return joined;
    rc = finish_join(r, joined);
    vm_thread *t = rc < 0 ? NULL : vm__thread(r);
    if (t) {
        vm__enter(t);
        vm__recover_dead(t, VM_NO_WAIT, NULL); /* best effort: whoever waits for them tries again */
        vm__leave(t);
    }
    if (rc < 0) {
        vm__unregister(r);
        return rc;
    }
    *out = r;
    return 0;
}

static vm_region *new_region(void)
{
    vm_region *r = calloc(1, sizeof *r);
    if (r)
        r->fd = r->probe_fd = r->tie.fd = r->heir.tie.fd = -1;
    return r;
}

static void write_header(vm_region *r, const vm_header *h)
{
    memcpy(r->map.h, h, sizeof *h);
    VM_PUT(&r->map.heads[0].word, vm__word(VM_FREE, 0, r->map.nr_pages, 0, 0));
    VM_PUT(&r->map.h->free_pages, r->map.nr_pages);
    vm__index_init(&r->map);
    VM_STORE(&r->map.h->ready, 1);
}

/* Where files may not be as long as one with rings (RLIMIT_FSIZE), without. */
static int create_file(const char *name, vm_header *h, int *fd)
{
    int rc = vm__pages_create(name, h->total_bytes, fd);
    if (rc != -EFBIG)
        return rc;
    h->flags |= VM_FLAG_NO_RINGS;
    vm__lay_out(h);
    return vm__pages_create(name, h->total_bytes, fd);
}

int vm_create(const vm_options *options, vm_region **out)
{
    vm_header h;
    int rc = check_options(options);
    if (rc == 0)
        rc = describe_new(options, &h);
    if (rc)
        return rc;
    vm_region *r = new_region();
    void *base = NULL;
    if (!r)
        return -ENOMEM;
    rc = create_file(options->name, &h, &r->fd);
    if (rc == 0)
        rc = vm__note_file(r);
    if (rc == 0)
        rc = vm__pages_map(r->fd, vm__mapped_bytes(&h), false, &base);
    if (rc == 0) {
        point(r, base, &h);
        write_header(r, &h);
        rc = enter_region(r, out);
    }
    if (rc)
        forget(r);
    return rc;
}

/* The rest of a read-only attach: nobody learns of it. */
static int look_in(vm_region *r, vm_region **out)
{
    int rc = prepare_private(r);
    r->process = VM_PROCESSES;
    if (rc == 0)
        *out = r;
    return rc;
}

static int attach(int fd, bool readonly, bool is_given, vm_region **out)
{
    vm_header h;
    uint64_t file_bytes;
    bool is_allowed;
    vm_region *r = new_region();
    void *base = NULL;
    if (!r)
        return -ENOMEM;
    r->readonly = readonly;
    int rc = vm__pages_open(fd, &r->fd, &h, &file_bytes, &is_allowed);
    if (rc == 0)
        rc = vm__note_file(r);
    if (rc == 0)
        rc = vm__check_header(&h, file_bytes);
    if (rc == 0 && !is_allowed && !is_given)
        rc = -EACCES;
    if (rc == 0)
        rc = vm__pages_map(r->fd, vm__mapped_bytes(&h), readonly, &base);
    if (rc == 0) {
        vm__lay_out(&h); /* level offsets are ours, not the file's */
        point(r, base, &h);
        rc = readonly ? look_in(r, out) : enter_region(r, out);
    }
    if (rc)
        forget(r);
    return rc;
}

int vm_attach(int fd, vm_region **out) { return attach(fd, false, false, out); }
int vm_attach_readonly(int fd, vm_region **out) { return attach(fd, true, false, out); }
int vm_attach_given(int fd, bool readonly, vm_region **out) { return attach(fd, readonly, true, out); }

/* By a descriptor that is nobody's but ours, and is closed. */
static int attach_found(int fd, bool is_given, vm_region **out)
{
    uint64_t inode = 0, device = 0;
    if (fd < 0)
        return fd;
    int rc = vm__identify(fd, &inode, &device);
    if (rc == 0)
        rc = attach(fd, false, is_given, out);
    vm__close_same(fd, inode, device);
    return rc;
}

int vm_attach_named(const char *which, vm_region **out) { return attach_found(vm__open_named(which), false, out); }

int vm_attach_served(const char *path, const uint32_t *uids, size_t nr_uids, vm_region **out)
{
    bool is_given = false;
    int fd = vm__open_served(path, uids, nr_uids, &is_given);
    return attach_found(fd, is_given, out);
}

/* ---- detach ---- */

static void release_own_slot(vm_region *r, const void *unused)
{
    (void)unused;
    vm__free_process(r, r->process); /* nobody joins on it before our OFD lock is gone */
}

/* Reclaims what only this process held, as if it had died, then gives the slots back. */
int vm_detach(vm_region *r)
{
    vm__helper_end(r);
    vm_thread *t = vm__thread(r);
    if (t && vm__health(r) == 0) {
        uint64_t state = VM_ACQUIRE(&r->map.processes[r->process].state);
        vm__recording_end_of_dead(r, true);
        vm__give_up_slot(t);
        vm__start_leaving(r, t);
        vm__enter(t);
        VM_STORE(&r->map.processes[r->process].state, state >> 32 << 32 | VM_PROCESS_DYING);
        vm__purge_scan(t, 0, release_own_slot, NULL);
        vm__leave(t);
    }
    vm__unregister(r);
    forget(r);
    return 0;
}

/* ---- describe ---- */

/* A number that is the region's now. If the program closed ours, a new one. */
int vm_fd(const vm_region *r) { return vm__fd((vm_region *)r); }

void *vm_pointer(const vm_region *r, uint64_t page)
{
    return r->map.data && page < r->map.nr_pages ? r->map.data + (page << r->map.page_shift) : NULL;
}

uint64_t vm_pages_of(const vm_region *r, uint64_t bytes)
{
    return (bytes >> r->map.page_shift) + ((bytes & ((1ull << r->map.page_shift) - 1)) != 0);
}

void vm_describe(const vm_region *r, vm_info *out)
{
    const vm_header *h = r->map.h;
    *out = (vm_info){.nr_pages = r->map.nr_pages,
                     .page_bytes = h->page_bytes,
                     .granule_bytes = 1ull << r->map.page_shift,
                     .base = h->base,
                     .total_bytes = r->map.mapped_bytes,
                     .limit_pages = h->limit_pages,
                     .lazy_pages_max = vm__lazy_pages_max(r),
                     .floor_pages = VM_RELAXED(&h->floor_pages),
                     .huge = r->map.flags & VM_FLAG_HUGE,
                     .huge_error = r->huge_error,
                     .hardened = r->map.flags & VM_FLAG_HARDENED,
                     .nr_nodes = r->map.nodes_each,
                     .nr_processes = r->map.nr_processes,
                     .nr_threads = r->map.nr_threads - vm__first_thread(r),
                     .process_slot = r->process,
                     .format = h->format,
                     .flags = r->map.flags,
                     .pools = (vm_pools)r->map.pools};
    memcpy(out->id, h->id, sizeof out->id);
}

const char *vm_pools_name(vm_pools pools)
{
    const vm_pool_design *design = vm__pool_design(pools);
    return design ? design->name : NULL;
}
