/*
 * Lazy list, purge, and the recovery of what a death left in them.
 *
 * Mirrors core/lazy.c (push), core/purge.c (detach, scan, return to space), core/recover.c (the
 * words of a dead process). A push is four writes: word := MOVING(me), link := head, CAS head,
 * CAS word MOVING(me) -> LAZY. A purge owns purge_lock, detaches the list and claims each member
 * by CAS. Ranges keep their boundaries here (split_merge.pml has those).
 *
 * The rule that everything rests on: A LINKED RANGE LEAVES ITS LIST ONLY THROUGH WHO DETACHED THE
 * LIST. Its link is then always a link, and a walk needs no guard. Hence
 *   - a scan for strays first closes the list; a pusher that meets CLOSED leaves its range LAZY and
 *     unlinked and sets needs_scan (after the word, so that a scan that cleared it earlier is repeated);
 *   - MOVING(dead) may be linked: recovery leaves it and sets needs_scan, the scan takes it after the
 *     closed list was walked;
 *   - a scan that met MOVING(live) keeps needs_scan set.
 *
 * Bounds: 2 workers (push, purge, allocate, push), 2 recoverers, 3 ranges, 1 node, DEATHS deaths,
 * each before any write, recoverers and thieves included. Sequentially consistent memory.
 */
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef ROUNDS
#define ROUNDS 1      /* purges of worker 0; worker 1 does one less */
#endif
#define R 3           /* ranges 1..R; link 0 ends a list */
#define CLOSED 9
#define ID 20         /* what `aux` holds while BUSY: following it as a link is an error */
#define CHECKER 4

#define FREE 0
#define LAZY 8
#define BUSY(p) (16 + p)
#define MOVING(p) (24 + p)
#define PURGING(p) (32 + p)
#define STATE(w) ((w) & 56)
#define OWNER(w) ((w) & 7)

byte word[R + 1], aux[R + 1], head;
byte purge_lock; /* token: process + 1 */
bool needs_scan;
bool alive[5], finished[5], recovered[5];
byte recoverer[5]; /* the OFD lock on a dead process's byte: recoverer + 1 */
byte deaths = DEATHS;

#ifdef BUG_TRUST_LISTS
#define NEEDS_SCAN skip
#else
#define NEEDS_SCAN needs_scan = true
#endif

/* One shared write, or death before it. */
#define W(x) if :: atomic { deaths > 0 && me != CHECKER -> deaths--; alive[me] = false; goto died } \
                :: atomic { x } fi

inline push(r)
{
    do
    :: atomic { old = head }
#ifndef BUG_SCAN_OPEN
       if
       :: old == CLOSED ->
          W(if :: word[r] == MOVING(me) -> word[r] = LAZY :: else fi);
          W(needs_scan = true);
          break
       :: else
       fi;
#endif
#ifdef BUG_LINK_BEFORE_MARK
       aux[r] = old;
       W(if :: head == old -> head = r; ok = true :: else -> ok = false fi);
       if :: ok -> W(word[r] = MOVING(me)); W(if :: word[r] == MOVING(me) -> word[r] = LAZY :: else fi); break
          :: else fi
#else
       W(aux[r] = old);
       W(if :: head == old -> head = r; ok = true :: else -> ok = false fi);
       if
       :: ok -> W(if :: word[r] == MOVING(me) -> word[r] = LAZY :: else fi); break
       :: else
       fi
#endif
    od;
    ok = false; old = 0
}

inline lock_purge()
{
    if
    :: atomic { purge_lock == 0 -> purge_lock = me + 1 }
    :: atomic { purge_lock != 0 && !alive[purge_lock - 1] -> purge_lock = me + 1 }
       W(NEEDS_SCAN)
    fi
}

inline purge()
{
    lock_purge();
    scan = needs_scan;
    if
    :: scan -> W(needs_scan = false)
    :: else
    fi;
#ifdef BUG_SCAN_OPEN
    W(c = head; head = 0);
#else
    W(c = head; head = (scan -> CLOSED : 0); if :: c == CLOSED -> c = 0 :: else fi);
#endif
    do
    :: c != 0 ->
       W(assert(c <= R);                       /* an id was followed as a link */
         assert(STATE(word[c]) == LAZY || STATE(word[c]) == MOVING(0));
         word[c] = PURGING(me));
       c = aux[c]
    :: else -> break
    od;
    if
    :: scan ->
       c = 1;
       do
       :: c <= R ->
          seen = word[c]; /* one load; the CAS below expects it */
          if
          :: seen == LAZY || ((STATE(seen) == PURGING(0) || STATE(seen) == MOVING(0)) && !alive[OWNER(seen)]) ->
             W(if :: word[c] == seen -> word[c] = PURGING(me) :: else fi)
          :: STATE(seen) == MOVING(0) && alive[OWNER(seen)] -> again = true
          :: else
          fi;
          c++
       :: else -> break
       od;
#ifndef BUG_SCAN_OPEN
       W(head = 0);
#endif
#ifndef BUG_FORGET_MOVING
       if :: again -> W(needs_scan = true) :: else fi;
#endif
       again = false
    :: else
    fi;
    c = 1;
    do
    :: c <= R ->
       if :: word[c] == PURGING(me) -> W(word[c] = FREE) :: else fi; /* space_lock: split_merge.pml */
       c++
    :: else -> break
    od;
    c = 0; scan = false; seen = 0;
    W(assert(purge_lock == me + 1); purge_lock = 0)
}

