/* SPDX-License-Identifier: MIT */
/* VICTIM: the child that dies, and the cues that bring it to the brink. */
#include "stage.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>

#define PATIENCE_S 60

void give_cue(int *cue, int value)
{
    __atomic_store_n(cue, value, __ATOMIC_RELEASE);
    syscall(SYS_futex, cue, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static void check_is_alive(pid_t pid)
{
    int status;
    if (pid && waitpid(pid, &status, WNOHANG) == pid) {
        fprintf(stderr, "process %d ended with status 0x%x before its cue\n", pid, (unsigned)status);
        exit(1);
    }
}

void wait_for_other_cue(int *cue, int value)
{
    struct timespec slice = {0, 100 * 1000 * 1000};
    syscall(SYS_futex, cue, FUTEX_WAIT, value, &slice, NULL, 0);
}

void wait_for_cue(int *cue, int value, pid_t from)
{
    double until = seconds() + PATIENCE_S;
    for (int seen; (seen = __atomic_load_n(cue, __ATOMIC_ACQUIRE)) != value;) {
        wait_for_other_cue(cue, seen);
        check_is_alive(from);
        CHECK(seconds() < until);
    }
}

/* So that a victim and whoever follows it see one node first, and what it does is the same each time. */
void stay_on_one_cpu(void)
{
    cpu_set_t set;
    int cpu = sched_getcpu();
    CPU_ZERO(&set);
    CPU_SET(cpu < 0 ? 0 : cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static void live(stage *s, victim *v, const operation *op, const method *how, moment m)
{
    setpgid(0, 0);
    wait_for_cue(&v->cue, CUE_SETUP, 0);
    s->nr_held = 0;
    if (op->setup)
        op->setup(s);
    give_cue(&v->cue, CUE_READY);
    wait_for_cue(&v->cue, CUE_RUN, 0);
    how->arm(s, m);
    op->run(s);
    how->disarm(s);
}

void start_victim(stage *s, victim *v, const operation *op, const method *how, moment m)
{
    pid_t pid; /* the child has a copy of this one: there it is 0 */
    v->cue = CUE_NONE;
    CHILD(pid, live(s, v, op, how, m));
    setpgid(pid, pid); /* whoever comes first */
    v->pid = pid;
}

void bring_to_the_brink(stage *s, victim *v, const operation *op)
{
    give_cue(&v->cue, CUE_SETUP);
    wait_for_cue(&v->cue, CUE_READY, v->pid);
    if (op->meanwhile)
        op->meanwhile(s);
}

void check_end(pid_t pid, int status, bool may_be_killed)
{
    bool is_well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (is_well || (may_be_killed && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL))
        return;
    fprintf(stderr, "process %d ended with status 0x%x\n", pid, (unsigned)status);
    exit(1);
}

/* They are ours since their parent died: see PR_SET_CHILD_SUBREAPER in make_stage(). */
void collect_orphans(victim *v)
{
    int status;
    for (pid_t pid; (pid = waitpid(-v->pid, &status, 0)) > 0;)
        check_end(pid, status, true);
}
