/* SPDX-License-Identifier: MIT */
/*
 * SUPERVISOR: starts the soak's workers, kills them at random, and asks whether anything is lost.
 *
 *   soak_kills [-k KILLS] [-s SECONDS] [-r KILLS_A_SECOND] [-p DESIGN] [-S SEED] [-d DIRECTORY] [-m MISTAKE] [-y]
 *
 * Goes on until so many were killed, or for so long. An epoch is one region of one pool design, of that one or of
 * each in turn; now and then in it, and at its end, everybody rests and the board is compared with the region (soak_audit.c). At the end
 * of an epoch everybody lets go of all he has, or everybody is killed: then every page must be free.
 * What was found is told, and DIRECTORY gets the board and an image of the region's metadata. -y, with hooks: workers
 * hesitate before writes of holders, leases, names and scans, so that others come in between more often.
 */
#include "soak.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>

#define HUNG_S 60.0
#define EPOCH_S 3.0
#define LOCK_TIMEOUT_S 0.4

extern char **environ;

typedef struct supervisor {
    uint64_t seed, nr_wanted;
    double seconds, rate;
    const char *directory;
    int only_design; /* -1: all in turn */
    uint32_t mistake, hesitates;
    vm_region *r;
    int board_fd, region_fd;
    vm_pools design;
    double continue_at[ROWS]; /* when the stopped one goes on; 0: it runs */
    uint32_t nr_stopped;
    uint64_t nr_kills, nr_ended, nr_started, nr_stops, nr_audits, nr_epochs;
    uint64_t nr_done, nr_busy, nr_forks, nr_detached, nr_claimed; /* of the epochs before */
} supervisor;

static double between(supervisor *s, double least, double most)
{
    return least + (most - least) * (double)random_below(&s->seed, 1 << 20) / (1 << 20);
}

/* ---- failure ---- */

/* Who has a slot in the region; is it known to be dead? */
static void print_slots(vm_region *r)
{
    printf("purge_needs_scan %" PRIu64 "\n", VM_ACQUIRE(&r->map.h->purge_needs_scan));
    for (uint32_t p = 0; p < vm__high_process(r); p++) {
        uint64_t state = VM_ACQUIRE(&r->map.processes[p].state);
        if ((uint32_t)state)
            printf("process slot %u: incarnation %u, %s, pid %u%s\n", p, (uint32_t)(state >> 32) & VM_INC_MASK,
                   state & VM_PROCESS_LIVE ? "live" : "dying", r->map.processes[p].pid,
                   vm__process_is_dead(r, p) ? ", dead" : "");
    }
}

static void stop_everybody(void)
{
    for (uint32_t i = 0; i < ROWS; i++)
        if (the_board->rows[i].state == ROW_LIVE && the_board->rows[i].pid > 0)
            kill(the_board->rows[i].pid, SIGSTOP);
}

static void save_metadata(const supervisor *s, const char *path)
{
    static const uint8_t zeros[4096];
    const uint8_t *from = (const uint8_t *)s->r->map.h;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)s->r->map.data_offset) == 0);
    for (uint64_t at = 0; at < s->r->map.data_offset; at += sizeof zeros)
        if (memcmp(from + at, zeros, sizeof zeros) != 0)
            CHECK_EQ(pwrite(fd, from + at, sizeof zeros, (off_t)at), sizeof zeros);
    close(fd);
}

static void kill_everybody(void)
{
    for (uint32_t i = 0; i < ROWS; i++) {
        row *w = &the_board->rows[i];
        __atomic_fetch_or(&w->doomed, DOOMED_BY_OTHERS, __ATOMIC_SEQ_CST);
        if (w->state != ROW_UNUSED && w->pid > 0)
            kill(w->pid, SIGKILL);
    }
}

static void tell_and_end(const supervisor *s)
{
    char path[512];
    while (__atomic_load_n(&the_board->has_failed, __ATOMIC_SEQ_CST) != 2)
        usleep(100);
    stop_everybody();
    usleep(50000);
    printf("after %" PRIu64 " kills, design %s: %s\n", s->nr_kills, vm_pools_name(s->design), the_board->text);
    print_board(stdout);
    print_slots(s->r);
    mkdir(s->directory, 0700);
    snprintf(path, sizeof path, "%s/soak-%d.image", s->directory, getpid());
    save_metadata(s, path);
    printf("the region's metadata: %s\n", path);
    fflush(stdout);
    kill_everybody();
    exit(1);
}

/* ---- who lives ---- */

