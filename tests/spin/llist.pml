/* SPDX-License-Identifier: MIT */
/*
 * The lock-free pool: single pushes, a taker that detaches everything, and the scan after a death.
 *
 * Mirrors the pools of llist: give() (push), enter_pool(), take(), claim(),
 * put_back(), leave_pool() (take), before_scan(), after_scan() with vm__chain_take() (purge); and
 * scan_and_collect(), vm__scan(), claim_dead() (purge, recover).
 * One pool of one size. What a scan collects is LAZY afterwards, and in no list here (lazy_purge.pml
 * has that list); a worker may take it from there as if it came through space.
 *
 *   push   word := MOVING(me); link := head; CAS head; CAS word MOVING(me) -> POOLED
 *   take   CAS in_use 0 -> me; xchg head -> 0; CAS first's word -> MOVING(me); the rest back in front,
 *          its end known from the last put-back; in_use := 0; id; word := BUSY
 *   scan   needs_scan := 0; in_use of every pool, a dead taker's is stolen, takers fall through, pushers
 *          go on; the words; xchg head -> 0 and walk; in_use := 0; what was taken becomes LAZY
 *
 * Nobody mends one pool: a taker that meets a dead one's in_use sets needs_scan and falls through. A
 * pusher that lives may have linked into the chain that a dead taker took, so MOVING(live) leaves
 * needs_scan set. MOVING(dead) may be linked anywhere; only the scan takes it, which then walks all lists.
 *
 * Bounds: worker 0 pushes and takes (SIZE 1: twice), worker 1 pushes (SIZE 1: and takes), 2 recoverers, 3
 * ranges, deaths before any write. Sequentially consistent memory.
 */
#define BUG_POOL_OPEN (bug == 1)        /* a pool's in_use is not taken before the scan */
#define BUG_DETACH_FIRST (bug == 2)     /* the list, then the words */
#define BUG_RELINK_EARLY (bug == 3)     /* what was scanned is given away before the list is walked */
#define BUG_LINK_BEFORE_MARK (bug == 4) /* the link, then the word */
#define BUG_FORGET_MOVING (bug == 5)
#define BUG_TAKER_STEALS (bug == 6)     /* a taker takes over a dead one's in_use without a scan */

#define R 3
#define ID 20
#define CHECKER 4

#define POOLED 1
#define LAZY 8
#define BUSY(p) (16 + p)
#define MOVING(p) (24 + p)
#define PURGING(p) (32 + p)
#define STATE(w) ((w) & 56)
#define OWNER(w) ((w) & 7)

hidden byte bug, size;
byte word[R + 1], aux[R + 1], head, tail;
byte in_use, purge_lock; /* tokens: process + 1 */
bool needs_scan;
bool alive[5], retired[5], finished[5], recovered[5];
byte byte_of[5];
byte deaths;

#define W(x) if :: atomic { deaths > 0 && me != CHECKER -> deaths--; alive[me] = false; goto died } \
                :: atomic { x } fi
#define DEAD(t) (t != 0 && (!alive[t - 1] || retired[t - 1]))

inline push(r)
{
    if :: !BUG_LINK_BEFORE_MARK -> W(assert(word[r] == BUSY(me)); word[r] = MOVING(me)) :: else fi;
    do
    :: atomic { old = head };
       W(aux[r] = old);
       W(if :: head == old -> head = r; ok = true :: else fi);
       if :: ok -> break :: else fi
    od;
    if :: BUG_LINK_BEFORE_MARK -> W(word[r] = MOVING(me)) :: else fi;
    W(if :: word[r] == MOVING(me) -> word[r] = POOLED :: else fi);
    old = 0; ok = false
}

inline take() /* mine := a range or 0 */
{
    if
    :: atomic { in_use == 0 || (BUG_TAKER_STEALS && DEAD(in_use)) -> in_use = me + 1; ok = true }
    :: atomic { in_use != 0 && !(BUG_TAKER_STEALS && DEAD(in_use)) -> ok = false }
       if :: !needs_scan && DEAD(in_use) -> W(needs_scan = true) :: else fi
    fi;
    if
    :: ok ->
       ok = false;
       W(mine = head; head = 0);
       c = tail;
       if
       :: mine != 0 ->
          assert(mine <= R);
          n = aux[mine];
          W(if :: word[mine] == POOLED || STATE(word[mine]) == MOVING(0) -> word[mine] = MOVING(me)
               :: else -> assert(false)
            fi);
          if
          :: n != 0 ->
             if
             :: c == 0 ->
                c = n;
                do
                :: aux[c] != 0 -> c = aux[c]; assert(c <= R)
                :: else -> break
                od
             :: else
             fi;
             do
             :: atomic { old = head };
                W(assert(STATE(word[c]) != BUSY(0)); aux[c] = old); /* would overwrite an id */
                W(if :: head == old -> head = n; ok = true :: else fi);
                if :: ok -> break :: else fi
             od;
             if
             :: old != 0 ->
                c = old;
                do
                :: aux[c] != 0 -> c = aux[c]; assert(c <= R)
                :: else -> break
                od
             :: else
             fi;
             W(tail = c)
          :: else -> W(tail = 0)
          fi
       :: else
       fi;
       c = 0; n = 0; old = 0; ok = false;
       W(assert(in_use == me + 1 || BUG_POOL_OPEN); in_use = 0);
       if
       :: mine != 0 ->
          W(assert(word[mine] == MOVING(me)); aux[mine] = ID);
          W(assert(word[mine] == MOVING(me)); word[mine] = BUSY(me)) /* plain stores */
       :: else
       fi
    :: else
    fi
}

