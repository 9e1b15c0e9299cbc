/* SPDX-License-Identifier: MIT */
/*
 * One-way flow of bench_steady.py: a producer fills messages, a consumer in another process reads and frees them.
 *
 * Each line on stdin is one round: vm BYTES N, each message a range of its own that goes over as page, id and lease;
 * or ring BYTES N, two slots of shared memory used in turn, written by hand. Both have at most two messages on their
 * way. The answer is the ns a message took, by the clock on the wall.
 */
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <vmalloc.h>

#define PAGE 4096u
#define SLOTS 2
#define RING_BYTES (64u << 20)

typedef struct message {
    uint64_t page, id, lease, bytes;
    int is_vm;
} message;
static struct {
    _Alignas(128) uint64_t nr_sent;
    _Alignas(128) uint64_t nr_read;
    _Alignas(128) uint64_t sum;
    message slot[SLOTS];
} *common;
static vm_region *region;
static uint8_t *ring;

static void must(int is_fine)
{
    if (!is_fine)
        _exit(3);
}

static void stay_on(int cpu) /* one CPU is no error */
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void wait_for(uint64_t *number, uint64_t least)
{
    for (long spins = 0; __atomic_load_n(number, __ATOMIC_ACQUIRE) < least; spins++)
        if (spins % 256 == 255)
            sched_yield();
}

static uint64_t sum_of(const uint8_t *at, size_t bytes)
{
    uint64_t sum = 0, word;
    for (size_t i = 0; i < bytes; i += sizeof word) {
        memcpy(&word, at + i, sizeof word);
        sum += word;
    }
    return sum;
}

static void consume(void)
{
    stay_on(1);
    for (uint64_t n = 0;; n++) {
        wait_for(&common->nr_sent, n + 1);
        message m = common->slot[n % SLOTS];
        if (m.is_vm) {
            vm_range range;
            must(vm_claim(region, m.page, m.id, m.lease, &range) == 0);
            common->sum += sum_of(vm_pointer(region, range.page), m.bytes);
            must(vm_free(region, range.page, range.id, 0) == 0);
        } else {
            common->sum += sum_of(ring + m.page * RING_BYTES, m.bytes);
        }
        __atomic_store_n(&common->nr_read, n + 1, __ATOMIC_RELEASE);
    }
}

static void produce(uint64_t n, message m)
{
    vm_range range;
    if (n >= SLOTS)
        wait_for(&common->nr_read, n - SLOTS + 1);
    if (m.is_vm) {
        must(vm_alloc(region, (m.bytes + PAGE - 1) / PAGE, 1, 0, &range) == 0);
        memset(vm_pointer(region, range.page), (int)n, m.bytes);
        m.page = range.page, m.id = range.id;
        must(vm_share(region, range.page, range.id) == 0 && vm_lease(region, range.page, range.id, &m.lease) == 0);
        must(vm_free(region, range.page, range.id, 0) == 0);
    } else {
        m.page = n % SLOTS;
        memset(ring + m.page * RING_BYTES, (int)n, m.bytes);
    }
    common->slot[n % SLOTS] = m;
    __atomic_store_n(&common->nr_sent, n + 1, __ATOMIC_RELEASE);
}

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(void)
{
    vm_options options = {.nr_pages = 1 << 20, .pools = VM_POOLS_MAGAZINE};
    must(vm_create(&options, &region) == 0);
    common = mmap(NULL, sizeof *common, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ring = mmap(NULL, SLOTS * RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, 9);
        consume();
    }
    stay_on(0);
    char how[8];
    unsigned long bytes, count;
    for (uint64_t n = 0; scanf("%7s %lu %lu", how, &bytes, &count) == 3;) {
        double start = now_ns();
        for (uint64_t end = n + count; n < end; n++)
            produce(n, (message){.bytes = bytes, .is_vm = how[0] == 'v'});
        wait_for(&common->nr_read, n);
        printf("%.1f\n", (now_ns() - start) / (double)count);
        fflush(stdout);
    }
    return 0;
}
