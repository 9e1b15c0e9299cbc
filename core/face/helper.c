/* SPDX-License-Identifier: MIT */
/*
 * Helper: a thread that does a region's upkeep, so that nobody else has to.
 *
 * Every process that attached a region has one, unless told otherwise; one of them is elected: its process's token is in
 * the header, and a time at which it last said that it lives. Whoever finds that time stale takes its place, also of one
 * who only is stopped: two at once do no harm, for all they do is done under locks. The others cost a look now and then.
 *
 * It takes no signals, and is stopped before every fork, so that the child of a program with one thread is the child of a
 * program with one thread; who next comes to a slow path of the core, or calls vm_helpers_resume(), starts it again.
 * Stopping and starting happen under the registry's lock, which no helper takes.
 */
#include "face.h"

#define TICK_NS (VM_TICK_MS * 1000000l)
#define STALE_NS (VM_HELPER_STALE_MS * 1000000ull)
#define LOOK_NS (VM_HELPER_LOOK_MS * 1000000l)

bool vm__helpers_are_missing;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* ---- election ---- */

static vm_token token_here(const vm_region *r) { return vm__token(r->process, r->process_inc); }

static bool is_stale(const vm_region *r)
{
    uint64_t beaten = VM_ACQUIRE(&r->map.h->helper_beat_ns), now = vm__now_ns(); /* in this order: it is no later */
    return now > beaten ? now - beaten > STALE_NS : beaten - now > STALE_NS; /* scribbled over */
}

static bool is_elected(vm_region *r)
{
    vm_token elected = VM_ACQUIRE(&r->map.h->helper);
    return elected == token_here(r) || ((!elected || is_stale(r)) && VM_CAS(&r->map.h->helper, elected, token_here(r)));
}

static void beat(const vm_region *r) { VM_PUT(&r->map.h->helper_beat_ns, vm__now_ns()); }
static bool stops(const vm_region *r) { return VM_ACQUIRE(&r->helper.stops); }

static bool go_on(vm_thread *t)
{
    beat(t->region);
    return !stops(t->region);
}

/* ---- for those who free, and who look ---- */

uint32_t vm__helper_pid(const vm_region *r)
{
    vm_token elected = VM_ACQUIRE(&r->map.h->helper);
    return elected && !is_stale(r) ? vm__pid_of(r, elected) : 0;
}

/* Somebody gives back what is over, soon enough. */
bool vm__helper_keeps_up(vm_region *r)
{
    vm_header *h = r->map.h;
    if (!VM_RELAXED(&h->helper))
        return false;
    int64_t most = (int64_t)vm__lazy_pages_max(r);
    if ((int64_t)VM_RELAXED(&h->lazy_pages) > most + most / VM_HELPER_BACKLOG_SHARE || is_stale(r))
        return false;
    if (!VM_RELAXED(&h->helper_wake) && VM_CAS(&h->helper_wake, 0, 1))
        vm__futex_wake_all(&h->helper_wake);
    return true;
}

/* ---- the thread ---- */

/* False: another is elected. */
bool vm__helper_round(vm_thread *t, bool (*may_go_on)(vm_thread *))
{
    vm_region *r = t->region;
    if (!is_elected(r))
        return false;
    beat(r);
    vm__tick_here(t, may_go_on);
    if (VM_ACQUIRE(&r->map.h->helper_wake) && VM_SWAP(&r->map.h->helper_wake, 0)) {
        vm__enter(t);
        vm__clear_backlog(t, may_go_on);
        vm__leave(t);
    }
    return true;
}

void vm__helper_resign(vm_region *r) { VM_CAS(&r->map.h->helper, token_here(r), 0); }

/* Until the next round begins, however long this one took; but some rest in any case. */
long vm__helper_rest_ns(uint64_t began_ns, uint64_t now_ns)
{
    uint64_t took = now_ns - began_ns, most = TICK_NS - TICK_NS / 4;
    return TICK_NS - (long)(took < most ? took : most);
}

/* As long as it is elected. */
static void serve(vm_region *r)
{
    vm_thread t;
    vm__thread_borrow(r, &t);
    for (uint64_t began = vm__now_ns(); !stops(r) && vm__health(r) == 0 && vm__helper_round(&t, go_on);
         began = vm__now_ns())
        vm__futex_wait(&r->map.h->helper_wake, 0, vm__helper_rest_ns(began, vm__now_ns()));
    vm__thread_return(&t);
    vm__helper_resign(r);
}

static void *live(void *arg)
{
    vm_region *r = arg;
    while (!stops(r) && vm__health(r) == 0) {
        if (is_elected(r))
            serve(r);
        else
            vm__futex_wait(&r->helper.stops, 0, LOOK_NS);
    }
    return NULL;
}

static int start(vm_region *r)
{
    if (r->helper.runs || r->is_leaving || r->process >= VM_PROCESSES)
        return 0;
    r->helper.stops = 0;
    int rc = vm__start_thread(&r->helper.thread, "vmalloc-helper", live, r);
    r->helper.runs = rc == 0;
    return rc;
}

static void ask_to_stop(vm_region *r)
{
    if (!r->helper.runs)
        return;
    __atomic_store_n(&r->helper.stops, 1, __ATOMIC_RELEASE);
    vm__futex_wake_all(&r->helper.stops);
    vm__futex_wake_all(&r->map.h->helper_wake); /* one that is about to sleep there sleeps for a tick at the most */
}

static void join(vm_region *r)
{
    if (r->helper.runs && *r->wiped) /* a raw clone has no helper, whatever its copy of our memory says */
        pthread_join(r->helper.thread, NULL);
    r->helper.runs = false;
}

/* ---- fork, detach, exit: [registry] ---- */

void vm__helper_end(vm_region *r)
{
    vm__registry_lock();
    r->helper.is_wanted = false;
    ask_to_stop(r);
    join(r);
    vm__registry_unlock();
}

void vm__helpers_stop(void)
{
    for (vm_region *r = vm__registry(); r; r = r->next)
        ask_to_stop(r);
    for (vm_region *r = vm__registry(); r; r = r->next)
        join(r);
}

/* In parent and child: who comes next to a slow path starts them again. */
void vm__helpers_note_missing(void)
{
    bool are_missing = false;
    for (vm_region *r = vm__registry(); r; r = r->next)
        are_missing = are_missing || (r->helper.is_wanted && !r->helper.runs);
    __atomic_store_n(&vm__helpers_are_missing, are_missing, __ATOMIC_RELAXED);
}

/* A helper that exit() interrupts would leave its locks to be stolen. */
static void at_exit(void)
{
    vm__registry_lock();
    vm__helpers_stop();
    vm__registry_unlock();
}
static void register_exit(void) { atexit(at_exit); }

/* ---- public ---- */

int vm_helper_start(vm_region *r)
{
    if (!vm__thread(r))
        return vm__thread_error(r);
    pthread_once(&once, register_exit);
    vm__registry_lock();
    r->helper.is_wanted = true;
    int rc = start(r);
    vm__registry_unlock();
    return rc;
}

void vm_helper_stop(vm_region *r) { vm__helper_end(r); }

void vm_helpers_resume(void)
{
    vm__registry_lock();
    for (vm_region *r = vm__registry(); r; r = r->next)
        if (r->helper.is_wanted)
            start(r); /* where no thread can be had, another process's helper, or vm_tick(), will do */
    __atomic_store_n(&vm__helpers_are_missing, false, __ATOMIC_RELAXED);
    vm__registry_unlock();
}
