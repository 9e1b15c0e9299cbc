/* SPDX-License-Identifier: MIT */
/*
 * The region, byte by byte: what every attached process agrees on.
 *
 * One memfd, one mapping: header | process slots | nodes | slabs | names | leases | thread slots | leaf bits |
 * summaries | heads | sharings | holders | data | rings. Only offsets and page numbers are stored, never pointers.
 * All of it starts as zeros and zero always means "nothing yet", so a region of 1 TiB costs the few
 * pages that were written. docs/region-format.md tells the same in prose and states which changes
 * need a new VM_FORMAT.
 *
 * Truth: the heads (one word a range), the sharings' holders, names and leases. Everything else is a hint
 * that can be rebuilt from them. docs/decisions/0001 says why the word looks as it does.
 */
#ifndef VM_LAYOUT_H
#define VM_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmalloc_hit.h"

#define VM_MAGIC 0x31636f6c6c616d76ull /* "vmalloc1" in memory order */
#define VM_MAP_ALIGN (2ull << 20) /* of the mapping and, in it, of the data */

/* The limits of the format, from those of vmalloc_facts.h. */
enum {
    VM_PROCESSES = VM_PROCESSES_MAX + 1, /* most process slots of a region, its own (names) included; */
                                         /* as the number of a slot: none                             */
    VM_THREAD_SLOTS_MAX = VM_PROCESSES + VM_THREADS_MAX,
    VM_LEAF_PAGES = 512, /* pages one leaf of the free index covers                                   */
    VM_FANOUT = 8,       /* children of one summary                                                   */
    VM_LEVELS_MAX = 9,   /* summary levels above the leaves, 2^30 pages                               */
    VM_NAME_BYTES = VM_NAME_BYTES_MAX + 1,
};
#define VM_NONE UINT64_MAX /* "no page" as a result; in lists page + 1 is stored and 0 is the end */

/* ---- the word -------------------------------------------------------------------------------- */

typedef uint64_t vm_word;

typedef enum {
    VM_FREE = 0,    /* in space; all-zero is free, never touched, and not a head                  */
    VM_BUSY = 1,    /* held by processes; owner = the process slot that may use plain stores      */
    VM_CACHED = 2,  /* in a magazine;                        owner = thread slot                  */
    VM_POOLED = 3,  /* in a pool;                            owner = node, or VM_NODES_MAX + CPU  */
    VM_LAZY = 4,    /* freed, backed, waiting for a purge;   owner = node, incarnation = age      */
    VM_MOVING = 5,  /* between two of the above;             owner = thread slot                  */
    VM_PURGING = 6, /* being discarded and returned;         owner = thread slot                  */
    VM_FREEING = 7, /* last holder looks whether it is last, or, not S yet, the owner shares it first;
                     * owner = process slot                                                        */
} vm_state;

/*   63        50 49        37 36                      7 6 5 4 3   0
 *  +------------+------------+------------------------+-+-+-+-----+
 *  | incarnation|   owner    |  length in pages       |L|S|D|state|   L listed, S shared, D dirty
 *  +------------+------------+------------------------+-+-+-+-----+ */
#define VM_WORD_STATE_MASK 0xfull
#define VM_WORD_DIRTY (1ull << 4)  /* pages may be resident and not zero */
#define VM_WORD_SHARED (1ull << 5) /* exported once: every change is a CAS from now on */
#define VM_WORD_LISTED (1ull << 6) /* LAZY only: in a list by size (store/warm.c) */
#define VM_WORD_OWNER_SHIFT 37
#define VM_WORD_INC_SHIFT 50
#define VM_OWNER_MASK 0x1fffu
#define VM_INC_MASK 0x3fffu

