/*
 * Processes that join, die and recover each other, and a lock that is stolen from the dead.
 *
 * Mirrors core/region.c (attach, detach), core/recover.c (who recovers whom) and core/lock.c
 * (tokens, stealing). A process's life is the OFD lock on its slot's byte, which the kernel gives back
 * at death; who recovers a slot takes that byte first, and so does who joins.
 *
 * Rules found here:
 *   - take the byte, THEN read the slot's state: what was seen before is history;
 *   - a joiner that finds a dead predecessor in its slot takes a new incarnation before it recovers,
 *     and recovers every word of this slot with another incarnation. With the dead one's name it
 *     would find locks held by itself: it waits for ever, or steals what another thief steals as well;
 *   - the state says LIVE until the recovery is complete: the next one starts again from the words;
 *   - while a byte is held for recovery its dead owner looks alive to all others: the recoverer must
 *     count it as dead (its locks are stolen first) or it waits for itself;
 *   - OFD locks do not exclude threads of one process (nor does F_OFD_GETLK show one's own): inside a
 *     process a mutex must, and bytes that this process holds are not dead. Here a process has one thread.
 *
 * Bounds: 2 slots, ATTACHES processes, each: join, allocate, take the lock, free, detach; DEATHS
 * deaths before any write; 3 ranges; incarnations 1..6; anybody waiting for the lock, and everybody before
 * detaching, recovers what is dead. Sequentially consistent memory.
 */
#ifndef DEATHS
#define DEATHS 2
#endif
#ifndef ATTACHES
#define ATTACHES 3
#endif
#define R 2
#define S 2        /* slots */

/* name = slot + 1 and incarnation: what words and tokens carry */
#define NAME(slot, inc) ((inc) * 4 + (slot) + 1)
#define SLOT(name) (((name) & 3) - 1)
#define INC(name) ((name) >> 2)

byte word[R];      /* 0 free, else BUSY or MOVING by that name */
byte inc[S];
bool live[S];      /* inc and live are one word */
byte byte_of[S];   /* OFD lock: process + 1 */
byte lock;         /* token */
bool hints_torn;   /* what the lock protects is half written */
byte critical;     /* how many are inside */
byte names[ATTACHES + 1]; /* the living processes' names */
bool gone[ATTACHES + 1];
byte deaths = DEATHS;

#define W(x) if :: atomic { deaths > 0 -> deaths--; \
                     if :: byte_of[0] == me + 1 -> byte_of[0] = 0 :: else fi; \
                     if :: byte_of[1] == me + 1 -> byte_of[1] = 0 :: else fi; \
                     if :: inside -> critical-- :: else fi; \
                     names[me] = 0; gone[me] = true; goto died } \
                :: atomic { x } fi

/* Whose byte I hold is dead, though to all others it looks alive until I am done. */
#define RECOVERED_BY_ME(s) (byte_of[s] == me + 1 && s != slot)
#define DEAD(name) (name != 0 && (inc[SLOT(name)] != INC(name) || !live[SLOT(name)] || byte_of[SLOT(name)] == 0 || RECOVERED_BY_ME(SLOT(name))))

#ifdef BUG_DEAD_NAME
#define NOT_MINE(w) true
#else
#define NOT_MINE(w) (w != name)
#endif

/* Two loads: the token, then its life. The CAS expects the token. */
inline acquire()
{
    do
    :: atomic { lock == 0 -> lock = name; inside = true; critical++ } break
    :: atomic { lock != 0 -> token = lock }
       if
#ifdef BUG_STEAL_LIVE
       :: token != 0 -> skip
#else
       :: DEAD(token) -> skip
#endif
          W(if :: lock == token -> lock = name; inside = true; critical++ :: else fi);
          if :: inside -> assert(critical == 1); W(hints_torn = false); break :: else fi
       :: lock != token
       fi
    od;
    token = 0;
    assert(critical == 1 && !hints_torn);
}

inline release() { W(assert(lock == name); lock = 0; inside = false; critical--) }

