/* SPDX-License-Identifier: MIT */
/*
 * SOAK: processes that do everything at once and are killed at random, for hours if asked to.
 *
 * A supervisor (soak_kills.c) starts workers (soak_worker.c), which attach to the region from an inherited
 * descriptor, and kills, stops and continues them. What everybody claims to hold stands on a board in memory
 * of its own, which the region's code knows nothing of; the audit (soak_audit.c) compares the two.
 *
 * The order of writes on the board, so that a death in between is no false alarm:
 *   doom   the supervisor says so before it kills. What the doomed hold may be gone at any time; who is not
 *          doomed after a request failed was alive all the while, so a claim of his that still stands the
 *          same is a range that was taken from under him.
 *   claim  written after the range was had. Who dies before that holds nothing on the board, and recovery
 *          takes the range.
 *   let go what others may rely on (SHOWN, OFFERED, FULL) is taken back before the range is let go.
 *   take   of another's offer or message: by CAS, before it is used, and with the taker's name. If he dies, it
 *          is undecided who has the range: the owner asks the region, the audit allows both.
 *   gone   a row is used again, under the next generation, when the kernel dropped the lock that its process,
 *          or whoever was about to fork it, had on a byte of the board: then it writes no more.
 *
 * Every page of a range bears a stamp of its range's id. Whoever has the range, by whatever way, looks at the
 * stamps: a page that two have, or that was discarded or zeroed, is noticed by one of them.
 */
#ifndef VM_TESTS_SOAK_H
#define VM_TESTS_SOAK_H

#include "kit.h"

#include <pthread.h>

enum { ROWS = 12, LANES = 3, CELLS = 20, MESSAGES = 48, SOAK_NAMES = 12, TEXT_BYTES = 400, LONG_TTL_S = 600 };

/* ---- marks: what kind of entry this is, who is at it, how often it changed ---- */

enum { /* of a claim */
       NOTHING,
       HELD,
       SHOWN,   /* shared: who wants to may adopt it */
       OFFERED, /* private: who wants to may free it */
       TAKEN,   /* an offer, or a message, by somebody */
       WRITING, /* a message by somebody, not ready */
       FULL,    /* a message */
};
typedef uint64_t mark;
static inline mark make_mark(uint32_t kind, uint32_t by, uint32_t change)
{
    return (uint64_t)change << 32 | (uint64_t)by << 8 | kind;
}
static inline uint32_t kind_of(mark m) { return m & 0xff; }
static inline uint32_t by_of(mark m) { return (uint32_t)m >> 8; } /* a name, see name_of() */
static inline uint32_t change_of(mark m) { return (uint32_t)(m >> 32); }

typedef struct claim { /* one reference that a process has */
    mark mark;
    uint64_t page, nr_pages, id;
    bool is_shared, is_inherited;
} claim;

typedef struct message { /* a reference on its way, kept by a lease */
    mark mark;
    uint64_t page, nr_pages, id, lease;
    uint64_t nr_forced; /* board.nr_forced when the lease was made */
    uint32_t sender, sender_stay;
    bool is_shaky; /* somebody died at it */
} message;

/* ---- rows: who is there ---- */

#define DOOMED_BY_OTHERS 1u
#define DOOMED_BY_ITSELF 2u
#define HAS_INHERITED 1u /* what other threads had when it was forked */
#define HAS_KEPT 2u      /* what a stopped process was freeing when it forked */

enum { ROW_UNUSED, ROW_RESERVED, ROW_LIVE };
typedef struct row {
    uint32_t state, generation;
    int32_t pid, family; /* pid and process group */
    uint32_t doomed;     /* bits: by the supervisor, by itself */
    uint32_t is_uncertain; /* bits: it may hold more than it claims */
    uint32_t stay;         /* raised before and after each detach: odd while it holds nothing for sure */
    uint32_t process;      /* its slot in the region */
    uint32_t parked;       /* the phase in which it rests */
    uint64_t nr_done;      /* operations */
    claim claims[LANES][CELLS];
} row;

enum { NO_MISTAKE, LOSES_A_RANGE, WRITES_AFTER_FREE };
enum { WORK = 1, PARK, LET_GO, END }; /* + 8 * how often the phase changed */

typedef struct board {
    uint32_t phase;
    uint32_t has_failed;
    char text[TEXT_BYTES]; /* why */
    double lease_ttl_s, lock_timeout_s;
    uint32_t has_long_stops; /* longer than that */
    uint32_t mistake;        /* made on purpose: is it noticed? */
    uint32_t hesitates;      /* with hooks: they pause between writes of holders, leases and names */
    uint64_t nr_forced, nr_forced_done; /* how often somebody began to end all leases; and had done so */
    uint64_t nr_busy, nr_refused, nr_forks, nr_detached, nr_ended, nr_recovered, nr_claimed;
    int32_t supervisor, doomed_family;
    message messages[MESSAGES];
    row rows[ROWS];
} board;

/* ---- soak_board.c ---- */
extern board *the_board;
#define BUMP(counter) ((void)__atomic_fetch_add(&the_board->counter, 1, __ATOMIC_RELAXED))
__attribute__((format(printf, 1, 2))) void violation(const char *format, ...); /* says it, waits to be looked at */
bool is_over(void); /* somebody found something: rest */
uint32_t name_of(uint32_t row);
bool is_gone(uint32_t name); /* dead, and known to be */
bool is_doomed(uint32_t name);
int lock_a_row(int board_fd, uint32_t *row, int32_t family); /* a descriptor that keeps it, or -1: none is unused */
bool is_row_locked(int board_fd, uint32_t row);
bool swap_mark(mark *m, mark seen, uint32_t kind, uint32_t by);
void set_mark(mark *m, uint32_t kind);
static inline mark read_mark(const mark *m) { return __atomic_load_n(m, __ATOMIC_SEQ_CST); }
void stamp_pages(vm_region *r, uint64_t page, uint64_t nr_pages, uint64_t id, uint32_t name);
bool stamps_are(vm_region *r, uint64_t page, uint64_t nr_pages, uint64_t id, char *found, size_t room);
void print_board(FILE *to);

/* ---- soak_worker.c ---- */
enum { BOARD_FD = 10, REGION_FD, ROW_FD }; /* what a worker inherits */
int be_a_worker(uint32_t row, uint64_t seed);

/* ---- soak_audit.c ---- */
bool audit(vm_region *r, bool may_be_dead); /* everybody rests. False: said what was found */

#endif