static inline vm_word vm__word(vm_state state, uint64_t flags, uint64_t nr_pages, uint32_t owner, uint32_t incarnation)
{
    return (vm_word)state | flags | nr_pages << VM_WORD_LEN_SHIFT | (uint64_t)owner << VM_WORD_OWNER_SHIFT
           | (uint64_t)(incarnation & VM_INC_MASK) << VM_WORD_INC_SHIFT;
}
static inline vm_state vm__state(vm_word w) { return (vm_state)(w & VM_WORD_STATE_MASK); }
static inline uint64_t vm__len(vm_word w) { return w >> VM_WORD_LEN_SHIFT & (uint64_t)VM_PAGES_MAX; }
static inline uint32_t vm__owner(vm_word w) { return (uint32_t)(w >> VM_WORD_OWNER_SHIFT) & VM_OWNER_MASK; }
static inline uint32_t vm__inc(vm_word w) { return (uint32_t)(w >> VM_WORD_INC_SHIFT); }
#define VM_WORD_LEN_MASK ((uint64_t)VM_PAGES_MAX << VM_WORD_LEN_SHIFT)
static inline vm_word vm__len_bits(uint64_t nr_pages) { return nr_pages << VM_WORD_LEN_SHIFT; }
static inline vm_word vm__with_len(vm_word w, uint64_t nr_pages)
{
    return (w & ~VM_WORD_LEN_MASK) | vm__len_bits(nr_pages);
}
static inline vm_word vm__with_state(vm_word w, vm_state state) { return (w & ~VM_WORD_STATE_MASK) | state; }
/* The same state, owner, incarnation and S: whatever the length, and whether dirty or not. */
static inline bool vm__is_like(vm_word w, vm_word other)
{
    return ((w ^ other) & ~(VM_WORD_LEN_MASK | VM_WORD_DIRTY)) == 0;
}
/* Referenced by holders and leases and not by its owner field. */
static inline bool vm__is_shared(vm_word w)
{
    return w & VM_WORD_SHARED && (vm__state(w) == VM_BUSY || vm__state(w) == VM_FREEING);
}

_Static_assert(VM_WORD_LEN_SHIFT + 30 == VM_WORD_OWNER_SHIFT, "length has 30 bits");
_Static_assert(VM_OWNER_MASK == (1u << (VM_WORD_INC_SHIFT - VM_WORD_OWNER_SHIFT)) - 1, "owner has 13 bits");
_Static_assert(VM_THREAD_SLOTS_MAX <= VM_OWNER_MASK, "owner field; and a token's, which holds one more");
_Static_assert((int)VM_NODES_MAX + (int)VM_SLAB_CPUS_MAX <= (int)VM_OWNER_MASK, "owner field");
_Static_assert((int)VM_NODES_OF_ALL_MAX <= (int)VM_OWNER_MASK, "owner field");
_Static_assert((int)VM_NODES_MAX <= (int)VM_NODES_OF_ALL_MAX, "at least one group");

/* vm_head, vm_magazine and ids are in vmalloc_hit.h: programs that hit without a call know them too. */
_Static_assert(sizeof(vm_head) == 16, "region format");
enum { VM_HEADS_PER_LINE = 64 / sizeof(vm_head) };

/* Who references a range; written from its first sharing on. Indexed by the range's first page. */
typedef struct vm_sharing {
    uint64_t nr_leases; /* never fewer than `leases` name it                             [lease_lock] */
    uint64_t holders;   /* the first word of them; the others lie in a table of their own: vm__holders() */
} vm_sharing;
_Static_assert(sizeof(vm_sharing) == 16, "region format");

/* Bits of holders: set and clear are idempotent. The first is the region's own, for names; then one a process slot. */
static inline uint32_t vm__holder_of(uint32_t process, uint32_t nr_processes)
{
    return process == nr_processes ? 0 : process + 1;
}
static inline uint32_t vm__process_of(uint32_t holder, uint32_t nr_processes)
{
    return holder ? holder - 1 : nr_processes;
}

/* So many processes, at least, as the slots of whole words of holders are, less the region's own slot. */
static inline uint32_t vm__whole_processes(uint32_t nr_processes) { return nr_processes | 63; }
_Static_assert(VM_PROCESSES % 64 == 0, "holders are whole words");
_Static_assert((VM_PROCESSES & (VM_PROCESSES - 1)) == 0, "vm__slot_process() masks");

/* ---- locks ----------------------------------------------------------------------------------- */

/* Who holds a lock or a flag: thread slot + 1 and its incarnation. 0 is nobody. */
typedef uint32_t vm_token;
#define VM_TOKEN_WAITERS (1u << 31)
#define VM_TOKEN_MASK (VM_TOKEN_WAITERS - 1)
static inline vm_token vm__token(uint32_t slot, uint32_t incarnation)
{
    return (slot + 1) | (incarnation & VM_INC_MASK) << 13;
}
static inline uint32_t vm__token_slot(vm_token t) { return (t & 0x1fff) - 1; }
static inline uint32_t vm__token_inc(vm_token t) { return t >> 13 & VM_INC_MASK; }

