/*
 * Sharing: holder bits, leases, the last drop, and references that came too late.
 *
 * Mirrors core/holder.c (share, adopt, drop, send, claim, expire) and the SHARED and FREEING parts
 * of core/recover.c. One range; its word, its id, one holder bit a process (each read by itself, as
 * bits in different 64-bit words are), one lease word {epoch, seq, count}.
 *
 * Rules found here, all needed:
 *   - Adding a reference for anybody (own bit, another's bit, a lease) = add, fence, wait while the
 *     word is FREEING. Then the order in which a freer reads bits and leases does not matter.
 *   - Whoever clears a bit, a stale adopter too, ends with free_if_unheld: a dropper may have left
 *     because it saw that bit.
 *   - An adopter checks the word after its bit, and the id after the word.
 *   - An adopter or first sharer notes the page in its process slot (`intent`) before it sets its
 *     bit: the scan of a recovery looks at holder bits of shared ranges only, and a bit set by a
 *     stale adopter that died may be on a range that is not shared yet.
 *   - A lease word carries an epoch, raised when leases expire, so that a late claim of an expired
 *     lease does not take another's count; and a sequence number, raised by each send, so that an
 *     expirer that read the deadline long ago (set before the count) does not expire a fresh lease.
 *   - recovery runs free_if_unheld on every shared range, whether or not it cleared a bit.
 * Threads of one process adopt and drop the same page under a lock of the process: its bit is one.
 *
 * Bounds: an owner (0) that shares, sends a lease, drops, allocates the page again and shares that;
 * a receiver (1) with the lease; a process (2) with a bare reference that may be stale and that
 * sends a lease of its own; 2 recoverers; DEATHS deaths before any write; one expiry.
 */
#ifndef DEATHS
#define DEATHS 2
#endif

#define FREE 0
#define PRIVATE 1        /* BUSY, owner 0 */
#define SHARED 2         /* BUSY|SHARED */
#define FREEING(p) (8 + p)
#define MOVING(p) (16 + p)
#define IS_FREEING (word >= 8 && word < 16)

byte word = PRIVATE, id = 1, bits[3], intent[3];
byte lease_epoch, lease_seq, nr_leases; /* one 64-bit word */
bool alive[5], finished[5], recovered[5];
byte recoverer[5];
byte deaths = DEATHS;

/* What is true, unseen by the protocol. */
bool holds[3];           /* a process that uses the range */
byte sent[3];            /* leases by sender: 4 counted, 1 sent, 2 claimed, 3 expired */
byte sent_epoch[3];
bool published;          /* a bare reference to id 1 exists */
bool expired_once;

#define W(x) if :: atomic { deaths > 0 -> deaths--; alive[me] = false; if :: me < 3 -> holds[me] = false :: else fi; goto died } \
                :: atomic { x } fi

inline read_references()
{
    any = false;
#ifdef BUG_LEASE_UNCHECKED
    any = any || nr_leases > 0;
#endif
    any = any || bits[2];
    any = any || bits[1];
    any = any || bits[0];
#ifndef BUG_LEASE_UNCHECKED
    any = any || nr_leases > 0
#endif
}

inline free_if_unheld()
{
    do
    :: W(if :: word == SHARED -> word = FREEING(me); ok = true :: else -> ok = false fi);
       if :: !ok -> break :: else fi; /* FREEING: its freer reads again. Else: not ours to free */
       read_references();
       if
       :: !any ->
          W(assert(word == FREEING(me));
            assert(!holds[0] && !holds[1] && !holds[2]);
            assert(sent[0] != 1 && sent[2] != 1);
            word = MOVING(me));
          W(word = FREE);
          break
       :: else ->
          W(assert(word == FREEING(me)); word = SHARED);
#ifdef BUG_NO_RECHECK
          break
#else
          read_references();
          if :: any -> break :: else fi
#endif
       fi
    od;
    ok = false; any = false
}

inline wait_while_freeing()
{
#ifndef BUG_LEASE_UNCHECKED
    !IS_FREEING
#else
    skip
#endif
}

inline share() /* first export, by the owner */
{
    W(intent[me] = 1);
    W(bits[me] = 1);
    W(assert(word == PRIVATE); word = SHARED; holds[me] = true);
    W(intent[me] = 0)
}

inline drop()
{
    holds[me] = false;
    W(bits[me] = 0);
    free_if_unheld()
}

inline send()
{
    W(nr_leases++; lease_seq++; sent_epoch[me] = lease_epoch; sent[me] = 4); /* the deadline before */
    wait_while_freeing();
    W(sent[me] = 1)
}

inline adopt(ref, got)
{
#ifndef BUG_NO_INTENT
    W(intent[me] = 1);
#endif
#ifdef BUG_CHECK_THEN_BIT
    !IS_FREEING;
    if :: word == SHARED && id == ref -> got = true; W(bits[me] = 1) :: else -> got = false fi;
#else
    W(bits[me] = 1);
    if
    :: atomic { word == SHARED -> got = true }
    :: atomic { word != SHARED && !IS_FREEING -> got = false }
    fi;                                           /* FREEING: waits */
    if :: got -> got = (id == ref) :: else fi;
#endif
    if
    :: got -> holds[me] = true; assert(id == ref && (word == SHARED || IS_FREEING))
    :: else ->
       W(bits[me] = 0);
#ifndef BUG_STALE_LEAVES
       free_if_unheld()
#endif
    fi;
    W(intent[me] = 0)
}

