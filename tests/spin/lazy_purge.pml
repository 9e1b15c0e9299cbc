/* SPDX-License-Identifier: MIT */
/*
 * Lazy ranges: pushed to a node's list, sorted into the warm store, taken from it, purged; and the scan that finds what a
 * death left in any of these.
 *
 * Mirrors lazy.c: vm__lazy_put_many() of one range (push), vm__chain_take(), claim() (collect); warm.c: vm__warm_lock(), rebuild(), add(),
 * drop(), is_entry() (guard), sort(), cut() of a whole range (take), vm__warm_collect() (step), vm__warm_close()
 * (purge), vm__warm_collect_all() (collect); purge.c: lock_purge(), scan_and_collect(), keep_lazy(), vm__purge(), vm__purge_step();
 * recovery's claim_dead(), vm__scan(), is_lost(). Boundaries do not change here: split_merge.pml.
 *
 * What everything rests on:
 *   - A LINKED RANGE LEAVES A NODE'S LIST ONLY THROUGH WHO DETACHED THE LIST, under warm_lock. Its link is then a link, and
 *     a walk needs no guard. Anybody pushes, by one CAS; nobody pops.
 *   - A LISTED range changes under warm_lock, or by a scan, which looks at the words without it: so the scan closes the lists
 *     first, and afterwards takes them apart, all of them, before it gives anything away. What it took is PURGING(me) and
 *     stays linked: passed over, its link followed. While the lists are closed nobody uses them.
 *   - Lists are hints: who steals warm_lock makes them anew from the words. What is pushed meanwhile may be in none of
 *     them: the next purge scans.
 *   - So nobody ever meets an entry that is not LISTED, but where hints were scribbled over (SIZE 1 and 2). He writes no
 *     links to it, which are the id of one that is BUSY, and has the lists made anew.
 *   - MOVING(live) may be linking itself into a chain that is lost: needs_scan stays.
 *
 * Bounds: worker 0 frees 1, purges or does a step, allocates, frees; worker 1 takes a warm one and frees it; 2 recoverers;
 * 3 ranges, 1 node, 1 list, SORT_MOST 1; deaths before any write. SIZE 1: a hint was found wrong, once, at any moment. SIZE
 * 2: the list's head is scribbled over, once. Sequentially consistent memory.
 */
#define BUG_SCAN_OPEN (bug == 1)        /* a scan that does not close the lists */
#define BUG_LINK_UNLISTED (bug == 2)    /* links written to an entry that is no longer LISTED */
#define BUG_REBUILD_NO_SCAN (bug == 3)  /* lists made anew, without a word about what is pushed meanwhile */
#define BUG_NO_REBUILD (bug == 4)       /* lists of a dead owner, as they are */
#define BUG_COLLECT_FIRST (bug == 5)    /* the lists, then the words */
#define BUG_RELINK_EARLY (bug == 6)     /* give back what was scanned before the lists are taken apart */
#define BUG_LISTS_LEFT (bug == 7)       /* scan, then leave the lists as they are */
#define BUG_LINK_BEFORE_MARK (bug == 8) /* the link, then the word */
#define BUG_FORGET_MOVING (bug == 9)
#define BUG_TRUST_LISTS (bug == 10)     /* no scan after a death */
#define BUG_TAKE_UNLOCKED (bug == 11)   /* use the lists without warm_lock */

#define R 3   /* ranges 1..R; link 0 ends a list */
#define HELD 4 /* one more, BUSY all the time: where a scribbled head leads */
#define ID 20 /* what `next` and `prev`, which are one word, hold while BUSY */
#define CHECKER 4

#define FREE 0
#define LAZY 8
#define LISTED 9
#define BUSY(p) (16 + p)
#define MOVING(p) (24 + p)
#define PURGING(p) (32 + p)
#define STATE(w) ((w) & 56)
#define OWNER(w) ((w) & 7)

hidden byte bug, size;
byte word[R + 2], next[R + 2], prev[R + 2];
byte head;                      /* the node's list */
byte first, last, unsorted;     /* the warm list; what was detached from the node's */
byte warm_lock, closed;         /* tokens: process + 1 */
byte purge_lock;
bool mending, needs_scan, scribbled;
bool alive[5], retired[5], finished[5], recovered[5];
byte byte_of[5]; /* the OFD lock on a dead process's byte: recoverer + 1 */
byte deaths;

/* One shared write, or death before it. */
#define W(x) if :: atomic { deaths > 0 && me != CHECKER -> deaths--; alive[me] = false; goto died } \
                :: atomic { x } fi

#define IS_DEAD(token) (token != 0 && (!alive[token - 1] || retired[token - 1]))

