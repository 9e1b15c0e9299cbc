/* SPDX-License-Identifier: MIT */
/*
 * One measurement of bench_recovery.py: how long does a survivor wait when a process dies?
 *
 *   recover_loop pause GIB RANGE_PAGES VICTIM_MIB DEATHS LOCK
 *     GIB in use in ranges of RANGE_PAGES. For each death a line of microseconds: `pause` from the kill of a victim
 *     that holds LOCK (space, names; none: it is in the middle of work) to the end of the request that a thread
 *     waits with; `teardown` until the kernel dropped the lock of an equal victim that held nothing; `wake` of a
 *     sleeping thread.
 *   recover_loop hot GIB RANGE_PAGES VICTIM_MIB DEATHS LOCK
 *     A thread does nothing but hits, as long without deaths as with them; for each half a line: nanoseconds of
 *     pairs at p50, p99, p99.99 and at most, less those during which the thread was preempted; pairs; how
 *     often it was preempted; how often it waited (voluntary context switches); how many were no hits.
 *   recover_loop group MIB
 *     Holds MIB, touched, in a region named "group" until it is killed; writes a line when it is ready.
 *
 * Built with the core's sources: victims take its locks.
 */
#include "face/face.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
enum { REGION_FD = 20, CUE_FD, REQUEST_PAGES = 16 };

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "recover_loop.c:%d: %s: %s\n", __LINE__, #condition, strerror(errno)); \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static vm_region *region;
static const char *victim_mib, *lock_name;

static double us(uint64_t from, uint64_t to) { return (double)(to - from) / 1e3; }

static void touch(const vm_range *a)
{
    for (uint64_t p = 0; p < a->nr_pages; p++)
        *(volatile uint8_t *)vm_pointer(region, a->page + p) = 1;
}

/* ---- the victim, a program of its own ---- */

static void work_for_ever(void)
{
    vm_range a[8];
    for (uint64_t i = 0;; i++) {
        MUST(vm_alloc(region, 300 + i % 100, 1, 0, &a[i % 8]) == 0);
        if (i % 8 == 7)
            vm_free_bulk(region, 8, a);
    }
}

static int be_a_victim(uint64_t mib, const char *lock)
{
    vm_range mine;
    char ready = 1;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    MUST(vm_attach(REGION_FD, &region) == 0);
    vm_thread *t = vm__thread(region);
    MUST(vm_alloc(region, mib << 8, 1, 0, &mine) == 0);
    touch(&mine);
    if (strcmp(lock, "space") == 0)
        MUST(vm__space_lock(t, 0) == 0);
    if (strcmp(lock, "names") == 0)
        MUST(vm__names_lock(t, 0) == 0);
    MUST(write(CUE_FD, &ready, 1) == 1);
    if (strcmp(lock, "none") == 0)
        work_for_ever();
    for (;;)
        pause();
}

/* Its pid, when it has touched its pages and holds its lock. */
static pid_t start_victim(const char *lock)
{
    int cue[2];
    char ready;
    pid_t pid;
    MUST(pipe2(cue, O_CLOEXEC) == 0);
    char *const arguments[] = {"recover_loop", "victim", (char *)victim_mib, (char *)lock, NULL};
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, vm_fd(region), REGION_FD);
    posix_spawn_file_actions_adddup2(&files, cue[1], CUE_FD);
    MUST(posix_spawn(&pid, "/proc/self/exe", &files, NULL, arguments, environ) == 0);
    posix_spawn_file_actions_destroy(&files);
    close(cue[1]);
    MUST(read(cue[0], &ready, 1) == 1);
    close(cue[0]);
    return pid;
}

static uint32_t slot_of(pid_t pid)
{
    for (uint32_t p = 0; p < region->map.nr_processes; p++)
        if ((uint32_t)region->map.processes[p].state && region->map.processes[p].pid == (uint32_t)pid)
            return p;
    MUST(!"the victim has a process slot");
    return 0;
}

static void clear_away(pid_t pid)
{
    MUST(waitpid(pid, NULL, 0) == pid);
    MUST(vm_recover(region, NULL) == 0);
}

/* ---- the survivor ---- */

/* Ranges of that many pages; each eighth is given back, so that space is in pieces. */
static void use(uint64_t gib, uint64_t range_pages, uint64_t victim_pages)
{
    uint64_t nr = (gib << 18) / range_pages;
    vm_range *a = calloc(nr + nr / 7 + 1, sizeof *a);
    vm_options options = {.nr_pages = (gib << 18) * 8 / 7 + 4 * victim_pages + (1 << 18),
                          .pools = VM_POOLS_MAGAZINE,
                          .name = "recovery"};
    MUST(vm_create(&options, &region) == 0);
    for (uint64_t i = 0; i < nr + nr / 7; i++)
        MUST(vm_alloc(region, range_pages, 1, 0, &a[i]) == 0);
    for (uint64_t i = 0; i < nr + nr / 7; i += 8)
        MUST(vm_free(region, a[i].page, a[i].id, 0) == 0);
    MUST(vm_shrink(region, NULL) == 0);
    free(a);
}

