/* SPDX-License-Identifier: MIT */
/*
 * Space: split and merge by one store each, and who steals space_lock rebuilds the hints.
 *
 * Mirrors vm__space_carve() (take), vm__space_put() (put_locked), vm__space_rebuild(), vm__space_lock();
 * vm__index_run_start(), vm__index_is_free() and vm__index_set() (bits; the summaries are made from them
 * and are not modelled); and what returns a dead owner's ranges in a recovery. The words of all pages, `aux` with a busy range's id, one bit a page: taken.
 *
 *   split    the remainder's head; id; the new head, BUSY; then the old head shrinks (commit). At the
 *            old head the new head is the commit
 *   merge    our head grows over a free right neighbour; then a free left neighbour grows over us
 *   thief    of space_lock: joins adjacent free ranges, rewrites every hint, before using either
 *
 * After every write the heads must parse: ranges tile the N pages.
 *
 * Bounds: 4 pages (SIZE 1: 5), 2 workers (take 1 or 2 pages at offset 0 or 1 of a free range, put back, once),
 * 2 recoverers, deaths before any write, thieves and recoverers included.
 */
#define BUG_STEAL_LIVE (bug == 1)
#define BUG_NO_REBUILD (bug == 2)
#define BUG_SPLIT_ORDER (bug == 3)       /* our head before the remainder's */
#define BUG_MERGE_TWO_STORES (bug == 4)  /* the right neighbour's head goes before ours grows */

hidden byte bug, size_;
#define N (4 + size_)
#define N_MAX 5
#define ID 50
#define CHECKER 4

#define FREE 0
#define BUSY(p) (8 + p)
#define PURGING(p) (16 + p)
#define OWNER(w) ((w) & 7)

byte state[N_MAX], size[N_MAX]; /* together one word: written in one step */
byte aux[N_MAX];
bool taken[N_MAX];
byte space_lock;
bool alive[5], finished[5], recovered[5];
byte recoverer[5];
byte deaths;

inline parses()
{
    d_step {
        x = 0;
        do
        :: x < N -> assert(size[x] > 0 && x + size[x] <= N); x = x + size[x]
        :: else -> break
        od;
        assert(x == N);
        x = 0
    }
}

#define W(stmt) if :: atomic { deaths > 0 && me != CHECKER -> deaths--; alive[me] = false; goto died } \
                   :: atomic { stmt; parses() } fi
#define SET(page, s, l) state[page] = s; size[page] = l

/* The bits of one range: vm__index_write_bits(), one word of bits after another. */
inline set_bits(page, l, is_taken)
{
    x = 0;
    do
    :: x < l -> if :: taken[page + x] != is_taken -> W(taken[page + x] = is_taken) :: else fi; x++
    :: else -> break
    od;
    x = 0
}

inline rebuild() /* space_lock held: hints from words */
{
    h = 0;
    do
    :: h < N ->
       l = size[h];
       do
       :: state[h] == FREE && h + l < N && state[h + l] == FREE -> l = l + size[h + l]
       :: else -> break
       od;
       if :: l != size[h] -> W(size[h] = l) :: else fi;
       set_bits(h, size[h], state[h] != FREE);
       h = h + size[h]
    :: else -> break
    od;
    h = 0; l = 0
}

inline lock()
{
    if
    :: atomic { space_lock == 0 -> space_lock = me + 1 }
    :: atomic { space_lock != 0 && (BUG_STEAL_LIVE || !alive[space_lock - 1]) -> space_lock = me + 1 }
       if :: !BUG_NO_REBUILD -> rebuild() :: else fi
    fi
}

inline unlock() { W(assert(space_lock == me + 1); space_lock = 0) }