typedef struct vm_lock {
    _Alignas(64) vm_token owner; /* futex; top bit: somebody sleeps             */
    uint32_t needs_mending;      /* stolen from a dead owner, not yet mended    */
    vm_token watcher;            /* hint: the waiter that looks after the owner */
} vm_lock;
_Static_assert(sizeof(vm_lock) == 64, "one cache line");

/* ---- slots ----------------------------------------------------------------------------------- */

/* A process is alive as long as the kernel holds its OFD lock on byte `index` of the memfd. */
typedef struct vm_process {
    _Alignas(64) uint64_t state; /* incarnation << 32 | VM_PROCESS_LIVE or _DYING; low half 0: unused */
    uint32_t pid;                /* for messages only; pid namespaces lie */
    uint32_t no_barrier;         /* others' membarriers do not reach it: its magazines are not drained */
    uint64_t charged_pages;      /* what it took; what it gave back is taken off where a quota runs out */
    uint32_t marks_reads;        /* it marks the leases of what it reads from channels as received */
} vm_process;
#define VM_PROCESS_LIVE 1u
#define VM_PROCESS_DYING 2u /* its threads' slots are retired, its ranges not yet reclaimed */
_Static_assert(sizeof(vm_process) == 64, "region format");

static inline bool vm__magazine_is_taking(uint64_t header) { return (uint8_t)header == VM_MAGAZINE_TAKING; }
static inline uint32_t vm__magazine_count(uint64_t header)
{
    return (uint8_t)header <= VM_MAGAZINE_CAP ? (uint8_t)header : 0;
}
_Static_assert(sizeof(vm_magazine) == 128, "two cache lines");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the mark is the low byte of the header");

#define VM_DISTURBED_SHIFT 32 /* of `recording` in `disturbed` */
#define VM_SLOT_HELPER (1ull << 31) /* a helper's: no thread of the program */

/* The first slots, one a process slot, belong to the process of that number and serve its threads that got no
 * slot of their own, one at a time; the rest are handed out to threads. */
typedef struct vm_slot {
    _Alignas(4096) uint64_t state; /* incarnation << 32 | VM_SLOT_HELPER | process << 1 | used */
    uint32_t in_operation; /* 1 between entry and exit of what uses the magazines, but for the hits */
    uint32_t followed;     /* the recording for which the thread has its ring */
    uint64_t lock_wait_ns;         /* counters: written by the owner only                        */
    uint64_t nr_magazine_hit; /* but for those of blocks of ids in use; see vm__magazine_hits()  */
    uint64_t nr_pool_hit;
    uint64_t nr_lazy_hit;
    uint64_t nr_space_hit;
    uint64_t nr_alloc;             /* all but what the hit path served: that is counted by ids   */
    uint64_t nr_failed;
    uint64_t nr_slab_hit;
    uint64_t nr_neighbour_hit;
    uint64_t opened[VM_POOL_PAGES_MAX / 64]; /* which magazines the owner used: a look at the rest costs pages */
    uint64_t run; /* page + 1 of pages to cut ranges from, CACHED; 0: none. A hint, as a magazine's entry */
    /* Not at a multiple of 128: users write to the first bytes of pages, and a store and a load that
     * agree in the low 12 bits of their addresses delay each other on many CPUs. Nor is `disturbed` at the beginning: each
     * hit looks at it, and writes the head of its range, 16 bytes times its page from the beginning of the heads. */
    _Alignas(64) uint8_t unaliased[56];
    union {
        struct {
            vm_token drain;     /* who empties these magazines; the owner then bypasses them   */
            uint32_t recording; /* as vm_header.recording, for this slot's thread to follow    */
        };
        uint64_t disturbed; /* the same, `recording` as the high half: what a hit compares */
    };
    vm_magazine magazine[VM_POOL_PAGES_MAX + 1]; /* by size; [0] stays empty */
} vm_slot;
_Static_assert(offsetof(vm_slot, unaliased) == 128, "the run stands where nothing was");
_Static_assert(offsetof(vm_slot, disturbed) + sizeof(uint64_t) == offsetof(vm_slot, magazine), "vm__disturbed_of()");
_Static_assert(offsetof(vm_slot, magazine) % 128 == 64 && sizeof(vm_slot) % 4096 == 0, "region format");