/* One request of a thread: how it begins, and when it was done. */
typedef struct request {
    uint32_t go;
    uint64_t begun, done;
} request;

/* Neither magazine nor pool nor the lazy ranges serve this one. */
static int request_from_space(void)
{
    vm_range a;
    uint64_t offset = 0, nr_pages = REQUEST_PAGES;
    int rc = vm_alloc_congruent(region, 1, &offset, &nr_pages, 1, &a);
    return rc ? rc : vm_free(region, a.page, a.id, 0);
}

static int request_a_name(void)
{
    vm_range a;
    size_t bytes = 0;
    int rc = vm_name_get(region, "nobody", &a, NULL, &bytes);
    return rc == -ENOENT ? 0 : rc;
}

static void *make_a_request(void *arg)
{
    request *q = arg;
    __atomic_store_n(&q->begun, vm__now_ns(), __ATOMIC_SEQ_CST);
    MUST((strcmp(lock_name, "names") == 0 ? request_a_name() : request_from_space()) == 0);
    __atomic_store_n(&q->done, vm__now_ns(), __ATOMIC_SEQ_CST);
    return NULL;
}

static bool is_waited_for(void)
{
    const vm_lock *lock = strcmp(lock_name, "names") == 0 ? &region->map.h->names_lock : &region->map.h->space_lock;
    return strcmp(lock_name, "none") == 0 || VM_ACQUIRE(&lock->owner) & VM_TOKEN_WAITERS;
}

/* The longest request from the kill until the victim is gone, where none is sure to wait for it. */
static double longest_request(uint64_t killed, uint32_t slot)
{
    uint64_t longest = 0, before = killed, now;
    bool is_gone;
    do {
        is_gone = vm__process_is_dead(region, slot);
        MUST(request_from_space() == 0);
        now = vm__now_ns();
        longest = now - before > longest ? now - before : longest;
        before = now;
    } while (!is_gone);
    return (double)longest / 1e3;
}

static double pause_us(unsigned wait_us)
{
    pthread_t thread;
    request q = {0};
    pid_t pid = start_victim(lock_name);
    bool has_lock = strcmp(lock_name, "none") != 0;
    if (has_lock) {
        MUST(pthread_create(&thread, NULL, make_a_request, &q) == 0);
        while (!is_waited_for())
            usleep(50);
    }
    usleep(wait_us); /* anywhere in a slice of the waiter's sleep */
    uint32_t slot = slot_of(pid);
    uint64_t killed = vm__now_ns();
    kill(pid, SIGKILL);
    double longest = has_lock ? 0 : longest_request(killed, slot);
    if (has_lock)
        MUST(pthread_join(thread, NULL) == 0);
    clear_away(pid);
    return has_lock ? us(killed, q.done) : longest;
}

/* Until the kernel has dropped the lock of a process that holds nothing but its memory. */
static double teardown_us(void)
{
    pid_t pid = start_victim("idle");
    struct flock its = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = slot_of(pid), .l_len = 1};
    int fd = vm__open_for_locks(region);
    MUST(fd >= 0);
    uint64_t killed = vm__now_ns();
    kill(pid, SIGKILL);
    MUST(fcntl(fd, F_OFD_SETLKW, &its) == 0);
    uint64_t gone = vm__now_ns();
    close(fd);
    clear_away(pid);
    return us(killed, gone);
}

static void *sleep_on_it(void *arg)
{
    request *q = arg;
    __atomic_store_n(&q->begun, vm__now_ns(), __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&q->go, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, &q->go, FUTEX_WAIT, 0, NULL, NULL, 0);
    __atomic_store_n(&q->done, vm__now_ns(), __ATOMIC_SEQ_CST);
    return NULL;
}

static double wake_us(void)
{
    pthread_t thread;
    request q = {0};
    MUST(pthread_create(&thread, NULL, sleep_on_it, &q) == 0);
    while (!__atomic_load_n(&q.begun, __ATOMIC_SEQ_CST))
        usleep(50);
    usleep(2000);
    uint64_t woken = vm__now_ns();
    __atomic_store_n(&q.go, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &q.go, FUTEX_WAKE, 1, NULL, NULL, 0);
    MUST(pthread_join(thread, NULL) == 0);
    return us(woken, q.done);
}

static void measure_pauses(long deaths)
{
    pause_us(0); /* the victims' pages are there from now on, warm */
    for (long i = 0; i < deaths; i++) {
        double teardown = teardown_us(), pause = pause_us((unsigned)(1000 + i * 7919 % 9000));
        printf("%.1f %.1f %.1f\n", pause, teardown, wake_us());
    }
}

