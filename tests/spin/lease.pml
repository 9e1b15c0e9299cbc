/* SPDX-License-Identifier: MIT */
/*
 * Leases: references inside messages, held by nobody yet.
 *
 * Mirrors make(), own() and vm_claim() (load), end(), drop_lease(), vm__lease_lock() with mend(),
 * vm__lease_deaths(), expire(); is_held(), vm__take_if_unheld(), adopt(), clear_bit(); vm__mend_tables(),
 * scan_shared(). One range, shared from the start and under one
 * id (a page that is used again is share.pml's), its count of leases, and a table of one entry, used again
 * under other lease numbers. Of the chain of unused entries, which is made anew by mend(), nothing is modelled.
 *
 * Rules found here, all needed:
 *   - The count is raised before the entry is committed and lowered after it has ended. A death in between
 *     leaves it too high; the lock's thief counts the entries again, and asks for a scan, since it may have
 *     lowered the count of a range that the last dropper left (BUG_MEND_NO_SCAN).
 *   - A freer reads the holders first and the count last: what was given for a bit is then seen without any
 *     wait (BUG_LEASES_FIRST). What is given for a lease, a bit that the freer may have read already, waits
 *     while the word is FREEING before the lease ends (BUG_CLAIM_NO_WAIT). So no chain process -> lease ->
 *     process -> lease ... slips past a freer, however old its look.
 *   - A claimer owns the entry before it adopts, and a lease that is being claimed has no deadline: else a
 *     claimer that dies leaves a lease that lives as long as its sender (BUG_OWNER_STAYS), or the lease ends
 *     between the claimer's look at it and its bit (BUG_DEADLINE_STAYS).
 *   - A lease is named by its number, since a late or second claim finds the entry used again
 *     (BUG_BY_INDEX).
 *   - A deadline that nobody looks for is none: mend() makes everybody look (BUG_MEND_NO_DUE).
 * Time is a choice: a lease with a deadline may expire at any moment after. So of two that claim one lease, the
 * first may come too late if the second, whose it is by then, dies: it gets StaleReference, and nothing is lost.
 *
 * Bounds: a sender (1) that makes a lease and drops its bit, then lives on or (a reference for many loads,
 * which nobody claims) drops the lease; a claimer (0), whom a freer reads before the sender; a recoverer (3) that
 * purges too, another (4) if it dies; deaths before any write. SIZE 1: a process (2) that drops its own bit
 * at any time, and takes the lock for a lease of another range. SIZE 2: the claimer sends the range on, process 2 loads the newest message too; the sender
 * may detach; one forced expiry. SIZE 3: nobody else holds the range; processes 0 and 2 load one message,
 * and process 0 sends the range on.
 */
#define BUG_LEASES_FIRST (bug == 1)
#define BUG_CLAIM_NO_WAIT (bug == 2)
#define BUG_COUNT_FIRST (bug == 3)     /* end: the count before the entry */
#define BUG_NO_MEND (bug == 4)
#define BUG_MEND_NO_SCAN (bug == 5)
#define BUG_MEND_NO_DUE (bug == 6)
#define BUG_OWNER_STAYS (bug == 7)     /* a claim leaves the entry to its sender */
#define BUG_DEADLINE_STAYS (bug == 8)
#define BUG_END_FIRST (bug == 9)      /* a claim ends the lease, then adopts */
#define BUG_BY_INDEX (bug == 10)       /* whatever lease is in the entry */
#define BUG_END_LEAVES (bug == 11)     /* who ends a lease does not look whether it was the last reference */
#define BUG_ENTRY_FIRST (bug == 12)    /* make: the entry before the count */

hidden byte bug, size;

#define FREE 0
#define SHARED 2
#define FREEING(p) (8 + p)
#define MOVING(p) (24 + p)
#define IS_FREEING (word >= 8 && word < 16)
#define OWNER(w) (w & 7)

byte word = SHARED;
bit bits[3];
byte nr_leases;
/* the table */
byte entry, entry_owner; /* entry: number, 0 unused: the commit word */
bit deadline;
byte number;
/* lease_lock; lease_due_ns: nobody looks for deadlines without; purge_needs_scan */
byte lock; bit needs_mending, due, needs_scan;

byte alive = 31, retired, recovered, finished; /* masks of processes */
byte deaths;

/* What is true, unseen by the protocol. */
byte holds;              /* mask of processes that use the range */
byte sent;               /* the newest message's lease */
bool for_many;           /* the message is a reference for many loads */
bool forced;
byte begun, ended;       /* masks of leases: a claim began; a loader or the maker ended it */
byte rivals;             /* and: two began to claim it */

