/* SPDX-License-Identifier: MIT */
/*
 * Regions: create, attach, detach, describe.
 *
 * Creating writes the header, one head word and the index's right edge; everything else is zero and
 * means "nothing yet" (layout.h), so a region of any size costs a few pages. Attaching trusts
 * nothing in the header before it was checked against the file.
 */
#include "internal.h"

#include <fcntl.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEFAULT_THREADS 1024
#define DEFAULT_LOCK_TIMEOUT_NS 10000000000ull
#define DEFAULT_LEASE_TTL_S 60.0
/* By how much one thread's magazine caps may grow: the larger of the two. It bounds a hoard that only
 * demand fills and that a neighbour in need may drain. */
#define BUDGET_BYTES (64ull << 20)
#define BUDGET_SHARE 16 /* of the region */

static uint64_t align_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

static uint32_t cpu_count(void)
{
    long n = sysconf(_SC_NPROCESSORS_CONF);
    return n < 1 ? 1 : n > VM_NODES_MAX ? VM_NODES_MAX : (uint32_t)n;
}

/* Where everything lies, from the sizes alone: creator and attacher compute the same. */
static void lay_out(vm_header *h)
{
    uint64_t at = align_up(sizeof *h, 4096), nr = align_up(h->nr_pages, VM_LEAF_PAGES) / VM_LEAF_PAGES, index = 0;
    h->off_processes = at;
    at = align_up(at + VM_PROCESSES * sizeof(vm_process), 4096);
    h->off_nodes = at;
    at = align_up(at + h->nr_nodes * sizeof(vm_node), 4096);
    h->off_names = at;
    at = align_up(at + VM_NAMES * sizeof(vm_name), 4096);
    h->off_leases = at;
    at = align_up(at + VM_LEASES * sizeof(vm_lease_entry), 4096);
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
    bool has_data = !(h->flags & VM_FLAG_NO_DATA);
    h->off_data = has_data ? align_up(at, VM_MAP_ALIGN) : at;
    h->total_bytes = h->off_data + (has_data ? h->nr_pages * h->granule_bytes : 0);
}

static bool same_layout(const vm_header *a, const vm_header *b)
{
    return a->off_processes == b->off_processes && a->off_nodes == b->off_nodes && a->off_names == b->off_names
           && a->off_leases == b->off_leases && a->off_threads == b->off_threads && a->off_bits == b->off_bits && a->off_summaries == b->off_summaries
           && a->off_heads == b->off_heads && a->off_sharings == b->off_sharings && a->off_data == b->off_data
           && a->nr_levels == b->nr_levels && a->total_bytes == b->total_bytes;
}

static bool is_power_of_two(uint64_t n) { return n && !(n & (n - 1)); }

static int check_options(const vm_options *o)
{
    if (o->nr_pages == 0 || o->nr_pages > VM_PAGES_MAX || (unsigned)o->pools > VM_POOLS_MAGAZINE)
        return -EINVAL;
    if (o->granule_bytes && !is_power_of_two(o->granule_bytes))
        return -EINVAL;
    if (!(o->lease_ttl_s >= 0 && o->lease_ttl_s < 1e9))
        return -EINVAL;
    if (o->nr_nodes > VM_NODES_MAX || o->nr_threads > VM_THREADS_MAX - VM_PROCESSES)
        return -EINVAL;
    return 0;
}

static int describe_new(const vm_options *o, vm_header *h)
{
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
    memset(h, 0, sizeof *h);
    h->magic = VM_MAGIC;
    h->format = VM_FORMAT;
    h->page_bytes = (uint32_t)page_bytes;
    h->nr_pages = o->nr_pages;
    h->granule_bytes = o->granule_bytes ? o->granule_bytes : page_bytes;
    h->base = o->base;
    h->limit_pages = o->limit_pages;
    h->lazy_pages_fixed = o->lazy_pages_max;
    h->pools = (uint32_t)o->pools;
    h->flags = (o->pthread_locks ? VM_FLAG_PTHREAD : 0) | (o->granule_bytes ? VM_FLAG_NO_DATA : 0)
               | (o->keep_on_death ? VM_FLAG_KEEP : 0);
    h->nr_nodes = o->nr_nodes ? o->nr_nodes : cpu_count();
    h->nr_threads = VM_PROCESSES + (o->nr_threads ? o->nr_threads : DEFAULT_THREADS);
    h->next_id = VM_ID_BLOCK; /* 0 is never an id */
    h->lease_ttl_ns = (uint64_t)((o->lease_ttl_s > 0 ? o->lease_ttl_s : DEFAULT_LEASE_TTL_S) * 1e9);
    lay_out(h);
    return getrandom(h->id, sizeof h->id, 0) == sizeof h->id ? 0 : -EIO;
}

