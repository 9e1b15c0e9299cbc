/*
 * Space: split and merge by one store each, and the repair of the hints by who steals space_lock.
 *
 * Mirrors core/space.c (take a range out of a free one, put one back, rebuild) and the space_lock part
 * of core/recover.c. The words of all pages; `aux` is the id of a busy range and, on the last page
 * of a free range, its head (the hint by which a range that comes back finds its left neighbour;
 * the summaries are rebuilt with it and are not modelled).
 *
 *   split    remainder's head; the new head, BUSY with its id; then the old head shrinks (commit).
 *            At the old head: remainder's head, id, then one store (commit)
 *   merge    one store: the left neighbour's head grows over us and a free right neighbour, or ours does
 *   thief    of space_lock: joins adjacent free ranges, rewrites every hint, before using either
 *
 * After every write the heads must parse: ranges tile the N pages.
 *
 * Bounds: N pages, 2 workers (take 1 or 2 pages at offset 0 or 1 of a free range, put back, once),
 * 2 recoverers, DEATHS deaths before any write, thieves and recoverers included.
 */
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef N
#define N 4
#endif
#define ID 50
#define CHECKER 4

#define FREE 0
#define BUSY(p) (8 + p)
#define PURGING(p) (16 + p)
#define OWNER(w) ((w) & 7)

byte state[N], size[N]; /* together one word: written in one step */
byte aux[N];
byte space_lock;
bool alive[5], finished[5], recovered[5];
byte recoverer[5];
byte deaths = DEATHS;

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

inline rebuild() /* space_lock held: hints from words */
{
    h = 0;
    do
    :: h < N ->
       do
       :: state[h] == FREE && h + size[h] < N && state[h + size[h]] == FREE -> W(size[h] = size[h] + size[h + size[h]])
       :: else -> break
       od;
       if :: state[h] == FREE -> W(aux[h + size[h] - 1] = h) :: else fi;
       h = h + size[h]
    :: else -> break
    od;
    h = 0
}

inline lock()
{
    if
    :: atomic { space_lock == 0 -> space_lock = me + 1 }
#ifdef BUG_STEAL_LIVE
    :: atomic { space_lock != 0 -> space_lock = me + 1 }
#else
    :: atomic { space_lock != 0 && !alive[space_lock - 1] -> space_lock = me + 1 }
#endif
#ifndef BUG_NO_REBUILD
       rebuild()
#endif
    fi
}

inline unlock() { W(assert(space_lock == me + 1); space_lock = 0) }

inline take(n, o) /* mine := page + 1, or 0 */
{
    lock();
    h = 0;
    do
    :: h < N && !(state[h] == FREE && size[h] >= n + o) -> h = h + size[h]
    :: else -> break
    od;
    if
    :: h < N ->
       l = size[h];
#ifdef BUG_SPLIT_ORDER
       if :: l > n && o == 0 -> W(aux[h] = ID + me); W(SET(h, BUSY(me), n)); W(SET(h + n, FREE, l - n)); W(aux[h + l - 1] = h + n)
          :: else -> skip
       fi;
       if :: l > n && o == 0 -> skip
          :: else ->
#else
       if :: true ->
#endif
       if :: l > n + o -> W(SET(h + o + n, FREE, l - n - o)); W(aux[h + l - 1] = h + o + n) :: else fi;
       W(aux[h + o] = ID + me);
       if
       :: o == 0 -> W(SET(h, BUSY(me), n))
       :: else ->
          W(SET(h + o, BUSY(me), n));
          W(size[h] = o);
          W(aux[h + o - 1] = h)
       fi
       fi;
       mine = h + o + 1
    :: else
    fi;
    h = 0; l = 0;
    unlock()
}

inline put_locked(page) /* word is PURGING(me) */
{
    l = size[page];
    if
    :: page + l < N && state[page + l] == FREE -> l = l + size[page + l]
    :: else
    fi;
    h = N;
    if :: page > 0 -> h = aux[page - 1] :: else fi;
    if
    :: h < page && state[h] == FREE && h + size[h] == page ->
       W(size[h] = size[h] + l; l = size[h])
    :: else ->
       h = page;
#ifdef BUG_MERGE_TWO_STORES
       W(state[page] = FREE);
       if :: l > size[page] -> W(size[page + size[page]] = 0) :: else fi;
       W(size[page] = l)
#else
       W(SET(page, FREE, l))
#endif
    fi;
    W(aux[h + l - 1] = h);
    h = 0; l = 0
}

proctype worker(byte me)
{
    byte mine, h, l, x;
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
    byte p, r, h, l, x;
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
    assert(state[0] == FREE && size[0] == N && aux[N - 1] == 0);
died:
    skip
}

init
{
    atomic {
        byte i;
        for (i : 0 .. 4) { alive[i] = true }
        size[0] = N; aux[N - 1] = 0;
        run worker(0); run worker(1); run recovering(2); run recovering(3); run checker(CHECKER)
    }
}
