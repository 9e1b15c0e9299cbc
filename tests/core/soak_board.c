/* SPDX-License-Identifier: MIT */
/* BOARD: what the soak's processes tell each other, and the stamps in the pages. */
#include "soak.h"

#include <fcntl.h>
#include <stdarg.h>

board *the_board;

/* The first one counts: what is found later is found in a region that was broken already. */
void violation(const char *format, ...)
{
    char text[TEXT_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    uint32_t none = 0;
    if (__atomic_compare_exchange_n(&the_board->has_failed, &none, 1, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        memcpy(the_board->text, text, sizeof text);
        __atomic_store_n(&the_board->has_failed, 2, __ATOMIC_SEQ_CST);
    }
}

bool is_over(void) { return __atomic_load_n(&the_board->has_failed, __ATOMIC_SEQ_CST) != 0; }

/* A row and its generation, so that a successor in the row is somebody else. */
uint32_t name_of(uint32_t i)
{
    return i | (__atomic_load_n(&the_board->rows[i].generation, __ATOMIC_SEQ_CST) & 0xffff) << 8;
}
bool is_gone(uint32_t name) { return name_of(name & 0xff) != name; }

/* Looked at in the opposite order to that in which they are written: a row that is freed becomes another generation's
 * first, then it is not doomed any more; a family's rows are doomed each before another family is. */
bool is_doomed(uint32_t name)
{
    const row *w = &the_board->rows[name & 0xff];
    int32_t family = __atomic_load_n(&the_board->doomed_family, __ATOMIC_SEQ_CST);
    bool is_told = family == __atomic_load_n(&w->family, __ATOMIC_SEQ_CST);
    is_told = is_told || __atomic_load_n(&w->doomed, __ATOMIC_SEQ_CST);
    return is_told || is_gone(name);
}

static int lock_byte(int fd, int command, uint32_t row, short *type)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = row, .l_len = 1};
    int rc = fcntl(fd, command, &l);
    *type = l.l_type;
    return rc;
}

/* Locked first, then reserved: what is reserved and not locked is a dead one's. */
int lock_a_row(int board_fd, uint32_t *row, int32_t family)
{
    char path[32];
    short type;
    snprintf(path, sizeof path, "/proc/self/fd/%d", board_fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    for (uint32_t i = 0; fd >= 0 && i < ROWS; i++) {
        uint32_t *state = &the_board->rows[i].state, unused = ROW_UNUSED;
        if (__atomic_load_n(state, __ATOMIC_SEQ_CST) != ROW_UNUSED || lock_byte(fd, F_OFD_SETLK, i, &type) != 0)
            continue;
        the_board->rows[i].family = family; /* nobody else writes to an unused row that we locked */
        if (__atomic_compare_exchange_n(state, &unused, ROW_RESERVED, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
            *row = i;
            int high = fcntl(fd, F_DUPFD_CLOEXEC, ROW_FD + 1); /* out of the way of what a worker inherits */
            close(fd);
            return high;
        }
        struct flock none = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = i, .l_len = 1};
        fcntl(fd, F_OFD_SETLK, &none);
    }
    close(fd);
    return -1;
}

bool is_row_locked(int board_fd, uint32_t row)
{
    short type;
    return lock_byte(board_fd, F_OFD_GETLK, row, &type) != 0 || type != F_UNLCK;
}

bool swap_mark(mark *m, mark seen, uint32_t kind, uint32_t by)
{
    return __atomic_compare_exchange_n(m, &seen, make_mark(kind, by, change_of(seen) + 1), false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}
void set_mark(mark *m, uint32_t kind)
{
    __atomic_store_n(m, make_mark(kind, 0, change_of(read_mark(m)) + 1), __ATOMIC_SEQ_CST);
}

/* ---- stamps: the range's id, which page of it this is, who wrote it ---- */

typedef struct stamp {
    uint64_t id, which, writer;
} stamp;

static stamp stamp_for(uint64_t id, uint64_t i, uint32_t name) { return (stamp){id, id * 1000003 + i, name}; }

void stamp_pages(vm_region *r, uint64_t page, uint64_t nr_pages, uint64_t id, uint32_t name)
{
    for (uint64_t i = 0; i < nr_pages; i++)
        *(stamp *)vm_pointer(r, page + i) = stamp_for(id, i, name);
}

bool stamps_are(vm_region *r, uint64_t page, uint64_t nr_pages, uint64_t id, char *found, size_t room)
{
    for (uint64_t i = 0; i < nr_pages; i++) {
        stamp s = *(const stamp *)vm_pointer(r, page + i), wanted = stamp_for(id, i, 0);
        if (s.id == wanted.id && s.which == wanted.which)
            continue;
        snprintf(found, room, "page %" PRIu64 " bears the stamp of %" PRIx64 " (by row %u, generation %u)", page + i,
                 s.id, (uint32_t)s.writer & 0xff, (uint32_t)s.writer >> 8);
        return false;
    }
    return true;
}

/* ---- for whoever looks at a failure ---- */

static void print_row(FILE *to, uint32_t i)
{
    static const char *const kind[] = {"nothing", "held", "shown", "offered", "taken", "writing", "full"};
    const row *w = &the_board->rows[i];
    fprintf(to,
            "row %u: state %u generation %u pid %d process slot %u family %d doomed %u uncertain %u stay %u done "
            "%" PRIu64 "\n",
            i, w->state, w->generation, w->pid, w->process, w->family, w->doomed, w->is_uncertain, w->stay, w->nr_done);
    for (int lane = 0; lane < LANES; lane++)
        for (int k = 0; k < CELLS; k++) {
            const claim *c = &w->claims[lane][k];
            if (kind_of(c->mark) != NOTHING)
                fprintf(to, "  %d.%d %s by %x: pages %" PRIu64 " + %" PRIu64 ", id %" PRIx64 "%s%s\n", lane, k,
                        kind[kind_of(c->mark)], by_of(c->mark), c->page, c->nr_pages, c->id,
                        c->is_shared ? " shared" : "", c->is_inherited ? " inherited" : "");
        }
}

void print_board(FILE *to)
{
    fprintf(to, "found: %s\nphase %u, %" PRIu64 " times all leases were ended\n", the_board->text, the_board->phase % 8,
            the_board->nr_forced);
    for (uint32_t i = 0; i < ROWS; i++)
        if (the_board->rows[i].state != ROW_UNUSED)
            print_row(to, i);
    for (int k = 0; k < MESSAGES; k++) {
        const message *m = &the_board->messages[k];
        if (kind_of(m->mark) != NOTHING)
            fprintf(to, "message %d kind %u by %x: page %" PRIu64 ", id %" PRIx64 ", lease %" PRIx64 " from %x%s\n", k,
                    kind_of(m->mark), by_of(m->mark), m->page, m->id, m->lease, m->sender, m->is_shaky ? " shaky" : "");
    }
}