/* Fill the process's own view; the header was checked. */
static void point(vm_region *r, uint8_t *base, const vm_header *h)
{
    r->h = (vm_header *)base;
    r->processes = (vm_process *)(base + h->off_processes);
    r->nodes = (vm_node *)(base + h->off_nodes);
    r->names = (vm_name *)(base + h->off_names);
    r->leases = (vm_lease_entry *)(base + h->off_leases);
    r->slots = (vm_slot *)(base + h->off_threads);
    r->bits = (uint64_t *)(base + h->off_bits);
    r->summaries = (vm_summary *)(base + h->off_summaries);
    r->heads = (vm_head *)(base + h->off_heads);
    r->sharings = (vm_sharing *)(base + h->off_sharings);
    r->flags = h->flags;
    r->data = h->flags & VM_FLAG_NO_DATA ? NULL : base + h->off_data;
    r->nr_pages = h->nr_pages;
    r->nr_nodes = h->nr_nodes;
    r->nr_threads = h->nr_threads;
    r->nr_levels = h->nr_levels;
    r->pools = h->pools;
    r->mapped_bytes = h->total_bytes;
    r->data_offset = h->off_data;
    r->page_shift = (uint32_t)__builtin_ctzll(h->granule_bytes);
    r->budget_pages = BUDGET_BYTES >> r->page_shift;
    if (r->budget_pages < h->nr_pages / BUDGET_SHARE)
        r->budget_pages = h->nr_pages / BUDGET_SHARE;
    if (r->budget_pages < VM_POOL_PAGES_MAX)
        r->budget_pages = VM_POOL_PAGES_MAX;
    uint64_t nr = align_up(h->nr_pages, VM_LEAF_PAGES) / VM_LEAF_PAGES;
    for (uint32_t level = 0; level < h->nr_levels; level++, nr = (nr + VM_FANOUT - 1) / VM_FANOUT) {
        r->level_nr[level] = nr;
        r->level_offset[level] = h->level_offset[level];
    }
}

static bool register_membarrier(void)
{
    return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) == 0;
}

static int prepare_private(vm_region *r)
{
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return -errno;
    if (madvise(page, 4096, MADV_WIPEONFORK) < 0) {
        munmap(page, 4096);
        return -errno;
    }
    r->wiped = page;
    *r->wiped = 1;
    r->fast_serial = r->serial = vm__new_serial();
    r->lock_timeout_ns = DEFAULT_LOCK_TIMEOUT_NS;
    r->can_drain = register_membarrier();
    pthread_mutex_init(&r->holder_mutex, NULL);
    pthread_mutex_init(&r->recover_mutex, NULL);
    pthread_mutex_init(&r->common_mutex, NULL);
    return 0;
}

static void forget(vm_region *r)
{
    free(r->inheritance.range);
    if (r->references)
        munmap(r->references, r->nr_pages * sizeof *r->references);
    if (r->wiped)
        munmap((void *)r->wiped, 4096);
    if (r->h)
        munmap(r->h, r->mapped_bytes);
    if (r->lock_fd > 0) /* 0 is never ours: see vm_attach() */
        close(r->lock_fd);
    if (r->fd > 0)
        close(r->fd);
    free(r);
}

/* The rest of create and attach: private state, a process slot, what the dead left. */
static int enter_region(vm_region *r, vm_region **out)
{
    int rc = prepare_private(r);
    if (rc)
        return rc;
    int joined = vm__register(r);
    if (joined < 0)
        return joined;
    rc = vm__finish_join(r, joined);
    vm_thread *t = rc < 0 ? NULL : vm__thread(r);
    if (t)
        vm__recover_dead(r, t, VM_NO_WAIT, NULL); /* best effort: whoever waits for them tries again */
    if (rc < 0) {
        vm__unregister(r);
        return rc;
    }
    *out = r;
    return 0;
}

static void write_header(vm_region *r, const vm_header *h)
{
    memcpy(r->h, h, sizeof *h);
    vm__lock_init(r, &r->h->purge_lock);
    vm__lock_init(r, &r->h->space_lock);
    vm__lock_init(r, &r->h->names_lock);
    vm__lock_init(r, &r->h->lease_lock);
    for (uint32_t i = 0; r->flags & VM_FLAG_PTHREAD && i < r->nr_nodes; i++)
        vm__lock_init(r, &r->nodes[i].pool_lock);
    VM_PUT(&r->heads[0].word, vm__word(VM_FREE, 0, r->nr_pages, 0, 0));
    VM_PUT(&r->h->free_pages, r->nr_pages);
    vm__index_init(r);
    VM_STORE(&r->h->ready, 1);
}

int vm_create(const vm_options *options, vm_region **out)
{
    vm_header h;
    int rc = check_options(options);
    if (rc == 0)
        rc = describe_new(options, &h);
    if (rc)
        return rc;
    vm_region *r = calloc(1, sizeof *r);
    void *base = NULL;
    if (!r)
        return -ENOMEM;
    rc = vm__pages_create(options->name, h.total_bytes, &r->fd);
    if (rc == 0)
        rc = vm__pages_map(r->fd, h.total_bytes, false, &base);
    if (rc == 0) {
        point(r, base, &h);
        write_header(r, &h);
        rc = enter_region(r, out);
    }
    if (rc)
        forget(r);
    return rc;
}