/* ---- rings ----------------------------------------------------------------------------------- */

/* What happened, 16 bytes:
 *   63                   34 33                    4 3   0      63    53 52    48 47   45 44      32 31         0
 *  +-----------------------+-----------------------+-----+    +--------+--------+-------+----------+------------+
 *  |         page          |     length in pages   | kind|    |        | log2   | level |   CPU    |   ticks    |
 *  +-----------------------+-----------------------+-----+    |        | align  |       |          | (low bits) |
 * A stamp has above its kind the time, CLOCK_MONOTONIC in ns. */
typedef struct vm_event {
    uint64_t what, when;
} vm_event;
_Static_assert((int)VM_EVENT_LEN_SHIFT == 4 && (int)VM_EVENT_PAGE_SHIFT == 34
                   && (int)VM_EVENT_CPU_SHIFT == VM_EVENT_TICKS_BITS + 1 && (int)VM_EVENT_LEVEL_SHIFT == 45
                   && (int)VM_EVENT_ALIGN_SHIFT == 48,
               "as drawn");
static inline uint64_t vm__event_what(vm_event_kind kind, uint64_t page, uint64_t nr_pages)
{
    return (uint64_t)kind | (nr_pages & VM_PAGES_MAX) << VM_EVENT_LEN_SHIFT | page << VM_EVENT_PAGE_SHIFT;
}
_Static_assert(VM_EVENT_RECOVER < 1 << VM_EVENT_LEN_SHIFT, "a kind has four bits");

/* One a thread slot, behind the data; written by that slot's thread alone, the oldest events first. Only who records maps
 * it. An event counts once `next` is beyond it, so what a death left half written never does. */
#define VM_RING_ALIGN 65536
typedef struct vm_ring {
    _Alignas(64) vm_event event[VM_EVENT_RING]; /* the n-th ever at n % VM_EVENT_RING        */
    uint64_t next;                              /* so many were written for this recording   */
    uint32_t recording;                         /* which one                                 */
    uint8_t unused[VM_RING_ALIGN - 12];         /* each begins at a page, of any size        */
} vm_ring;
_Static_assert(sizeof(vm_ring) % VM_RING_ALIGN == 0, "a page each");
_Static_assert((VM_EVENT_RING & (VM_EVENT_RING - 1)) == 0 && VM_EVENT_RING % VM_EVENT_BATCH == 0, "put() in event.c");

/* vm_header.recording: the number of a recording above these two bits, above it who records (vm__lease_owner()). */
#define VM_RECORDING_ON 1u
#define VM_RECORDING_EXACT 2u /* each event bears its own time */
#define VM_RECORDING_SHIFT 2
#define VM_RECORDING_OWNER_SHIFT 32
/* What slots follow; 0 also while a recording ends. */
static inline uint32_t vm__recording_of(uint64_t recording)
{
    return recording & VM_RECORDING_ON ? (uint32_t)recording : 0;
}

/* ---- nodes ----------------------------------------------------------------------------------- */

typedef struct vm_pool {
    union {
        struct {
            uint32_t head;      /* page + 1 of the first ready range; 0 if empty                      */
            uint32_t nr_listed; /* llist: ranges in the list, or of it in its one taker's hand        */
        };
        uint64_t counted; /* llist: both; one CAS changes a list and its count                        */
        uint64_t tagged;  /* tagged: the head, above it what is raised by every change; one CAS       */
    };
    union {
        uint32_t nr_ranges; /* `locked` and behind `percpu`: exact [node.pool_lock]; others: vm__pool_count() */
        uint32_t tail;      /* llist: last of the chain that was put back, page + 1 [in_use]          */
    };
    vm_token in_use; /* llist: the one taker                                                         */
} vm_pool;
_Static_assert(sizeof(vm_pool) == 16, "region format");

