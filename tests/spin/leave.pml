/* SPDX-License-Identifier: MIT */
/*
 * Leaving, and names: a shared range that nobody holds any more is freed, or a scan is owed.
 *
 * Mirrors vm_detach() with release_own_slot() (leave), vm__take_if_unheld() (free_if_unheld), clear_bit() (drop),
 * adopt() and vm__wait_while_freeing(), also as who frees by an old reference calls it (look); name_delete(),
 * drop_if_unnamed(), name_get(), vm__names_lock() with mend(), vm__mend_tables(); claim_dead(), scan_and_collect(), vm__scan(),
 * drop_holder_bits(), scan_shared(), release_slots() (recover, scan); vm_recover() (the checker). One range, shared from
 * the start and under one id, held by process 0 and by its name.
 *
 * Rules found here, all needed:
 *   - Who leaves is DYING while it scans, and alive: others end its FREEING as a dead one's. So who finds its FREEING
 *     ended begins again: whoever ended it may hold nothing, and then frees nothing (BUG_ENDED_IS_DONE).
 *   - The thief of names_lock asks for a scan (BUG_LOCK_THIEF_NO_SCAN), after it cleared the bit that no name stood for
 *     and not before (BUG_SCAN_FIRST).
 *   - Who leaves scans after it said so, and before its slot is unused (BUG_UNUSED_FIRST).
 *   - A recovery that waits for nobody may not get names_lock of the dead. Then the dead one's slot stays, so that the next
 *     recovery begins again; else nobody mends it before it is used (BUG_LEFT_UNMENDED).
 *   - purge_needs_scan is cleared before the look at the words (BUG_CLEARED_LAST).
 *
 * Bounds: process 0 drops or leaves; 5 has a reference so old that it waits for a FREEING without a bit of its own, and
 * does not die; 2 recoverers; deaths before any write. SIZE 0: process 2 adopts, then drops or leaves. SIZE 1: process 1
 * deletes the name. SIZE 2: both, and 2 adopts by the name.
 */
#define BUG_ENDED_IS_DONE (bug == 1)
#define BUG_LOCK_THIEF_NO_SCAN (bug == 2)
#define BUG_SCAN_FIRST (bug == 3)
#define BUG_UNUSED_FIRST (bug == 4)
#define BUG_CLEARED_LAST (bug == 5)
#define BUG_STALE_LEAVES (bug == 6)      /* an adopter that came too late clears its bit and goes */
#define BUG_NAME_LEAVES (bug == 7)       /* and who deletes a name */
#define BUG_LEFT_UNMENDED (bug == 8)

hidden byte bug, size;

#define FREE 0
#define SHARED 2
#define FREEING(p) (8 + p)
#define MOVING(p) (24 + p)
#define IS_FREEING (word >= 8 && word < 16)
#define OWNER(w) (w & 7)

byte word = SHARED;
bit bits[3];
bit name_bit, name;
byte names_lock; bit needs_mending, needs_scan;
byte alive = 63, dying, unused, finished; /* masks of processes; dying: its slot's state, whoever set it */
byte scanner;                             /* purge_lock */
byte claimed_by[6];                       /* a dead one's OFD lock: recoverer + 1 */
byte deaths;

byte holds = 1;                           /* what is true, unseen by the protocol: who uses the range */

#define HAS(mask, p) (mask & (1 << (p)))
#define IS_ALIVE(p) HAS(alive, p)
#define GONE(p) (!IS_ALIVE(p) && !HAS(unused, p))
#define OVER(p) (HAS(finished, p) || HAS(unused, p))
#define LOOKS_DEAD(p) (!IS_ALIVE(p) || HAS(dying, p))

#define FORGET ok = false; any = false; got = false; left = false; seen = 0; those = 0
#define FINISH atomic { finished = finished | 1 << me; FORGET }
/* Before any write, and wherever it waits for another, since what it waits for may need its death. */
#define DIES atomic { deaths > 0 -> deaths--; alive = alive & ~(1 << me); holds = holds & ~(1 << me); FORGET; goto died }
#define W(x) if :: DIES :: atomic { x } fi

inline is_held() { any = name_bit; any = any || bits[0]; any = any || bits[1]; any = any || bits[2] }