inline take(want, o) /* mine := page + 1, or 0 */
{
    lock();
    h = 0;
    do
    :: h < N && !(state[h] == FREE && size[h] >= want + o) -> h = h + size[h]
    :: else -> break
    od;
    if
    :: h < N ->
       l = size[h];
       if
       :: BUG_SPLIT_ORDER && l > want && o == 0 ->
          W(aux[h] = ID + me); W(SET(h, BUSY(me), want)); W(SET(h + want, FREE, l - want))
       :: else ->
          if :: l > want + o -> W(SET(h + o + want, FREE, l - want - o)) :: else fi;
          W(aux[h + o] = ID + me);
          W(SET(h + o, BUSY(me), want));
          if :: o > 0 -> W(size[h] = o) :: else fi
       fi;
       set_bits(h + o, want, true);
       mine = h + o + 1
    :: else
    fi;
    h = 0; l = 0;
    unlock()
}

inline put_locked(page) /* word is PURGING(me) */
{
    l = size[page];
    n = l;
    if
    :: page + l < N && !taken[page + l] && state[page + l] == FREE -> l = l + size[page + l]
    :: else
    fi;
    if
    :: BUG_MERGE_TWO_STORES ->
       W(state[page] = FREE);
       if :: l > size[page] -> W(size[page + size[page]] = 0) :: else fi;
       W(size[page] = l)
    :: else -> W(SET(page, FREE, l))
    fi;
    h = page;
    do
    :: h > 0 && !taken[h - 1] -> h-- /* vm__index_run_start() */
    :: else -> break
    od;
    if
    :: h < page ->
       assert(state[h] == FREE && h + size[h] == page); /* the index agrees */
       W(size[h] = size[h] + l)
    :: else
    fi;
    set_bits(page, n, false);
    h = 0; l = 0; n = 0
}

proctype worker(byte me)
{
    byte mine, h, l, n, x;
    if
    :: take(1, 0)
    :: take(2, 0)
    :: take(1, 1)
    fi;
    if
    :: mine != 0 ->
       mine--;
       assert(state[mine] == BUSY(me) && aux[mine] == ID + me);
       W(SET(mine, PURGING(me), size[mine]));
       lock();
       put_locked(mine);
       unlock()
    :: else
    fi;
    finished[me] = true;
died:
    skip
}

#define GONE(p) (!alive[p] && !recovered[p])
#define CLAIMABLE(p) (GONE(p) && (recoverer[p] == 0 || !alive[recoverer[p] - 1]))
#define OVER(p) (finished[p] || recovered[p])
#define QUIET (OVER(0) && OVER(1) && !GONE(2) && !GONE(3))

inline recover(p)
{
    lock();
    r = 0;
    do
    :: r < N ->
       if
       :: state[r] != FREE && OWNER(state[r]) == p ->
          W(SET(r, PURGING(me), size[r]));
          put_locked(r);
          r = 0 /* our head may be inside another now */
       :: else -> r = r + size[r]
       fi
    :: else -> break
    od;
    r = 0;
    unlock();
    W(recovered[p] = true)
}

proctype recovering(byte me)
{
    byte p, r, h, l, n, x;
    do
    :: atomic { CLAIMABLE(0) -> p = 0; recoverer[p] = me + 1 } recover(p)
    :: atomic { CLAIMABLE(1) -> p = 1; recoverer[p] = me + 1 } recover(p)
    :: atomic { CLAIMABLE(5 - me) -> p = 5 - me; recoverer[p] = me + 1 } recover(p)
    :: QUIET -> break
    od;
    finished[me] = true;
died:
    skip
}

proctype checker(byte me)
{
    byte h, l, x;
    QUIET && OVER(2) && OVER(3);
    lock();
    unlock();
    assert(state[0] == FREE && size[0] == N && !taken[0] && !taken[N - 1]);
died:
    skip
}

init
{
    atomic {
        byte i;
        c_code { bug = atoi(getenv("BUG")); size_ = atoi(getenv("SIZE")); now.deaths = atoi(getenv("DEATHS")); };
        for (i : 0 .. 4) { alive[i] = true }
        size[0] = N;
        run worker(0); run worker(1); run recovering(2); run recovering(3); run checker(CHECKER)
    }
}