inline update_hints() { W(hints_torn = true); W(hints_torn = false) }

/* byte_of[s] is mine. Words of s with an incarnation that is not mine. */
inline recover_words(s)
{
    acquire();
    w = 0;
    do
    :: w < R ->
       seen = word[w];
       if
       :: seen != 0 && SLOT(seen) == s && NOT_MINE(seen) ->
          W(if
            :: word[w] == seen ->
               for (q : 0 .. ATTACHES - 1) { assert(names[q] != seen) } /* robbed a living process */
               word[w] = name
            :: else fi);
          update_hints();
          W(if :: word[w] == name -> word[w] = 0 :: else fi)
       :: else
       fi;
       seen = 0;
       w++
    :: else -> break
    od;
    w = 0;
    release()
}

inline recover_others()
{
    s = 0;
    do
    :: s < S ->
#ifdef BUG_RECOVER_WITHOUT_BYTE
       if
       :: live[s] && byte_of[s] == 0 ->
          recover_words(s);
          W(live[s] = false)
       :: else
       fi;
#else
       mine = false;
       if :: atomic { live[s] && byte_of[s] == 0 -> mine = true; byte_of[s] = me + 1 }
          :: atomic { !(live[s] && byte_of[s] == 0) -> skip } fi;
       if
       :: mine && live[s] ->
#ifdef BUG_UNUSED_FIRST
          W(live[s] = false);
          recover_words(s);
#else
          recover_words(s);
          W(live[s] = false);
#endif
          W(byte_of[s] = 0)
       :: mine && !live[s] -> W(byte_of[s] = 0)
       :: else
       fi;
       mine = false;
#endif
       s++
    :: else -> break
    od;
    s = 0
}

proctype process(byte me)
{
    byte name, token, s, slot, w, q, seen; bool inside, mine;
    /* join */
    if
    :: atomic { byte_of[0] == 0 -> byte_of[0] = me + 1; slot = 0 }
    :: atomic { byte_of[1] == 0 -> byte_of[1] = me + 1; slot = 1 }
    fi;
    mine = live[slot]; /* a dead predecessor */
#ifdef BUG_DEAD_NAME
    if
    :: mine -> name = NAME(slot, inc[slot]); recover_words(slot); W(inc[slot] = inc[slot] + 1)
    :: else -> W(inc[slot] = inc[slot] + 1; live[slot] = true)
    fi;
    name = NAME(slot, inc[slot]); names[me] = name;
#else
    W(inc[slot] = inc[slot] + 1; live[slot] = true; name = NAME(slot, inc[slot]); names[me] = name);
#ifndef BUG_JOIN_UNRECOVERED
    if :: mine -> recover_words(slot) :: else fi;
#endif
#endif
    mine = false;
    /* allocate */
    acquire();
    W(if :: word[0] == 0 -> word[0] = name; w = 1 :: word[0] != 0 && word[1] == 0 -> word[1] = name; w = 2 :: else fi);
    update_hints();
    release();
    if
    :: w != 0 -> W(assert(word[w - 1] == name); word[w - 1] = 0); w = 0
    :: else
    fi;
    recover_others();
    /* detach */
    W(live[slot] = false);
    names[me] = 0;
    W(byte_of[slot] = 0);
    gone[me] = true;
died:
    skip
}

/* The last one alive. */
proctype checker(byte me)
{
    byte name, token, s, slot, w, q, seen; bool inside, mine;
    atomic {
        gone[0] && gone[1] && gone[2] -> deaths = 0;
        assert(byte_of[0] == 0 && byte_of[1] == 0);
        byte_of[0] = me + 1
    }
    mine = live[0];
    inc[0]++; live[0] = true; name = NAME(0, inc[0]);
    if :: mine -> recover_words(0) :: else fi;
    recover_others();
    assert(word[0] == 0 && word[1] == 0 && !live[1]);
    acquire();
    release();
died:
    skip
}

init
{
    atomic {
        run process(0); run process(1); run process(2); run checker(3)
    }
}
