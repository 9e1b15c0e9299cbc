/* SPDX-License-Identifier: MIT */
/*
 * Layer 1, base: what everybody stands on. The region byte by byte, the fault hook, what one process and one thread
 * know of a region, the system, the clock, locks, who is alive, and ranges as words.
 *
 * A file includes its own layer's header and thereby the lower ones: a call upwards does not compile.
 */
#ifndef VM_BASE_H
#define VM_BASE_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"
#include "layout.h"
#include "vmalloc_types.h"

#define vm_likely(x) __builtin_expect(!!(x), 1)
#define vm_unlikely(x) __builtin_expect(!!(x), 0)

/* For what only a mistake of ours can make false, in builds with hooks. What a neighbour could write is compared
 * in every build and answered with an error. Where the two cannot be told apart (is the lock word ours?) the
 * tests that scribble turn assertions off. */
#ifdef VM_HOOKS
#define VM_ASSERT(x)               \
    ((x) || !vm__asserts ? (void)0 \
                         : (void)(fprintf(stderr, "%s:%d: assertion failed: %s\n", __FILE__, __LINE__, #x), abort()))
#include <stdio.h>
#else
#define VM_ASSERT(x) ((void)0)
#endif

typedef struct vm_thread vm_thread;
typedef struct vm_pool_design vm_pool_design; /* cache.h */
typedef struct vm_watch vm_watch; /* mend/decay.c */
typedef struct vm_doubts vm_doubts; /* share/channel.c */

/* ---- what a process and a thread know ---- */

/* The mapping, as its header said when it was checked at attach: where everything lies and how much of it there is.
 * What is behind the pointers is shared, and a neighbour may scribble over it at any time. */
typedef struct vm_map {
    vm_head *heads;
    uint64_t nr_pages;
    uint8_t *data; /* NULL for an address space */
    uint32_t pools; /* which row of the designs' table */
    uint32_t page_shift; /* of the granule */
    vm_header *h;
    vm_process *processes;
    vm_slot *slots;
    vm_node *nodes;
    vm_shelf *shelves; /* of warm ranges, one a group */
    vm_cpu *cpus; /* with slabs, of designs that have them */
    vm_name *names;
    vm_lease_entry *leases;
    uint64_t *bits;
    vm_summary *summaries;
    vm_sharing *sharings;
    uint64_t *holders;
    uint32_t further_holders; /* words of holders a page there */
    uint32_t nr_processes;    /* slots of processes; the one after them is the region's own (names) */
    uint32_t nr_threads;      /* thread slots, the processes' own first: vm__first_thread() */
    uint32_t nr_nodes, nodes_each, nr_groups, nr_cpus, nr_levels, flags;
    uint64_t level_nr[VM_LEVELS_MAX];
    uint64_t level_offset[VM_LEVELS_MAX];
    uint64_t mapped_bytes, data_offset, rings_offset;
} vm_map;

/* How often this process holds a shared range. `id`: of which one, for the page may be another's by now. */
typedef struct vm_reference {
    uint64_t id;
    uint32_t count;
    uint32_t inherited; /* of these, what came with fork */
} vm_reference;

typedef struct vm_inherited { /* what a child has from its parent */
    uint64_t page, id;
    uint32_t count;
} vm_inherited;

typedef struct vm_tie { /* descriptor.c */
    int fd; /* -1: not needed any more */
    void *page;
} vm_tie;

/* What a parent prepares for the child it is about to have (fork.c). */
typedef struct vm_heir {
    vm_tie tie; /* holds the OFD lock of its process slot */
    uint32_t process, process_inc;
    vm_inherited *range;
    size_t nr, room;
} vm_heir;

/* This process's thread that does a region's upkeep, or would if it were elected (face/helper.c) [registry]. */
typedef struct vm_helper {
    pthread_t thread;
    vm_token stops; /* futex: 1 when it should */
    bool is_wanted, runs;
} vm_helper;

/* What this process knows of a region it attached; nobody else can write to it. */
typedef struct vm_marks vm_marks;

struct vm_region {
    vm_hit_region hit; /* what programs that hit by themselves know: the same as in `map` */
    uint64_t hit_key; /* a thread's with which the hits are open: vm__set_hit_keys() */
    vm_map map;
    uint64_t attachment; /* which attachment of this process; a fork's child gets another number */
    const vm_pool_design *design;
    uint64_t fail_every, nr_requests;
    volatile uint64_t *wiped; /* a page the kernel wipes in a child, also of a raw clone; else 1 */

    int fd, probe_fd; /* of the file; one to look at others' locks. Ours only as long as vm__is_ours() says so */
    uint64_t inode, device; /* of the file */
    vm_tie tie; /* holds the OFD lock by which others see that we live */
    bool is_leaving; /* vm_detach() is at it [registry] */
    bool can_drain;  /* membarrier across processes works here */
    bool marks_reads; /* of channels, in this process */
    bool readonly;   /* mapped to look only: no slot, every change is EROFS */
    uint32_t process, process_inc; /* our slot; VM_PROCESSES: none (a fork that found none free) */
    uint64_t lock_timeout_ns;
    int huge_error;        /* 0, or why the system gives no huge pages */

    vm_reference *references; /* per page, of shared ranges [holder_mutex] */
    vm_marks *marks;       /* where ranges of ours begin (face/find.c) */
    vm_heir heir, inheritance; /* for the next child; from our parent [holder_mutex] */
    uint64_t looked_for_deaths_ns; /* [holder_mutex] */
    uint64_t
        awaited_in_vain; /* a sum over processes whose pid is nobody's and who live all the same; vm__await_gone() */
    pthread_mutex_t common_mutex, tick_mutex, recover_mutex, holder_mutex;
    vm_watch *watch; /* [tick_mutex] */
    vm_doubts *doubts; /* the same */
    vm_helper helper;
    struct vm_region *next; /* all regions of the process [registry] */
};

/* What opens the hits: the key of a thread that is of this attachment. Not 0, which a raw clone's wiped thread bears, nor
 * what nobody's does. */
#define VM_HIT_KEY_NOBODY UINT64_MAX
static inline uint64_t vm__hit_key(uint64_t attachment) { return attachment ^ VM_HIT_LAYOUT; }
static inline void vm__set_hit_keys(vm_region *r)
{
    bool is_open = !r->fail_every && !(r->map.flags & VM_FLAG_HARDENED);
    r->hit.key = is_open ? r->attachment : UINT64_MAX - 1;
    r->hit_key = vm__hit_key(r->hit.key);
}

/* What one thread knows of a region: its slot and the words it writes, precomputed. The one context that functions
 * take. Lives in memory that is wiped in a child, so that a raw clone's thread matches no attachment. */
struct vm_thread {
    uint64_t attachment;     /* equals region->attachment while usable */
    vm_region *region;
    vm_thread *next;         /* this thread's other regions */
    uint64_t next_number;    /* of ids that come from no magazine */
    vm_word moving, purging; /* words without length, as busy and cached */
    vm_token token;
    uint32_t index;
    _Alignas(64) vm_slot *slot;
    vm_word busy, cached;
    uint64_t fast_pages; /* requests up to here may use the magazines: VM_POOL_PAGES_MAX or 0 */
    uint64_t cap_pages;  /* by how many pages all caps together grew */
    uint64_t cold_pages; /* asked of space since space was short: how long a run may be */
    uint64_t absent_live; /* pages in use when what lies ready was last found not to be in memory; 0: it was */
    uint32_t nr_purges_left; /* to others who were at it */
    bool has_waited;         /* for a lock: others are at work beside it */
    bool is_tight;           /* the magazines of large sizes were closed, for space is short */
    bool common;         /* uses the process's slot under common_mutex */
    uint64_t here_key;   /* as the hits', where the design keeps ranges for a CPU, recorded or not */
    uint8_t stock[VM_POOL_PAGES_MAX + 1]; /* log2 of how many ranges the next miss takes from space */
    const vm_node *flow_node; /* of another group, whose pool served the last miss; NULL: none did */
    uint64_t flow_page; /* that another process allocated and we freed last */
    bool may_not_ask; /* for a slot of its own: the process leaves the region */
    uint32_t nr_tight; /* operations while is_tight that were no hits */
    uint64_t nr_lock_waits;
    uint32_t nr_without_slot, ask_at; /* operations in the process's slot; which slot to look at next */
    /* What is recorded goes another way than the hits: then the hits' key is nobody's, and this one is what it was; so is
     * the second, if an event has its batch's time. 0: nothing is recorded. */
    _Alignas(64) uint64_t recorded_key;
    uint64_t coarse_key;
    vm_ring *ring; /* NULL: nothing is recorded, or the ring cannot be had */
    uint64_t quiet; /* slot->disturbed while there is nothing to follow     */
    uint64_t event_when; /* CPU and ticks of the last stamp, as an event has them */
    uint64_t stamped_ticks; /* all of them                                          */
    bool is_exact;
    uint8_t level; /* that served the last request which took the slow way */
    _Alignas(2048) uint8_t unaliased[16];
    vm_hit_thread hit;
};
_Static_assert(offsetof(vm_thread, hit) == VM_HIT_THREAD_AT, "a new INLINE_LAYOUT");
_Static_assert(offsetof(vm_hit_thread, cap) == 40, "a new INLINE_LAYOUT");
_Static_assert(offsetof(vm_region, hit) == 0 && sizeof(vm_hit_region) == 24, "a new INLINE_LAYOUT");

/* This thread's words for a range of that length in each of the states that a slot can own. */
static inline vm_word vm__busy(const vm_thread *t, uint64_t nr_pages) { return t->busy | vm__len_bits(nr_pages); }
static inline vm_word vm__cached(const vm_thread *t, uint64_t nr_pages) { return t->cached | vm__len_bits(nr_pages); }
static inline vm_word vm__moving(const vm_thread *t, uint64_t nr_pages) { return t->moving | vm__len_bits(nr_pages); }
static inline vm_word vm__purging(const vm_thread *t, uint64_t nr_pages) { return t->purging | vm__len_bits(nr_pages); }

/* ---- system.c: what is asked of the kernel, but for memory (store/pages.c) ---- */

void vm__futex_wait(vm_token *word, vm_token seen, long ns);
void vm__futex_wake_one(vm_token *word);
void vm__futex_wake_all(vm_token *word);
bool vm__can_drain(void); /* registers this process for membarriers of others */
void vm__barrier_everywhere(void);
uint32_t vm__cpu(void); /* this thread's, now */
uint32_t vm__online_cpus(void);
uint32_t vm__configured_cpus(void);
typedef struct vm_cpus { /* a set of those that may have slabs */
    uint64_t bit[VM_SLAB_CPUS_MAX / 64];
} vm_cpus;
static inline bool vm__has_cpu(const vm_cpus *c, uint32_t cpu) { return c->bit[cpu / 64] >> cpu % 64 & 1; }
void vm__cpus_of_list(const char *list, vm_cpus *out); /* as the system writes it: 0-3,8. Adds to *out */
void vm__cpus_online(vm_cpus *out); /* all, where the system does not say           */
void vm__cpus_of_process(uint32_t pid, vm_cpus *out); /* adds those its first thread may run on; all, if undecidable */
uint32_t vm__pid(void);
bool vm__is_stopped(uint32_t pid); /* by its state in /proc; undecidable means yes */
bool vm__pid_is_nobodys(uint32_t pid); /* as far as this pid namespace knows */
uint64_t vm__process_began(uint32_t pid,
                           uint32_t *parent); /* in the system's ticks; 0: there is none. `parent` may be NULL */
uint32_t vm__process_user(uint32_t pid); /* its real one; UINT32_MAX: there is none */
bool vm__read_text(const char *path, char *text,
                   size_t bytes); /* of /proc, /sys or a cgroup, ended by 0; false: it cannot be had */
void vm__yield(void);
int vm__start_thread(pthread_t *thread, const char *name, void *(*run)(void *), void *arg); /* it takes no signals */

/* ---- rseq.c: what a thread does to a slab of its CPU, whole or not at all ---- */

typedef enum {
    VM_SEQUENCE_DONE,
    VM_SEQUENCE_REFUSED, /* the slab is empty, or full */
    VM_SEQUENCE_MOVED, /* nothing happened: the thread is on another CPU, or was interrupted */
} vm_sequence;
enum { VM_SEQUENCE_CPU_ID = 4, VM_SEQUENCE_POINTER = 8 }; /* where in the area the kernel says, and is told */
extern ptrdiff_t vm__sequence_area; /* of each thread, from its thread pointer; 0: this process has none */
/* This thread's CPU now, as the kernel writes it there; negative: it can run no sequences. */
static inline int32_t vm__sequence_cpu(void)
{
    int32_t cpu = -1;
    if (vm_unlikely(!vm__sequence_area))
        return cpu;
#if defined(__x86_64__)
    __asm__ volatile("movl %%fs:%c2(%1), %0" : "=r"(cpu) : "r"(vm__sequence_area), "i"(VM_SEQUENCE_CPU_ID));
#elif defined(__aarch64__)
    const char *thread = __builtin_thread_pointer();
    cpu = VM_RELAXED((const int32_t *)(const void *)(thread + vm__sequence_area + VM_SEQUENCE_CPU_ID));
#endif
    return cpu;
}
vm_sequence vm__slab_pop(uint32_t cpu, vm_slab *slab, uint32_t *page);
vm_sequence vm__slab_push(uint32_t cpu, vm_slab *slab, uint32_t page, uint32_t cap);

/* ---- number.c: what stands behind a descriptor's number now ---- */

int vm__identify(int fd, uint64_t *inode, uint64_t *device);
bool vm__is_same(int fd, uint64_t inode, uint64_t device);
bool vm__is_at(int fd, const char *path); /* is it still the file of that path? */
void vm__close_same(int fd, uint64_t inode, uint64_t device); /* leaves it alone if it is another file's */

/* The names in a folder of /proc. */
typedef struct vm_folder {
    int fd; /* for ...at() calls: what they find is looked at. Negative: it could not be opened */
    uint64_t inode, device;
    size_t nr_bytes, read_to; /* of entries */
    _Alignas(8) char entries[4096];
} vm_folder;

int vm__folder_open(vm_folder *f, int at, const char *path); /* at: a folder's number, or AT_FDCWD */
const char *vm__folder_next(vm_folder *f); /* NULL: no more; stays valid until the next */
bool vm__folder_close(vm_folder *f); /* false: the number was another file's by then, and not all was seen */

/* ---- descriptor.c: numbers that may be another file's at any time ---- */

int vm__note_file(vm_region *r); /* which file r->fd is, while it certainly is ours */
bool vm__is_ours(const vm_region *r, int fd);
void vm__close_ours(const vm_region *r, int fd); /* leaves it alone if it is another file's */
int vm__above_standard_streams(int fd); /* the same file, under a number above 2 */
/* A new description of the region's file. -EBADF: nobody has it any more; -EMFILE, -ENFILE. */
int vm__open_region(const vm_region *r);
/* A descriptor of the one region of this user that is called `which`, or else that process `which` has. ENOENT, EEXIST. */
int vm__open_named(const char *which);
/* served.c: of the region that a process serves at that socket. `is_given`: by one of `uids`. ENOENT, ECONNREFUSED: nobody;
 * EPERM: it does not trust us, or we not it; ETIMEDOUT. */
int vm__open_served(const char *path, const uint32_t *uids, size_t nr, bool *is_given);
int vm__fd(vm_region *r); /* a number of the region's file, a new one if need be; -EBADF */
/* What keeps OFD locks: a description of our own, held by a mapping of one of its pages. */
int vm__tie(const vm_region *r, vm_tie *tie); /* children inherit it until ... */
int vm__tie_to_this_process(vm_tie *tie);
void vm__tie_without_number(const vm_region *r, vm_tie *tie); /* nothing more can be locked through it */
void vm__untie(const vm_region *r, vm_tie *tie);
int vm__claim_process(const vm_region *r, const vm_tie *tie, uint32_t process); /* its OFD lock; 0 when ours now */
void vm__unclaim_process(const vm_region *r, const vm_tie *tie, uint32_t process);
bool vm__process_is_claimed(vm_region *r, uint32_t process); /* by anybody; undecidable means yes */

/* ---- map.c: where everything lies, from the sizes alone; creator and attacher compute the same ---- */

void vm__lay_out(vm_header *h);
uint64_t vm__mapped_bytes(const vm_header *h);
bool vm__same_layout(const vm_header *a, const vm_header *b);
void vm__point(vm_map *m, void *base, const vm_header *h); /* the header was checked */

/* ---- clock.c: time, and how long a call waits ---- */

uint64_t vm__now_ns(void);
uint64_t vm__now_s(void); /* coarse and cheap, for ages */
uint64_t vm__cpu_ns(void); /* of this thread */
void vm__sleep_ns(uint64_t ns);
/* Of the counter that is quickest to read; what a tick is tell two stamps of a ring. */
static inline uint64_t vm__ticks(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
    uint64_t ticks;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(ticks));
    return ticks;
#else
    return vm__now_ns();
#endif
}
uint64_t vm__wait_start(void); /* the time now; before the first look at whoever is in the way */
/* Between looks at whoever is in the way, `owner` (any number that tells him from others) of process `pid`: 0 to go on,
 * EINTR when the slice is over, EBUSY when the call's time is up and he was seen stopped, or never got on. */
int vm__wait_slice(const vm_region *r, uint64_t started_ns, uint64_t owner, uint32_t pid);
uint64_t vm__wait_left_ns(const vm_region *r, uint64_t started_ns); /* until it would say anything but 0 */
bool vm__time_is_up(const vm_region *r);
void vm__wait_with(vm_wait *wait); /* for this thread, until NULL */
uint32_t vm__busy_pid(void);

/* ---- groups of processes: each has nodes and a shelf of its own ---- */

/* What one process frees comes back to it before others get it, so that they need not fault it in as well. */
static inline uint32_t vm__group_of_process(const vm_region *r, uint32_t process) { return process % r->map.nr_groups; }
static inline uint32_t vm__group_here(const vm_region *r) { return vm__group_of_process(r, r->process); }
static inline uint32_t vm__group_of_node(const vm_region *r, uint32_t node)
{
    return node / r->map.nodes_each % r->map.nr_groups;
}
/* Those from here up need no look: a look costs pages. */
static inline uint32_t vm__groups_used(const vm_region *r)
{
    uint64_t high = VM_ACQUIRE(&r->map.h->high_group), here = vm__group_here(r) + 1ull;
    high = high > here ? high : here;
    return high < r->map.nr_groups ? (uint32_t)high : r->map.nr_groups;
}
static inline uint32_t vm__nodes_used(const vm_region *r) { return vm__groups_used(r) * r->map.nodes_each; }
static inline uint32_t vm__node_here(const vm_region *r)
{
    return vm__group_here(r) * r->map.nodes_each + vm__cpu() % r->map.nodes_each;
}

/* ---- event.c: what a thread writes into its ring ---- */

void vm__event_stamp(vm_thread *t);
int vm__event_of_hit(vm_thread *t, vm_event_kind kind, uint64_t page, uint64_t nr_pages); /* 0 */
void vm__event_slow(vm_thread *t, vm_event_kind kind, uint64_t page, uint64_t nr_pages, uint64_t detail);
/* How long after the last stamp it is, in ticks: of an event that bears its own time. */
static inline uint64_t vm__event_since(const vm_thread *t) { return vm__ticks() - t->stamped_ticks; }
/* So long that the bits would not tell. */
static inline bool vm__event_is_far(uint64_t since) { return since >> (VM_EVENT_TICKS_BITS - 1) != 0; }
/* While nobody records this is one comparison; nothing that is as quick as a hit comes here. */
static inline void vm__event(vm_thread *t, vm_event_kind kind, uint64_t page, uint64_t nr_pages)
{
    if (vm_unlikely(t->ring))
        vm__event_slow(t, kind, page, nr_pages, 0);
}

/* ---- alive.c: process slots, and who is dead ---- */

/* Process slots from this one up were never used. */
static inline uint32_t vm__high_process(const vm_region *r)
{
    uint64_t high = __atomic_load_n(&r->map.h->high_process, __ATOMIC_SEQ_CST);
    return high < r->map.nr_processes ? (uint32_t)high : r->map.nr_processes;
}
/* Thread slots below this one are the processes' own. */
static inline uint32_t vm__first_thread(const vm_region *r) { return r->map.nr_processes + 1; }

/* False: do not even look at it, a look costs a page. */
static inline bool vm__slot_was_used(const vm_region *r, uint32_t i)
{
    return i < vm__first_thread(r) ? i < vm__high_process(r) && VM_ACQUIRE(&r->map.processes[i].state) != 0
                                   : i < VM_ACQUIRE(&r->map.h->high_slot);
}
/* Whose a thread slot is. Scribbled over, it may be the region's own: that one never dies. */
static inline uint32_t vm__slot_process(const vm_region *r, uint64_t state)
{
    uint32_t process = (uint32_t)(state >> 1) & (VM_PROCESSES - 1);
    return process < r->map.nr_processes ? process : r->map.nr_processes;
}
bool vm__process_is_dead(vm_region *r, uint32_t process);
bool vm__await_gone(vm_region *r); /* whose lock outlasts them; up to half a second, each once */
bool vm__incarnation_is_dead(vm_region *r, uint32_t process, uint32_t incarnation);
bool vm__owner_is_dead(vm_region *r, vm_token token);
/* Dead by incarnation, which needs no system call to see. */
bool vm__process_is_retired(const vm_region *r, uint32_t process, uint32_t incarnation);
bool vm__owner_is_retired(const vm_region *r, vm_word w);
uint32_t vm__pid_of(const vm_region *r, vm_token owner);
bool vm__take_process(vm_region *r, bool clean, const vm_tie *tie, uint32_t *process, uint32_t *incarnation);
int vm__join(vm_region *r); /* a process slot: 0, or 1 if it was a dead one's */
void vm__free_process(vm_region *r, uint32_t process); /* its slot, under the next incarnation [purge_lock] */
void vm__retire_threads(vm_region *r, uint32_t process, const vm_thread *but);
void vm__free_slot(vm_region *r, uint32_t i, uint64_t state); /* a thread's, which has that state */
void vm__raise_high_process(vm_region *r, uint32_t process); /* it is used */
void vm__raise_high_group(vm_region *r, uint32_t group); /* a process is, or was, of it */

/* ---- pipe.c: what /proc and the kernel tell of pipes and sockets of this machine ---- */

typedef struct vm_pipe {
    uint64_t inode;
    bool is_socket;
    bool is_open; /* some process may read from it ... */
    bool is_unread; /* ... and there is something to read, or that cannot be told */
    bool is_strange; /* one of them may have read from it without marking that, or is stopped */
    uint32_t pid; /* seen open for reading or writing in this process */
    char reader[16], writer[16]; /* its descriptors; empty: none */
} vm_pipe;

int vm__compare_pipes(const void *a, const void *b); /* by (is_socket, inode): the order of what is below */
/* Look at all of them, sorted so. EAGAIN: not everybody who may have them can be seen, or `go_on` said no. */
int vm__look_at_pipes(vm_thread *t, vm_pipe *pipes, size_t nr, bool (*go_on)(vm_thread *));
uint64_t vm__channel_of(int fd); /* as vm_channel_of() */

/* ---- lock.c: locks, shared and private, in one order ---- */

/* A lock is taken only while none of the same or a higher rank of its region is held; builds with hooks abort
 * otherwise. A range's boundaries change only under space_lock, so a scan of the words under it is stable. */
typedef enum {
    VM_RANK_REGISTRY, /* all regions of the process; private, as the next two */
    VM_RANK_COMMON, /* threads without a slot of their own take turns */
    VM_RANK_TICK, /* one round of upkeep a process */
    VM_RANK_RECOVER, /* one recoverer a process */
    VM_RANK_PURGE,
    VM_RANK_NAMES,
    VM_RANK_LEASE,
    VM_RANK_HOLDER, /* private: what this process counts of shared ranges */
    VM_RANK_POOL, /* a node's */
    VM_RANK_WARM,
    VM_RANK_SPACE,
} vm_rank;

enum {
    /* EAGAIN after some milliseconds, for who has another way; enough to steal a dead one's. */
    VM_LOCK_BRIEF = 1 << 11,
    VM_LOCK_FLAGS = VM_NO_WAIT | VM_LOCK_BRIEF,
};
/* Take a lock: 0, or EAGAIN (VM_NO_WAIT), EBUSY, EINTR. The caller mends what it protects if needs_mending. */
int vm__lock(vm_thread *t, vm_lock *lock, unsigned flags);
bool vm__trylock(vm_thread *t, vm_lock *lock);
void vm__unlock(vm_thread *t, vm_lock *lock);
bool vm__lock_is_held(const vm_thread *t, const vm_lock *lock);
/* By anybody, as a hint. */
static inline bool vm__lock_is_taken(const vm_lock *lock) { return VM_RELAXED(&lock->owner) != 0; }
#define VM_ASSERT_HELD(t, lock) VM_ASSERT(vm__lock_is_held(t, lock))

void vm__mutex_lock(const vm_region *r, pthread_mutex_t *mutex, vm_rank rank);
bool vm__mutex_trylock(const vm_region *r, pthread_mutex_t *mutex, vm_rank rank);
void vm__mutex_unlock(const vm_region *r, pthread_mutex_t *mutex, vm_rank rank);
#ifdef VM_HOOKS
bool vm__rank_is_held(const vm_region *r, vm_rank rank);
#endif
#define VM_ASSERT_RANK_HELD(r, rank) VM_ASSERT(vm__rank_is_held(r, rank))

/* ---- registry.c: the regions of this process ---- */

void vm__registry_lock(void);
void vm__registry_unlock(void);
vm_region *vm__registry(void); /* the first of all */
bool vm__is_registered(const vm_region *r, uint64_t attachment); /* [registry] */
int vm__register(vm_region *r); /* as vm__join() */
void vm__start_leaving(vm_region *r, const vm_thread *t);
void vm__unregister(vm_region *r);
uint64_t vm__new_attachment(void);

/* ---- who references a shared range: share/holder.c, and whoever looks at it ---- */

static inline uint64_t *vm__holders(const vm_region *r, uint64_t page, uint32_t i)
{
    return i ? &r->map.holders[page * r->map.further_holders + i - 1] : &r->map.sharings[page].holders;
}
/* So many words of them may have a bit: the others, of slots that no process had yet, are not even looked at. Whoever
 * has a slot raised this first, so the handshake of share/holder.c covers it. */
static inline uint32_t vm__nr_holders(const vm_region *r) { return vm__high_process(r) / 64 + 1; }
static inline uint64_t *vm__holder_word(const vm_region *r, uint64_t page, uint32_t process)
{
    return vm__holders(r, page, vm__holder_of(process, r->map.nr_processes) / 64);
}
static inline uint64_t vm__holder_bit(const vm_region *r, uint32_t process)
{
    return 1ull << vm__holder_of(process, r->map.nr_processes) % 64;
}

/* ---- range.c: ids, hand-out, lookup ---- */

uint64_t vm__new_ids(vm_region *r); /* the first number of VM_ID_BLOCK - 1 */
static inline uint64_t vm__new_id(vm_thread *t, uint64_t nr_pages)
{
    if (vm_unlikely(vm__number_is_spent(t->next_number)))
        t->next_number = vm__new_ids(t->region);
    return vm__id(t->next_number++, nr_pages);
}
void vm__hand_out(vm_thread *t, uint64_t page, uint64_t nr_pages, bool zeroed, vm_range *out);
int vm__lookup(const vm_region *r, uint64_t page, vm_range *out);
/* 0; EUCLEAN: it is corrupt; ENOTCONN: this process lost its slot and must stop. */
static inline int vm__health(const vm_region *r)
{
    if (vm_unlikely(VM_ACQUIRE(&r->map.h->corrupt)))
        return -EUCLEAN;
    uint64_t state = VM_ACQUIRE(&r->map.processes[r->process].state);
    bool is_ours = (uint32_t)state && (state >> 32 & VM_INC_MASK) == r->process_inc;
    return vm_likely(is_ours) ? 0 : -ENOTCONN;
}
int vm__corrupt(vm_region *r, int line); /* marks the region; -EUCLEAN */
#define VM_CORRUPT(r) vm__corrupt((r), __LINE__)

/* It is about to be read and then written: what another CPU wrote last comes in one go, not first to read and then again to
 * write. (Compilers make this instruction of __builtin_prefetch() only where they are told that the CPU has it; each with 64
 * bits takes it.) */
static inline void vm__expect_write(const void *p)
{
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
    __builtin_prefetch(p, 1);
#endif
}

/* The word of the range that starts there, for a walk over all; 0 at the end (page = nr_pages) and where the words
 * do not parse. */
static inline vm_word vm__word_at(const vm_region *r, uint64_t page)
{
    if (page >= r->map.nr_pages)
        return 0;
    vm_word w = VM_ACQUIRE(&r->map.heads[page].word);
    uint64_t len = vm__len(w);
    return len == 0 || len > r->map.nr_pages - page ? 0 : w;
}
/* A hint named this stretch: is it one, and within the mapping? */
static inline bool vm__is_within(const vm_region *r, uint64_t page, uint64_t nr_pages)
{
    return nr_pages && page < r->map.nr_pages && nr_pages <= r->map.nr_pages - page;
}
static inline bool vm__is_power_of_two(uint64_t n) { return n && !(n & (n - 1)); }
/* So many percent of n, rounded up. */
static inline uint64_t vm__percent_up(uint64_t n, uint64_t percent) { return (n * percent + 99) / 100; }

/* ---- batch.c: ranges that a purge collects; private, for what a dead purger held is in the words ---- */

typedef struct vm_piece {
    uint64_t page;
    uint32_t nr_pages;
    uint32_t node; /* whose it stays if it stays warm; UINT32_MAX: whose collects it */
} vm_piece;

typedef struct vm_batch {
    vm_piece *piece;
    size_t nr, room;
    uint64_t pages_returned, runs_returned;
} vm_batch;

void vm__batch_add(vm_thread *t, vm_batch *b, uint64_t page, uint64_t nr_pages);
void vm__batch_add_of(vm_thread *t, vm_batch *b, uint64_t page, uint64_t nr_pages, uint32_t node);
void vm__batch_merge(vm_batch *b); /* sorts, and makes one piece of neighbours */

/* ---- report.c: findings of check and repair ---- */

typedef struct vm_report {
    int nr;
    char *text; /* one finding after the other, each ended by 0 */
    size_t len, room;
} vm_report;

__attribute__((format(printf, 2, 3))) void vm__report(vm_report *p, const char *format, ...);
void vm__report_clear(vm_report *p);
/* Outside all locks, for whoever listens may allocate. Frees it; returns how many findings there were. */
int vm__report_end(vm_report *p, void (*say)(void *, const char *), void *arg);

#endif
