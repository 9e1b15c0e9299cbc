/* SPDX-License-Identifier: MIT */
/*
 * A magazine, its owner without locked instructions, and a neighbour that drains it.
 *
 * Mirrors vm_alloc() and vm_free() (take, put), vm__magazine_drain(), out_of_operation(), take_all()
 * (neighbour), claim_thread() (the second owner), vm__retire_threads() and vm__scan() (recovering). The owner's stores to words are plain: the
 * model asserts at each that it overwrites what the owner saw, so that no drainer's CAS is lost.
 * Between the mark and the load of `drain` the owner has a compiler barrier only; the drainer's
 * membarrier makes the pair sequentially consistent, as it is here (BUG_CHECK_BEFORE_MARK is also
 * what a missing membarrier would do).
 *
 *   take     header := TAKING; drain != 0 ? bypass; top entry, word must be CACHED(me): else bypass;
 *            id; word := BUSY; header := count - 1
 *   put      word := CACHED(me); entry; header := count + 1: no mark, the drainer writes no header
 *   drainer  slot state; CAS drain 0 (or a dead drainer's token) -> me; membarrier; the same state? wait
 *            for header != TAKING or give up; CAS each entry's word CACHED(slot, incarnation) ->
 *            MOVING(me); drain := 0. Its entries stay, stale
 * The slow paths' mark in_operation has the same part as TAKING, for all magazines at once.
 *
 * Rules found here:
 *   - who gives a slot out again does not touch a live drainer's `drain`: the new owner would take entries
 *     that the drainer is at. A slot with a live drainer is not given out at all; a dead one's mark is
 *     removed after the slot is ours;
 *   - the state that is looked at again does not matter here: `drain` keeps the new owner off, and
 *     words carry the incarnation.
 * Assumed, not enforced: of an unshared range, the owner's own free (a plain store) and a foreign
 * free are never both called; two foreign frees may race (CAS, one wins).
 *
 * Bounds: 1 slot with 2 ranges, its owner for 1 + SIZE operations and one successor, 2 drainers that may
 * free foreign ranges, 1 recoverer that does not die; deaths before any write.
 */
#define BUG_CHECK_BEFORE_MARK (bug == 1)
#define BUG_TRUST_ENTRY (bug == 2)
#define BUG_REISSUE_CLEARS_DRAIN (bug == 3)
#define BUG_DRAIN_NO_WAIT (bug == 4)
#define BUG_FOREIGN_STORE (bug == 5)

hidden byte bug, size;
#define R 2
#define OWNER_A 0 /* first and second life of the slot: incarnations */
#define OWNER_B 1

#define FREE 0
#define BUSY(p) (8 + p)
#define CACHED(p) (16 + p)
#define MOVING(p) (24 + p)
#define STATE(w) ((w) & 56)
#define OWNER(w) ((w) & 7)

byte word[R + 1], aux[R + 1];
byte magazine[3], count; /* of the slot */
bool taking; /* the header says so; count is the same word */
byte drain; /* token: process + 1 */
bool given[R + 1]; /* the owner handed this unshared range to others, who may free it */
bool alive[5], finished[5], recovered[5];
byte slot_state = 1; /* odd: used. 1: by A, 2: retired, 3: by B */
byte deaths;

#define W(x) if :: atomic { deaths > 0 -> deaths--; alive[me] = false; goto died } :: atomic { x } fi

inline enter() /* bypass := somebody drains */
{
    if :: BUG_CHECK_BEFORE_MARK -> bypass = (drain != 0) :: else fi;
    W(taking = true);
    if :: !BUG_CHECK_BEFORE_MARK -> bypass = (drain != 0) :: else fi;
    if
    :: bypass -> /* a dead drainer's mark is taken away */
       token = drain;
       if :: token != 0 && !alive[token - 1] -> W(if :: drain == token -> drain = 0 :: else fi) :: else fi;
       token = 0
    :: else
    fi
}

inline leave() { W(taking = false) }

inline take()
{
    enter();
    if
    :: !bypass && count > 0 ->
       c = magazine[count - 1];
       seen = (word[c] == CACHED(me) || BUG_TRUST_ENTRY);
       if
       :: seen ->
          W(assert(word[c] == CACHED(me)); aux[c] = me);
          W(assert(word[c] == CACHED(me)); word[c] = BUSY(me)); /* a plain store */
          mine = c;
          n = count; /* read before */
          W(assert(count == n); count = n - 1);
          n = 0
       :: else /* a stale entry: the slow way, which flushes it one day */
       fi;
       c = 0; seen = false
    :: else
    fi;
    leave()
}

inline put()
{
    if
    :: count < 2 ->
       n = count;
       W(assert(word[mine] == BUSY(me)); word[mine] = CACHED(me)); /* a plain store */
       W(magazine[n] = mine);
       W(assert(count == n); count = n + 1);
       n = 0
    :: else -> W(word[mine] = MOVING(me)); W(word[mine] = FREE) /* pool, lazy: other models */
    fi;
    mine = 0
}