#define HAS(mask, p) (mask & (1 << (p)))
#define IS_ALIVE(p) HAS(alive, p)
#define GONE(p) (!IS_ALIVE(p) && !HAS(recovered, p))
#define OVER(p) (HAS(finished, p) || HAS(recovered, p))

/* What a dead one knew is forgotten, so that states that differ only in that are one. */
#define FORGET ok = false; any = false; got = false; ours = false; message = 0
#define FINISH atomic { finished = finished | 1 << me; FORGET }
/* Before any write, and wherever it waits for another, since what it waits for may need its death. */
#define DIES atomic { deaths > 0 -> deaths--; alive = alive & ~(1 << me); holds = holds & ~(1 << me); FORGET; goto died }
#define W(x) if :: DIES :: atomic { x } fi

inline is_held()
{
    any = BUG_LEASES_FIRST && nr_leases > 0;
    any = any || bits[0];
    any = any || bits[1];
    any = any || bits[2];
    any = any || (!BUG_LEASES_FIRST && nr_leases > 0)
}

inline free_if_unheld() /* vm__take_if_unheld() and vm__release() */
{
    do
    :: is_held();
       if :: any -> break :: else fi;
       W(if :: word == SHARED -> word = FREEING(me); ok = true :: else -> ok = false fi);
       if :: !ok -> break :: else fi;
       is_held();
       if
       :: !any ->
          W(assert(word == FREEING(me) && holds == 0);
            assert(entry == 0); /* the count is never below the entries */
            word = MOVING(me));
          W(word = FREE);
          break
       :: else -> W(assert(word == FREEING(me)); word = SHARED)
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

inline adopt()
{
    W(bits[me] = 1);
    do /* vm__wait_while_freeing() */
    :: DIES
    :: atomic { word == SHARED || (IS_FREEING && BUG_CLAIM_NO_WAIT) -> got = true } break
    :: atomic { word != SHARED && !IS_FREEING -> got = false } break
    :: IS_FREEING && !IS_ALIVE(OWNER(word)) ->
       W(if :: IS_FREEING && !IS_ALIVE(OWNER(word)) -> word = SHARED :: else fi)
    od;
    if
    :: got -> holds = holds | 1 << me
    :: else ->
       W(bits[me] = 0);
       free_if_unheld()
    fi
}

inline unlock() { W(assert(lock == me + 1); lock = 0) }

inline lock_leases() /* vm__lease_lock() */
{
    if
    :: DIES
    :: atomic { lock == 0 -> lock = me + 1 }
    :: atomic { lock != 0 && !IS_ALIVE(lock - 1) -> lock = me + 1 }
       W(needs_mending = 1)
    fi;
    if
    :: needs_mending && !BUG_NO_MEND -> /* mend() */
       if
       :: word == SHARED || IS_FREEING -> W(nr_leases = (entry != 0))
       :: else
       fi;
       if :: !BUG_MEND_NO_DUE -> W(due = 1) :: else fi;
       if :: !BUG_MEND_NO_SCAN -> W(needs_scan = 1) :: else fi;
       W(needs_mending = 0)
    :: else
    fi
}

inline make()
{
    lock_leases();
    if
    :: entry == 0 ->
       if :: !BUG_ENTRY_FIRST -> W(nr_leases++) :: else fi;
       W(number++; entry_owner = me; deadline = 0);
       W(entry = number);
       if :: BUG_ENTRY_FIRST -> W(nr_leases++) :: else fi;
       ok = true
    :: else -> ok = false /* no entry left */
    fi;
    unlock();
    if :: ok -> sent = number :: else fi;
    ok = false
}

inline end()
{
    if :: BUG_COUNT_FIRST -> W(nr_leases--) :: else fi;
    W(entry = 0);
    if :: !BUG_COUNT_FIRST -> W(nr_leases--) :: else fi;
    if :: !BUG_END_LEAVES -> free_if_unheld() :: else fi
}

inline drop_lease(lease)
{
    lock_leases();
    if
    :: entry == lease || (BUG_BY_INDEX && entry != 0) -> end()
    :: else
    fi;
    unlock()
}

inline load() /* vm_claim(), or vm_adopt() of a reference for many loads */
{
    if
    :: !for_many || message != 1 ->
       lock_leases();
       if
       :: entry == message || (BUG_BY_INDEX && entry != 0) ->
          W(ours = true; rivals = rivals | (begun & 1 << message); begun = begun | 1 << message;
            if :: !BUG_OWNER_STAYS -> entry_owner = me :: else fi;
            if :: !BUG_DEADLINE_STAYS -> deadline = 0 :: else fi)
       :: else
       fi;
       unlock();
       if :: BUG_END_FIRST && ours -> drop_lease(message) :: else fi
    :: else
    fi;
    adopt();
    assert(!ours || got || forced || HAS(ended, message) || HAS(rivals, message));
    if
    :: got ->
       if :: ours && !BUG_END_FIRST -> ended = ended | 1 << message; drop_lease(message) :: else fi;
       assert(word == SHARED || IS_FREEING);
       if
       :: me == 0 && size > 1 -> make() /* sends it on */
       :: else
       fi;
       drop()
    :: else
    fi
}

proctype sender(byte me)
{
    byte message; bool ok, any, got, ours;
    make();
    drop();
    if
    :: FINISH /* lives on */
    :: for_many -> ended = ended | 2; drop_lease(1); FINISH
    :: atomic { size == 2 -> alive = alive & ~(1 << me); FORGET } /* detaches: as if it had died */
    fi;
died:
    skip
}

proctype loader(byte me)
{
    byte message; bool ok, any, got, ours;
    if :: me == 2 && size < 3 -> drop() :: else fi;
    if :: me == 2 && size == 1 -> lock_leases(); unlock() :: else fi; /* for a lease of another range */
    if
    :: me == 2 && size == 1
    :: !(me == 2 && size == 1) && sent -> message = (size < 3 -> sent : 1); load()
    :: !(me == 2 && size == 1) && !sent && OVER(1)
    fi;
    FINISH;
died:
    skip
}

/* vm__scan() and vm__lease_deaths(); purge_lock is recoverer 3's as long as it lives. */
inline scan()
{
    W(needs_scan = 0);
    if
    :: word == SHARED || IS_FREEING ->
       if :: HAS(retired, 0) && bits[0] -> W(bits[0] = 0) :: else fi;
       if :: HAS(retired, 1) && bits[1] -> W(bits[1] = 0) :: else fi;
       if :: HAS(retired, 2) && bits[2] -> W(bits[2] = 0) :: else fi;
       if
       :: IS_FREEING && HAS(retired, OWNER(word)) ->
          W(if :: IS_FREEING && HAS(retired, OWNER(word)) -> word = SHARED :: else fi)
       :: else
       fi;
       free_if_unheld()
    :: word >= 24 && HAS(retired, OWNER(word)) -> W(word = FREE)
    :: else
    fi;
    lock_leases();
    if
    :: entry != 0 && !deadline && HAS(retired, entry_owner) -> W(deadline = 1); W(due = 1)
    :: else
    fi;
    unlock()
}

inline recover(p)
{
    W(retired = retired | 1 << p);
    if /* vm__mend_tables() */
    :: needs_mending || (lock != 0 && !IS_ALIVE(lock - 1)) -> lock_leases(); unlock()
    :: else
    fi;
    scan();
    W(recovered = recovered | 1 << p)
}

inline expire()
{
    lock_leases();
    if
    :: entry != 0 && (deadline || message) -> W(forced = forced || message); end()
    :: else
    fi;
    W(due = 0);
    unlock();
    message = 0
}

#define QUIET (OVER(0) && OVER(1) && OVER(2) && !GONE(3) && !due && !needs_scan)

proctype recovering(byte me)
{
    byte message; bool ok, any, got, ours;
    if :: me == 4 -> (!IS_ALIVE(3) || HAS(finished, 3)) :: else fi; /* stands by */
    do
    :: me == 4 && HAS(finished, 3) -> break
    :: GONE(0) -> recover(0)
    :: GONE(1) -> recover(1)
    :: GONE(2) -> recover(2)
    :: me == 4 && GONE(3) -> recover(3)
    :: due -> expire()
    :: needs_scan -> scan()
    :: size == 2 && !forced && entry && !HAS(finished, 3) -> message = 1; expire()
    :: QUIET -> break
    od;
    FINISH;
died:
    skip
}

/* A message that nobody loads may stay with a sender that lives. */
proctype checker()
{
    atomic {
        QUIET && HAS(finished, 4);
        if
        :: entry != 0 -> assert(IS_ALIVE(entry_owner) && !HAS(begun, entry) && nr_leases == 1)
        :: else ->
           assert(word == FREE && nr_leases == 0);
           assert(sent != 2 || HAS(begun, 2) || forced || !IS_ALIVE(0)) /* else it waits for its loader */
        fi
    }
}

init
{
    atomic {
        c_code { bug = atoi(getenv("BUG")); size = atoi(getenv("SIZE")); now.deaths = atoi(getenv("DEATHS")); };
        bits[1] = 1; holds = 2;
        if :: size < 3 -> for_many = true :: for_many = false fi;
        run sender(1); run loader(0);
        if
        :: size == 0 -> finished = 1 << 2
        :: size == 1 || size == 2 -> bits[2] = 1; holds = 6; run loader(2)
        :: size == 3 -> run loader(2)
        fi;
        run recovering(3); run recovering(4); run checker()
    }
}
