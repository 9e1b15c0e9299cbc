/* SPDX-License-Identifier: MIT */
/*
 * Sharing: holder bits, the last drop, and references that came too late.
 *
 * Mirrors vm__share_for() with write_holders() (share), adopt() with vm__wait_while_freeing() (adopt),
 * clear_bit() (drop), is_held(), vm__take_if_unheld() (free_if_unheld); claim_dead(), mark_dying(), vm__scan() with drop_holder_bits(), is_lost() and scan_shared(),
 * release_slots() (recover, scan). One range: its word, its id, one holder bit a process slot (each read and
 * written by itself, as bits in different 64-bit words are). Leases are in lease.pml, fork is in fork.pml.
 *
 * Rules found here, all needed:
 *   - Adding a reference that is read early for one that is read late (a bit for a bit) = add, fence, wait
 *     while the word is FREEING. Then the order in which a freer reads does not matter.
 *   - Whoever clears a bit, a stale adopter too, ends with free_if_unheld: a dropper may have left
 *     because it saw that bit.
 *   - An adopter checks the word after its bit, and the id after the word.
 *   - The first sharer writes every holder word while the range is FREEING and not yet S. A stale adopter's
 *     bit that was there is overwritten; one that comes later is seen to be stale by its adopter, or, if
 *     that dies, by a scan, which finds the range FREEING or S. Written after S instead, the sharer may die
 *     before the write, and the slot of the dead adopter have a living owner by then who knows of no bit:
 *     the range stays held by nobody (BUG_RESET_AFTER, two deaths and a slot used again). Written before
 *     FREEING, the adopter's scan has passed when its bit still counts for nothing (BUG_RESET_FIRST).
 *   - The scan drops the dead's bits whoever is FREEING, S or not: a live freer may be about to restore the
 *     word because it saw one of them, a live sharer about to set S (BUG_SCAN_SKIPS_FREEING,
 *     BUG_SCAN_SKIPS_SHARING). Then it runs free_if_unheld, always: what was not S when it looked may be S by
 *     now, and its last dropper gone because of the bit (BUG_SCAN_BY_OLD_LOOK).
 *   - FREEING without S, of the dead: the owner had it alone, the bits mean nothing yet
 *     (BUG_SHARING_BY_BITS). An adopter that meets it is stale, and leaves it as it was: made S, it is held
 *     by whatever the bits are (BUG_SETTLE_SHARED); made BUSY, the CAS of a scan that has just looked
 *     fails, and nobody looks again (BUG_SETTLE_PRIVATE).
 * Threads of one process adopt and drop the same page under holder_mutex: its bit is one. A look at S
 * before the adopter's bit, which adopt() takes, is left out here: that makes more adopters stale, not fewer.
 *
 * Bounds: an owner (0) that shares, drops, allocates the page again and shares that; a process (1; SIZE 1: also 2)
 * with a bare reference that may be stale; a newcomer (5) that takes the slot of one that was recovered and
 * idles, adopts, or allocates the page and shares it; 2 recoverers; deaths before any write.
 */
#define BUG_CHECK_THEN_BIT (bug == 1)
#define BUG_NO_RECHECK (bug == 2)          /* after FREEING -> SHARED nobody looks again */
#define BUG_STALE_LEAVES (bug == 3)        /* a stale adopter clears its bit and goes */
#define BUG_NO_RESET (bug == 4)            /* the first sharer only sets its own bit */
#define BUG_RESET_FIRST (bug == 5)         /* the holder words are written before FREEING */
#define BUG_RESET_AFTER (bug == 6)         /* the others' after S */
#define BUG_SCAN_SKIPS_FREEING (bug == 7)  /* the scan passes over a range that a live process is freeing */
#define BUG_SCAN_SKIPS_SHARING (bug == 8)  /* and over one that a live process is sharing */
#define BUG_RECOVER_OWN_BITS (bug == 9)    /* recovery frees only where it cleared a bit */
#define BUG_SHARING_BY_BITS (bug == 10)    /* the scan takes a dead sharer's range for shared already */
#define BUG_SETTLE_SHARED (bug == 11)      /* and so does an adopter that meets it */
#define BUG_SETTLE_PRIVATE (bug == 12)     /* or makes it BUSY again */
#define BUG_SCAN_BY_OLD_LOOK (bug == 13)   /* a bit was cleared where the word was not S: nobody frees */

hidden byte bug, size;

#define FREE 0
#define SHARED 2         /* BUSY, S */
#define FREEING(p) (8 + p)   /* S */
#define SHARING(p) (16 + p)  /* FREEING, not S */
#define MOVING(p) (24 + p)
#define PRIVATE(p) (32 + p)  /* BUSY, not S */
#define IS_FREEING (word >= 8 && word < 16)
#define IS_SHARING (word >= 16 && word < 24)
#define OWNER(w) (w & 7)

#define NEW 5            /* the newcomer */
#define NONE 7

byte word = PRIVATE(0), id = 1, bits[3];
byte alive = 63, retired, recovered, finished; /* masks of processes */
byte scanner;            /* purge_lock */
byte claimed_by[6];      /* a dead one's OFD lock: recoverer + 1 */
byte new_slot = NONE;
byte deaths;

