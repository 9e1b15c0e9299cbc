/* SPDX-License-Identifier: MIT */
/*
 * Fork: a child keeps what it finds in its memory, while another thread of its parent frees.
 *
 * Mirrors take_heir_slot(), bequeath_range() (bequeath), untie_heir(), in_parent(), in_child();
 * vm__share_for(), vm__hold_for(), vm__drop_shared(), drop_inherited(); vm_free() with its plain store, and
 * free_slow() (free); the hit of vm_alloc(); recovery as in share.pml. One range, private to the parent at first; its bits: parent 0, child 1, a stranger 2.
 *
 * Rules found here, all needed:
 *   - All that the child holds is held for it before the fork: afterwards the parent may drop first
 *     (BUG_BITS_BY_CHILD).
 *   - The child's slot is locked by a description that nobody keeps but the child: so a fork that failed and a child
 *     that died at once are found (BUG_PARENT_KEEPS_LOCK); and the child closes its parent's
 *     (BUG_CHILD_KEEPS_LOCK).
 *   - A private range is freed with a plain store, which may come at any moment of its sharing. Before S the
 *     sharer's CAS fails and the child does not get it (BUG_BLIND_SHARE); after S it takes the range back under
 *     the child's bit. That is right, because who frees began before the fork: nothing in the child's memory
 *     names the range, and the child's count is dropped by its id, which is another's by then.
 *   - BUSY says nothing of the id: the other thread may free the range and allocate it again. So the sharer
 *     looks at the id once nobody else can change it, after FREEING (BUG_ID_ONCE).
 *   - Who frees and meets FREEING without S waits: the range is going to be shared, not gone (BUG_GIVES_UP).
 * Assumed: what another thread allocates during the fork is in no memory that the child uses. With the interpreter
 * lock, which a fork holds, no other thread runs.
 *
 * Bounds: one fork, which may fail; a thread that frees, may allocate the page again and frees that; a
 * child that uses what it inherited or lets go of it; deaths before any write but the recoverer's
 * (share.pml has those). SIZE 1: a stranger with a stale reference too.
 */
#define BUG_BITS_BY_CHILD (bug == 1)
#define BUG_PARENT_KEEPS_LOCK (bug == 2)
#define BUG_CHILD_KEEPS_LOCK (bug == 3)
#define BUG_BLIND_SHARE (bug == 4)
#define BUG_ID_ONCE (bug == 5)
#define BUG_GIVES_UP (bug == 6)

hidden byte bug, size;

#define FREE 0
#define SHARED 2
#define CACHED 3             /* in a magazine of the parent's */
#define FREEING(p) (8 + p)   /* S */
#define SHARING(p) (16 + p)  /* FREEING, not S */
#define MOVING(p) (24 + p)
#define PRIVATE(p) (32 + p)
#define IS_FREEING (word >= 8 && word < 16)
#define IS_SHARING (word >= 16 && word < 24)
#define OWNER(w) (w == CACHED -> 0 : (w & 7))

byte word = PRIVATE(0), id = 1;
bit bits[3];
bit mutex;                   /* holder_mutex of the parent */
byte space;                  /* space_lock: 1 the parent, 2 the recoverer */
byte counted;                /* the parent's count: of which id it holds a shared range */
bit exists[3], runs[3];      /* slots taken; processes that run */
bit born;                    /* the child */
byte locks[3];               /* descriptions of the slot's OFD lock: 1 the parent has one, 2 the child, 4 the stranger */
byte retired, recovered, finished;
byte deaths;

/* What is true, unseen by the protocol. */
byte live;                   /* id of the parent's array there; 0: none, or it is being freed */
byte child_uses;             /* id of the child's */

#define HAS(mask, p) (mask & (1 << (p)))
#define LOOKS_DEAD(p) (p != 3 && locks[p] == 0)
#define GONE(p) (exists[p] && locks[p] == 0 && !HAS(recovered, p))
#define UNUSED (live == 0 && child_uses == 0)

/* A process dies with all its threads, and with it its descriptors. */
#define FORGET ok = false; any = false; got = false; seen = 0; mine = 0
#define KILL locks[0] = locks[0] & ~(1 << me); locks[1] = locks[1] & ~(1 << me); locks[2] = locks[2] & ~(1 << me); \
             runs[me] = false; \
             if :: me == 0 -> live = 0; counted = 0 :: me == 1 -> child_uses = 0 :: else fi