/* ---- the hot path meanwhile ---- */

enum { BUCKETS = 1 << 16 }; /* of a nanosecond, then one for the rest */
typedef struct hits {
    uint32_t stop;
    uint64_t bucket[BUCKETS + 1], nr, longest, nr_preempted, nr_waited, nr_missed;
} hits;

static uint64_t switches(bool voluntary)
{
    struct rusage u;
    getrusage(RUSAGE_THREAD, &u);
    return (uint64_t)(voluntary ? u.ru_nvcsw : u.ru_nivcsw);
}

/* False: this one was no hit (one in 65,535 needs new ids), and is not measured. */
static bool hit(void)
{
    vm_range a;
    bool is_hit = vm_alloc(region, 1, 1, VM_HIT_ONLY, &a) == 0;
    MUST(is_hit || vm_alloc(region, 1, 1, 0, &a) == 0);
    MUST(vm_free(region, a.page, a.id, 0) == 0);
    return is_hit;
}

static void *do_hits(void *arg)
{
    hits *h = arg;
    for (int i = 0; i < 1000; i++) /* the magazine has one now */
        hit();
    uint64_t preempted = switches(false), waited = switches(true);
    for (uint64_t before = vm__now_ns(), now; !__atomic_load_n(&h->stop, __ATOMIC_RELAXED); before = now) {
        bool is_hit = hit();
        now = vm__now_ns();
        uint64_t ns = now - before;
        h->nr_missed += !is_hit;
        if (!is_hit)
            continue;
        if (ns > 5000 && switches(false) != preempted) { /* somebody else had the CPU */
            h->nr_preempted++;
            preempted = switches(false);
            now = vm__now_ns();
            continue;
        }
        h->bucket[ns < BUCKETS ? ns : BUCKETS]++;
        h->nr++;
        h->longest = ns > h->longest ? ns : h->longest;
    }
    h->nr_waited = switches(true) - waited;
    return NULL;
}

static uint64_t quantile(const hits *h, double q)
{
    uint64_t nr = 0;
    for (uint64_t ns = 0; ns < BUCKETS; ns++)
        if ((double)(nr += h->bucket[ns]) >= q * (double)h->nr)
            return ns;
    return h->longest;
}

static double hits_meanwhile(void (*meanwhile)(long), long argument)
{
    static hits h;
    pthread_t thread;
    memset(&h, 0, sizeof h);
    uint64_t begun = vm__now_ns();
    MUST(pthread_create(&thread, NULL, do_hits, &h) == 0);
    meanwhile(argument);
    uint64_t done = vm__now_ns();
    __atomic_store_n(&h.stop, 1, __ATOMIC_RELAXED);
    MUST(pthread_join(thread, NULL) == 0);
    printf("%llu %llu %llu %llu %llu %llu %llu %llu\n", (unsigned long long)quantile(&h, 0.5),
           (unsigned long long)quantile(&h, 0.99), (unsigned long long)quantile(&h, 0.9999),
           (unsigned long long)h.longest, (unsigned long long)h.nr, (unsigned long long)h.nr_preempted,
           (unsigned long long)h.nr_waited, (unsigned long long)h.nr_missed);
    return us(begun, done);
}

static void let_them_die(long deaths)
{
    for (long i = 0; i < deaths; i++)
        pause_us((unsigned)(1000 + i * 7919 % 9000));
}

/* As long, and nobody dies. */
static void rest(long for_us)
{
    for (uint64_t until = vm__now_ns() + (uint64_t)for_us * 1000; vm__now_ns() < until;)
        usleep(1000);
}

static void measure_hits(long deaths)
{
    pause_us(0);
    double took = hits_meanwhile(let_them_die, deaths);
    hits_meanwhile(rest, (long)took);
}

static int be_a_group(uint64_t mib)
{
    vm_options options = {.nr_pages = mib << 8, .pools = VM_POOLS_MAGAZINE, .name = "group"};
    vm_range a;
    MUST(vm_create(&options, &region) == 0);
    MUST(vm_alloc(region, mib << 8, 1, 0, &a) == 0);
    touch(&a);
    for (int i = 0; i < 3; i++) /* who inherits it, holds it */
        if (fork() == 0)
            pause();
    printf("ready\n");
    fflush(stdout);
    pause();
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "victim") == 0)
        return be_a_victim(strtoull(argv[2], NULL, 10), argv[3]);
    if (argc == 3 && strcmp(argv[1], "group") == 0)
        return be_a_group(strtoull(argv[2], NULL, 10));
    if (argc != 7)
        return 2;
    victim_mib = argv[4];
    lock_name = argv[6];
    use(strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10) << 8);
    (strcmp(argv[1], "hot") == 0 ? measure_hits : measure_pauses)(atol(argv[5]));
    return vm_detach(region) != 0;
}
