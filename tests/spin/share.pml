/*
 * Sharing: holder bits, the last drop, and references that came too late.
 *
 * Mirrors core/holder.c: share() (share), adopt() with settled_word() (adopt), clear_bit() (drop),
 * is_held(), vm__take_if_unheld() (free_if_unheld); and core/recover.c: scan_shared(),
 * drop_holder_bits() (recover). One range; its word, its id, one holder bit a process (each read by
 * itself, as bits in different 64-bit words are).
 * NOT IN THE CODE YET: leases (send, expire, the lease part of read_references and of the receiver;
 * one lease word {epoch, seq, count}). They are kept as what the next step must satisfy.
 *
 * Rules found here, all needed:
 *   - Adding a reference for anybody (own bit, another's bit, a lease) = add, fence, wait while the
 *     word is FREEING. Then the order in which a freer reads bits and leases does not matter.
 *   - Whoever clears a bit, a stale adopter too, ends with free_if_unheld: a dropper may have left
 *     because it saw that bit.
 *   - An adopter checks the word after its bit, and the id after the word.
 *   - The first sharer sets its own bit, then SHARED, then resets all others: what a stale adopter
 *     that died left is cleared here, or by the recovery that sees SHARED. Reset first, it could set its bit
 *     after the reset, die and be recovered before SHARED, and its bit would stay (BUG_RESET_FIRST).
 *   - The scan drops the dead's bits whoever is FREEING: a live freer may be about to restore the word
 *     because it saw one of them (BUG_SCAN_SKIPS_FREEING). Then it runs free_if_unheld, always.
 *   - (leases) A lease word carries an epoch, raised when leases expire, so that a late claim of an expired
 *     lease does not take another's count; and a sequence number, raised by each send, so that an
 *     expirer that read the deadline long ago (set before the count) does not expire a fresh lease.
 * Threads of one process adopt and drop the same page under holder_mutex: its bit is one.
 *
 * Bounds: an owner (0) that shares, sends a lease (SIZE 1), drops, allocates the page again and shares that;
 * a receiver (1) with the lease (SIZE 1); a process (2) with a bare reference that may be stale (and
 * that sends a lease of its own: SIZE 1); 2 recoverers; deaths before any write; one expiry.
 */
#define BUG_CHECK_THEN_BIT (bug == 1)
#define BUG_NO_RECHECK (bug == 2)         /* after FREEING -> SHARED nobody looks again */
#define BUG_STALE_LEAVES (bug == 3)       /* a stale adopter clears its bit and goes */
#define BUG_NO_RESET (bug == 4)           /* the first sharer only sets its own bit */
#define BUG_RESET_FIRST (bug == 5)        /* the reset before SHARED instead of after it */
#define BUG_SCAN_SKIPS_FREEING (bug == 6) /* the scan passes over a range that a live process is freeing */
#define BUG_RECOVER_OWN_BITS (bug == 7)   /* recovery frees only where it cleared a bit */
#define BUG_LEASE_UNCHECKED (bug == 8)    /* leases read first and not waited for */
#define BUG_LEASE_NO_EPOCH (bug == 9)
#define BUG_EXPIRE_FRESH (bug == 10)

hidden byte bug, size;

#define FREE 0
#define PRIVATE 1        /* BUSY, owner 0 */
#define SHARED 2         /* BUSY|SHARED */
#define FREEING(p) (8 + p)
#define MOVING(p) (16 + p)
#define IS_FREEING (word >= 8 && word < 16)

byte word = PRIVATE, id = 1, bits[3];
byte lease_epoch, lease_seq, nr_leases; /* one 64-bit word */
bool alive[5], retired[5], finished[5], recovered[5];
byte scanner; /* purge_lock */
byte recoverer[5];
byte deaths;

/* What is true, unseen by the protocol. */
bool holds[3];           /* a process that uses the range */
byte sent[3];            /* leases by sender: 4 counted, 1 sent, 2 claimed, 3 expired */
byte sent_epoch[3];
bool published;          /* a bare reference to id 1 exists */
bool expired_once;

#define W(x) if :: atomic { deaths > 0 -> deaths--; alive[me] = false; if :: me < 3 -> holds[me] = false :: else fi; goto died } \
                :: atomic { x } fi

inline read_references() /* is_held() */
{
    any = BUG_LEASE_UNCHECKED && nr_leases > 0;
    any = any || bits[2];
    any = any || bits[1];
    any = any || bits[0];
    any = any || (!BUG_LEASE_UNCHECKED && nr_leases > 0)
}