inline push(r) /* vm__lazy_put_many(): word[r] is MOVING(me) */
{
    ok = false;
    do
    :: ok -> break
    :: else ->
       atomic { old = head };
       W(next[r] = old; prev[r] = 0);
       W(if :: head == old -> head = r; ok = true :: else fi)
    od;
    if :: BUG_LINK_BEFORE_MARK && STATE(word[r]) == BUSY(0) -> W(word[r] = MOVING(me)) :: else fi;
    W(if :: word[r] == MOVING(me) -> word[r] = LAZY :: else fi); /* else it was sorted already */
    ok = false; old = 0
}

/* is_entry(): ok. A wrong hint is met only where somebody scribbled. */
#define GUARD(l) \
    ok = l != 0 && l <= HELD && (word[l] == LISTED || BUG_LINK_UNLISTED); \
    if :: l != 0 && (l > HELD || word[l] != LISTED) -> assert(scribbled); mending = mending || !BUG_LINK_UNLISTED \
    :: else fi

inline add(r)
{
    atomic { GUARD(first); n = (ok -> first : 0) };
    W(next[r] = n; prev[r] = 0);
    if
    :: n != 0 -> W(prev[n] = r)
    :: else -> W(last = r)
    fi;
    W(first = r);
    n = 0; ok = false
}

inline drop(r)
{
    atomic { n = next[r]; q = prev[r]; GUARD(q) };
    if
    :: ok -> W(next[q] = n)
    :: else -> W(first = n)
    fi;
    atomic { GUARD(n) };
    if
    :: ok -> W(prev[n] = q)
    :: else -> W(last = q)
    fi;
    if :: first == 0 || last == 0 -> W(first = 0; last = 0) :: else fi;
    n = 0; q = 0; ok = false
}

inline rebuild()
{
    W(first = 0);
    W(last = 0);
    W(unsorted = 0);
    c = 1;
    do
    :: c <= R ->
       seen = word[c];
       if
       :: seen == LAZY || seen == LISTED ->
          W(if :: word[c] == seen -> word[c] = LISTED; ok = true :: else fi);
          if :: ok -> add(c) :: else fi
       :: else
       fi;
       c++
    :: else -> break
    od;
    W(head = 0);
    if :: !BUG_REBUILD_NO_SCAN -> W(needs_scan = true) :: else fi;
    c = 0; seen = 0
}

inline lock_warm() /* vm__warm_lock() */
{
    if
    :: atomic { warm_lock == 0 -> warm_lock = me + 1 }
    :: atomic { IS_DEAD(warm_lock) -> warm_lock = me + 1 }
       W(mending = mending || !BUG_NO_REBUILD)
    fi;
    if
    :: mending -> rebuild(); W(mending = false)
    :: else
    fi
}

inline unlock_warm() { W(assert(warm_lock == me + 1 || BUG_TAKE_UNLOCKED); warm_lock = 0) }

inline enter() /* is_in := the lists are ours */
{
    is_in = closed == 0;
    if
    :: is_in && BUG_TAKE_UNLOCKED -> skip
    :: is_in && !BUG_TAKE_UNLOCKED ->
       lock_warm();
       if :: closed != 0 -> unlock_warm(); is_in = false :: else fi
    :: else
    fi
}

inline leave()
{
    if :: !BUG_TAKE_UNLOCKED -> unlock_warm() :: else fi;
    is_in = false
}

inline sort() /* one range, if there is one */
{
    if
    :: unsorted == 0 && head != 0 ->
       W(c = head; head = 0);
       W(unsorted = c)
    :: else
    fi;
    c = unsorted;
    if
    :: c != 0 && word[c] == LISTED -> assert(scribbled || BUG_TAKE_UNLOCKED); W(needs_scan = true); W(unsorted = 0)
    :: c != 0 && word[c] != LISTED ->
       W(unsorted = next[c]);
       seen = word[c];
       ok = false;
       if
       :: seen == LAZY || STATE(seen) == MOVING(0) -> /* if it changes under us it was a pusher's MOVING: LAZY now */
          W(if :: word[c] == seen || word[c] == LAZY -> word[c] = LISTED; ok = true :: else fi);
          if :: ok -> add(c) :: else fi
       :: STATE(seen) == PURGING(0) -> skip
       :: else -> assert(scribbled || BUG_TAKE_UNLOCKED); W(needs_scan = true)
       fi
    :: else
    fi;
    c = 0; seen = 0; ok = false
}

inline find(from) /* c := a LISTED range, or 0 */
{
    atomic {
        c = from;
        GUARD(c);
        if :: !ok -> c = 0 :: else fi;
        if :: c != 0 && word[c] != LISTED -> c = 0 :: else fi;
        ok = false
    }
}