static void collect_the_dead(supervisor *s)
{
    int status;
    for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
            s->nr_kills++;
        else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
            s->nr_ended++;
        else
            violation("process %d ended with status 0x%x", pid, (unsigned)status);
    }
}

/* The row's process can write no more. Its claims go before its generation: who sees one and asks for the row's name first
 * has the dead one's. */
static void free_row(supervisor *s, uint32_t i)
{
    row *w = &the_board->rows[i];
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < CELLS; k++)
            set_mark(&w->claims[lane][k].mark, NOTHING);
    s->nr_done += w->nr_done;
    s->nr_stopped -= s->continue_at[i] != 0;
    s->continue_at[i] = 0;
    __atomic_fetch_add(&w->generation, 1, __ATOMIC_SEQ_CST);
    w->pid = 0, w->doomed = 0, w->is_uncertain = 0, w->stay = 0, w->parked = 0, w->nr_done = 0;
    __atomic_store_n(&w->state, ROW_UNUSED, __ATOMIC_SEQ_CST);
}

static void continue_those_due(supervisor *s, bool all)
{
    for (uint32_t i = 0; i < ROWS; i++)
        if (s->continue_at[i] != 0 && (all || s->continue_at[i] <= seconds())) {
            kill(the_board->rows[i].pid, SIGCONT);
            s->continue_at[i] = 0;
            s->nr_stopped--;
        }
}

static void tick(supervisor *s)
{
    collect_the_dead(s);
    for (uint32_t i = 0; i < ROWS; i++)
        if (__atomic_load_n(&the_board->rows[i].state, __ATOMIC_SEQ_CST) != ROW_UNUSED
            && !is_row_locked(s->board_fd, i))
            free_row(s, i);
    continue_those_due(s, false);
    if (is_over())
        tell_and_end(s);
    usleep(500);
}

static uint32_t nr_rows(uint32_t state)
{
    uint32_t nr = 0;
    for (uint32_t i = 0; i < ROWS; i++)
        nr += __atomic_load_n(&the_board->rows[i].state, __ATOMIC_SEQ_CST) == state;
    return nr;
}

static void start_worker(supervisor *s)
{
    uint32_t i;
    char number[16], seed[32];
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    int row_fd = lock_a_row(s->board_fd, &i, 0);
    if (row_fd < 0)
        return;
    snprintf(number, sizeof number, "%u", i);
    snprintf(seed, sizeof seed, "%" PRIu64, next_random(&s->seed) | 1);
    char *const arguments[] = {"soak_kills", "-w", number, "-S", seed, NULL};
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, s->board_fd, BOARD_FD);
    posix_spawn_file_actions_adddup2(&files, s->region_fd, REGION_FD);
    posix_spawn_file_actions_adddup2(&files, row_fd, ROW_FD);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
    pid_t pid;
    CHECK_EQ(posix_spawn(&pid, "/proc/self/exe", &files, &attributes, arguments, environ), 0);
    the_board->rows[i].pid = the_board->rows[i].family = pid;
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    close(row_fd);
    s->nr_started++;
}

/* ---- harm ---- */

/* One that lives, is known and is not doomed yet; ROWS: nobody. */
static uint32_t somebody(supervisor *s)
{
    uint32_t from = (uint32_t)random_below(&s->seed, ROWS);
    for (uint32_t k = 0; k < ROWS; k++) {
        uint32_t i = (from + k) % ROWS;
        const row *w = &the_board->rows[i];
        if (w->state != ROW_UNUSED && w->pid > 0 && !w->doomed)
            return i;
    }
    return ROWS;
}

static void doom_family(int32_t family)
{
    for (uint32_t i = 0; i < ROWS; i++)
        if (the_board->rows[i].state != ROW_UNUSED && the_board->rows[i].family == family)
            __atomic_fetch_or(&the_board->rows[i].doomed, DOOMED_BY_OTHERS, __ATOMIC_SEQ_CST);
}

/* Those that a member forks meanwhile are doomed, too: killed with it, or never forked. */
static void kill_family(int32_t family)
{
    __atomic_store_n(&the_board->doomed_family, family, __ATOMIC_SEQ_CST);
    doom_family(family);
    kill(-family, SIGKILL);
    doom_family(family);
}

static void kill_somebody(supervisor *s)
{
    uint32_t i = somebody(s);
    if (i == ROWS)
        return;
    row *w = &the_board->rows[i];
    if (random_below(&s->seed, 8) == 0 && w->family == w->pid)
        kill_family(w->family);
    else {
        __atomic_fetch_or(&w->doomed, DOOMED_BY_OTHERS, __ATOMIC_SEQ_CST);
        kill(w->pid, SIGKILL);
    }
}

