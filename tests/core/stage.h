/* SPDX-License-Identifier: MIT */
/*
 * STAGE: where processes are killed on purpose, and what must be true afterwards.
 *
 * Used by two programs: test_crash.c kills before every write that the source names (the build with
 * hooks), test_step.c before every store that the compiler made (the build we ship).
 *
 *   survivor   the test itself: holds stamped ranges, lends some to the victim, recovers, checks
 *   victim     a child that runs one operation (operations.c) and dies in it, or whose child does
 *   neighbour  a third process that allocates, stamps, looks and frees meanwhile (neighbour.c)
 *
 * A child holds what its parent held when it forked: so everybody is forked first, and the survivor
 * takes its ranges then. The stage lies in memory that all of them see.
 */
#ifndef VM_TESTS_STAGE_H
#define VM_TESTS_STAGE_H

#include "kit.h"

enum { PAGES = 12000, GIFTS = 4, SURVIVORS = 5, BUSY_SLOTS = 8, VICTIMS = 2, HELD_MAX = 80 };

typedef struct victim {
    pid_t pid; /* and of its process group: its children are in it */
    int cue;
} victim;

typedef struct stage {
    vm_region *r; /* at the same address in every child */
    vm_pools d;
    uint32_t survivor;        /* its process slot */
    vm_range mine[SURVIVORS]; /* the survivor's, to the end */
    vm_range gift[GIFTS];     /* for the victim to adopt, free, drop */
    bool gift_is_ours[GIFTS]; /* still to be freed by the survivor */
    uint64_t lease;           /* of gift 0, or of what the victim sent; 0: none */
    vm_range sent;
    vm_range held[HELD_MAX];  /* the victim's */
    size_t nr_held;
    bool works_in_between;  /* between_writes() must not be left out, */
    bool adopts_in_between, reuses_in_between; /* for here it has something to do */
    victim victim[VICTIMS];
    int neighbour; /* a cue, too */
    pid_t neighbour_pid;
    uint64_t neighbour_pairs;
} stage;

typedef struct operation {
    const char *name;
    void (*before)(stage *);    /* by the survivor */
    void (*setup)(stage *);     /* by the victim, not armed */
    void (*meanwhile)(stage *); /* by the survivor, after setup */
    void (*run)(stage *);       /* by the victim, armed */
    void (*after)(stage *);     /* by the survivor, before it recovers */
    void (*later)(stage *);     /* by the survivor, recovered */
    unsigned flags;
} operation;
enum {
    LLIST = 1 << VM_POOLS_LLIST,
    MAGAZINE = 1 << VM_POOLS_MAGAZINE,
    TAGGED = 1 << VM_POOLS_TAGGED,
    PERCPU = 1 << VM_POOLS_PERCPU,
    DESIGNS = (1 << VM_NR_POOL_DESIGNS) - 1, /* none of these: in every design */
    ALONE = 1 << 16,   /* hand-made, not to be touched by a neighbour; nor the first of two deaths */
    ONCE = 1 << 17,    /* not the first of two deaths */
    HUNGRY = 1 << 18,  /* wants nearly all of the region: not with a neighbour */
    ONE_DEATH = 1 << 19, /* no second death after it */
    PRIVATE = 1 << 20, /* writes to a region that nobody else will ever see */
    BETWEEN = 1 << 21, /* between_writes() has something to do */
};

/* ---- operations.c ---- */
enum { OPERATIONS_MAX = 256 };
extern const operation operations[], second_operations[];
extern const size_t nr_operations, nr_second_operations;
void between_writes(stage *s); /* called before every write of an armed victim, by whoever stops it there */
bool is_design_selected(vm_pools d); /* VM_CRASH_DESIGN=its-name */
bool is_selected(const operation *op, vm_pools d); /* VM_CRASH_ONLY=part-of-a-name */

/* ---- victim.c ---- */
typedef struct moment { /* before the nth time that somebody passes the place; nth 0: nobody dies, all is noted */
    uint64_t place;
    uint32_t nth;
} moment;
#define NEVER ((moment){0, 0})
typedef struct method { /* of killing */
    void (*arm)(stage *, moment); /* around the operation, in the victim */
    void (*disarm)(stage *);
    void (*watch)(stage *, victim *, moment); /* until the victim is gone; its children perhaps not */
    const char *(*name_of)(uint64_t place);
} method;
enum { CUE_NONE, CUE_SETUP, CUE_READY, CUE_RUN };
void stay_on_one_cpu(void);
void give_cue(int *cue, int value);
void wait_for_cue(int *cue, int value, pid_t from); /* from: who must be alive to give it; 0: our parent */
void wait_for_other_cue(int *cue, int value);       /* at most a moment */
void start_victim(stage *s, victim *v, const operation *op, const method *how, moment m);
void bring_to_the_brink(stage *s, victim *v, const operation *op); /* all that comes before op->run */
void collect_orphans(victim *v);                                   /* the victim is gone: wait for its children */
void check_end(pid_t pid, int status, bool may_be_killed);

/* ---- deaths.c ---- */
typedef struct plan {
    uint32_t repeats;               /* of one place in one operation: the first so many, and the last */
    uint32_t one_in;                /* of these */
    size_t most_first, most_second; /* pairs of deaths in an operation: first deaths, second ones for each */
    unsigned leaves_out; /* operations with one of these flags */
} plan;
typedef struct tally { /* of one operation in one design */
    uint64_t nr_passed, nr_kills;
} tally;
typedef struct place_tally {
    uint64_t place, nr_passed, nr_kills;
} place_tally;
void note_everything(const method *how, unsigned leaves_out); /* fills nr_passed of the tallies */
void kill_everywhere(const method *how, const plan *p);       /* fills nr_kills */
bool is_the_moment(moment m, uint64_t place); /* somebody is about to pass it */
bool is_over(moment m);                       /* it came */
tally tally_of(size_t operation, vm_pools d);
const place_tally *places(size_t *nr);
uint64_t all_kills(void);

/* ---- neighbour.c ---- */
enum { NEIGHBOUR_NONE, NEIGHBOUR_WORKS, NEIGHBOUR_STOPS, NEIGHBOUR_RESTS, NEIGHBOUR_ENDS };
void start_neighbour(stage *s);
void neighbour_works(stage *s);
void neighbour_rests(stage *s);
void end_neighbour(stage *s);

/* ---- aftermath.c ---- */
stage *make_stage(vm_pools d);
void end_stage(stage *s);
void set_stage(stage *s);
void stamp_range(const stage *s, const vm_range *a);
void check_stamps(const stage *s, const vm_range *a);
void nothing_is_lost(stage *s);

#endif