inline take() /* mine := a warm range, or 0 */
{
    enter();
    if
    :: is_in ->
       do
       :: find(first); break
       :: first != 0 && word[first] == LISTED && next[first] != 0 -> find(next[first]); break
       :: first == 0 && (unsorted != 0 || head != 0) -> sort()
       od;
       if
       :: c != 0 ->
          drop(c);
          W(if :: word[c] == LISTED -> word[c] = MOVING(me); mine = c :: else fi)
       :: else
       fi;
       c = 0;
       leave()
    :: else
    fi;
    if
    :: mine != 0 -> /* vm__hand_out() */
       W(assert(word[mine] == MOVING(me)); next[mine] = ID; prev[mine] = ID);
       W(assert(word[mine] == MOVING(me)); word[mine] = BUSY(me)) /* a plain store */
    :: else
    fi
}

inline lock_purge()
{
    if
    :: atomic { purge_lock == 0 -> purge_lock = me + 1 }
    :: atomic { IS_DEAD(purge_lock) -> purge_lock = me + 1 }
       if :: !BUG_TRUST_LISTS -> W(needs_scan = true) :: else fi /* needs_mending: stays until this is done */
    fi
}

inline unlock_purge() { W(assert(purge_lock == me + 1); purge_lock = 0) }

inline scan() /* vm__scan() */
{
    c = 1;
    do
    :: c <= R ->
       seen = word[c]; /* one load; the CAS below expects it */
       if
       :: seen == LAZY || seen == LISTED || (STATE(seen) == PURGING(0) && seen != PURGING(me)) ||
          ((STATE(seen) == MOVING(0) || STATE(seen) == BUSY(0)) && retired[OWNER(seen)]) ->
          W(if :: word[c] == seen -> word[c] = PURGING(me) :: else fi)
       :: STATE(seen) == MOVING(0) && !retired[OWNER(seen)] && !BUG_FORGET_MOVING -> W(needs_scan = true)
       :: else
       fi;
       c++
    :: else -> break
    od;
    c = 0; seen = 0
}

inline collect() /* vm__warm_collect_all() */
{
    lock_warm();
    list = 0;
    do
    :: list < 3 ->
       if
       :: list == 0 && (first != 0 || last != 0) -> c = first; W(first = 0); W(last = 0)
       :: list == 1 && unsorted != 0 -> c = unsorted; W(unsorted = 0)
       :: list == 2 && head != 0 -> W(c = head; head = 0)
       :: else
       fi;
       do /* vm__chain_take() */
       :: c != 0 ->
          n++;
          assert(c <= HELD && n <= R); /* else an id was followed as a link, or the list is a ring */
          q = next[c];
          W(if
            :: word[c] == PURGING(me) -> skip /* a scan's */
            :: word[c] == LAZY || word[c] == LISTED || STATE(word[c]) == MOVING(0) -> word[c] = PURGING(me)
            :: else -> assert(scribbled); needs_scan = true; q = 0
            fi);
          c = q
       :: else -> break
       od;
       n = 0; q = 0;
       list++
    :: else -> break
    od;
    list = 0;
    if :: closed != 0 -> W(closed = 0) :: else fi;
    unlock_warm()
}

inline give_back(keep) /* keep_lazy() or return_to_space() */
{
    c = 1;
    do
    :: c <= R ->
       if
       :: word[c] == PURGING(me) && keep -> W(word[c] = MOVING(me)); push(c)
       :: word[c] == PURGING(me) && !keep -> W(word[c] = FREE) /* space_lock: split_merge.pml */
       :: else
       fi;
       c++
    :: else -> break
    od;
    c = 0
}

#define SCAN 0
#define COLLECT 1
#define GIVE_BACK 2
#define PART_OF(k) (BUG_COLLECT_FIRST -> (k == 0 -> COLLECT : (k == 1 -> SCAN : GIVE_BACK)) : \
                   (BUG_RELINK_EARLY -> (k == 0 -> SCAN : (k == 2 -> COLLECT : GIVE_BACK)) : k))
#define PARTS (BUG_RELINK_EARLY -> 4 : 3)