/* What is true, unseen by the protocol. */
byte holds;              /* mask of processes that use the range */
byte published;          /* references up to this id exist */

#define HAS(mask, p) (mask & (1 << (p)))
#define IS_ALIVE(p) HAS(alive, p)
#define GONE(p) (!IS_ALIVE(p) && !HAS(recovered, p))
#define OVER(p) (HAS(finished, p) || HAS(recovered, p))
#define SLOT(p) (p == NEW -> new_slot : p)
/* A slot is DYING while its process is retired and not yet recovered. */
#define IS_DYING(p) (HAS(retired, p) && !HAS(recovered, p))

/* What a dead one knew is forgotten, so that states that differ only in that are one. */
#define FORGET ok = false; any = false; got = false; seen = 0; dying = 0; ref = 0

/* Before any write, and wherever it waits for another, since what it waits for may need its death. */
#define DIES atomic { deaths > 0 -> deaths--; alive = alive & ~(1 << me); holds = holds & ~(1 << me); FORGET; goto died }
#define W(x) if :: DIES :: atomic { x } fi

#define FINISH atomic { finished = finished | 1 << me; FORGET }

inline is_held() { any = bits[0]; any = any || bits[1]; any = any || bits[2] }

inline free_if_unheld() /* vm__take_if_unheld() and vm__release() */
{
    do
    :: is_held();
       if :: any -> break :: else fi;
       W(if :: word == SHARED -> word = FREEING(me); ok = true :: else -> ok = false fi);
       if :: !ok -> break :: else fi; /* FREEING: its freer reads again. Else: not ours to free */
       is_held();
       if
       :: !any ->
          W(assert(word == FREEING(me) && holds == 0); word = MOVING(me));
          W(word = FREE);
          break
       :: else ->
          W(assert(word == FREEING(me)); word = SHARED);
          if :: BUG_NO_RECHECK -> break :: else fi
       fi
    od;
    ok = false; any = false
}

inline write_bit(s) { W(bits[s] = (s == slot)) }

inline share() /* by the owner: it has the range alone */
{
    if :: BUG_RESET_FIRST -> write_bit(0); write_bit(1); write_bit(2) :: else fi;
    W(assert(word == PRIVATE(me)); word = SHARING(me));
    if
    :: BUG_NO_RESET || BUG_RESET_AFTER -> W(bits[slot] = 1)
    :: else -> if :: !BUG_RESET_FIRST -> write_bit(0); write_bit(1); write_bit(2) :: else fi
    fi;
    W(assert(word == SHARING(me)); word = SHARED);
    if :: BUG_RESET_AFTER -> write_bit(0); write_bit(1); write_bit(2) :: else fi
}

inline drop() /* clear_bit() */
{
    holds = holds & ~(1 << me);
    W(bits[slot] = 0);
    free_if_unheld()
}

inline adopt(wanted)
{
    if
    :: BUG_CHECK_THEN_BIT ->
       !IS_FREEING && !IS_SHARING;
       got = (word == SHARED && id == wanted);
       if :: got -> W(bits[slot] = 1) :: else fi
    :: !BUG_CHECK_THEN_BIT ->
       W(bits[slot] = 1);
       do /* vm__wait_while_freeing() */
       :: DIES
       :: atomic { word == SHARED -> got = true } break
       :: atomic { word != SHARED && !IS_FREEING && !IS_SHARING -> got = false } break
       :: atomic { IS_FREEING && !IS_ALIVE(OWNER(word)) -> seen = word }
          W(if :: word == seen -> word = SHARED :: else fi)
       :: atomic { IS_SHARING && !IS_ALIVE(OWNER(word)) -> seen = word; got = false }
          if
          :: BUG_SETTLE_SHARED -> W(if :: word == seen -> word = SHARED :: else fi)
          :: BUG_SETTLE_PRIVATE -> W(if :: word == seen -> word = PRIVATE(OWNER(seen)) :: else fi)
          :: else -> break
          fi
       od;
       seen = 0;
       if :: got -> got = (id == wanted) :: else fi
    fi;
    if
    :: got -> atomic { holds = holds | 1 << me; assert(id == wanted && (word == SHARED || IS_FREEING)) }
    :: else ->
       W(bits[slot] = 0);
       if :: !BUG_STALE_LEAVES -> free_if_unheld() :: else fi
    fi
}

inline use(wanted) /* while it holds the range, nobody else gets it */
{
    assert(id == wanted && (word == SHARED || IS_FREEING));
    drop();
    got = false
}

inline allocate(new_id) /* the same page again, if it is free */
{
    W(if :: word == FREE -> word = PRIVATE(me); id = new_id; holds = holds | 1 << me; got = true :: else -> got = false fi)
}

proctype owner(byte me)
{
    byte slot = me, seen, dying, ref; bool ok, any, got;
    share();
    published = 1;
    use(1);
    allocate(2);
    if
    :: got -> share(); published = 2; use(2)
    :: else
    fi;
    FINISH;
died:
    skip
}

