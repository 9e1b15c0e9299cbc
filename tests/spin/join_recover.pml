/* SPDX-License-Identifier: MIT */
/*
 * Processes that join, die and recover each other, and a lock that is stolen from the dead.
 *
 * Mirrors vm__join(), vm__take_process(), finish_join(), vm__owner_is_dead() (process); claim_dead(),
 * vm__retire_threads(), mark_dying(), vm__scan(), drop_holder_bits(), release_slots()
 * (recover_others, scan); vm_detach(); tokens of locks, steal() (acquire). `lock` stands for purge_lock and space_lock, which a scan holds
 * both. A process's life is the OFD lock on its slot's byte, which the kernel gives back at death;
 * who recovers a slot takes that byte first, and so does who joins.
 *
 * Rules found here:
 *   - take the byte, THEN read the slot's state: what was seen before is history;
 *   - who recovers retires the dead's thread slot first and marks the process DYING: from then on all
 *     of it is dead by incarnation, its locks too, to everybody, though the byte looks alive again;
 *   - a joiner on a dead slot takes a new incarnation before it scans (or it waits for a lock held by
 *     itself), stays DYING during its scan and is LIVE after it: holder bits have no incarnation;
 *   - the slot is unused only after the scan: until then the next one starts again from the words;
 *   - a scan drops the holder bits of what is DYING, once read: so a process leaves DYING only under
 *     space_lock. Else the next owner of the slot adopts a range and loses its bit to the scan of a
 *     third one that is still walking (BUG_RELEASE_UNLOCKED);
 *   - OFD locks do not exclude threads of one process (nor does F_OFD_GETLK show one's own): inside a
 *     process recover_mutex must. Here a process has one thread.
 *
 * Bounds: 2 slots, 3 processes, each: join, take a
 * reference to a range that a name keeps, scan or not, allocate, free, recover the dead, drop, detach; deaths before any write.
 * Sequentially consistent memory.
 */
#define BUG_DEAD_NAME (bug == 1)          /* a joiner scans under the dead one's incarnation */
#define BUG_STEAL_LIVE (bug == 2)
#define BUG_RECOVER_WITHOUT_BYTE (bug == 3)
#define BUG_UNUSED_FIRST (bug == 4)       /* the slot is free before the scan */
#define BUG_JOIN_UNRECOVERED (bug == 5)   /* a joiner on a dead slot does not scan */
#define BUG_JOIN_LIVE (bug == 6)          /* and is LIVE at once */
#define BUG_RELEASE_UNLOCKED (bug == 7)   /* DYING ends without space_lock */
#define BUG_NOT_RETIRED (bug == 8)        /* the dead's thread slot keeps its incarnation */

#define P 3 /* processes, and a checker */
#define S 2 /* slots */

#define UNUSED 0
#define LIVE 1
#define DYING 2

/* name = slot + 1 and incarnation: what words and tokens carry */
#define NAME(slot) (thread_inc[slot] * 4 + (slot) + 1)
#define SLOT(name) (((name) & 3) - 1)
#define INC(name) ((name) >> 2)

hidden byte bug, size;
byte word;            /* 0 free, else BUSY by that name */
bool bits[S];         /* holder bits of a range that a name keeps */
byte state[S];        /* of the process; its incarnation is the thread's here */
byte thread_inc[S];
bool used[S];         /* thread slot */
byte byte_of[S];      /* OFD lock: process + 1 */
byte lock;            /* token */
bool hints_torn;      /* what the lock protects is half written */
byte critical;        /* how many are inside */
byte names[P + 1];    /* the living processes' names */
bool gone[P + 1];
byte deaths;

#define W(x) if :: atomic { deaths > 0 -> deaths--; \
                     if :: byte_of[0] == me + 1 -> byte_of[0] = 0 :: else fi; \
                     if :: byte_of[1] == me + 1 -> byte_of[1] = 0 :: else fi; \
                     if :: inside -> critical-- :: else fi; \
                     names[me] = 0; gone[me] = true; goto died } \
                :: atomic { x } fi

/* vm__owner_is_dead(): by incarnation, or by the byte (F_OFD_GETLK does not show my own). */
#define DEAD(name) (name != 0 && (!used[SLOT(name)] || thread_inc[SLOT(name)] != INC(name) || \
                    byte_of[SLOT(name)] == 0 || (byte_of[SLOT(name)] == me + 1 && SLOT(name) != slot)))

/* Two loads: the token, then its life. The CAS expects the token. */
inline acquire()
{
    do
    :: atomic { lock == 0 -> lock = name; inside = true; critical++ } break
    :: atomic { lock != 0 -> token = lock }
       if
       :: DEAD(token) || BUG_STEAL_LIVE ->
          W(if :: lock == token -> lock = name; inside = true; critical++ :: else fi);
          if :: inside -> assert(critical == 1); W(hints_torn = false); break :: else fi
       :: lock != token
       fi
    od;
    token = 0;
    assert(critical == 1 && !hints_torn)
}

