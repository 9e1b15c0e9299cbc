/* SPDX-License-Identifier: MIT */
/*
 * CRASH: death before every shared write of every operation, in every design.
 *
 * Every write in core/ goes through a hook (fault.h), which has a name: file and line. Here each of
 * them kills, and at the end none may be left that never did. deaths.c says which die when,
 * operations.c in what, aftermath.c what must be true then.
 *
 * VM_CRASH_FULL=1 kills at every single write; otherwise the repeats of one site within one
 * operation are thinned to the first two and the last. VM_CRASH_DESIGN=llist and
 * VM_CRASH_ONLY=part-of-an-operation's-name run less.
 * `test_crash --writes` kills nobody: it prints every site, and how many writes each operation does,
 * for test_step.c to compare with.
 */
#include "stage.h"

static stage *stage_now;
static moment death;
static bool is_armed;

/* A file's name lasts as long as the program; lines are below 65,536. */
static uint64_t place_of(const char *file, int line) { return (uint64_t)(uintptr_t)file << 16 | (uint64_t)line; }
static const char *file_of(uint64_t place)
{
    const char *file = (const char *)(uintptr_t)(place >> 16), *slash = strrchr(file, '/');
    return slash ? slash + 1 : file;
}
static const char *name_of(uint64_t place)
{
    static char name[64];
    snprintf(name, sizeof name, "%s:%u", file_of(place), (unsigned)(place & 0xffff));
    return name;
}

static bool dies_before(const char *file, int line, uint64_t nr_passed)
{
    (void)nr_passed;
    if (!is_armed)
        return false;
    between_writes(stage_now);
    return is_the_moment(death, place_of(file, line));
}

static void arm(stage *s, moment m)
{
    stage_now = s;
    death = m;
    is_armed = true;
    vm_fault_arm(0);
}
static void disarm(stage *s)
{
    (void)s;
    is_armed = false;
    vm_fault_arm(-1);
}

static void watch(stage *s, victim *v, moment m)
{
    (void)s;
    check_end(v->pid, end_of(v->pid), m.nth != 0);
}

static const method by_hook = {arm, disarm, watch, name_of};

static const char *site_name(size_t i)
{
    const char *file;
    int line;
    vm_fault_site(i, &file, &line);
    return name_of(place_of(file, line));
}

/* Several sites may share a line, and then one tally. */
static place_tally tally_of_site(size_t i)
{
    const char *file;
    int line;
    size_t nr;
    const place_tally *all = places(&nr);
    vm_fault_site(i, &file, &line);
    for (size_t k = 0; k < nr; k++)
        if (all[k].place == place_of(file, line))
            return all[k];
    return (place_tally){0};
}

static size_t report_sites(void)
{
    size_t nr = vm_fault_nr_sites(), never = 0;
    for (size_t i = 0; i < nr; i++)
        if (tally_of_site(i).nr_kills == 0) {
            never++;
            printf("never killed: %s\n", site_name(i));
        }
    printf("sites killed %zu/%zu, kills %" PRIu64 "\n", nr - never, nr, all_kills());
    fflush(stdout);
    return never;
}

static void print_writes(void)
{
    note_everything(&by_hook, PRIVATE);
    for (size_t i = 0; i < nr_operations; i++)
        FOR_EACH_DESIGN (d)
            printf("writes %s %" PRIu64 " %s\n", vm_pools_name(d), tally_of(i, d).nr_passed, operations[i].name);
    for (size_t i = 0; i < vm_fault_nr_sites(); i++)
        printf("site %" PRIu64 " %s\n", tally_of_site(i).nr_passed, site_name(i));
}

int main(int argc, char **argv)
{
    if (IS_TSAN)
        return 2; /* not built to run under it: see LEFT_OUT in test_c.py */
    vm_fault_filter(dies_before);
    if (argc > 1 && strcmp(argv[1], "--writes") == 0) {
        print_writes();
        return 0;
    }
    plan p = {.repeats = 2, .one_in = 1, .most_first = 6, .most_second = 6};
    if (SLOWER > 1)
        p = (plan){.repeats = 1, .one_in = 8};
    kill_everywhere(&by_hook, &p);
    size_t never = report_sites();
    if (SLOWER == 1 && !getenv("VM_CRASH_DESIGN") && !getenv("VM_CRASH_ONLY"))
        CHECK_EQ(never, 0);
    return 0;
}