inline free_if_unheld()
{
    do
    :: is_held();
       if :: any -> break :: else fi;
       W(if :: word == SHARED -> word = FREEING(me); ok = true :: else -> ok = false fi);
       if :: !ok -> break :: else fi; /* FREEING: its freer reads again. Else: not ours to free */
       is_held();
       if
       :: !any ->
          W(if :: word == FREEING(me) -> assert(holds == 0 && !name); word = MOVING(me); ok = true :: else -> ok = false fi);
          if :: ok -> W(word = FREE); break :: else fi;
          if :: BUG_ENDED_IS_DONE -> break :: else fi
       :: else -> W(if :: word == FREEING(me) -> word = SHARED :: else fi)
       fi
    od;
    atomic { ok = false; any = false }
}

inline drop() /* clear_bit() */
{
    holds = holds & ~(1 << me);
    W(bits[me] = 0);
    free_if_unheld()
}

inline settle() /* vm__wait_while_freeing() */
{
    do
    :: DIES
    :: !IS_FREEING -> break
    :: atomic { IS_FREEING && LOOKS_DEAD(OWNER(word)) -> seen = word }
       W(if :: word == seen -> word = SHARED :: else fi);
       seen = 0
    od
}

inline adopt()
{
    W(bits[me] = 1);
    settle();
    atomic { got = (word == SHARED); if :: got -> holds = holds | 1 << me :: else fi }
    if
    :: got
    :: else ->
       W(bits[me] = 0);
       if :: !BUG_STALE_LEAVES -> free_if_unheld() :: else fi
    fi
}

inline lock_names() /* vm__names_lock() */
{
    if
    :: DIES
    :: atomic { names_lock == 0 -> names_lock = me + 1 }
    :: atomic { names_lock != 0 && !IS_ALIVE(names_lock - 1) -> names_lock = me + 1 } W(needs_mending = 1)
    fi;
    if
    :: needs_mending -> /* mend() */
       if :: BUG_SCAN_FIRST -> W(needs_scan = 1) :: else fi;
       if :: (word == SHARED || IS_FREEING) && name_bit && !name -> W(name_bit = 0) :: else fi;
       if :: !BUG_SCAN_FIRST && !BUG_LOCK_THIEF_NO_SCAN -> W(needs_scan = 1) :: else fi;
       W(needs_mending = 0)
    :: else
    fi
}
inline unlock_names() { W(assert(names_lock == me + 1); names_lock = 0) }

/* ---- scans, under purge_lock ---- */

inline lock_purge() { if :: DIES :: atomic { scanner == 0 || !IS_ALIVE(scanner - 1) -> scanner = me + 1 } fi }

inline scan() /* vm__scan(): the word is loaded once */
{
    if :: !BUG_CLEARED_LAST -> W(needs_scan = 0) :: else fi;
    atomic { those = dying & ~unused; seen = word };
    if
    :: seen == SHARED || (seen >= 8 && seen < 16) ->
       if :: HAS(those, 0) && bits[0] -> W(bits[0] = 0) :: else fi;
       if :: HAS(those, 1) && bits[1] -> W(bits[1] = 0) :: else fi;
       if :: HAS(those, 2) && bits[2] -> W(bits[2] = 0) :: else fi;
       if
       :: seen >= 8 && HAS(dying, OWNER(seen)) -> W(if :: word == seen -> word = SHARED :: else fi)
       :: else
       fi;
       free_if_unheld()
    :: seen >= 24 && HAS(dying, OWNER(seen)) && OWNER(seen) != me -> W(if :: word == seen -> word = FREE :: else fi)
    :: else
    fi;
    if :: BUG_CLEARED_LAST -> W(needs_scan = 0) :: else fi;
    atomic { seen = 0; those = 0 }
}

inline leave() /* vm_detach() */
{
    atomic { holds = holds & ~(1 << me) };
    W(dying = dying | 1 << me);
    lock_purge();
    if :: BUG_UNUSED_FIRST -> W(unused = unused | 1 << me) :: else fi;
    scan();
    W(unused = unused | 1 << me);
    W(scanner = 0)
}