/* Mostly for less than anybody waits for a lock; at times for longer, then some get EBUSY. */
static void stop_somebody(supervisor *s)
{
    uint32_t i = somebody(s);
    if (i == ROWS || s->continue_at[i] != 0 || s->nr_stopped >= 2)
        return;
    bool is_long = random_below(&s->seed, 40) == 0;
    if (is_long)
        __atomic_store_n(&the_board->has_long_stops, 1, __ATOMIC_SEQ_CST);
    kill(the_board->rows[i].pid, SIGSTOP);
    s->continue_at[i] = seconds() + (is_long ? between(s, 1, 1.6) * LOCK_TIMEOUT_S : between(s, 0, 0.03));
    s->nr_stopped++;
    s->nr_stops++;
}

/* ---- rest ---- */

static uint32_t change_phase(uint32_t kind)
{
    uint32_t phase = (the_board->phase / 8 + 1) * 8 + kind;
    __atomic_store_n(&the_board->phase, phase, __ATOMIC_SEQ_CST);
    return phase;
}

static bool all_rest(uint32_t phase)
{
    for (uint32_t i = 0; i < ROWS; i++) {
        const row *w = &the_board->rows[i];
        uint32_t state = __atomic_load_n(&w->state, __ATOMIC_SEQ_CST);
        if (state != ROW_UNUSED && (state != ROW_LIVE || __atomic_load_n(&w->parked, __ATOMIC_SEQ_CST) != phase))
            return false;
    }
    return true;
}

static void wait_until(supervisor *s, bool (*is_so)(uint32_t), uint32_t argument, const char *what)
{
    double since = seconds();
    while (!is_so(argument)) {
        tick(s);
        if (seconds() - since > HUNG_S)
            violation("hung: for %.0f s not all %s", HUNG_S, what);
    }
}

static void say_violation(void *arg, const char *text) { violation("%s: %s", (const char *)arg, text); }

static void must(supervisor *s, int rc, const char *what)
{
    if (rc < 0)
        violation("%s: %s", what, strerror(-rc));
    if (is_over())
        tell_and_end(s);
}

/* Also of those who are DYING: who is killed while it detaches may be gone from the board, and keep its OFD lock a moment
 * longer. */
static uint32_t nr_slots_used(const vm_region *r)
{
    uint32_t nr = 0;
    for (uint32_t p = 0; p < vm__high_process(r); p++)
        nr += (uint32_t)VM_ACQUIRE(&r->map.processes[p].state) != 0;
    return nr;
}

/* Nobody is stopped, nobody works: it must work, and find all who are dead. */
static void recover_all(supervisor *s)
{
    double since = seconds();
    do {
        must(s, vm_recover(s->r, NULL), "recovery, at rest");
        if (seconds() - since > HUNG_S)
            violation("%u process slots are used, %u processes live", nr_slots_used(s->r), nr_rows(ROW_LIVE) + 1);
        tick(s);
    } while (nr_slots_used(s->r) != nr_rows(ROW_LIVE) + 1);
}

static void note_lazy(void *arg, const char *text) { *(bool *)arg &= strncmp(text, "lazy pages: counter", 19) == 0; }

/* The counter of lazy pages may be off by what was in flight in the last recovery (docs/recovery.md, 8). */
static void check_at_rest(supervisor *s)
{
    bool is_only_lazy = true;
    int nr = vm_check(s->r, true, note_lazy, &is_only_lazy);
    if (nr > 0 && is_only_lazy) {
        VM_PUT(&s->r->map.h->purge_needs_scan, 1);
        must(s, vm_recover(s->r, NULL), "recovery, at rest");
    }
    must(s, vm_check(s->r, true, say_violation, "check, at rest"), "check, at rest");
}

/* Everybody is brought to rest in that phase; then both books must agree, before and after recovery. */
static void rest_and_audit(supervisor *s, uint32_t kind)
{
    continue_those_due(s, true);
    if (random_below(&s->seed, 2)) /* the workers recover the dead: nothing is left for us */
        for (int i = 0; i < 20; i++)
            tick(s);
    wait_until(s, all_rest, change_phase(kind), "rest");
    audit(s->r, true);
    tick(s);
    recover_all(s);
    audit(s->r, false);
    check_at_rest(s);
    s->nr_audits++;
}

