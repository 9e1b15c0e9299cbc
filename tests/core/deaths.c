/* SPDX-License-Identifier: MIT */
/*
 * DEATHS: which ones, in what company, and how many there were.
 *
 * An operation runs once, and every place that it passes is noted; then once for each of these places
 * in a fresh victim that dies there. Then pairs: a second victim runs into what the first left, or
 * recovers from it, and dies too. Wherever the operation leaves room for it, the neighbour works
 * meanwhile; what that one's work prevents (the victim takes another way, and lives) is repeated
 * without it.
 */
#include "stage.h"

enum { LOG_MAX = 1 << 16, PLACES_MAX = 4096, HUNG_AFTER_S = 100 };

/* What all processes see. */
static struct passes {
    uint32_t nr, left; /* until the moment has come */
    uint64_t place[LOG_MAX];
} *passes;

static tally tallies[OPERATIONS_MAX][VM_NR_POOL_DESIGNS];
static place_tally place_tallies[PLACES_MAX];
static size_t nr_places;
static uint64_t nr_kills, nr_beside, nr_repeated, nr_pairs_of_deaths;

bool is_the_moment(moment m, uint64_t place)
{
    if (m.nth == 0) {
        uint32_t i = __atomic_fetch_add(&passes->nr, 1, __ATOMIC_RELAXED);
        if (i < LOG_MAX)
            passes->place[i] = place;
        return false;
    }
    return m.place == place && __atomic_sub_fetch(&passes->left, 1, __ATOMIC_RELAXED) == 0;
}

/* Whose moment has come is dead. */
bool is_over(moment m) { return m.nth && (int32_t)__atomic_load_n(&passes->left, __ATOMIC_RELAXED) <= 0; }

/* ---- what we are at, for when it fails or hangs ---- */

static char doing[256];
static const method *method_now;
static void say_where(void)
{
    if (*doing)
        fprintf(stderr, "while: %s\n", doing);
}
static void say_hung(int signal)
{
    (void)signal;
    say_where();
    fprintf(stderr, "for more than %d s\n", HUNG_AFTER_S);
    *doing = 0;
    _exit(1);
}
static void append(const char *what, moment m)
{
    size_t n = strlen(doing);
    n += (size_t)snprintf(doing + n, sizeof doing - n, ", %s", what);
    if (m.nth && n < sizeof doing)
        snprintf(doing + n, sizeof doing - n, ", death at %s, pass %u", method_now->name_of(m.place), m.nth);
}
static void now_doing(const stage *s, const operation *op, moment m)
{
    snprintf(doing, sizeof doing, "%s", vm_pools_name(s->d));
    append(op->name, m);
    alarm(HUNG_AFTER_S);
}

/* ---- counting ---- */

static place_tally *tally_of_place(uint64_t place)
{
    for (size_t i = 0; i < nr_places; i++)
        if (place_tallies[i].place == place)
            return &place_tallies[i];
    CHECK(nr_places < PLACES_MAX);
    place_tallies[nr_places].place = place;
    return &place_tallies[nr_places++];
}
const place_tally *places(size_t *nr) { return *nr = nr_places, place_tallies; }
uint64_t all_kills(void) { return nr_kills; }
tally tally_of(size_t operation, vm_pools d) { return tallies[operation][d]; }

static void count_kill(const stage *s, const operation *op, moment m)
{
    nr_kills++;
    tally_of_place(m.place)->nr_kills++;
    if (op >= operations && op < operations + nr_operations)
        tallies[op - operations][s->d].nr_kills++;
}
static void count_passes(const stage *s, const operation *op)
{
    CHECK(passes->nr < LOG_MAX && nr_operations <= OPERATIONS_MAX);
    tallies[op - operations][s->d].nr_passed = passes->nr;
    for (uint32_t i = 0; i < passes->nr; i++)
        tally_of_place(passes->place[i])->nr_passed++;
}

/* ---- one death, or two ---- */

static bool dies(stage *s, victim *v, const operation *op, moment m)
{
    bring_to_the_brink(s, v, op);
    s->works_in_between = op->flags & BETWEEN;
    passes->left = m.nth;
    if (m.nth == 0)
        passes->nr = 0;
    give_cue(&v->cue, CUE_RUN);
    method_now->watch(s, v, m);
    collect_orphans(v);
    bool died = is_over(m);
    if (died)
        count_kill(s, op, m);
    return died;
}

static void recover_and_check(stage *s, const operation *op, bool beside)
{
    if (op->after)
        op->after(s);
    CHECK_EQ(vm_recover(s->r, NULL), 0);
    if (op->later)
        op->later(s);
    if (beside) {
        neighbour_rests(s);
        s->r->map.h->purge_needs_scan = 1; /* all is at rest now, the lazy counter perhaps still off: recovery.md, 8 */
        CHECK_EQ(vm_recover(s->r, NULL), 0);
    }
    nothing_is_lost(s);
}

static bool has_room_for_a_neighbour(const stage *s, const operation *op)
{
    return s->neighbour != NEIGHBOUR_NONE && !(op->flags & (ALONE | HUNGRY));
}

static bool one_death(stage *s, const operation *op, moment m, bool beside)
{
    victim *v = &s->victim[0];
    now_doing(s, op, m);
    if (beside)
        append("beside a neighbour", NEVER);
    start_victim(s, v, op, method_now, m);
    set_stage(s);
    if (op->before)
        op->before(s);
    if (beside)
        neighbour_works(s);
    bool died = dies(s, v, op, m);
    recover_and_check(s, op, beside);
    nr_beside += beside && died;
    return died;
}