#define DIES atomic { deaths > 0 && me != 3 && runs[me] -> deaths--; KILL; FORGET; goto died }
#define DEAD atomic { me != 3 && !runs[me] -> FORGET; goto died }
#define ALIVE (me == 3 || runs[me])
#define W(x) if :: DEAD :: DIES :: atomic { ALIVE -> x } fi

inline is_held() { any = bits[0]; any = any || bits[1]; any = any || bits[2] }

inline free_if_unheld()
{
    do
    :: is_held();
       if :: any -> break :: else fi;
       W(if :: word == SHARED -> word = FREEING(me); ok = true :: else -> ok = false fi);
       if :: !ok -> break :: else fi;
       is_held();
       if
       :: !any ->
          W(if :: word == FREEING(me) -> assert(UNUSED); word = MOVING(me); ok = true :: else -> ok = false fi);
          if :: ok -> W(word = FREE) :: else fi;
          break
       :: else -> W(if :: word == FREEING(me) -> word = SHARED :: else fi) /* else the plain store came */
       fi
    od;
    atomic { ok = false; any = false }
}

inline settle() /* vm__wait_while_freeing() */
{
    do
    :: DEAD
    :: DIES
    :: atomic { ALIVE && !IS_FREEING && !IS_SHARING } break
    :: atomic { ALIVE && IS_SHARING && LOOKS_DEAD(OWNER(word)) } break
    :: atomic { ALIVE && IS_FREEING && LOOKS_DEAD(OWNER(word)) -> word = SHARED }
    od
}

/* vm__share_for() and vm__hold_for(), for the child-to-be; mine: of which id the child will have a count. */
inline bequeath()
{
    do
    :: seen = id;
       if
       :: word == PRIVATE(0) ->
          W(if :: word == PRIVATE(0) -> word = SHARING(0); ok = true :: else -> ok = false fi);
          if
          :: ok && id != seen && !BUG_ID_ONCE -> W(if :: word == SHARING(0) -> word = PRIVATE(0) :: else fi)
          :: ok && (id == seen || BUG_ID_ONCE) ->
             W(bits[0] = 1);
             W(bits[1] = !BUG_BITS_BY_CHILD);
             W(bits[2] = 0);
             W(if :: word == SHARING(0) || BUG_BLIND_SHARE -> word = SHARED; counted = seen; mine = seen :: else fi);
             break
          :: else -> break
          fi
       :: (word == SHARED || IS_FREEING) && counted == seen && counted != 0 ->
          if :: !BUG_BITS_BY_CHILD -> W(bits[1] = 1); settle() :: else fi;
          mine = seen;
          break
       :: else -> break
       fi
    od;
    atomic { seen = 0; ok = false }
}

proctype forker(byte me) /* a thread of the parent */
{
    byte seen, mine; bool ok, any, got;
    W(exists[1] = true; locks[1] = 1); /* take_heir_slot() */
    if :: DEAD :: DIES :: atomic { ALIVE && !mutex -> mutex = 1 } fi;
    if :: DEAD :: DIES :: atomic { ALIVE && space == 0 -> space = 1 } fi;
    bequeath();
    W(space = 0);
    if
    :: atomic { ALIVE -> /* fork() */
         born = true; runs[1] = true; locks[0] = locks[0] | 2; locks[1] = locks[1] | 2;
         if :: live == 1 -> child_uses = 1 :: else fi;
         run child(1, mine) }
    :: ALIVE /* it failed */
    :: DEAD
    fi;
    if :: !BUG_PARENT_KEEPS_LOCK -> W(locks[1] = locks[1] & ~1) :: else fi; /* in_parent() */
    W(mutex = 0);
died:
    atomic { finished = finished | (born -> 8 : 10); FORGET }
}