proctype owner(byte me; byte mine)
{
    byte c, n, token, ops; bool bypass, seen;
    if
    :: me == OWNER_B -> /* claim_thread() */
       do
       :: atomic { token = drain };
          if
          :: token != 0 && alive[token - 1] && !BUG_REISSUE_CLEARS_DRAIN -> (drain != token || !alive[token - 1])
          :: else -> break
          fi
       od;
       W(assert(slot_state == 2); slot_state = 3);
       W(taking = false);
       if
       :: BUG_REISSUE_CLEARS_DRAIN -> W(drain = 0)
       :: !BUG_REISSUE_CLEARS_DRAIN && token != 0 -> W(if :: drain == token -> drain = 0 :: else fi)
       :: else
       fi;
       token = 0;
       W(if :: word[1] == FREE -> word[1] = BUSY(me); mine = 1 :: else -> skip fi)
    :: else
    fi;
    do
    :: ops <= size ->
       ops++;
       if
       :: mine != 0 -> put()
       :: mine != 0 && me == OWNER_A -> given[mine] = true; mine = 0 /* hand over, unshared */
       :: mine == 0 -> take()
       fi
    :: else -> break
    od;
    finished[me] = true;
died:
    skip
}

proctype neighbour(byte me)
{
    byte c, k, s, token; bool ok;
    /* drain */
    s = slot_state;
    token = drain;
    if :: token != 0 && !alive[token - 1] -> W(if :: drain == token -> drain = 0 :: else fi) :: else fi;
    if
    :: s & 1 -> W(if :: drain == 0 -> drain = me + 1; ok = true :: else -> ok = false fi)
    :: else
    fi;
    if
    :: ok ->
       if
       :: (!taking || BUG_DRAIN_NO_WAIT) && slot_state == s ->
          token = count; c = 0;
          do
          :: c < token ->
             k = magazine[c];
             W(if :: word[k] == CACHED((s - 1) / 2) -> word[k] = MOVING(me) :: else fi);
             if :: word[k] == MOVING(me) -> W(word[k] = FREE) :: else fi; /* lazy_purge.pml */
             c++
          :: else -> break
          od
       :: taking || slot_state != s /* waited long enough, or another owner's now */
       fi;
       W(if :: drain == me + 1 -> drain = 0 :: else fi)
    :: else
    fi;
    k = 0; token = 0; ok = false;
    /* free what was handed over: both neighbours may try */
    if
    :: given[1] ->
       if
       :: BUG_FOREIGN_STORE -> if :: word[1] == BUSY(OWNER_A) -> W(ok = true; word[1] = MOVING(me)) :: else fi
       :: else -> W(if :: word[1] == BUSY(OWNER_A) -> word[1] = MOVING(me); ok = true :: else fi)
       fi;
       if :: ok -> W(assert(word[1] == MOVING(me)); word[1] = FREE) :: else fi
    :: !given[1]
    fi;
    finished[me] = true;
died:
    skip
}

#define GONE(p) (!alive[p] && !recovered[p])

/* Scans words; the dead slot's marks are left to who meets them. */
proctype recovering(byte me)
{
    byte p, c, token;
    do
    :: atomic {
          GONE(0) || GONE(1) || GONE(2) || GONE(3) ->
          if :: GONE(0) -> p = 0 :: GONE(1) -> p = 1 :: GONE(2) -> p = 2 :: GONE(3) -> p = 3 fi
       }
       if :: p == OWNER_A -> slot_state = 2 :: p == OWNER_B -> slot_state = 4 :: else fi; /* retired */
       c = 1;
       do
       :: c <= R ->
          token = word[c];
          if
          :: token != FREE && OWNER(token) == p ->
             if :: atomic { word[c] == token -> word[c] = MOVING(me) } word[c] = FREE
                :: atomic { word[c] != token -> skip } /* a foreign free, a drain */
             fi
          :: else
          fi;
          c++
       :: else -> break
       od;
       recovered[p] = true;
       if :: p == OWNER_A -> run owner(OWNER_B, 0) :: p == OWNER_B -> finished[OWNER_B] = true :: else fi
    :: (finished[0] || (recovered[0] && finished[1])) && (finished[2] || recovered[2]) && (finished[3] || recovered[3]) -> break
    od;
    skip;
    /* Every range is free, or busy with or given away by a live owner, or cached where it is found. */
    d_step {
        c = 1;
        do
        :: c <= R ->
           assert(STATE(word[c]) != MOVING(0));
           assert(word[c] == FREE || alive[OWNER(word[c])]);
           if
           :: STATE(word[c]) == CACHED(0) ->
              assert((count > 0 && magazine[0] == c) || (count > 1 && magazine[1] == c))
           :: else
           fi;
           c++
        :: else -> break
        od
    }
}

init
{
    atomic {
        byte i;
        c_code { bug = atoi(getenv("BUG")); size = atoi(getenv("SIZE")); now.deaths = atoi(getenv("DEATHS")); };
        for (i : 0 .. 4) { alive[i] = true }
        word[1] = BUSY(OWNER_A);
        word[2] = CACHED(OWNER_A); magazine[0] = 2; count = 1;
        run owner(OWNER_A, 1); run neighbour(2); run neighbour(3); run recovering(4)
    }
}