proctype bare(byte me) /* holds a reference that keeps nothing alive */
{
    byte slot = me, seen, dying, ref; bool ok, any, got;
    if
    :: published ->
       adopt(1);
       if :: got -> use(1) :: else fi
    :: !published && !IS_ALIVE(0)
    fi;
    FINISH;
died:
    skip
}

/* Another process in a slot that was recovered. It knows nothing of what the slot's last owner did. */
proctype newcomer(byte me)
{
    byte slot, seen, dying, ref; bool ok, any, got;
    if
    :: atomic { HAS(recovered, 0) -> slot = 0; new_slot = slot }
    :: atomic { HAS(recovered, 1) -> slot = 1; new_slot = slot }
    :: atomic { size > 1 && HAS(recovered, 2) -> slot = 2; new_slot = slot }
    :: atomic { OVER(0) && OVER(1) && OVER(2) -> slot = NONE }
    fi;
    if
    :: true /* idles */
    :: size > 0 && slot != NONE && published ->
       ref = published;
       adopt(ref);
       if :: got -> use(ref) :: else fi
    :: size > 1 && slot != NONE ->
       allocate(3);
       if :: got -> share(); use(3) :: else fi
    fi;
    FINISH;
died:
    skip
}

#define QUIET (OVER(0) && OVER(1) && OVER(2) && OVER(NEW) && !GONE(3) && !GONE(4))

inline drop_bit(p)
{
    if
    :: HAS(dying, p) && bits[SLOT(p)] -> ok = true; W(bits[SLOT(p)] = 0)
    :: else
    fi
}

/* vm__scan(), under purge_lock. The word is loaded once; a CAS that fails is not repeated. */
inline scan(p)
{
    atomic { dying = retired & ~recovered; seen = word };
    if
    :: (BUG_SCAN_SKIPS_FREEING && seen >= 8 && seen < 16 && OWNER(seen) != p) ||
       (BUG_SCAN_SKIPS_SHARING && seen >= 16 && seen < 24 && OWNER(seen) != p)
    :: else ->
       if
       :: seen == SHARED || (seen >= 8 && seen < 24) -> drop_bit(0); drop_bit(1); drop_bit(2); drop_bit(NEW)
       :: else
       fi;
       if
       :: seen >= 16 && !(BUG_SHARING_BY_BITS && seen < 24) ->
          /* is_lost(): PRIVATE, SHARING or MOVING of the dead */
          if
          :: HAS(retired, OWNER(seen)) ->
             W(if :: word == seen -> assert(holds == 0); word = MOVING(me); ok = true :: else -> ok = false fi);
             if :: ok -> W(word = FREE) :: else fi
          :: !HAS(retired, OWNER(seen)) && seen < 24 && !BUG_SCAN_BY_OLD_LOOK -> free_if_unheld()
          :: else
          fi
       :: else ->
          if
          :: seen >= 8 && HAS(retired, OWNER(seen)) -> W(if :: word == seen -> word = SHARED :: else fi)
          :: else
          fi;
          if :: ok || !BUG_RECOVER_OWN_BITS -> free_if_unheld() :: else fi
       fi
    fi;
    ok = false; seen = 0; dying = 0
}

inline recover(p)
{
    W(retired = retired | 1 << p);
    if :: DIES :: atomic { scanner == 0 || !IS_ALIVE(scanner - 1) -> scanner = me + 1 } fi;
    scan(p);
    W(recovered = recovered | 1 << p; claimed_by[p] = 0; scanner = 0)
}

#define CLAIMABLE(p) (GONE(p) && (claimed_by[p] == 0 || !IS_ALIVE(claimed_by[p] - 1)))

proctype recovering(byte me)
{
    byte seen, dying, ref; bool ok, any, got;
    if :: me == 4 -> (!IS_ALIVE(3) || QUIET) :: else fi; /* stands by */
    do
    :: atomic { CLAIMABLE(0) -> claimed_by[0] = me + 1 } recover(0)
    :: atomic { CLAIMABLE(1) -> claimed_by[1] = me + 1 } recover(1)
    :: atomic { CLAIMABLE(2) -> claimed_by[2] = me + 1 } recover(2)
    :: atomic { CLAIMABLE(NEW) -> claimed_by[NEW] = me + 1 } recover(NEW)
    :: atomic { CLAIMABLE(7 - me) -> claimed_by[7 - me] = me + 1 } recover(7 - me)
    :: QUIET -> break
    od;
    FINISH;
died:
    skip
}

proctype checker()
{
    atomic {
        QUIET && OVER(3) && OVER(4);
        assert(word == FREE) /* a bit may be left: the next share() writes it */
    }
}

init
{
    atomic {
        c_code { bug = atoi(getenv("BUG")); size = atoi(getenv("SIZE")); now.deaths = atoi(getenv("DEATHS")); };
        holds = 1;
        run owner(0); run bare(1); run newcomer(NEW);
        if :: size > 1 -> run bare(2) :: else -> finished = 1 << 2 fi;
        run recovering(3); run recovering(4);
        run checker()
    }
}