/* ---- the end of an epoch ---- */

static int collect_name(void *arg, const char *name, uint64_t page)
{
    (void)page;
    snprintf(arg, VM_NAME_BYTES, "%s", name);
    return 1;
}

static bool is_anybody_uncertain(void)
{
    for (uint32_t i = 0; i < ROWS; i++)
        if (the_board->rows[i].state != ROW_UNUSED && the_board->rows[i].is_uncertain)
            return true;
    return false;
}

/* Nobody has anything now but names and leases. */
static void every_page_is_free(supervisor *s)
{
    char name[VM_NAME_BYTES];
    uint64_t nr;
    vm_stats stats;
    must(s, vm_expire_leases(s->r, true, &nr), "expiry, at the end");
    while (vm_name_list(s->r, collect_name, name) == 1)
        must(s, vm_name_delete(s->r, name), "deleting a name, at the end");
    must(s, vm_shrink(s->r, NULL), "shrink, at the end");
    must(s, vm_get_stats(s->r, &stats), "stats");
    if (stats.free_pages != stats.nr_pages)
        violation("lost: %" PRIu64 " of %" PRIu64 " pages are free at the end", stats.free_pages, stats.nr_pages);
    if (stats.nr_leases)
        violation("%" PRIu64 " leases are left at the end", stats.nr_leases);
    check_at_rest(s);
}

static bool nobody_is_left(uint32_t unused)
{
    (void)unused;
    return nr_rows(ROW_UNUSED) == ROWS && waitpid(-1, NULL, WNOHANG | WNOWAIT) < 0;
}

static void end_epoch(supervisor *s)
{
    continue_those_due(s, true);
    if (random_below(&s->seed, 2)) {
        rest_and_audit(s, LET_GO);
        if (!is_anybody_uncertain())
            every_page_is_free(s);
        change_phase(END);
    } else {
        change_phase(PARK); /* no more forks; most die before they rest */
        kill_everybody();
        for (uint32_t i = 0; i < ROWS; i++) /* those whose first words we had not heard */
            if (the_board->rows[i].family > 0 && the_board->rows[i].state != ROW_UNUSED)
                kill_family(the_board->rows[i].family);
    }
    wait_until(s, nobody_is_left, 0, "ended");
    recover_all(s);
    every_page_is_free(s);
    must(s, vm_detach(s->r), "detach");
    close(s->region_fd);
}

/* ---- an epoch ---- */

static void make_the_region(supervisor *s)
{
    static const uint32_t few_or_many[] = {3, 8, 64};
    vm_options options = {.nr_pages = 2000 + random_below(&s->seed, 8000),
                          .pools = s->design,
                          .nr_nodes = 1 + (uint32_t)random_below(&s->seed, 4),
                          .nr_threads = few_or_many[random_below(&s->seed, LENGTH(few_or_many))],
                          .lazy_pages_max = 1 + random_below(&s->seed, 4000),
                          .lease_ttl_s = random_below(&s->seed, 3) ? LONG_TTL_S : 0.02};
    CHECK_EQ(vm_create(&options, &s->r), 0);
    CHECK((s->region_fd = fcntl(vm_fd(s->r), F_DUPFD_CLOEXEC, ROW_FD + 1)) >= 0);
    memset(the_board, 0, offsetof(board, rows));
    the_board->lease_ttl_s = options.lease_ttl_s;
    the_board->lock_timeout_s = LOCK_TIMEOUT_S;
    the_board->supervisor = getpid();
    the_board->mistake = s->mistake;
    the_board->hesitates = s->hesitates;
    change_phase(WORK);
}

static void do_harm(supervisor *s, double until)
{
    double kill_at = seconds(), rest_at = seconds() + between(s, 0.2, 1);
    while (seconds() < until && s->nr_kills < s->nr_wanted) {
        if (nr_rows(ROW_UNUSED) > ROWS - 4 - random_below(&s->seed, 4))
            start_worker(s);
        if (seconds() >= kill_at) {
            kill_somebody(s);
            kill_at = seconds() + between(s, 0, 2) / s->rate;
        }
        if (random_below(&s->seed, 30) == 0)
            stop_somebody(s);
        if (seconds() >= rest_at) {
            rest_and_audit(s, PARK);
            change_phase(WORK);
            rest_at = seconds() + between(s, 0.2, 1);
        }
        tick(s);
    }
}

