/* SPDX-License-Identifier: MIT */
/*
 * STEP: death before every instruction that stores into the region, in the build we ship.
 *
 * test_crash.c kills where the source says that it writes. Here nobody says it: the victim's mapping of
 * the region (its metadata; what users write into pages is theirs) is made read-only around the
 * operation, and every store stops it, whatever the compiler made of the source, in the core, in
 * memcpy(), in any thread, and in a forked child. The survivor, who traces it, kills it there, or lets
 * it execute that one instruction: make the page writable, step, make it read-only again.
 *
 * At the end the two are compared: a store on a source line that has no hook is one that test_crash
 * cannot see, and fails; where a line stores more or less often than its hook is passed, it is told.
 *
 * VM_CRASH_FULL=1, VM_CRASH_DESIGN and VM_CRASH_ONLY as for test_crash.
 */
#include "stage.h"

#include "trace.h"

#include <sys/syscall.h>

#define SKIPPED 77

#if !CAN_TRACE
int main(void)
{
    puts("skipped: no stepping on this CPU");
    return SKIPPED;
}
#else

enum { AREAS = 16, TRACEES = 16, LINES = 4096 };
#define BY_LIBC (UINT64_C(1) << 63) /* a place: the store is in libc, and this is who called it */

/* ---- in the victim: read-only mappings ---- */

static struct areas { /* seen by the tracer */
    size_t nr;
    struct area {
        uint64_t start, bytes;
    } area[AREAS];
} *areas;
static bool is_armed, is_read_only;

static bool is_guarded(uint64_t address)
{
    for (size_t i = 0; i < areas->nr; i++)
        if (address - areas->area[i].start < areas->area[i].bytes)
            return true;
    return false;
}
static void guard(const void *start, uint64_t bytes)
{
    CHECK(areas->nr < AREAS);
    areas->area[areas->nr++] = (struct area){(uint64_t)(uintptr_t)start, bytes};
}

/* What the core maps while it is armed, because it attaches, is guarded too. */
void *mmap(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
    bool is_region = is_armed && flags & MAP_SHARED && fd >= 0;
    if (is_region && is_read_only)
        protection &= ~PROT_WRITE;
    void *p = (void *)syscall(SYS_mmap, at, bytes, protection, flags, fd, offset);
    if (p != MAP_FAILED && is_region)
        guard(p, bytes);
    return p;
}

/* Without a breakpoint every store has to stop the victim. */
static bool has_breakpoint(const stage *s, moment m) { return m.nth && !(m.place & BY_LIBC) && !s->works_in_between; }

static void arm(stage *s, moment m)
{
    areas->nr = 0;
    guard(s->r->map.h, s->r->map.data_offset);
    CHECK_EQ(ptrace(PTRACE_TRACEME, 0, NULL, NULL), 0);
    raise(SIGSTOP); /* until the tracer has said what it wants to hear of */
    is_armed = true;
    is_read_only = !has_breakpoint(s, m);
    if (is_read_only)
        CHECK_EQ(mprotect(s->r->map.h, s->r->map.data_offset, PROT_READ), 0);
}
static void disarm(stage *s)
{
    is_armed = is_read_only = false;
    CHECK_EQ(mprotect(s->r->map.h, s->r->map.data_offset, PROT_READ | PROT_WRITE), 0);
}

/* ---- in the survivor: the tracer ---- */

static pid_t tracee[TRACEES];

static pid_t *find_tracee(pid_t pid)
{
    for (int i = 0; i < TRACEES; i++)
        if (tracee[i] == pid)
            return &tracee[i];
    return NULL;
}
/* A new thread or process may stop before its maker tells of it, or after. */
static void know_tracee(pid_t pid)
{
    if (find_tracee(pid))
        return;
    pid_t *unused = find_tracee(0);
    CHECK(unused);
    *unused = pid;
}
static bool has_tracees(void)
{
    for (int i = 0; i < TRACEES; i++)
        if (tracee[i])
            return true;
    return false;
}

static void go_on(pid_t pid, int signal) { ptrace(PTRACE_CONT, pid, NULL, (void *)(intptr_t)signal); }

