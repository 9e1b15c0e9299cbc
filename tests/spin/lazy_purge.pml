/* SPDX-License-Identifier: MIT */
/*
 * The lazy list, a cell beside it, purge, and the scan that finds what a death left in them.
 *
 * Mirrors vm__lazy_put(), vm__list_push() (push), vm__warm_collect_all(), vm__chain_take(), claim() (walk);
 * lock_purge(), scan_and_collect(), keep_lazy(), vm__purge() (purge); claim_dead(), vm__scan(), is_lost(),
 * release_slots() (recover, scan).
 *
 * The rule that everything rests on: A LINKED RANGE LEAVES ITS LIST ONLY THROUGH WHO DETACHED THE
 * LIST. Its link is then always a link, and a walk needs no guard. The scan keeps it in this order:
 * words first (what it takes is PURGING(me) and stays linked: nobody but us detaches), then the
 * lists and the shelf are detached and walked (PURGING(me) is passed over, its link followed), and
 * only then is anything given away. Every LAZY word the scan took was linked or shelved before it
 * became LAZY, so it is in what we detach, or in no list at all.
 *   - MOVING(live) may be linking itself into a chain that a dead purger detached: needs_scan stays.
 *   - Who clears the shelf's cell has the range unlisted and LAZY for a moment. A scan must not come in
 *     between, or it lists the range again: the taker of a shelved range holds purge_lock (a try).
 *
 * The shelf, a cell for one large range, is what the core had before warm.c (docs/decisions/0007). It stays here as the
 * smallest store from which one range is taken by itself. In the core takers of one range hold the lock of vm_warm, and
 * vm__warm_close() keeps them out of a scan, as here purge_lock does; sorting, splitting and joining are not modelled.
 *
 * Bounds: worker 0 frees 1, purges, allocates, frees; worker 1 takes the shelved 3 and frees it; 2
 * recoverers; 3 ranges, 1 node, 1 cell; deaths before any write. Sequentially consistent memory.
 */
#define BUG_DETACH_FIRST (bug == 1)     /* the lists, then the words */
#define BUG_RELINK_EARLY (bug == 2)     /* give back what was scanned before the lists are walked */
#define BUG_LIST_LEFT (bug == 3)        /* scan, then leave the list attached: collect() when decay fails */
#define BUG_SHELF_UNLOCKED (bug == 4)   /* take from the shelf without purge_lock */
#define BUG_LINK_BEFORE_MARK (bug == 5) /* the link, then the word */
#define BUG_FORGET_MOVING (bug == 6)
#define BUG_TRUST_LISTS (bug == 7)      /* no scan after a death */

#define R 3   /* ranges 1..R, 3 is large; link 0 ends a list */
#define ID 20 /* what `aux` holds while BUSY: following it as a link is an error */
#define CHECKER 4

#define FREE 0
#define LAZY 8
#define BUSY(p) (16 + p)
#define MOVING(p) (24 + p)
#define PURGING(p) (32 + p)
#define STATE(w) ((w) & 56)
#define OWNER(w) ((w) & 7)

hidden byte bug, size;
byte word[R + 1], aux[R + 1], head, shelf;
byte purge_lock; /* token: process + 1 */
bool needs_scan;
bool alive[5], retired[5], finished[5], recovered[5];
byte byte_of[5]; /* the OFD lock on a dead process's byte: recoverer + 1 */
byte deaths;

/* One shared write, or death before it. */
#define W(x) if :: atomic { deaths > 0 && me != CHECKER -> deaths--; alive[me] = false; goto died } \
                :: atomic { x } fi

inline push(r) /* vm__lazy_put(): word[r] is MOVING(me) */
{
    ok = false;
    if
    :: r == 3 && shelf == 0 -> W(if :: shelf == 0 -> shelf = r; ok = true :: else fi)
    :: else
    fi;
    do
    :: ok -> break
    :: else ->
       atomic { old = head };
       W(aux[r] = old);
       W(if :: head == old -> head = r; ok = true :: else fi)
    od;
    if :: BUG_LINK_BEFORE_MARK && STATE(word[r]) == BUSY(0) -> W(word[r] = MOVING(me)) :: else fi;
    W(if :: word[r] == MOVING(me) -> word[r] = LAZY :: else fi);
    ok = false; old = 0
}