typedef struct vm_node {
    vm_lock pool_lock;
    _Alignas(64) uint32_t lazy_head; /* page + 1; pushed by anybody, detached whole under purge_lock */
    uint32_t pad;
    _Alignas(64) vm_pool pool[VM_POOL_PAGES_MAX];
    /* Hint: fewest ranges of each pool since the last turn of a watch (mend/decay.c). */
    uint32_t low[VM_POOL_PAGES_MAX];
    /* Hint: what its takers get next, the n-th range of each list at n % VM_POOL_NEXT; `locked` and behind `percpu`. */
    uint32_t next[VM_POOL_PAGES_MAX][VM_POOL_NEXT];
} vm_node;
_Static_assert(sizeof(vm_node) == 128 + VM_POOL_PAGES_MAX * (20 + 4 * VM_POOL_NEXT), "region format");

/* ---- slabs: percpu only ---------------------------------------------------------------------- */

/* Ready ranges of one size, the one put there last on top; written by restartable sequences on this CPU alone. */
typedef struct vm_slab {
    uint32_t count;             /* the commit of each sequence                                  */
    uint32_t low;               /* hint: fewest entries since the last turn of a watch          */
    uint32_t idle;              /* hint: and of the turn before                                 */
    uint32_t pad;
    uint32_t page[VM_SLAB_CAP]; /* hints: one counts while its word is POOLED by this CPU       */
} vm_slab;
_Static_assert(sizeof(vm_slab) == 256, "region format");

typedef struct vm_cpu {
    _Alignas(
        64) uint64_t used[VM_POOL_PAGES_MAX / 64]; /* which slabs were ever put to: a look at the rest costs pages */
    uint64_t pad[4];
    vm_slab slab[VM_POOL_PAGES_MAX]; /* by size */
} vm_cpu;
_Static_assert(sizeof(vm_cpu) == 64 + VM_POOL_PAGES_MAX * 256, "region format");

/* ---- free index ------------------------------------------------------------------------------ */

/* Free runs of a stretch of pages, stored as what is missing to "all free", so that zero is an
 * untouched region. */
typedef struct vm_summary {
    uint32_t start_missing; /* pages - length of the free run at the low end  */
    uint32_t max_missing;   /* pages - longest free run                       */
    uint32_t end_missing;   /* pages - length of the free run at the high end */
} vm_summary;
_Static_assert(sizeof(vm_summary) == 12, "region format");

/* ---- warm ranges ----------------------------------------------------------------------------- */

/* LAZY ranges by size: exact up to VM_POOL_PAGES_MAX, VM_WARM_STEPS classes a doubling above. */
enum {
    VM_POOL_PAGES_LOG = 8,
    VM_WARM_STEPS = 1 << VM_WARM_STEPS_LOG,
    VM_WARM_CLASSES = VM_POOL_PAGES_MAX + (30 - VM_POOL_PAGES_LOG) * VM_WARM_STEPS,
};
_Static_assert(VM_POOL_PAGES_MAX == 1 << VM_POOL_PAGES_LOG && VM_PAGES_MAX < 1 << 30, "class_of()");

typedef struct vm_list { /* page + 1; 0: empty. Linked through aux: previous << 32 | next, page + 1 each */
    uint32_t head, tail;
} vm_list;

/* Those that processes of one group freed. */
typedef struct vm_shelf { /* hints [vm_warm.lock] */
    _Alignas(64) uint64_t used[VM_WARM_CLASSES / 64 + 1]; /* which lists are not empty */
    vm_list list[VM_WARM_CLASSES];
} vm_shelf;
_Static_assert(sizeof(vm_shelf) == 64 + VM_WARM_CLASSES * 8, "region format");

typedef struct vm_warm { /* hints [lock] */
    vm_lock lock;
    uint32_t unsorted;                       /* detached from the nodes' lists, to be sorted, page + 1 */
    vm_token closed;                         /* by who scans the words: lists are not to be trusted    */
    uint64_t nr_sorted, nr_walked; /* since the neighbours were joined; words looked at then */
} vm_warm;
_Static_assert(sizeof(vm_warm) == 64 * 2, "region format");

typedef struct vm_name {
    uint64_t state;     /* 0 unused, else the range's id: the commit word           */
    uint64_t page;
    char name[VM_NAME_BYTES];
    uint32_t meta_bytes;
    uint32_t pad;
    char meta[VM_NAME_META_BYTES_MAX];
} vm_name;
_Static_assert(sizeof(vm_name) == 504, "region format");

/* A reference inside a message, held by nobody yet: it keeps the range until it is claimed, dropped, or
 * its owner has been dead for a while. */