inline release() { W(assert(lock == name); lock = 0; inside = false; critical--) }

/* vm__scan(): the word by incarnation, the bits of what was DYING when it began. */
inline scan()
{
    acquire();
    atomic { dying = (state[0] == DYING) + 2 * (state[1] == DYING) };
    seen = word;
    if
    :: seen != 0 && seen != name && (!used[SLOT(seen)] || thread_inc[SLOT(seen)] != INC(seen)) ->
       W(if
         :: word == seen ->
            for (q : 0 .. P - 1) { assert(names[q] != seen) } /* robbed a living process */
            word = name
         :: else fi);
       W(hints_torn = true);
       W(hints_torn = false);
       W(if :: word == name -> word = 0 :: else fi)
    :: else
    fi;
    seen = 0;
    if :: dying & 1 -> W(bits[0] = false) :: else fi;
    if :: dying & 2 -> W(bits[1] = false) :: else fi;
    dying = 0;
    release()
}

inline set_state(s, x) /* DYING ends: under space_lock */
{
    if
    :: BUG_RELEASE_UNLOCKED -> W(state[s] = x)
    :: !BUG_RELEASE_UNLOCKED -> acquire(); W(state[s] = x); release()
    fi
}

inline retire(s) { if :: !BUG_NOT_RETIRED -> W(used[s] = false; thread_inc[s]++) :: else fi; W(state[s] = DYING) }

inline recover_others()
{
    s = 1 - slot;
    if
    :: BUG_RECOVER_WITHOUT_BYTE -> mine = (state[s] != UNUSED && byte_of[s] == 0)
    :: atomic { !BUG_RECOVER_WITHOUT_BYTE && state[s] != UNUSED && byte_of[s] == 0 -> mine = true; byte_of[s] = me + 1 }
    :: atomic { !BUG_RECOVER_WITHOUT_BYTE && !(state[s] != UNUSED && byte_of[s] == 0) -> skip }
    fi;
    if
    :: mine && (state[s] != UNUSED || BUG_RECOVER_WITHOUT_BYTE) ->
       retire(s);
       if
       :: BUG_UNUSED_FIRST -> set_state(s, UNUSED); scan()
       :: !BUG_UNUSED_FIRST -> scan(); set_state(s, UNUSED)
       fi
    :: else
    fi;
    if :: mine && !BUG_RECOVER_WITHOUT_BYTE -> W(byte_of[s] = 0) :: else fi;
    mine = false; s = 0
}

inline join() /* byte_of[slot] is mine */
{
    mine = (state[slot] != UNUSED); /* a dead predecessor */
    if
    :: BUG_DEAD_NAME && mine -> name = NAME(slot); scan()
    :: else
    fi;
    W(thread_inc[slot]++; used[slot] = true; name = NAME(slot); names[me] = name);
    W(state[slot] = (mine && !BUG_JOIN_LIVE -> DYING : LIVE));
    if
    :: mine && !BUG_JOIN_UNRECOVERED && !BUG_DEAD_NAME -> scan()
    :: else
    fi;
    if :: mine && !BUG_JOIN_LIVE -> set_state(slot, LIVE) :: else fi;
    mine = false
}

proctype process(byte me)
{
    byte name, token, s, slot, q, seen, dying; bool inside, mine, holds;
    if
    :: atomic { byte_of[0] == 0 -> byte_of[0] = me + 1; slot = 0 }
    :: atomic { byte_of[1] == 0 -> byte_of[1] = me + 1; slot = 1 }
    fi;
    join();
    W(bits[slot] = true); /* adopt: needs no lock */
    if :: scan() :: skip fi; /* a purge that found purge_needs_scan, or not */
    acquire();
    W(if :: word == 0 -> word = name; holds = true :: else fi);
    W(hints_torn = true);
    W(hints_torn = false);
    release();
    if :: holds -> W(assert(word == name); word = 0); holds = false :: else fi;
    recover_others();
    assert(bits[slot]);   /* in use: nobody else may clear it */
    W(bits[slot] = false);
    /* vm_detach(), without its scan: it holds nothing */
    W(used[slot] = false; thread_inc[slot]++; names[me] = 0);
    W(state[slot] = UNUSED);
    W(byte_of[slot] = 0);
    gone[me] = true;
died:
    skip
}

/* The last one alive. */
proctype checker(byte me)
{
    byte name, token, s, slot, q, seen, dying; bool inside, mine;
    atomic {
        gone[0] && gone[1] && gone[2] -> deaths = 0;
        assert(byte_of[0] == 0 && byte_of[1] == 0);
        byte_of[0] = me + 1
    }
    join();
    recover_others();
    assert(word == 0 && state[1] == UNUSED && !bits[0] && !bits[1]);
    acquire();
    release();
died:
    skip
}

init
{
    atomic {
        c_code { bug = atoi(getenv("BUG")); size = atoi(getenv("SIZE")); now.deaths = atoi(getenv("DEATHS")); };
        run process(0); run process(1); run process(2); run checker(3)
    }
}
