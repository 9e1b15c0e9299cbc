/*
 * The lock-free pool: single pushes, a taker that detaches everything, and its rebuilding.
 *
 * Mirrors core/pool_llist.c (push, take, rebuild) and what core/recover.c does with a dead taker's
 * in_use flag and a dead pusher's MOVING word. One pool of one size; the lazy list behind it is
 * only noted as `in_lazy` (lazy_purge.pml has it): a range linked there must not be linked here.
 *
 *   push     word := MOVING(me); link := head; CAS head; CAS word MOVING(me) -> POOLED. CLOSED: lazy
 *   take     CAS in_use 0 -> me; xchg head -> 0; CAS first's word -> BUSY; the rest back in front
 *   rebuild  with in_use of a dead taker: xchg head -> CLOSED; chain and POOLED words -> MOVING(me);
 *            link them; POOLED; head := chain; in_use := 0
 *
 * Rules found here:
 *   - the thief of in_use does NOT take MOVING(dead): that range may be linked in the lazy list or in
 *     another pool. Only recovery does, while it holds the lists closed that it may be in;
 *   - a thief that met MOVING(live) releases in_use as REBUILD, not 0: that pusher may have linked
 *     into the chain that the dead taker took, and will soon mark a range POOLED that is in no list.
 *     The next taker rebuilds again (or falls through; a purge rebuilds).
 *
 * Bounds: 2 workers (push, take; push and more by ROUNDS), 2 recoverers, 3 ranges, DEATHS deaths before any write.
 */
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef ROUNDS
#define ROUNDS 0 /* 1: worker 1 takes, too; 2: worker 0 pushes and takes once more */
#endif
#define R 3
#define CLOSED 9
#define REBUILD 15 /* an in_use token of nobody alive */
#define ID 20
#define CHECKER 4

#define POOLED 1
#define LAZY 8
#define BUSY(p) (16 + p)
#define MOVING(p) (24 + p)
#define STATE(w) ((w) & 56)
#define OWNER(w) ((w) & 7)

byte word[R + 1], aux[R + 1], head;
byte in_use; /* token: process + 1 */
bool in_lazy[R + 1];
bool alive[5], finished[5], recovered[5];
byte recoverer[5];
byte deaths = DEATHS;

#define W(x) if :: atomic { deaths > 0 && me != CHECKER -> deaths--; alive[me] = false; goto died } \
                :: atomic { x } fi
#define DEAD_TOKEN(t) (t == REBUILD || (t != 0 && !alive[t - 1]))

inline push_lazy(r) /* word[r] is MOVING(me) */
{
    W(assert(!in_lazy[r]); in_lazy[r] = true);
    W(if :: word[r] == MOVING(me) -> word[r] = LAZY :: else fi)
}

inline push(r)
{
#ifndef BUG_LINK_BEFORE_MARK
    W(assert(word[r] == BUSY(me)); word[r] = MOVING(me));
#endif
    do
    :: atomic { old = head };
       if
       :: old == CLOSED ->
#ifdef BUG_LINK_BEFORE_MARK
          W(word[r] = MOVING(me));
#endif
          push_lazy(r); break
       :: else
       fi;
       W(aux[r] = old);
       W(if :: head == old -> head = r; ok = true :: else -> ok = false fi);
       if
       :: ok ->
#ifdef BUG_LINK_BEFORE_MARK
          W(word[r] = MOVING(me));
#endif
          W(if :: word[r] == MOVING(me) -> word[r] = POOLED :: else fi); break
       :: else
       fi
    od;
    old = 0; ok = false
}

/* in_use is mine; it was a dead process's, or REBUILD. `lists_held`: by recovery, lazy closed too. */
inline rebuild(lists_held)
{
#ifdef BUG_OPEN_REBUILD
    W(c = head; head = 0);
#else
    W(c = head; head = CLOSED; if :: c == CLOSED -> c = 0 :: else fi);
#endif
    do
    :: c != 0 ->
       W(assert(c <= R); assert(word[c] == POOLED || STATE(word[c]) == MOVING(0)); word[c] = MOVING(me));
       c = aux[c]
    :: else -> break
    od;
    c = 1;
    do
    :: c <= R ->
       if
       :: word[c] == POOLED -> W(if :: word[c] == POOLED -> word[c] = MOVING(me) :: else fi)
       :: STATE(word[c]) == MOVING(0) && word[c] != MOVING(me) ->
          if
#ifdef BUG_THIEF_TAKES_DEAD
          :: !alive[OWNER(word[c])] -> W(assert(!in_lazy[c]); word[c] = MOVING(me))
#endif
          :: lists_held && !alive[OWNER(word[c])] -> /* in no pool; the closed lazy list tells the rest */
             W(word[c] = (in_lazy[c] -> LAZY : MOVING(me)))
          :: alive[OWNER(word[c])] -> again = true
          :: else
          fi
       :: else
       fi;
       c++
    :: else -> break
    od;
    c = 1; n = 0;
    do
    :: c <= R -> if :: word[c] == MOVING(me) -> W(aux[c] = n); n = c :: else fi; c++
    :: else -> break
    od;
    c = 1;
    do
    :: c <= R -> if :: word[c] == MOVING(me) -> W(word[c] = POOLED) :: else fi; c++
    :: else -> break
    od;
    W(head = n);
    c = 0; n = 0;
#ifdef BUG_SCAN_ONCE
    again = false;
#endif
    W(in_use = (again -> REBUILD : 0));
    again = false
}