inline free_if_unheld() /* vm__take_if_unheld() and vm__release() */
{
    do
    :: read_references();
       if :: any -> break :: else fi;
       W(if :: word == SHARED -> word = FREEING(me); ok = true :: else -> ok = false fi);
       if :: !ok -> break :: else fi; /* FREEING: its freer reads again. Else: not ours to free */
       read_references();
       if
       :: !any ->
          W(if
            :: word == FREEING(me) ->
               assert(!holds[0] && !holds[1] && !holds[2]);
               assert(sent[0] != 1 && sent[2] != 1);
               word = MOVING(me)
            :: else -> assert(false)
            fi);
          W(word = FREE);
          break
       :: else ->
          W(assert(word == FREEING(me)); word = SHARED);
          if :: BUG_NO_RECHECK -> break :: else fi
       fi
    od;
    ok = false; any = false
}

inline share() /* first export, by the owner */
{
    if :: BUG_RESET_FIRST -> W(bits[1] = 0); W(bits[2] = 0) :: else fi;
    W(bits[0] = 1); /* before the flag, or a recovery finds the range unheld */
    W(assert(word == PRIVATE); word = SHARED; holds[me] = true);
    if :: !BUG_NO_RESET && !BUG_RESET_FIRST -> W(bits[1] = 0); W(bits[2] = 0) :: else fi
}

inline drop() /* clear_bit() */
{
    holds[me] = false;
    W(bits[me] = 0);
    free_if_unheld()
}

inline send() /* not in the code yet */
{
    W(nr_leases++; lease_seq++; sent_epoch[me] = lease_epoch; sent[me] = 4); /* the deadline before */
    if :: !BUG_LEASE_UNCHECKED -> !IS_FREEING :: else fi;
    W(sent[me] = 1)
}

inline adopt(ref, got)
{
    if
    :: BUG_CHECK_THEN_BIT ->
       !IS_FREEING;
       if :: word == SHARED && id == ref -> got = true; W(bits[me] = 1) :: else -> got = false fi
    :: !BUG_CHECK_THEN_BIT ->
       W(bits[me] = 1);
       if
       :: atomic { word == SHARED -> got = true }
       :: atomic { word != SHARED && !IS_FREEING -> got = false }
       :: atomic { word == FREEING(0) && retired[0] -> word = SHARED; got = true } /* settled_word() */
       fi;                                                                          /* else waits */
       if :: got -> got = (id == ref) :: else fi
    fi;
    if
    :: got -> holds[me] = true; assert(id == ref && (word == SHARED || IS_FREEING))
    :: else ->
       W(bits[me] = 0);
       if :: !BUG_STALE_LEAVES -> free_if_unheld() :: else fi
    fi
}

proctype owner(byte me)
{
    bool ok, any;
    share();
    published = true;
    if :: size > 0 -> send() :: else fi;
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
    :: size > 0 && (sent[0] == 1 || sent[0] == 3) -> /* the message arrived, late perhaps */
       adopt(1, got);
       if
       :: got ->
          W(if
            :: BUG_LEASE_NO_EPOCH && nr_leases > 0 -> nr_leases--; if :: sent[0] == 1 -> sent[0] = 2 :: else fi
            :: !BUG_LEASE_NO_EPOCH && lease_epoch == sent_epoch[0] -> nr_leases--; sent[0] = 2
            :: else
            fi);
          assert(id == 1 && (word == SHARED || IS_FREEING));
          drop()
       :: else
       fi
    :: size > 0 && !alive[0] && (sent[0] == 0 || sent[0] == 4)
    :: size == 0
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
          if :: size > 0 -> send() :: else fi;
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

inline recover(p) /* the scan: under purge_lock, so one at a time */
{
    if
    :: atomic { scanner == 0 || !alive[scanner - 1] -> scanner = me + 1 }
    fi;
    W(retired[p] = true);
    W(if :: word == MOVING(p) || (p == 0 && word == PRIVATE) -> word = FREE :: else fi);
    if
    :: BUG_SCAN_SKIPS_FREEING && IS_FREEING && word != FREEING(p)
    :: else ->
       ok = false;
       if
       :: p < 3 && (word == SHARED || IS_FREEING) -> ok = bits[p]; W(bits[p] = 0)
       :: else
       fi;
       W(if :: word == FREEING(p) -> word = SHARED :: else fi);
       if :: ok || !BUG_RECOVER_OWN_BITS -> free_if_unheld() :: else fi
    fi;
    ok = false;
    W(recovered[p] = true; scanner = 0)
}

inline expire() /* not in the code yet; the deadline had passed when the lease word was read with `seq` */
{
    W(if
      :: (lease_seq == seq || BUG_EXPIRE_FRESH) && nr_leases > 0 ->
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
        assert(word == FREE && nr_leases == 0) /* a bit may be left: the next share() resets it */
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
        run owner(0); run receiver(1); run bare(2); run recovering(3); run recovering(4);
        run checker(4)
    }
}