typedef struct vm_lease_entry {
    uint64_t id;          /* number << VM_LEASE_BITS | index: the commit word; 0 unused */
    uint64_t page, range_id;
    uint64_t made_ns;     /* CLOCK_MONOTONIC */
    uint64_t deadline_ns; /* the same clock; set when its owner is found dead; 0: none */
    uint32_t owner;       /* process slot, incarnation, VM_LEASE_KEPT: who made it, or is claiming it */
    uint32_t next;        /* of an unused one: index + 1 of the next unused one */
    uint64_t read_id;     /* = id: a process without a slot has its copy (window.c) [no lock] */
    uint64_t channel;     /* where the message's bytes are (share/channel.c); 0: not known [lease_lock] */
} vm_lease_entry;
_Static_assert(sizeof(vm_lease_entry) == 64, "region format");
#define VM_CHANNEL_SENDING (1ull << 63) /* `owner` is about to write them, or is at it */
#define VM_CHANNEL_SOCKET (1ull << 62) /* a socket's receive queue, else a pipe; the rest is its inode */
#define VM_CHANNEL_RECEIVED (1ull << 61) /* they were read: `owner` has them */
#define VM_CHANNEL_SEVERAL (1ull << 60) /* written to several, alone: no look at one of them says that it is over */
#define VM_CHANNEL_INODE (VM_CHANNEL_SEVERAL - 1)
#define VM_LEASE_BITS 16
_Static_assert(VM_LEASES_MAX == 1 << VM_LEASE_BITS, "a lease's id holds its index");
static inline uint32_t vm__lease_owner(uint32_t process, uint32_t incarnation)
{
    return process | (incarnation & VM_INC_MASK) << 16;
}
#define VM_LEASE_KEPT (1u << 31) /* of `owner`: a message's, which may still be read when its sender is long dead */

/* ---- header ---------------------------------------------------------------------------------- */

enum { /* vm_header.flags */
       VM_FLAG_NO_DATA = 1u, /* an address space: ranges of numbers, no memory behind */
       VM_FLAG_KEEP = 2u,    /* ranges of dead processes stay busy (AddressSpace)     */
       VM_FLAG_HUGE = 4u,    /* long ranges begin at multiples of 2 MiB, huge pages are asked for */
       VM_FLAG_HARDENED = 8u, /* no hit paths; of two frees at once one wins; see src/vmalloc/hardened.py */
       VM_FLAG_NO_RINGS = 16u, /* who made it might not make files as long as with rings: nothing is recorded */
};