inline scan()
{
    c = 1;
    do
    :: c <= R ->
       n = word[c]; /* one load; the CAS below expects it */
       if
       :: n == POOLED || n == LAZY || (STATE(n) == PURGING(0) && n != PURGING(me)) ||
          ((STATE(n) == MOVING(0) || STATE(n) == BUSY(0)) && retired[OWNER(n)]) ->
          W(if :: word[c] == n -> word[c] = PURGING(me) :: else fi)
       :: STATE(n) == MOVING(0) && !retired[OWNER(n)] && !BUG_FORGET_MOVING -> W(needs_scan = true)
       :: else
       fi;
       c++
    :: else -> break
    od;
    c = 0; n = 0
}

inline detach() /* after_scan() */
{
    W(c = head; head = 0);
    do
    :: c != 0 ->
       n = aux[c];
       steps++;
       assert(c <= R && steps <= R);
       W(if
         :: word[c] == PURGING(me)
         :: word[c] == POOLED || STATE(word[c]) == MOVING(0) -> word[c] = PURGING(me)
         :: else -> assert(false)
         fi);
       c = n
    :: else -> break
    od;
    c = 0; n = 0; steps = 0;
    W(tail = 0)
}

inline give_back()
{
    c = 1;
    do
    :: c <= R -> if :: word[c] == PURGING(me) -> W(word[c] = LAZY) :: else fi; c++
    :: else -> break
    od;
    c = 0
}

inline purge() /* scan_and_collect() */
{
    if
    :: atomic { purge_lock == 0 -> purge_lock = me + 1 }
    :: atomic { DEAD(purge_lock) -> purge_lock = me + 1 }
    fi;
    W(needs_scan = false);
    if
    :: atomic { !BUG_POOL_OPEN && (in_use == 0 || DEAD(in_use)) -> in_use = me + 1 } /* before_scan() */
    :: BUG_POOL_OPEN
    fi;
    if :: BUG_DETACH_FIRST -> detach() :: else fi;
    scan();
    if :: BUG_RELINK_EARLY -> give_back() :: else fi;
    if :: !BUG_DETACH_FIRST -> detach() :: else fi;
    if :: !BUG_POOL_OPEN || in_use == me + 1 || DEAD(in_use) -> W(in_use = 0) :: else fi;
    give_back();
    W(assert(purge_lock == me + 1); purge_lock = 0)
}

proctype worker(byte me; byte mine)
{
    byte old, c, n; bool ok;
    push(mine); mine = 0;
    if :: me == 0 || size > 0 -> take() :: else fi;
    if
    :: me == 0 && mine == 0 ->
       if
       :: atomic { word[1] == LAZY -> word[1] = MOVING(me) }
          W(aux[1] = ID); W(word[1] = BUSY(me)); mine = 1
       :: else
       fi
    :: else
    fi;
    if :: mine != 0 && me == 0 && size > 0 -> push(mine); mine = 0; take() :: else fi;
    if :: mine != 0 -> assert(word[mine] == BUSY(me) && aux[mine] == ID) :: else fi;
    finished[me] = true;
died:
    skip
}

#define GONE(p) (!alive[p] && !recovered[p])
#define CLAIMABLE(p) (GONE(p) && (byte_of[p] == 0 || !alive[byte_of[p] - 1]))
#define OVER(p) (finished[p] || recovered[p])
#define QUIET (OVER(0) && OVER(1) && !GONE(2) && !GONE(3))

inline recover(p)
{
    W(needs_scan = true);
    W(retired[p] = true);
    purge();
    W(recovered[p] = true)
}

proctype recovering(byte me)
{
    byte p, c, n, steps;
    do
    :: atomic { CLAIMABLE(0) -> p = 0; byte_of[0] = me + 1 } recover(p)
    :: atomic { CLAIMABLE(1) -> p = 1; byte_of[1] = me + 1 } recover(p)
    :: atomic { CLAIMABLE(5 - me) -> p = 5 - me; byte_of[5 - me] = me + 1 } recover(p)
    :: QUIET -> break
    od;
    finished[me] = true;
died:
    skip
}

/* When all is quiet, and after the scan that is still owed: no range is lost. */
proctype checker(byte me)
{
    byte c, n, steps;
    bool listed[R + 1];
    QUIET && OVER(2) && OVER(3);
    if :: needs_scan || in_use != 0 -> assert(needs_scan); purge() :: else fi;
    d_step {
        assert(in_use == 0 && head <= R && !needs_scan && purge_lock == 0);
        c = head;
        do
        :: c != 0 -> assert(c <= R && !listed[c] && word[c] == POOLED); listed[c] = true; c = aux[c]
        :: else -> break
        od;
        c = 1;
        do
        :: c <= R ->
           assert(listed[c] || word[c] == LAZY || (STATE(word[c]) == BUSY(0) && alive[OWNER(word[c])]));
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
        c_code { bug = atoi(getenv("BUG")); size = atoi(getenv("SIZE")); now.deaths = atoi(getenv("DEATHS")); };
        for (i : 0 .. 4) { alive[i] = true }
        word[1] = BUSY(0); aux[1] = ID;
        word[2] = BUSY(1); aux[2] = ID;
        word[3] = POOLED; head = 3; tail = 3;
        run worker(0, 1); run worker(1, 2); run recovering(2); run recovering(3); run checker(CHECKER)
    }
}