inline take_shelved() /* mine := 3 or 0 */
{
    if
    :: BUG_SHELF_UNLOCKED -> ok = true
    :: !BUG_SHELF_UNLOCKED ->
       W(if :: purge_lock == 0 -> purge_lock = me + 1; ok = true :: else fi)
    fi;
    if
    :: ok ->
       c = shelf; ok = false;
       if :: c != 0 -> W(if :: shelf == c -> shelf = 0; ok = true :: else fi) :: else fi;
       if
       :: ok ->
          W(if :: word[c] == LAZY || STATE(word[c]) == MOVING(0) -> word[c] = MOVING(me)
               :: else -> assert(BUG_SHELF_UNLOCKED && STATE(word[c]) == PURGING(0)); ok = false
            fi);
          if
          :: ok ->
             W(assert(word[c] == MOVING(me)); aux[c] = ID);
             W(assert(word[c] == MOVING(me)); word[c] = BUSY(me)); /* a plain store */
             mine = c
          :: else
          fi
       :: else
       fi;
       if :: !BUG_SHELF_UNLOCKED -> W(purge_lock = 0) :: else fi
    :: else
    fi;
    ok = false; c = 0
}

inline lock_purge()
{
    if
    :: atomic { purge_lock == 0 -> purge_lock = me + 1 }
    :: atomic { purge_lock != 0 && (!alive[purge_lock - 1] || retired[purge_lock - 1]) -> purge_lock = me + 1 }
       if :: !BUG_TRUST_LISTS -> W(needs_scan = true) :: else fi /* needs_mending: stays until this is done */
    fi
}

inline scan() /* vm__scan() */
{
    c = 1;
    do
    :: c <= R ->
       seen = word[c]; /* one load; the CAS below expects it */
       if
       :: seen == LAZY || (STATE(seen) == PURGING(0) && seen != PURGING(me)) ||
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
    W(c = head; head = 0);
    do
    :: c != 0 ->
       n++;
       assert(c <= R && n <= R); /* else an id was followed as a link, or the list is a ring */
       seen = aux[c];
       W(if
         :: word[c] == PURGING(me) -> assert(scanned)
         :: word[c] == LAZY || STATE(word[c]) == MOVING(0) -> word[c] = PURGING(me)
         :: else -> assert(false)
         fi);
       c = seen
    :: else -> break
    od;
    c = shelf; seen = 0;
    if :: c != 0 -> W(if :: shelf == c -> shelf = 0 :: else -> c = 0 fi) :: else fi;
    if
    :: c != 0 ->
       W(if
         :: word[c] == LAZY || STATE(word[c]) == MOVING(0) -> word[c] = PURGING(me)
         :: else -> assert(word[c] == PURGING(me) && scanned) /* else the cell was stale */
         fi)
    :: else
    fi;
    c = 0; n = 0
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

inline purge(keep) /* keep: vm__purge_scan() */
{
    lock_purge();
    if
    :: needs_scan || keep ->
       W(needs_scan = false);
       if :: BUG_DETACH_FIRST -> collect() :: else fi;
       scan();
       scanned = true;
       if :: BUG_RELINK_EARLY -> give_back(keep) :: else fi;
       if :: !BUG_DETACH_FIRST && !BUG_LIST_LEFT -> collect() :: else fi
    :: else -> collect()
    fi;
    give_back(keep);
    scanned = false;
    W(assert(purge_lock == me + 1); purge_lock = 0)
}

inline release() /* free_slow() */
{
    if :: !BUG_LINK_BEFORE_MARK -> W(assert(word[mine] == BUSY(me)); word[mine] = MOVING(me)) :: else fi;
    push(mine);
    mine = 0
}

proctype worker(byte me; byte mine)
{
    byte old, c, n, seen; bool ok, scanned;
    if
    :: me == 0 ->
       release();
       purge(false);
       if
       :: atomic { size > 0 && word[2] == FREE -> word[2] = BUSY(me); mine = 2 }
       :: atomic { word[1] == FREE -> word[1] = BUSY(me); mine = 1 }
       :: else
       fi;
       if :: mine != 0 -> W(assert(word[mine] == BUSY(me)); aux[mine] = ID) :: else fi
    :: else -> take_shelved()
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
    byte old, p, c, n, seen; bool ok, scanned;
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

/* When all is quiet one purge finds every range that is not busy, and the lists are whole. */
proctype checker(byte me)
{
    byte old, c, n, seen; bool ok, scanned;
    OVER(2) && OVER(3) && QUIET;
    purge(false);
    d_step {
        c = 1;
        do
        :: c <= R ->
           assert(word[c] == FREE || (STATE(word[c]) == BUSY(0) && alive[OWNER(word[c])]));
           c++
        :: else -> break
        od;
        assert(!needs_scan && head == 0 && shelf == 0 && purge_lock == 0)
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
        word[2] = LAZY; head = 2;
        word[3] = LAZY; shelf = 3;
        run worker(0, 1); run worker(1, 0); run recovering(2); run recovering(3); run checker(CHECKER)
    }
}