inline purge(keep) /* keep: vm__purge_scan() */
{
    lock_purge();
    scans = needs_scan || keep;
    if :: scans -> W(needs_scan = false) :: else fi;
    do
    :: k < PARTS && PART_OF(k) == SCAN ->
       if
       :: scans -> if :: !BUG_SCAN_OPEN -> lock_warm(); W(closed = me + 1); unlock_warm() :: else fi; scan()
       :: else
       fi;
       k++
    :: k < PARTS && PART_OF(k) == COLLECT ->
       if
       :: scans && BUG_LISTS_LEFT -> W(closed = 0)
       :: else -> collect()
       fi;
       k++
    :: k < PARTS && PART_OF(k) == GIVE_BACK -> give_back(keep); k++
    :: k == PARTS -> break
    od;
    if :: BUG_COLLECT_FIRST && closed != 0 -> W(closed = 0) :: else fi;
    k = 0; scans = false;
    unlock_purge()
}

inline step() /* vm__purge_step(): waits for nobody but who holds warm_lock */
{
    W(if :: purge_lock == 0 -> purge_lock = me + 1 :: else fi);
    if
    :: purge_lock == me + 1 ->
       enter();
       if
       :: is_in ->
          sort();
          find(last);
          if
          :: c != 0 -> drop(c); W(if :: word[c] == LISTED -> word[c] = PURGING(me) :: else fi)
          :: else
          fi;
          c = 0;
          leave()
       :: else
       fi;
       give_back(false);
       unlock_purge()
    :: else
    fi
}

inline release() /* free_slow() */
{
    assert(next[mine] == ID && prev[mine] == ID); /* else somebody took it for an entry of his list */
    if :: !BUG_LINK_BEFORE_MARK -> W(assert(word[mine] == BUSY(me)); word[mine] = MOVING(me)) :: else fi;
    push(mine);
    mine = 0
}

proctype worker(byte me; byte mine)
{
    byte old, c, k, list, n, q, seen; bool ok, is_in, scans;
    if
    :: me == 0 ->
       release();
       if :: purge(false) :: step() fi;
       if
       :: atomic { word[2] == FREE -> word[2] = BUSY(me); mine = 2 }
       :: atomic { word[1] == FREE -> word[1] = BUSY(me); mine = 1 }
       :: else
       fi;
       if :: mine != 0 -> W(assert(word[mine] == BUSY(me)); next[mine] = ID; prev[mine] = ID) :: else fi
    :: else -> take()
    fi;
    if :: mine != 0 -> release() :: else fi;
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
    if :: !BUG_TRUST_LISTS -> W(needs_scan = true) :: else fi;
    W(retired[p] = true);
    if :: !BUG_TRUST_LISTS -> purge(true) :: else fi;
    W(recovered[p] = true)
}

proctype recovering(byte me)
{
    byte old, p, c, k, list, n, q, seen; bool ok, is_in, scans;
    do
    :: atomic {
           if
           :: CLAIMABLE(0) -> p = 0
           :: CLAIMABLE(1) -> p = 1
           :: CLAIMABLE(5 - me) -> p = 5 - me
           fi;
           byte_of[p] = me + 1
       }
       recover(p);
       p = 0
    :: QUIET -> break
    od;
    finished[me] = true;
died:
    skip
}

/* When all is quiet one purge finds every range that is not busy, and the lists are whole. */
proctype checker(byte me)
{
    byte old, c, k, list, n, q, seen; bool ok, is_in, scans;
    OVER(2) && OVER(3) && QUIET && (size == 0 || scribbled);
    if :: size == 2 -> needs_scan = true :: else fi; /* a check that found what was scribbled */
    purge(false);
    d_step {
        c = 1;
        do
        :: c <= R ->
           assert(word[c] == FREE || (STATE(word[c]) == BUSY(0) && alive[OWNER(word[c])]));
           c++
        :: else -> break
        od;
        assert(next[HELD] == ID && prev[HELD] == ID);
        assert(head == 0 && first == 0 && last == 0 && unsorted == 0);
        assert(purge_lock == 0 && warm_lock == 0 && closed == 0 && !mending)
    }
died:
    skip
}

proctype scribbler()
{
    atomic {
        scribbled = true;
        if
        :: size == 1 -> mending = true
        :: size == 2 -> first = HELD
        fi
    }
}

init
{
    atomic {
        byte i;
        c_code { bug = atoi(getenv("BUG")); size = atoi(getenv("SIZE")); now.deaths = atoi(getenv("DEATHS")); };
        for (i : 0 .. 4) { alive[i] = true }
        word[1] = BUSY(0); next[1] = ID; prev[1] = ID;
        word[HELD] = BUSY(CHECKER); next[HELD] = ID; prev[HELD] = ID;
        word[2] = LAZY; head = 2;
        word[3] = LISTED; first = 3; last = 3;
        run worker(0, 1); run worker(1, 0); run recovering(2); run recovering(3); run checker(CHECKER);
        if :: size > 0 -> run scribbler() :: else fi
    }
}