/* Everything that could lead a reader astray is compared with what the sizes imply. */
static int check_header(const vm_header *h, uint64_t file_bytes)
{
    vm_header expected = *h;
    if (h->magic != VM_MAGIC)
        return -ENOEXEC;
    if (h->format != VM_FORMAT || h->page_bytes != (uint64_t)sysconf(_SC_PAGESIZE))
        return -EPROTO;
    if (!h->ready || h->nr_pages == 0 || h->nr_pages > VM_PAGES_MAX || h->nr_nodes == 0 || h->nr_nodes > VM_NODES_MAX
        || h->nr_threads < VM_PROCESSES || h->nr_threads > VM_THREADS_MAX || !is_power_of_two(h->granule_bytes)
        || (!(h->flags & VM_FLAG_NO_DATA) && h->granule_bytes != h->page_bytes) || h->pools > VM_POOLS_MAGAZINE)
        return -EUCLEAN;
    lay_out(&expected);
    return same_layout(h, &expected) && h->total_bytes == file_bytes ? 0 : -EUCLEAN;
}

/* Is it a region, of this user (of any, for root), that nobody can shrink under us? Its header is copied once:
 * what is checked is what is used. */
static int read_header(int fd, vm_header *h)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    ssize_t n = pread(fd, h, sizeof *h, 0);
    if (n < 0)
        return -errno;
    int seals = fcntl(fd, F_GET_SEALS);
    if (n < (ssize_t)sizeof *h || seals < 0 || !(seals & F_SEAL_SHRINK))
        return n >= 8 && h->magic == VM_MAGIC ? -EUCLEAN : -ENOEXEC;
    int rc = check_header(h, (uint64_t)st.st_size);
    if (rc == 0 && st.st_uid != geteuid() && geteuid() != 0)
        rc = -EACCES;
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

static int attach(int fd, bool readonly, vm_region **out)
{
    vm_header h;
    int rc = read_header(fd, &h);
    if (rc)
        return rc;
    vm_region *r = calloc(1, sizeof *r);
    void *base = NULL;
    if (!r)
        return -ENOMEM;
    r->readonly = readonly;
    r->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    rc = r->fd < 0 ? -errno : vm__pages_map(r->fd, h.total_bytes, readonly, &base);
    if (rc == 0) {
        point(r, base, &h);
        lay_out(&h); /* level offsets are ours, not the file's */
        memcpy(r->level_offset, h.level_offset, sizeof r->level_offset);
        rc = readonly ? look_in(r, out) : enter_region(r, out);
    }
    if (rc)
        forget(r);
    return rc;
}

int vm_attach(int fd, vm_region **out) { return attach(fd, false, out); }
int vm_attach_readonly(int fd, vm_region **out) { return attach(fd, true, out); }

static void release_own_slot(vm_region *r, const void *unused)
{
    (void)unused;
    vm__free_process(r, r->process); /* nobody joins on it before our OFD lock is gone */
}

/* Reclaims what only this process held, as if it had died, then gives the slots back. */
int vm_detach(vm_region *r)
{
    vm_thread *t = vm__thread(r);
    if (t && !VM_LOAD(&r->h->corrupt)) {
        uint64_t state = VM_LOAD(&r->processes[r->process].state);
        vm__give_up_slot(r, t);
        vm__start_leaving(r, t);
        vm__enter(t);
        VM_STORE(&r->processes[r->process].state, state >> 32 << 32 | VM_PROCESS_DYING);
        vm__purge_scan(r, t, 0, release_own_slot, NULL);
        vm__leave(t);
    }
    vm__unregister(r);
    forget(r);
    return 0;
}

int vm_fd(const vm_region *r) { return r->fd; }

void *vm_pointer(const vm_region *r, uint64_t page)
{
    return r->data && page < r->nr_pages ? r->data + (page << r->page_shift) : NULL;
}

uint64_t vm_pages_of(const vm_region *r, uint64_t bytes)
{
    return (bytes >> r->page_shift) + ((bytes & ((1ull << r->page_shift) - 1)) != 0);
}

void vm_describe(const vm_region *r, vm_info *out)
{
    const vm_header *h = r->h;
    *out = (vm_info){.nr_pages = r->nr_pages,
                     .page_bytes = h->page_bytes,
                     .granule_bytes = 1ull << r->page_shift,
                     .base = h->base,
                     .total_bytes = r->mapped_bytes,
                     .limit_pages = h->limit_pages,
                     .lazy_pages_max = vm__lazy_pages_max(r),
                     .nr_nodes = r->nr_nodes,
                     .nr_threads = r->nr_threads - VM_PROCESSES,
                     .process_slot = r->process,
                     .format = h->format,
                     .flags = r->flags,
                     .pools = (vm_pools)r->pools};
    memcpy(out->id, h->id, sizeof out->id);
}

void vm_fail_every(vm_region *r, uint64_t nth)
{
    r->fail_every = nth;
    r->nr_requests = 0;
    r->fast_serial = nth ? 0 : r->serial;
}