proctype owner(byte me)
{
    bool ok, any;
    share();
    published = true;
    send();
    assert(id == 1 && (word == SHARED || IS_FREEING));
    drop();
    /* the same page again, another id */
    W(if :: word == FREE -> word = PRIVATE; ok = true :: else -> ok = false fi);
    if
    :: ok ->
       W(id = 2);
       share();
       assert(id == 2 && (word == SHARED || IS_FREEING));
       drop()
    :: else
    fi;
    finished[me] = true;
died:
    skip
}

proctype receiver(byte me)
{
    bool ok, any, got;
    if
    :: sent[0] == 1 || sent[0] == 3 -> /* the message arrived, late perhaps */
       adopt(1, got);
       if
       :: got ->
#ifdef BUG_LEASE_NO_EPOCH
          W(if :: nr_leases > 0 -> nr_leases-- :: else fi; if :: sent[0] == 1 -> sent[0] = 2 :: else fi);
#else
          W(if :: lease_epoch == sent_epoch[0] -> nr_leases--; sent[0] = 2 :: else fi);
#endif
          assert(id == 1 && (word == SHARED || IS_FREEING));
          drop()
       :: else
       fi
    :: !alive[0] && (sent[0] == 0 || sent[0] == 4)
    fi;
    finished[me] = true;
died:
    skip
}

proctype bare(byte me) /* holds a reference that keeps nothing alive */
{
    bool ok, any, got;
    if
    :: published ->
       adopt(1, got);
       if
       :: got ->
          send();
          assert(id == 1 && (word == SHARED || IS_FREEING));
          drop()
       :: else
       fi
    :: !published && !alive[0]
    fi;
    finished[me] = true;
died:
    skip
}

#define GONE(p) (!alive[p] && !recovered[p])
#define CLAIMABLE(p) (GONE(p) && (recoverer[p] == 0 || !alive[recoverer[p] - 1]))
#define OVER(p) (finished[p] || recovered[p])
#define QUIET (OVER(0) && OVER(1) && OVER(2) && !GONE(3) && !GONE(4))

inline recover(p)
{
    W(if :: word == FREEING(p) -> word = SHARED :: else fi);
    W(if :: word == MOVING(p) || (p == 0 && word == PRIVATE) -> word = FREE :: else fi);
    ok = false;
    if
    :: p < 3 ->
       if :: word == SHARED || IS_FREEING || intent[p] -> ok = bits[p]; W(bits[p] = 0) :: else fi;
       W(intent[p] = 0)
    :: else
    fi;
#ifdef BUG_RECOVER_OWN_BITS
    if :: ok -> free_if_unheld() :: else fi;
#else
    free_if_unheld();
#endif
    W(recovered[p] = true)
}

inline expire() /* the deadline had passed when the lease word was read with `seq` */
{
    W(if
#ifndef BUG_EXPIRE_FRESH
      :: lease_seq == seq && nr_leases > 0 ->
#else
      :: nr_leases > 0 ->
#endif
            nr_leases = 0; lease_epoch++;
            if :: sent[0] == 1 -> sent[0] = 3 :: else fi; if :: sent[2] == 1 -> sent[2] = 3 :: else fi
         :: else fi);
    free_if_unheld()
}

proctype recovering(byte me)
{
    byte p, seq; bool ok, any;
    do
    :: atomic { CLAIMABLE(0) -> p = 0; recoverer[p] = me + 1 } recover(p)
    :: atomic { CLAIMABLE(1) -> p = 1; recoverer[p] = me + 1 } recover(p)
    :: atomic { CLAIMABLE(2) -> p = 2; recoverer[p] = me + 1 } recover(p)
    :: atomic { CLAIMABLE(7 - me) -> p = 7 - me; recoverer[p] = me + 1 } recover(p)
    :: atomic { recovered[0] && sent[0] == 1 && sent[2] == 0 && !expired_once -> expired_once = true; seq = lease_seq } expire()
    :: QUIET -> break
    od;
    finished[me] = true;
died:
    skip
}

proctype checker(byte me)
{
    byte seq; bool ok, any;
    atomic { QUIET && OVER(3) && OVER(4) -> deaths = 0; seq = lease_seq }
    if :: nr_leases > 0 -> expire() :: else fi; /* the last deadline; without leases nobody looks */
    d_step {
        assert(word == FREE);
        assert(!bits[0] && !bits[1] && !bits[2] && nr_leases == 0)
    }
died:
    skip
}

init
{
    atomic {
        byte i;
        for (i : 0 .. 4) { alive[i] = true }
        run owner(0); run receiver(1); run bare(2); run recovering(3); run recovering(4);
        run checker(4)
    }
}
