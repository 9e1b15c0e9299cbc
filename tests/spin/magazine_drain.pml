/*
 * A magazine, its owner without locked instructions, and a neighbour that drains it.
 *
 * Mirrors core/magazine.c (take, put, drain) and the reissue of a thread slot in core/slot.c. The
 * owner's stores to words are plain: the model asserts at each that it overwrites what the owner
 * saw, so that no drainer's CAS is lost. Between `in_operation = 1` and the load of `drain` the owner has a
 * compiler barrier only; the drainer's membarrier makes the pair sequentially consistent, as it is
 * here (BUG_CHECK_BEFORE_MARK is also what a missing membarrier would do).
 *
 *   owner    in_operation = 1; drain != 0 ? bypass; top entry, word must be CACHED(me): else skip;
 *            id; word := BUSY; count--; in_operation = 0.    put: word := CACHED(me); entry; count++
 *   drainer  CAS drain 0 (or a dead drainer's token) -> me; membarrier; wait for in_operation == 0 or give up;
 *            CAS each CACHED(slot) -> PURGING(me); count = 0; drain = 0
 *
 * Rules found here:
 *   - giving a slot out again clears in_operation and count, never `drain`: a live drainer may be
 *     between its marks, and would then zero the count of the new owner in its middle;
 *   - and it waits for nothing: the new owner bypasses while drain != 0.
 * Assumed, not enforced: of an unshared range, the owner's own free (a plain store) and a foreign
 * free are never both called; two foreign frees may race (CAS, one wins).
 *
 * Bounds: 1 slot with 2 ranges, its owner for OPS operations and one successor, 2 drainers that may
 * free foreign ranges, 1 recoverer that does not die; DEATHS deaths before any write.
 */
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef OPS
#define OPS 2
#endif
#define R 2
#define OWNER_A 0 /* first and second life of the slot: incarnations */
#define OWNER_B 1

#define FREE 0
#define BUSY(p) (8 + p)
#define CACHED(p) (16 + p)
#define MOVING(p) (24 + p)
#define PURGING(p) (32 + p)
#define STATE(w) ((w) & 56)
#define OWNER(w) ((w) & 7)

byte word[R + 1], aux[R + 1];
byte magazine[3], count; /* of the slot */
bool in_operation;
byte drain; /* token: process + 1 */
bool given[R + 1]; /* the owner handed this unshared range to others, who may free it */
bool alive[5], finished[5], recovered[5];
byte deaths = DEATHS;

#define W(x) if :: atomic { deaths > 0 -> deaths--; alive[me] = false; goto died } :: atomic { x } fi

inline enter() /* bypass := somebody drains */
{
#ifdef BUG_CHECK_BEFORE_MARK
    bypass = (drain != 0);
    W(in_operation = true);
#else
    W(in_operation = true);
    bypass = (drain != 0);
#endif
    if
    :: bypass -> /* a dead drainer's mark is taken away */
       token = drain;
       if :: token != 0 && !alive[token - 1] -> W(if :: drain == token -> drain = 0 :: else fi) :: else fi;
       token = 0
    :: else
    fi
}

inline leave() { W(in_operation = false) }

inline take()
{
    enter();
    if
    :: !bypass && count > 0 ->
       c = magazine[count - 1];
#ifdef BUG_TRUST_ENTRY
       seen = true;
#else
       seen = (word[c] == CACHED(me));
#endif
       if
       :: seen ->
          W(assert(word[c] == CACHED(me)); aux[c] = me);
          W(assert(word[c] == CACHED(me)); word[c] = BUSY(me)); /* a plain store */
          mine = c
       :: else /* a drainer died between its CAS and the count */
       fi;
       W(count--);
       c = 0; seen = false
    :: else
    fi;
    leave()
}

inline put()
{
    enter();
    if
    :: !bypass && count < 2 ->
       W(assert(word[mine] == BUSY(me)); word[mine] = CACHED(me)); /* a plain store */
       W(magazine[count] = mine);
       W(count++);
       mine = 0
    :: else -> W(word[mine] = MOVING(me)); W(word[mine] = FREE); mine = 0 /* pool, lazy: other models */
    fi;
    leave()
}

proctype owner(byte me; byte mine)
{
    byte c, token, ops; bool bypass, seen;
    if
    :: me == OWNER_B -> /* the slot again */
#ifdef BUG_REISSUE_CLEARS_DRAIN
       W(drain = 0);
#endif
       W(count = 0);
       W(in_operation = false);
       W(if :: word[1] == FREE -> word[1] = BUSY(me); mine = 1 :: else -> skip fi)
    :: else
    fi;
    do
    :: ops < OPS ->
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
    byte c, token; bool ok;
    /* drain */
    token = drain;
    if :: token != 0 && !alive[token - 1] -> W(if :: drain == token -> drain = 0 :: else fi) :: else fi;
    W(if :: drain == 0 -> drain = me + 1; ok = true :: else -> ok = false fi);
    if
    :: ok ->
       if
#ifdef BUG_DRAIN_NO_WAIT
       :: true
#else
       :: !in_operation
#endif
          -> c = 1;
          do
          :: c <= R ->
             token = word[c];
             if
             :: STATE(token) == CACHED(0) -> /* whatever life of the slot it is of */
                W(if :: word[c] == token -> word[c] = PURGING(me) :: else fi)
             :: else
             fi;
             c++
          :: else -> break
          od;
          W(count = 0)
       :: in_operation /* waited long enough */
       fi;
       W(drain = 0)
    :: else
    fi;
    c = 1;
    do
    :: c <= R -> if :: word[c] == PURGING(me) -> W(word[c] = FREE) :: else fi; c++
    :: else -> break
    od;
    /* free what was handed over: both neighbours may try */
    if
    :: given[1] ->
#ifdef BUG_FOREIGN_STORE
       if :: word[1] == BUSY(OWNER_A) -> W(ok = true; word[1] = MOVING(me)) :: else -> ok = false fi;
#else
       W(if :: word[1] == BUSY(OWNER_A) -> word[1] = MOVING(me); ok = true :: else -> ok = false fi);
#endif
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
       c = 1;
       do
       :: c <= R ->
          token = word[c];
          if
          :: token != FREE && OWNER(token) == p ->
             if :: atomic { word[c] == token -> word[c] = PURGING(me) } word[c] = FREE
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
           assert(STATE(word[c]) != MOVING(0) && STATE(word[c]) != PURGING(0));
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
        for (i : 0 .. 4) { alive[i] = true }
        word[1] = BUSY(OWNER_A);
        word[2] = CACHED(OWNER_A); magazine[0] = 2; count = 1;
        run owner(OWNER_A, 1); run neighbour(2); run neighbour(3); run recovering(4)
    }
}
