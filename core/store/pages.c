/* SPDX-License-Identifier: MIT */
/*
 * Pages: memory of the system, shared and private. With headroom.c the only file that asks for it.
 *
 * One memfd and one mapping a region, however many blocks it has: no file names, no quota of /dev/shm, and nothing is left
 * when the last process goes. Discarding is MADV_REMOVE on the mapping.
 */
#include "store.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- shared ---- */

/* A memfd of that size, nothing of it touched; it can be neither shrunk nor grown by anybody, and opened anew
 * through /proc only by its owner. */
int vm__pages_create(const char *name, uint64_t bytes, int *fd)
{
    struct rlimit file_size;
    char full[sizeof "vmalloc:" + VM_REGION_NAME_BYTES_MAX]; /* check_options() (region.c) */
    if (getrlimit(RLIMIT_FSIZE, &file_size) == 0 && file_size.rlim_cur != RLIM_INFINITY && bytes > file_size.rlim_cur)
        return -EFBIG; /* ftruncate would raise SIGXFSZ */
    if (bytes > INT64_MAX)
        return -EFBIG;
    snprintf(full, sizeof full, "vmalloc:%s", name ? name : "");
    int made = vm__above_standard_streams(memfd_create(full, MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (made < 0)
        return -errno;
    if (fchmod(made, S_IRUSR | S_IWUSR) < 0 || ftruncate(made, (off_t)bytes) < 0
        || fcntl(made, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        int rc = -errno;
        close(made);
        return rc;
    }
    *fd = made;
    return 0;
}

/* Is it a region that nobody can shrink under us, and this user's (any, for root)? Its header is copied once: what is
 * checked is what is used. */
static int read_header(int fd, vm_header *h, uint64_t *file_bytes, bool *is_allowed)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    ssize_t n = pread(fd, h, sizeof *h, 0);
    if (n < 0)
        return -errno;
    int seals = fcntl(fd, F_GET_SEALS);
    bool is_sealed = seals >= 0 && seals & F_SEAL_SHRINK;
    if (n < (ssize_t)sizeof *h || !is_sealed)
        return n >= 8 && h->magic == VM_MAGIC ? -EUCLEAN : -ENOEXEC;
    *file_bytes = (uint64_t)st.st_size;
    *is_allowed = st.st_uid == geteuid() || geteuid() == 0;
    return 0;
}

int vm__pages_open(int fd, int *own, vm_header *h, uint64_t *file_bytes, bool *is_allowed)
{
    int rc = read_header(fd, h, file_bytes, is_allowed);
    if (rc)
        return rc;
    int made = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (made < 0)
        return -errno;
    *own = made;
    return 0;
}

/* Whether a new mapping is made resident at once, as after mlockall(MCL_FUTURE): then one that nobody touched is. */
static bool is_filled_when_mapped(void)
{
    size_t bytes = (size_t)vm__page_bytes();
    uint8_t is_there = 0;
    void *page = vm__private_pages(bytes, false);
    bool is_told = page && mincore(page, bytes, &is_there) == 0;
    if (page)
        vm__private_free(page, bytes);
    return is_told && is_there & 1;
}

/* What is locked is locked when it is touched: a region's size costs nothing until it is used. */
static int lock_when_touched(void *at, uint64_t bytes, int access)
{
    if (mlock2(at, bytes, MLOCK_ONFAULT) != 0)
        munlock(at, bytes);
    return mprotect(at, bytes, access);
}

/* Mapped at a multiple of VM_MAP_ALIGN, so that up to there an aligned page is an aligned address. */
int vm__pages_map(int fd, uint64_t bytes, bool readonly, void **base)
{
    uint64_t reserved = bytes + VM_MAP_ALIGN;
    uint8_t *all = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        return -errno;
    uint8_t *at = all + (VM_MAP_ALIGN - (uintptr_t)all % VM_MAP_ALIGN) % VM_MAP_ALIGN;
    int access = readonly ? PROT_READ : PROT_READ | PROT_WRITE;
    bool is_filled = is_filled_when_mapped();
    void *mapped = mmap(at, bytes, is_filled ? PROT_NONE : access, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0);
    if (mapped == MAP_FAILED || (is_filled && lock_when_touched(at, bytes, access) < 0)) {
        int rc = -errno;
        munmap(all, reserved);
        return rc;
    }
    uint64_t page_bytes = (uint64_t)sysconf(_SC_PAGESIZE), used = (bytes + page_bytes - 1) / page_bytes * page_bytes;
    if (at != all)
        munmap(all, (size_t)(at - all));
    munmap(at + used, (size_t)(all + reserved - (at + used)));
    madvise(at, bytes, MADV_DONTDUMP);
    *base = at;
    return 0;
}

void vm__pages_unmap(void *base, uint64_t bytes) { munmap(base, bytes); }

/* ---- without a mapping of the whole ---- */

int vm__pages_view(int fd, uint64_t offset, uint64_t bytes, bool readonly, vm_view *out)
{
    uint64_t start = offset - offset % vm__page_bytes();
    int access = readonly ? PROT_READ : PROT_READ | PROT_WRITE;
    void *base = mmap(NULL, offset - start + bytes, access, MAP_SHARED, fd, (off_t)start);
    if (base == MAP_FAILED)
        return -errno;
    *out = (vm_view){(uint8_t *)base + (offset - start), base, offset - start + bytes};
    return 0;
}

int vm__pages_keep_from_children(const vm_view *view)
{
    return madvise(view->base, view->bytes, MADV_DONTFORK) < 0 ? -errno : 0;
}

void vm__pages_unview(vm_view *view) { munmap(view->base, view->bytes); }

int vm__pages_read(int fd, uint64_t offset, uint64_t bytes, void *out)
{
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = pread(fd, (uint8_t *)out + done, bytes - done, (off_t)(offset + done));
        if (n == 0 || (n < 0 && errno != EINTR))
            return n == 0 ? -EIO : -errno;
        done += n > 0 ? (uint64_t)n : 0;
    }
    return 0;
}

/* ---- given back ---- */

#define LOCKED_PIECE_BYTES (64ull << 10)

static int discard_elsewhere(void *at, uint64_t bytes)
{
    void *again = mremap(at, 0, bytes, MREMAP_MAYMOVE);
    if (again == MAP_FAILED)
        return -errno;
    munlock(again, bytes);
    int rc = madvise(again, bytes, MADV_REMOVE) < 0 ? -errno : 0;
    munmap(again, bytes);
    return rc;
}

/* What is locked into memory (mlockall) cannot be given back through its own mapping; through a second one it can. That one is
 * locked too at first: in smaller pieces where RLIMIT_MEMLOCK, or RLIMIT_AS, leaves no room for the whole. */
static int discard_locked(void *at, uint64_t bytes)
{
    int rc = 0;
    for (uint64_t done = 0, piece = bytes; rc == 0 && done < bytes;) {
        uint64_t n = bytes - done < piece ? bytes - done : piece;
        rc = discard_elsewhere((uint8_t *)at + done, n);
        if (rc == 0) {
            done += n;
        } else if ((rc == -EAGAIN || rc == -ENOMEM) && piece > LOCKED_PIECE_BYTES) {
            uint64_t half = piece / 2;
            piece = half < LOCKED_PIECE_BYTES ? LOCKED_PIECE_BYTES : half - half % LOCKED_PIECE_BYTES;
            rc = 0;
        }
    }
    return rc;
}

/* A shared mapping's pages; they read as zeros afterwards. Idempotent. */
int vm__pages_remove(void *at, uint64_t bytes)
{
    VM_FAULT();
    if (madvise(at, bytes, MADV_REMOVE) == 0)
        return 0;
    return errno == EINVAL ? discard_locked(at, bytes) : -errno;
}

/* Return the pages to the system; they read as zeros afterwards. Through the mapping: a number may be another file's by
 * now. Idempotent. */
int vm__pages_discard(vm_region *r, uint64_t page, uint64_t nr_pages)
{
    if (r->map.flags & VM_FLAG_NO_DATA)
        return 0;
    return vm__pages_remove(r->map.data + (page << r->map.page_shift), nr_pages << r->map.page_shift);
}

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* An atomic that changes nothing: the page is written to, and nobody's bytes are. */
static void touch(vm_region *r, uint64_t page, uint64_t nr_pages)
{
    uint64_t granule = 1ull << r->map.page_shift;
    for (uint8_t *at = r->map.data + (page << r->map.page_shift); nr_pages--; at += granule)
        __atomic_fetch_or(at, 0, __ATOMIC_RELAXED);
}

int vm__pages_populate(vm_region *r, uint64_t page, uint64_t nr_pages)
{
    void *at = r->map.data + (page << r->map.page_shift);
    if (madvise(at, nr_pages << r->map.page_shift, MADV_POPULATE_WRITE) == 0)
        return 0;
    if (errno != EINVAL)
        return -errno;
    touch(r, page, nr_pages);
    return 0;
}

int vm__pages_want_huge(vm_region *r)
{
    if (r->map.flags & VM_FLAG_NO_DATA)
        return 0;
    return madvise(r->map.data, r->map.nr_pages << r->map.page_shift, MADV_HUGEPAGE) == 0 ? 0 : -errno;
}

/* Without a number to ask through: what is not free may be resident. */
uint64_t vm__pages_resident_bytes(const vm_region *r)
{
    struct stat st;
    if (vm__is_ours(r, r->fd) && fstat(r->fd, &st) == 0 && vm__is_ours(r, r->fd))
        return (uint64_t)st.st_blocks * 512;
    uint64_t free_pages = VM_RELAXED(&r->map.h->free_pages);
    return free_pages < r->map.nr_pages ? (r->map.nr_pages - free_pages) << r->map.page_shift : 0;
}

bool vm__pages_resident(const void *at, uint64_t bytes, uint8_t *is_there)
{
    return (uintptr_t)at % vm__page_bytes() == 0 && mincore((void *)at, bytes, is_there) == 0;
}

uint64_t vm__page_bytes(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }
uint64_t vm__memory_bytes(void)
{
    static uint64_t known;
    uint64_t n = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!n) {
        n = (uint64_t)sysconf(_SC_PHYS_PAGES) * vm__page_bytes();
        __atomic_store_n(&known, n, __ATOMIC_RELAXED);
    }
    return n;
}

/* ---- private ---- */

void *vm__private_pages(size_t bytes, bool wiped)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (!wiped || madvise(p, bytes, MADV_WIPEONFORK) == 0)
        return p;
    munmap(p, bytes);
    return NULL;
}

void vm__private_free(void *p, size_t bytes) { munmap(p, bytes); }

void vm__private_forget(void *p, size_t bytes)
{
    if (bytes % vm__page_bytes() == 0) /* else the rest of its last page is somebody's */
        madvise(p, bytes, MADV_DONTNEED);
}

int vm__random(void *out, size_t bytes) { return getrandom(out, bytes, 0) == (ssize_t)bytes ? 0 : -EIO; }
