/* SPDX-License-Identifier: MIT */
/*
 * NEIGHBOUR: a third process that works in the region while the victim dies and the survivor recovers.
 *
 * Each of its pages bears a stamp, looked at again before the page is freed: had anybody else been
 * given the page meanwhile, or recovery taken it, one of the two would find a foreign stamp.
 */
#include "stage.h"

enum { LIVE = 12 };
/* Few sizes: its magazines must not keep what the others need, for nobody takes from them in mid-operation. */
static const uint64_t sizes[] = {1, 2, 3, 20, 60, 300};

typedef struct neighbour {
    stage *s;
    vm_range live[LIVE];
    uint64_t seed;
} neighbour;

static void look_and_free(neighbour *n, vm_range *a)
{
    check_stamps(n->s, a);
    GIVE_BACK(n->s->r, *a);
    a->nr_pages = 0;
    __atomic_fetch_add(&n->s->neighbour_pairs, 1, __ATOMIC_RELAXED);
}

static void work(neighbour *n)
{
    vm_range *a = &n->live[random_below(&n->seed, LIVE)];
    if (a->nr_pages)
        look_and_free(n, a);
    else if (vm_alloc(n->s->r, sizes[random_below(&n->seed, LENGTH(sizes))], 1, VM_NO_PURGE, a) == 0)
        stamp_range(n->s, a);
    else
        a->nr_pages = 0;
}

static void rest(neighbour *n)
{
    for (int i = 0; i < LIVE; i++)
        if (n->live[i].nr_pages)
            look_and_free(n, &n->live[i]);
    give_cue(&n->s->neighbour, NEIGHBOUR_RESTS);
}

static void go_anywhere(void)
{
    cpu_set_t all;
    memset(&all, 0xff, sizeof all);
    sched_setaffinity(0, sizeof all, &all); /* those that there are */
}

static void be_a_neighbour(stage *s)
{
    go_anywhere();
    neighbour n = {.s = s, .seed = 99};
    CHECK(vm__thread(s->r)); /* its thread slot is counted from the start */
    for (;;)
        switch (__atomic_load_n(&s->neighbour, __ATOMIC_ACQUIRE)) {
        case NEIGHBOUR_WORKS:
            work(&n);
            break;
        case NEIGHBOUR_STOPS:
            rest(&n);
            break;
        case NEIGHBOUR_ENDS:
            return;
        default:
            wait_for_other_cue(&s->neighbour, NEIGHBOUR_RESTS);
        }
}

/* The survivor holds nothing now, so the neighbour inherits nothing. */
void start_neighbour(stage *s)
{
    pid_t pid; /* the child has a copy of this one: there it is 0 */
    s->neighbour = NEIGHBOUR_STOPS;
    CHILD(pid, be_a_neighbour(s));
    s->neighbour_pid = pid;
    wait_for_cue(&s->neighbour, NEIGHBOUR_RESTS, s->neighbour_pid);
}

void neighbour_works(stage *s) { give_cue(&s->neighbour, NEIGHBOUR_WORKS); }

void neighbour_rests(stage *s)
{
    give_cue(&s->neighbour, NEIGHBOUR_STOPS);
    wait_for_cue(&s->neighbour, NEIGHBOUR_RESTS, s->neighbour_pid);
}

void end_neighbour(stage *s)
{
    give_cue(&s->neighbour, NEIGHBOUR_ENDS);
    ended_well(s->neighbour_pid);
    s->neighbour = NEIGHBOUR_NONE;
    CHECK_EQ(vm_recover(s->r, NULL), 0);
}