inline take() /* mine := a range or 0 */
{
    if
    :: atomic { in_use == 0 -> in_use = me + 1 } -> ok = true
    :: atomic { DEAD_TOKEN(in_use) -> in_use = me + 1 } -> rebuild(false); ok = false
    :: in_use != 0 && !DEAD_TOKEN(in_use) -> ok = false /* busy: fall through */
    fi;
    if
    :: ok ->
       W(mine = head; head = 0);
       assert(mine != CLOSED);
       if
       :: mine != 0 ->
          n = aux[mine];
          W(assert(mine <= R); assert(word[mine] == POOLED || STATE(word[mine]) == MOVING(0)); word[mine] = BUSY(me));
          W(aux[mine] = ID);
          if
          :: n != 0 ->
             c = n;
             do
             :: aux[c] != 0 -> c = aux[c]; assert(c <= R)
             :: else -> break
             od;
             do
             :: atomic { old = head };
                W(aux[c] = old);
                W(if :: head == old -> head = n; ok = true :: else -> ok = false fi);
                if :: ok -> break :: else fi
             od
          :: else
          fi
       :: else
       fi;
       c = 0; n = 0; old = 0; ok = false;
       W(assert(in_use == me + 1); in_use = 0)
    :: else
    fi
}

proctype worker(byte me; byte mine)
{
    byte old, c, n; bool ok, again;
    push(mine); mine = 0;
    if :: me == 0 || ROUNDS > 0 -> take() :: else fi;
    if :: mine != 0 && me == 0 && ROUNDS == 2 -> push(mine); mine = 0; take() :: else fi;
    if :: mine != 0 -> assert(word[mine] == BUSY(me) && aux[mine] == ID) :: else fi;
    finished[me] = true;
died:
    skip
}

#define GONE(p) (!alive[p] && !recovered[p])
#define CLAIMABLE(p) (GONE(p) && (recoverer[p] == 0 || !alive[recoverer[p] - 1]))
#define OVER(p) (finished[p] || recovered[p])
#define QUIET (OVER(0) && OVER(1) && !GONE(2) && !GONE(3))

inline lock_pool()
{
    if
    :: atomic { in_use == 0 -> in_use = me + 1 }
    :: atomic { DEAD_TOKEN(in_use) -> in_use = me + 1 }
    fi
}

inline recover(p)
{
    lock_pool(); /* a dead taker's too */
    rebuild(true); /* MOVING(dead) is in no pool now */
    r = 1;
    do
    :: r <= R -> if :: word[r] == BUSY(p) -> W(word[r] = MOVING(me)); push_lazy(r) :: else fi; r++
    :: else -> break
    od;
    r = 0;
    W(recovered[p] = true)
}

proctype recovering(byte me)
{
    byte p, r, c, n, old; bool ok, again;
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
    byte c, n; bool again;
    bool listed[R + 1];
    QUIET && OVER(2) && OVER(3);
    if :: in_use != 0 -> lock_pool(); rebuild(true) :: else fi;
    d_step {
        assert(in_use == 0 && head <= R);
        c = head;
        do
        :: c != 0 -> assert(c <= R && !listed[c] && word[c] == POOLED); listed[c] = true; c = aux[c]
        :: else -> break
        od;
        c = 1;
        do
        :: c <= R ->
           assert(listed[c] || (word[c] == LAZY && in_lazy[c]) || (STATE(word[c]) == BUSY(0) && alive[OWNER(word[c])]));
           c++
        :: else -> break
        od
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
        word[3] = POOLED; head = 3;
        run worker(0, 1); run worker(1, 2); run recovering(2); run recovering(3); run checker(CHECKER)
    }
}