/* The second dies while it cleans up after the first, or runs into its mess. */
static void two_deaths(stage *s, const operation *op, moment m, const operation *second, moment m2)
{
    bool beside = has_room_for_a_neighbour(s, op) && m2.nth;
    now_doing(s, op, m);
    append(second->name, m2);
    start_victim(s, &s->victim[0], op, method_now, m);
    start_victim(s, &s->victim[1], second, method_now, m2);
    set_stage(s);
    if (op->before)
        op->before(s);
    if (beside)
        neighbour_works(s);
    bool first_died = dies(s, &s->victim[0], op, m), second_died = dies(s, &s->victim[1], second, m2);
    recover_and_check(s, op, beside);
    nr_pairs_of_deaths += first_died && second_died;
    nr_beside += beside ? first_died + second_died : 0;
}

/* ---- which ---- */

/* All of what was noted, or without the many repeats of a place (a loop over 256 pools). */
static size_t choose(moment *chosen, uint32_t repeats)
{
    size_t nr = 0;
    bool all = getenv("VM_CRASH_FULL") != NULL;
    for (uint32_t k = 0; k < passes->nr; k++) {
        uint32_t nth = 1;
        bool is_last = true;
        for (uint32_t i = 0; i < k; i++)
            nth += passes->place[i] == passes->place[k];
        for (uint32_t i = k + 1; i < passes->nr && is_last && nth > repeats; i++)
            is_last = passes->place[i] != passes->place[k];
        if (all || nth <= repeats || (is_last && repeats > 1))
            chosen[nr++] = (moment){passes->place[k], nth};
    }
    return nr;
}

static void finish(void)
{
    *doing = 0;
    alarm(0);
}
static void begin(const method *how)
{
    method_now = how;
    if (passes)
        return;
    passes = shared_memory(sizeof *passes);
    atexit(say_where);
    signal(SIGALRM, say_hung);
}

/* Nobody dies, and so each operation finds the same. */
void note_everything(const method *how, unsigned leaves_out)
{
    begin(how);
    stay_on_one_cpu();
    FOR_EACH_DESIGN (d) {
        if (!is_design_selected(d))
            continue;
        stage *s = make_stage(d);
        start_neighbour(s); /* who only rests */
        for (const operation *op = operations; op < operations + nr_operations; op++)
            if (is_selected(op, d) && !(op->flags & leaves_out)) {
                one_death(s, op, NEVER, false);
                count_passes(s, op);
            }
        end_neighbour(s);
        end_stage(s);
    }
    finish();
}

static void deaths_in(stage *s, const operation *op, const plan *p)
{
    static moment chosen[LOG_MAX];
    one_death(s, op, NEVER, false);
    CHECK(passes->nr > 0 && passes->nr < LOG_MAX);
    size_t nr = choose(chosen, p->repeats);
    for (size_t i = 0; i < nr; i += p->one_in) {
        bool beside = has_room_for_a_neighbour(s, op);
        if (!one_death(s, op, chosen[i], beside) && beside) {
            nr_repeated++;
            one_death(s, op, chosen[i], false);
        }
    }
}

static void second_deaths_in(stage *s, const operation *op, const plan *p, uint64_t *seed)
{
    static moment first[LOG_MAX], next[LOG_MAX];
    one_death(s, op, NEVER, false);
    size_t nr_first = choose(first, 1);
    for (size_t i = 0; i < p->most_first && nr_first; i++) {
        moment m = first[random_below(seed, nr_first)];
        const operation *second = &second_operations[i % nr_second_operations];
        two_deaths(s, op, m, second, NEVER);
        size_t nr = choose(next, 1), most = second == second_operations ? p->most_second : p->most_second / 4;
        for (size_t n = 0; n < most && nr; n++) {
            size_t pick = random_below(seed, nr);
            two_deaths(s, op, m, second, next[pick]);
            next[pick] = next[--nr];
        }
    }
}

static void kill_in_design(vm_pools d, const plan *p, uint64_t *seed)
{
    double started = seconds();
    uint64_t killed = nr_kills;
    stage *s = make_stage(d);
    if (SLOWER == 1)
        start_neighbour(s);
    for (const operation *op = operations; op < operations + nr_operations; op++) {
        if (!is_selected(op, d) || op->flags & p->leaves_out)
            continue;
        deaths_in(s, op, p);
        if (p->most_first && !(op->flags & (ALONE | ONCE | ONE_DEATH)))
            second_deaths_in(s, op, p, seed);
    }
    uint64_t pairs = s->neighbour_pairs;
    if (s->neighbour != NEIGHBOUR_NONE)
        end_neighbour(s);
    printf("%s: %.1f s, kills %" PRIu64 "; the neighbour's allocations %" PRIu64 "\n", vm_pools_name(d),
           seconds() - started, nr_kills - killed, pairs);
    fflush(stdout);
    end_stage(s);
}

void kill_everywhere(const method *how, const plan *p)
{
    uint64_t seed = 12345;
    begin(how);
    FOR_EACH_DESIGN (d)
        if (is_design_selected(d))
            kill_in_design(d, p, &seed);
    finish();
    printf("kills %" PRIu64 ", %" PRIu64 " of them beside a working neighbour, %" PRIu64
           " without it because with it the victim lived; %" PRIu64 " pairs of deaths\n",
           nr_kills, nr_beside, nr_repeated, nr_pairs_of_deaths);
}