inline recover(p)
{
    W(needs_scan = 1);
    W(dying = dying | 1 << p);
    if /* vm__mend_tables() */
    :: needs_mending || (names_lock != 0 && !IS_ALIVE(names_lock - 1)) -> lock_names(); unlock_names()
    :: needs_mending || (names_lock != 0 && !IS_ALIVE(names_lock - 1)) -> left = true /* it waits for nobody */
    :: else
    fi;
    lock_purge();
    scan();
    W(if :: !left || BUG_LEFT_UNMENDED -> unused = unused | 1 << p :: else fi; claimed_by[p] = 0; scanner = 0);
    left = false
}

/* ---- who does what ---- */

proctype holder(byte me)
{
    byte seen, those; bool ok, any, got, left;
    if :: drop() :: leave() fi;
    FINISH;
died:
    skip
}

proctype deleter(byte me)
{
    byte seen, those; bool ok, any, got, left;
    lock_names();
    if
    :: name ->
       W(name = 0);
       W(name_bit = 0);
       if :: !BUG_NAME_LEAVES -> free_if_unheld() :: else fi
    :: else
    fi;
    unlock_names();
    FINISH;
died:
    skip
}

proctype adopter(byte me)
{
    byte seen, those; bool ok, any, got, left;
    if :: size == 2 -> lock_names() :: else fi; /* by its name */
    if :: size == 0 || name -> adopt() :: else fi;
    if :: size == 2 -> unlock_names() :: else fi;
    if
    :: got ->
       assert(word == SHARED || IS_FREEING);
       if :: drop() :: leave() fi
    :: else
    fi;
    FINISH;
died:
    skip
}

proctype looker(byte me) /* free_slow(): by an old reference, and so it does not go on */
{
    byte seen, those; bool ok, any, got, left;
    do /* as settle(), but for death */
    :: !IS_FREEING -> break
    :: atomic { IS_FREEING && LOOKS_DEAD(OWNER(word)) -> seen = word }
       atomic { if :: word == seen -> word = SHARED :: else fi; seen = 0 }
    od;
    atomic { finished = finished | 1 << me; FORGET }
}

#define CLAIMABLE(p) (GONE(p) && (claimed_by[p] == 0 || !IS_ALIVE(claimed_by[p] - 1)))
#define QUIET (OVER(0) && OVER(1) && OVER(2) && OVER(5) && !GONE(0) && !GONE(1) && !GONE(2) && \
               !GONE(3) && !GONE(4))

proctype recovering(byte me)
{
    byte seen, those; bool ok, any, got, left;
    if :: me == 4 -> (!IS_ALIVE(3) || QUIET) :: else fi; /* stands by */
    do
    :: atomic { CLAIMABLE(0) -> claimed_by[0] = me + 1 } recover(0)
    :: atomic { CLAIMABLE(1) -> claimed_by[1] = me + 1 } recover(1)
    :: atomic { CLAIMABLE(2) -> claimed_by[2] = me + 1 } recover(2)
    :: atomic { CLAIMABLE(7 - me) -> claimed_by[7 - me] = me + 1 } recover(7 - me)
    :: QUIET -> break
    od;
    FINISH;
died:
    skip
}

proctype checker(byte me) /* vm_recover(), when everybody is at rest */
{
    byte seen, those; bool ok, any, got, left;
    atomic { QUIET && OVER(3) && OVER(4) -> deaths = 0 };
    if
    :: !BUG_LEFT_UNMENDED && (needs_mending || (names_lock != 0 && !IS_ALIVE(names_lock - 1))) ->
       lock_names(); unlock_names()
    :: else
    fi;
    if :: needs_scan -> lock_purge(); scan(); W(scanner = 0) :: else fi;
    assert(word == FREE || name); /* its deleter died before it deleted it */
died:
    skip
}

init
{
    atomic {
        c_code { bug = atoi(getenv("BUG")); size = atoi(getenv("SIZE")); now.deaths = atoi(getenv("DEATHS")); };
        bits[0] = 1;
        run holder(0); run looker(5);
        if :: size > 0 -> name = 1; name_bit = 1; run deleter(1) :: else -> finished = finished | 2 fi;
        if :: size != 1 -> run adopter(2) :: else -> finished = finished | 4 fi;
        run recovering(3); run recovering(4);
        run checker(6)
    }
}