typedef struct vm_header {
    uint64_t magic;
    uint32_t format;
    uint32_t page_bytes;     /* of the system that created it; attach refuses another */
    uint8_t id[16];          /* random: references name it */
    char version[16];        /* of the package that made it, for messages */
    uint64_t total_bytes;    /* of the memfd */
    uint64_t nr_pages;
    uint64_t granule_bytes;  /* page_bytes, or the unit of an address space */
    uint64_t limit_pages;    /* at most this many outside space at once; 0: nr_pages */
    uint32_t pools;          /* vm_pools */
    uint32_t flags;
    uint32_t nr_nodes;
    uint32_t nr_threads;     /* thread slots, of them nr_processes + 1 the processes' own */
    uint32_t nr_levels;      /* summary levels, the leaves' included */
    uint32_t ready;          /* 1 once the creator is done: attach waits for nothing, it refuses */
    uint64_t off_processes, off_threads, off_nodes, off_names, off_leases, off_bits, off_summaries, off_heads,
        off_sharings, off_data;
    uint64_t level_offset[VM_LEVELS_MAX + 1]; /* index of each level's first summary */
    uint64_t base;           /* AddressSpace: value of page 0 */
    uint64_t off_slabs;
    uint32_t nr_cpus;        /* that have slabs: all possible ones of the creator's machine; 0: the design has none */
    uint32_t nr_processes;   /* slots for processes, 64 n - 1; the one after them is the region's own (names)     */
    uint64_t off_holders;    /* the sharings' further words of holders                                            */
    uint32_t nr_groups;      /* of processes; each has as many nodes, and a shelf of warm ranges */
    uint32_t lazy_is_off;    /* a scan could not tell how much is lazy, as others worked meanwhile */
    uint64_t off_shelves;
    uint64_t high_group;     /* no process was ever of it or a higher one; 0: of any but the first. Changes rarely */

    _Alignas(64) uint64_t corrupt; /* 0, or the line that found it: no more changes  */
    uint64_t purge_needs_scan; /* a death may have hidden ranges from the lists */
    uint64_t next_id; /* numbers of ids are handed to threads in blocks */
    uint64_t lazy_pages_fixed; /* threshold set by the user; 0: automatic       */
    uint64_t high_slot; /* thread slots from here up were never used     */
    uint64_t lease_ttl_ns; /* how long an unclaimed lease outlives its owner */
    uint64_t high_process; /* process slots from here up, and their bits of holders, were never used */
    uint64_t free_slot; /* hint: threads' own slots below it are taken   */

    _Alignas(64) uint64_t lazy_pages; /* atomic; at rest the sum of all LAZY lengths   */
    /* Hints, by whoever takes pages: since the last turn of a watch (mend/decay.c) */
    uint64_t lazy_low; /* fewest lazy pages                             */
    uint64_t live_high; /* most pages in use                             */
    uint64_t off_rings;
    uint64_t recording; /* 0, or who records which events                */
    uint32_t nr_recordings; /* ever                                      */

    _Alignas(64) vm_token helper; /* the elected process's slot, or 0 (face/helper.c) */
    vm_token helper_wake; /* futex: 1 while a backlog waits for it         */
    uint64_t helper_beat_ns; /* CLOCK_MONOTONIC: when it last said that it lives */
    uint64_t floor_pages; /* so many stay warm, however idle (vm_keep_warm) */
    uint64_t soft_limit_pages; /* what is warm above it goes at the next tick; 0: none */
    uint64_t quota_pages; /* for each process; 0: none                     */
    uint32_t pressure; /* what the last tick saw: vm_pressure, and by ... */
    uint32_t pressure_sources; /* ... which sources: bits of vm_pressure_source */
    uint64_t nr_ticks, nr_decayed_pages; /* [purge_lock], as the other counters of a purge */
    uint64_t dirty_pages; /* of free ranges that may be resident     [space_lock] */
    uint64_t drained_peak; /* as it was when all magazines were drained; a hint    */
    uint64_t tight_s; /* when a request last found no room, in seconds; 0: never; to come: no magazine helped */

    vm_warm warm;
    vm_lock purge_lock;
    vm_lock space_lock;
    vm_lock names_lock;
    vm_lock lease_lock;
    /* [space_lock] */
    uint64_t free_pages;
    uint64_t used_peak; /* recent; sinks towards present use at every purge        */
    uint64_t granted_pages; /* headroom was checked up to here                          */
    uint64_t high_pages; /* the index was never touched from here up             */
    uint64_t nr_splits, nr_merges;
    /* [purge_lock] */
    uint64_t purge_start_node;
    uint64_t nr_purges, nr_purged_pages, nr_discards, nr_steps;
    uint64_t nr_recovered;
    /* [lease_lock] */
    uint64_t nr_leases; /* entries in use                                                */
    uint64_t lease_number; /* of the newest                                                 */
    uint64_t lease_due_ns; /* no deadline is earlier; 0: there is none                      */
    uint32_t lease_unused; /* index + 1 of the first of a chain of unused entries           */
    uint32_t lease_high; /* entries from here up were never used                          */
    uint64_t leases_read; /* some entry has a read_id                    [no lock: set, or 0] */
} vm_header;

static inline uint64_t vm__id(uint64_t number, uint64_t nr_pages)
{
    return number << VM_ID_SIZE_BITS | (nr_pages <= VM_POOL_PAGES_MAX ? nr_pages : 0);
}
/* How many of a block are given out when this number is the next one; 0 is of no block. */
static inline uint64_t vm__ids_given(uint64_t number) { return number ? (number - 1) % VM_ID_BLOCK : 0; }
/* In place of the size: the range goes back to space when it is freed. No magazine is for so many pages, so that is no hit. */
enum { VM_ID_APART = (1 << VM_ID_SIZE_BITS) - 1 };
static inline bool vm__id_is_apart(uint64_t id) { return vm__id_pages(id) == VM_ID_APART; }
_Static_assert((int)VM_POOL_PAGES_MAX < (int)VM_ID_APART, "an id holds the size");

#endif