proctype worker(byte me; byte mine)
{
    byte old, c, seen, rounds; bool ok, scan, again;
    do
    :: mine != 0 ->
#ifndef BUG_LINK_BEFORE_MARK
       W(assert(word[mine] == BUSY(me)); word[mine] = MOVING(me));
#endif
       push(mine);
       mine = 0
    :: else ->
       if :: rounds == ROUNDS - me -> break :: else fi;
       rounds++;
       purge();
       if
       :: atomic { word[1] == FREE -> word[1] = BUSY(me); mine = 1 }
       :: atomic { word[1] != FREE && word[2] == FREE -> word[2] = BUSY(me); mine = 2 }
       :: else -> break
       fi;
       W(assert(word[mine] == BUSY(me)); aux[mine] = ID)
    od;
    finished[me] = true;
died:
    skip
}

#define GONE(p) (!alive[p] && !recovered[p])
#define CLAIMABLE(p) (GONE(p) && (recoverer[p] == 0 || !alive[recoverer[p] - 1]))
#define QUIET (!(GONE(0) || GONE(1) || GONE(2) || GONE(3)) && (finished[0] || recovered[0]) && (finished[1] || recovered[1]))

inline recover(p)
{
    if
    :: purge_lock == p + 1 ->
       W(if :: purge_lock == p + 1 -> purge_lock = me + 1; ok = true :: else -> ok = false fi);
       if :: ok -> W(NEEDS_SCAN); W(purge_lock = 0) :: else fi
    :: else
    fi;
    r = 1;
    do
    :: r <= R ->
       if
       :: word[r] == BUSY(p) -> W(word[r] = MOVING(me)); push(r)
#ifdef BUG_RECOVER_RELINKS
       :: word[r] == MOVING(p) || word[r] == PURGING(p) ->
          seen = word[r];
          W(if :: word[r] == seen -> word[r] = MOVING(me); ok = true :: else -> ok = false fi);
          if :: ok -> push(r) :: else fi;
          seen = 0
#endif
       :: else
       fi;
       r++
    :: else -> break
    od;
    r = 0;
    W(NEEDS_SCAN);
    W(recovered[p] = true);
    if :: me == 2 -> purge() :: else fi
}

proctype recovering(byte me)
{
    byte old, r, p, c, seen; bool ok, scan, again;
    do
    :: atomic { CLAIMABLE(0) -> p = 0; recoverer[p] = me + 1 } recover(p)
    :: atomic { CLAIMABLE(1) -> p = 1; recoverer[p] = me + 1 } recover(p)
    :: atomic { CLAIMABLE(5 - me) -> p = 5 - me; recoverer[p] = me + 1 } recover(p)
    :: QUIET && (me == 2 || finished[2] || recovered[2]) -> break /* only the first of them purges */
    od;
    finished[me] = true;
died:
    skip
}

/* When all is quiet one purge finds every range that is not busy, and the lists are whole. */
proctype checker(byte me)
{
    byte old, c, seen; bool ok, scan, again;
    (finished[2] || recovered[2]) && (finished[3] || recovered[3]) && QUIET;
    purge();
    d_step {
        c = 1;
        do
        :: c <= R ->
           assert(word[c] == FREE || (STATE(word[c]) == BUSY(0) && alive[OWNER(word[c])]));
           c++
        :: else -> break
        od;
        assert(!needs_scan && head == 0 && purge_lock == 0)
    }
died:
    skip
}

init
{
    atomic {
        byte i;
        for (i : 0 .. 4) { alive[i] = true }
        word[1] = BUSY(0); aux[1] = ID;
        word[2] = BUSY(1); aux[2] = ID;
        word[3] = LAZY; head = 3;
        run worker(0, 1); run worker(1, 2); run recovering(2); run recovering(3); run checker(CHECKER)
    }
}