/* One instruction. A signal that comes in between waits. Returns the signal that stopped it. */
static int step(pid_t pid, int *waiting)
{
    for (;;) {
        int status;
        CHECK_EQ(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
        CHECK_EQ(waitpid(pid, &status, __WALL), pid);
        CHECK(WIFSTOPPED(status));
        int signal = WSTOPSIG(status);
        if (signal == SIGTRAP || signal == SIGSEGV)
            return signal;
        *waiting = signal;
    }
}

/* The victim calls mprotect(). */
static void protect(pid_t pid, uint64_t start, uint64_t bytes, int protection, int *waiting)
{
    registers before, at_gate;
    CHECK(get_registers(pid, &before));
    at_gate = before;
    aim_at_gate(&at_gate, SYS_mprotect, start, bytes, (uint64_t)protection);
    CHECK(set_registers(pid, &at_gate));
    CHECK_EQ(step(pid, waiting), SIGTRAP);
    CHECK(get_registers(pid, &at_gate));
    CHECK(result_of(&at_gate) == 0 || result_of(&at_gate) == -ENOMEM); /* it may have detached */
    CHECK(set_registers(pid, &before));
}
static void protect_page(pid_t pid, uint64_t address, int protection, int *waiting)
{
    protect(pid, address & ~(uint64_t)4095, 4096, protection, waiting);
}
static void protect_all(pid_t pid, int protection, int *waiting)
{
    for (size_t i = 0; i < areas->nr; i++)
        protect(pid, areas->area[i].start, areas->area[i].bytes, protection, waiting);
}

static uint64_t fault_address(pid_t pid)
{
    siginfo_t info;
    CHECK_EQ(ptrace(PTRACE_GETSIGINFO, pid, NULL, &info), 0);
    return info.si_signo == SIGSEGV && info.si_code == SEGV_ACCERR ? (uint64_t)(uintptr_t)info.si_addr : 0;
}

/* Execute the store, which may reach into the next page. */
static void let_store(pid_t pid, uint64_t address)
{
    uint64_t opened[2] = {address, 0};
    int waiting = 0;
    protect_page(pid, opened[0], PROT_READ | PROT_WRITE, &waiting);
    if (step(pid, &waiting) == SIGSEGV) {
        opened[1] = fault_address(pid);
        CHECK(is_guarded(opened[1]));
        protect_page(pid, opened[1], PROT_READ | PROT_WRITE, &waiting);
        CHECK_EQ(step(pid, &waiting), SIGTRAP);
    }
    for (int i = 0; i < 2 && opened[i]; i++)
        protect_page(pid, opened[i], PROT_READ, &waiting);
    go_on(pid, waiting);
}

extern char __executable_start[], etext[];
static bool is_in_program(uint64_t pc)
{
    return pc >= (uint64_t)(uintptr_t)__executable_start && pc < (uint64_t)(uintptr_t)etext;
}
/* Relative to the program's start. Of a store in libc: its caller, if that one is ours. */
static uint64_t place_of(pid_t pid)
{
    registers r;
    CHECK(get_registers(pid, &r));
    uint64_t start = (uint64_t)(uintptr_t)__executable_start;
    if (is_in_program(pc_of(&r)))
        return pc_of(&r) - start;
    uint64_t call = caller_of(pid, &r) - 1;
    return is_in_program(call) ? BY_LIBC | (call - start) : BY_LIBC;
}

static void at_fault(stage *s, pid_t pid, moment m)
{
    uint64_t address = fault_address(pid);
    if (!is_guarded(address)) {
        go_on(pid, SIGSEGV);
        return;
    }
    between_writes(s);
    if (is_the_moment(m, place_of(pid)))
        kill(pid, SIGKILL);
    else
        let_store(pid, address);
}

static long set_breakpoint(pid_t pid, uint64_t place)
{
    uint64_t address = place + (uint64_t)(uintptr_t)__executable_start;
    errno = 0;
    long was = ptrace(PTRACE_PEEKTEXT, pid, (void *)(uintptr_t)address, NULL);
    CHECK_EQ(errno, 0);
    CHECK_EQ(ptrace(PTRACE_POKETEXT, pid, (void *)(uintptr_t)address, (void *)with_breakpoint(was)), 0);
    return was;
}

/* At the breakpoint: what does the instruction do? It is executed, if the moment has not come. */
static void at_breakpoint(pid_t pid, moment m, long instruction)
{
    registers r;
    int waiting = 0;
    uint64_t address = m.place + (uint64_t)(uintptr_t)__executable_start;
    CHECK(get_registers(pid, &r));
    go_back_to(&r, address);
    CHECK(set_registers(pid, &r));
    CHECK_EQ(ptrace(PTRACE_POKETEXT, pid, (void *)(uintptr_t)address, (void *)instruction), 0);
    protect_all(pid, PROT_READ, &waiting);
    bool stores = step(pid, &waiting) == SIGSEGV && is_guarded(fault_address(pid));
    if (stores && is_the_moment(m, m.place)) {
        kill(pid, SIGKILL);
        return;
    }
    protect_all(pid, PROT_READ | PROT_WRITE, &waiting);
    if (stores)
        CHECK_EQ(step(pid, &waiting), SIGTRAP);
    set_breakpoint(pid, m.place);
    go_on(pid, waiting);
}

static void at_stop(stage *s, pid_t pid, int status, moment m, long instruction)
{
    unsigned long made;
    if (status >> 16) { /* it made a thread or a process */
        CHECK_EQ(ptrace(PTRACE_GETEVENTMSG, pid, NULL, &made), 0);
        know_tracee((pid_t)made);
        go_on(pid, 0);
    } else if (!find_tracee(pid)) {
        know_tracee(pid);
        go_on(pid, 0);
    } else if (WSTOPSIG(status) == SIGSEGV)
        at_fault(s, pid, m);
    else if (WSTOPSIG(status) == SIGTRAP && has_breakpoint(s, m))
        at_breakpoint(pid, m, instruction);
    else
        go_on(pid, WSTOPSIG(status) == SIGSTOP ? 0 : WSTOPSIG(status));
}

static void watch(stage *s, victim *v, moment m)
{
    int status;
    CHECK_EQ(waitpid(v->pid, &status, 0), v->pid);
    CHECK(WIFSTOPPED(status));
    CHECK_EQ(ptrace(PTRACE_SETOPTIONS, v->pid, NULL,
                    (void *)(PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK)),
             0);
    know_tracee(v->pid);
    long instruction = has_breakpoint(s, m) ? set_breakpoint(v->pid, m.place) : 0;
    for (go_on(v->pid, 0); has_tracees();) {
        pid_t pid = waitpid(-1, &status, __WALL);
        CHECK(pid > 0 && pid != s->neighbour_pid);
        if (WIFSTOPPED(status)) {
            at_stop(s, pid, status, m, instruction);
            continue;
        }
        check_end(pid, status, m.nth != 0);
        if (find_tracee(pid))
            *find_tracee(pid) = 0;
    }
}

static const char *name_of(uint64_t place)
{
    static char name[64];
    snprintf(name, sizeof name, "addr2line -e test_step 0x%" PRIx64, place & ~BY_LIBC);
    return name;
}
static const method by_step = {arm, disarm, watch, name_of};

/* ---- is it allowed here? ---- */

static void try_to_be_traced(void)
{
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
        _exit(SKIPPED);
    raise(SIGSTOP);
    _exit(0);
}
static bool may_trace(void)
{
    pid_t pid;
    int status;
    registers r;
    CHILD(pid, try_to_be_traced());
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    if (!WIFSTOPPED(status))
        return false;
    bool may = get_registers(pid, &r);
    kill(pid, SIGKILL);
    end_of(pid);
    return may;
}

/* ---- which source line; and has it a hook? ---- */

typedef struct line {
    char name[48]; /* file:line */
    bool is_site;
    uint64_t nr_passes, nr_stores, nr_kills;
} line;
static line lines[LINES];
static size_t nr_lines;

static line *find_line(const char *name)
{
    for (size_t i = 0; i < nr_lines; i++)
        if (strcmp(lines[i].name, name) == 0)
            return &lines[i];
    CHECK(nr_lines < LINES);
    snprintf(lines[nr_lines].name, sizeof lines->name, "%s", name);
    return &lines[nr_lines++];
}

static void path_of_self(char *path, size_t bytes)
{
    ssize_t n = readlink("/proc/self/exe", path, bytes - 1);
    CHECK(n > 0);
    path[n] = 0;
}

/* "core/share/lease.c:12 (discriminator 3)" is lease.c:12 */
static const char *short_name(char *said)
{
    said[strcspn(said, " \n")] = 0;
    return strrchr(said, '/') ? strrchr(said, '/') + 1 : said;
}

/* False: no addr2line here. */
static bool find_lines_of_places(void)
{
    char command[1 << 16], self[4096], said[4096];
    size_t nr, n;
    const place_tally *all = places(&nr);
    path_of_self(self, sizeof self);
    n = (size_t)snprintf(command, sizeof command, "addr2line -e '%s'", self);
    for (size_t i = 0; i < nr && n < sizeof command; i++)
        n += (size_t)snprintf(command + n, sizeof command - n, " 0x%" PRIx64, all[i].place & ~BY_LIBC);
    CHECK(n < sizeof command);
    FILE *out = popen(command, "r");
    CHECK(out);
    for (size_t i = 0; i < nr && fgets(said, sizeof said, out); i++) {
        line *l = find_line(all[i].place == BY_LIBC ? "in libc, called by libc" : short_name(said));
        l->nr_stores += all[i].nr_passed;
        l->nr_kills += all[i].nr_kills;
    }
    return pclose(out) == 0;
}

static uint64_t writes[OPERATIONS_MAX][VM_NR_POOL_DESIGNS]; /* by operation and design: as test_crash counts them */

static void read_writes(const char *said)
{
    char name[128], design[16];
    uint64_t nr;
    if (sscanf(said, "site %" SCNu64 " %47s", &nr, name) == 2) {
        line *l = find_line(name);
        l->is_site = true;
        l->nr_passes = nr; /* several sites may share a line: all its passes are told for each */
    }
    if (sscanf(said, "writes %15s %" SCNu64 " %127[^\n]", design, &nr, name) == 3)
        for (size_t i = 0; i < nr_operations; i++)
            FOR_EACH_DESIGN (d)
                if (strcmp(operations[i].name, name) == 0 && strcmp(vm_pools_name(d), design) == 0)
                    writes[i][d] = nr;
}
static void ask_the_build_with_hooks(void)
{
    char command[8192], self[4096], said[512];
    path_of_self(self, sizeof self);
    *strrchr(self, '/') = 0;
    snprintf(command, sizeof command, "'%s/test_crash' --writes", self);
    FILE *out = popen(command, "r");
    CHECK(out);
    while (fgets(said, sizeof said, out))
        read_writes(said);
    CHECK_EQ(pclose(out), 0);
}

static void report_operations(void)
{
    printf("%-44s stores met, killed before; passes of hooks, for each design\n", "operation");
    for (size_t i = 0; i < nr_operations; i++) {
        if (!tally_of(i, VM_POOLS_LLIST).nr_passed)
            continue; /* not run; in `llist` every operation is */
        printf("%-44s", operations[i].name);
        FOR_EACH_DESIGN (d) {
            tally t = tally_of(i, d);
            printf("%s %" PRIu64 ", %" PRIu64 "; %" PRIu64, d ? " |" : "", t.nr_passed, t.nr_kills, writes[i][d]);
        }
        puts("");
    }
}

/* What an operation of the test scribbles itself is not the core's. */
static bool is_of_core(const char *name) { return strncmp(name, "steps_", 6) != 0; }

/* A plain VM_FAULT() stands above what it announces. */
static bool has_hook(const line *l)
{
    char above[64];
    const char *colon = strchr(l->name, ':');
    if (l->is_site || !colon)
        return l->is_site;
    snprintf(above, sizeof above, "%.*s:%d", (int)(colon - l->name), l->name, atoi(colon + 1) - 1);
    for (size_t i = 0; i < nr_lines; i++)
        if (lines[i].is_site && strcmp(lines[i].name, above) == 0)
            return true;
    return false;
}

/* A store that was split, doubled or left out shows up on its line alone; timing, and the node of the CPU we
 * happened to run on, change the ways taken and with them many lines by the same number. */
static void report_difference(const line *l)
{
    if (!has_hook(l))
        printf("%s stores, and has no hook: %" PRIu64 " stores\n", l->name, l->nr_stores);
    else if (!l->is_site)
        printf("%s: %" PRIu64 " stores behind the hook one line above\n", l->name, l->nr_stores);
    else if (l->nr_stores != l->nr_passes)
        printf("%s: %" PRIu64 " stores, hook passed %" PRIu64 " times\n", l->name, l->nr_stores, l->nr_passes);
    if (!l->nr_kills)
        printf("%s never killed\n", l->name);
}

/* Returns how many lines of the core store without a hook, or were stored at and never killed. */
static size_t report_lines(void)
{
    size_t bad = 0, nr = 0, nr_same = 0;
    for (line *l = lines; l < lines + nr_lines; l++) {
        if (l->nr_stores + l->nr_kills == 0 || !is_of_core(l->name))
            continue;
        nr++;
        nr_same += l->is_site && l->nr_stores == l->nr_passes;
        bad += !has_hook(l) || !l->nr_kills;
        report_difference(l);
    }
    printf("%zu lines of the core store into the region; %zu of them exactly as often as their hook is passed\n", nr,
           nr_same);
    fflush(stdout);
    return bad;
}

int main(void)
{
    plan p = {.repeats = 1, .one_in = 1, .leaves_out = PRIVATE};
    if (!may_trace()) {
        puts("skipped: ptrace is not permitted here");
        return SKIPPED;
    }
    if (!atomics_are_one_instruction()) {
        puts("skipped: this CPU has no atomic instruction that a step could execute");
        return SKIPPED;
    }
    areas = shared_memory(sizeof *areas);
    note_everything(&by_step, PRIVATE);
    kill_everywhere(&by_step, &p);
    if (!find_lines_of_places()) {
        puts("no addr2line: the lines are not compared with the hooks'");
        return 0;
    }
    ask_the_build_with_hooks();
    report_operations();
    size_t bad = report_lines();
    if (!getenv("VM_CRASH_DESIGN") && !getenv("VM_CRASH_ONLY"))
        CHECK_EQ(bad, 0);
    return 0;
}
#endif