/* vm_free() of an array that only this thread knows. got: into the magazine. */
inline free()
{
    atomic { mine = live; live = 0 };
    do
    :: seen = word;
       if
       :: seen == PRIVATE(0) && id == mine ->
          W(assert(UNUSED); word = CACHED; got = true); break /* the plain store */
       :: seen == PRIVATE(0) && id != mine -> break
       :: seen >= 16 && seen < 24 ->
          if :: BUG_GIVES_UP -> break :: else -> settle() fi
       :: seen == SHARED || (seen >= 8 && seen < 16) ->
          if :: DEAD :: DIES :: atomic { ALIVE && !mutex -> mutex = 1 } fi;
          if
          :: counted == mine && id == mine -> W(counted = 0; bits[0] = 0); free_if_unheld()
          :: else
          fi;
          W(mutex = 0);
          break
       :: else -> break
       fi
    od;
    atomic { seen = 0; mine = 0 }
}

proctype freer(byte me) /* another thread of the parent */
{
    byte seen, mine; bool ok, any, got;
    free();
    if
    :: got ->
       got = false;
       if
       :: word == CACHED -> W(id = 2); W(word = PRIVATE(0); live = 2); free() /* the hit */
       :: true
       fi
    :: else
    fi;
died:
    atomic { finished = finished | 1; FORGET }
}

proctype child(byte me; byte inherited)
{
    byte seen, mine; bool ok, any, got;
    if :: !BUG_CHILD_KEEPS_LOCK -> W(locks[0] = locks[0] & ~2) :: else fi;
    if
    :: BUG_BITS_BY_CHILD && inherited -> W(bits[1] = 1)
    :: else
    fi;
    if
    :: inherited -> /* vm_free() or vm_drop_inherited() */
       assert(child_uses == 0 || (child_uses == id && (word == SHARED || IS_FREEING)));
       child_uses = 0;
       if :: id == inherited -> W(bits[1] = 0); free_if_unheld() :: else fi
    :: else -> assert(child_uses == 0)
    fi;
died:
    atomic { finished = finished | 2; FORGET }
}

proctype stranger(byte me) /* a reference to what was there long ago */
{
    byte seen, mine; bool ok, any, got;
    W(bits[2] = 1);
    settle();
    W(bits[2] = 0);
    free_if_unheld();
died:
    atomic { finished = finished | 4; FORGET }
}

inline drop_bit(p) { if :: HAS(retired, p) && !HAS(recovered, p) && bits[p] -> bits[p] = 0 :: else fi }

inline recover(p)
{
    retired = retired | 1 << p;
    atomic { space == 0 || (space == 1 && !runs[0]) -> space = 2 };
    seen = word;
    if
    :: seen == FREE || (seen >= 16 && !HAS(retired, OWNER(seen)) && !(seen < 24))
    :: (seen >= 16 || seen == CACHED) && HAS(retired, OWNER(seen)) ->
       atomic { if :: word == seen -> assert(UNUSED); word = FREE :: else fi }
    :: seen == CACHED && !HAS(retired, 0)
    :: seen == SHARED || (seen >= 8 && seen < 16) || (seen >= 16 && seen < 24 && !HAS(retired, OWNER(seen))) ->
       drop_bit(0); drop_bit(1); drop_bit(2);
       atomic { if :: IS_FREEING && HAS(retired, OWNER(word)) -> word = SHARED :: else fi };
       free_if_unheld()
    fi;
    seen = 0;
    space = 0;
    recovered = recovered | 1 << p
}

#define OVER(p) (HAS(finished, p) && !GONE(p))
#define QUIET ((finished & 15) == 15 && !GONE(0) && !GONE(1) && !GONE(2))

proctype recovering(byte me)
{
    byte seen, mine; bool ok, any, got;
    do
    :: GONE(0) && !HAS(retired, 0) -> recover(0)
    :: GONE(1) && !HAS(retired, 1) -> recover(1)
    :: GONE(2) && !HAS(retired, 2) -> recover(2)
    :: QUIET -> break
    od;
    assert(word == FREE || (word == CACHED && runs[0]));
died:
    skip
}

init
{
    atomic {
        c_code { bug = atoi(getenv("BUG")); size = atoi(getenv("SIZE")); now.deaths = atoi(getenv("DEATHS")); };
        exists[0] = true; runs[0] = true; locks[0] = 1; live = 1;
        run forker(0); run freer(0);
        if :: size > 0 -> exists[2] = true; runs[2] = true; locks[2] = 4; run stranger(2) :: else -> finished = 4 fi;
        run recovering(3)
    }
}