static void run_epoch(supervisor *s, double until)
{
    uint64_t kills = s->nr_kills, done = s->nr_done;
    double since = seconds();
    s->design = s->only_design < 0 ? (vm_pools)(s->nr_epochs % VM_NR_POOL_DESIGNS) : (vm_pools)s->only_design;
    make_the_region(s);
    vm_info info;
    vm_describe(s->r, &info);
    do_harm(s, until < since + EPOCH_S ? until : since + EPOCH_S);
    end_epoch(s);
    s->nr_epochs++;
    s->nr_busy += the_board->nr_busy, s->nr_forks += the_board->nr_forks;
    s->nr_detached += the_board->nr_detached, s->nr_claimed += the_board->nr_claimed;
    printf("%-8s %5" PRIu64 " pages %2u nodes %2u thread slots: %4" PRIu64 " kills, %7" PRIu64 " operations, %4.1f s\n",
           vm_pools_name(s->design), info.nr_pages, info.nr_nodes, info.nr_threads, s->nr_kills - kills,
           s->nr_done - done, seconds() - since);
    fflush(stdout);
}

static void open_board(supervisor *s)
{
    int fd = memfd_create("soak-board", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, sizeof(board)) == 0);
    s->board_fd = fcntl(fd, F_DUPFD_CLOEXEC, ROW_FD + 1);
    close(fd);
    the_board = mmap(NULL, sizeof(board), PROT_READ | PROT_WRITE, MAP_SHARED, s->board_fd, 0);
    CHECK(the_board != MAP_FAILED);
}

static int supervise(supervisor *s)
{
    double since = seconds(), until = s->seconds > 0 ? since + s->seconds : 1e18;
    CHECK_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    open_board(s);
    printf("seed %" PRIu64 "\n", s->seed);
    fflush(stdout);
    while (seconds() < until && s->nr_kills < s->nr_wanted)
        run_epoch(s, until);
    double took = seconds() - since;
    printf("%" PRIu64 " kills in %.0f s (%.0f a minute), %" PRIu64 " epochs, %" PRIu64 " audits; %" PRIu64
           " processes started, %" PRIu64 " forked, %" PRIu64 " ended by themselves, %" PRIu64 " stops, %" PRIu64
           " detaches; %" PRIu64 " operations, %" PRIu64 " messages read, %" PRIu64
           " times EBUSY: 0 lost, 0 duplicated, 0 hung\n",
           s->nr_kills, took, (double)s->nr_kills / took * 60, s->nr_epochs, s->nr_audits, s->nr_started, s->nr_forks,
           s->nr_ended, s->nr_stops, s->nr_detached, s->nr_done, s->nr_claimed, s->nr_busy);
    return 0;
}

static int start_work(uint32_t row, uint64_t seed)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    the_board = mmap(NULL, sizeof(board), PROT_READ | PROT_WRITE, MAP_SHARED, BOARD_FD, 0);
    for (int fd = BOARD_FD; fd <= ROW_FD; fd++)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    return the_board == MAP_FAILED ? 2 : be_a_worker(row, seed);
}

static int design_called(const char *name)
{
    for (int d = 0; d < (int)VM_NR_POOL_DESIGNS; d++)
        if (strcmp(vm_pools_name(d), name) == 0)
            return d;
    fprintf(stderr, "no design is called %s\n", name);
    exit(2);
}

int main(int argc, char **argv)
{
    supervisor s = {.nr_wanted = UINT64_MAX, .rate = 200, .directory = ".", .only_design = -1};
    int worker = -1;
    for (int c; (c = getopt(argc, argv, "k:s:r:p:S:d:m:w:y")) != -1;)
        switch (c) {
        case 'k':
            s.nr_wanted = strtoull(optarg, NULL, 10);
            break;
        case 's':
            s.seconds = atof(optarg);
            break;
        case 'r':
            s.rate = atof(optarg);
            break;
        case 'S':
            s.seed = strtoull(optarg, NULL, 10);
            break;
        case 'p':
            s.only_design = design_called(optarg);
            break;
        case 'm':
            s.mistake = (uint32_t)atoi(optarg);
            break;
        case 'y':
            s.hesitates = 1;
            break;
        case 'd':
            s.directory = optarg;
            break;
        case 'w':
            worker = atoi(optarg);
            break;
        default:
            return 2;
        }
    if (worker >= 0)
        return start_work((uint32_t)worker, s.seed);
    if (!s.seed)
        s.seed = (uint64_t)getpid() * 1000003 + (uint64_t)(seconds() * 1e6);
    return supervise(&s);
}
