# SPDX-License-Identifier: MIT
"""Facts that core, model, lab, command, benchmarks and tests share: each stands here once.

Python reads this file as it is, without a core. The core gets it as a C header, vmalloc_facts.h, which
core/write_facts.py makes at every build: each number under its name with VM_ in front, each pool design as a
constant VM_POOLS_NAME and a row of its table of designs (core/cache/pools.c).

A new pool design is a row of POOL_DESIGNS, a C file core/cache/pool_NAME.c, and a row in docs/design.md.
"""

from typing import NamedTuple


class PoolDesign(NamedTuple):
    """What stands in front of space. The order of the rows is the number that a region's header holds."""

    name: str
    pools: str  #: the C file core/cache/pool_{pools}.c that keeps the ready ranges; "" for none
    magazines: bool  #: whether every thread slot has magazines of its own in front of the pools
    meaning: str


POOL_DESIGNS = (
    PoolDesign("off", "", False, "every request goes to space"),
    PoolDesign("locked", "locked", False, "a list and its length for each size, one lock a node: the patch"),
    PoolDesign("llist", "llist", False, "a lock-free list for each size, taken from under an in-use flag"),
    PoolDesign("magazine", "locked", True, "magazines of each thread slot in front of locked pools"),
    PoolDesign(
        "tagged", "tagged", False, "a lock-free list for each size, its head and a version tag in one word"
    ),
    PoolDesign(
        "percpu",
        "percpu",
        False,
        "a stack for each CPU and size, by restartable sequences, before locked pools",
    ),
)
POOLS = tuple(design.name for design in POOL_DESIGNS)
POOLS_DEFAULT = "magazine"
LEVELS = ("magazine", "slab", "pool", "neighbour", "lazy", "space")
"""Who serves a request, nearest first: the thread's magazine, its CPU's slab, its node's pool, another node's
pool, warm ranges, free space."""

# a region's format
FORMAT = 8
"""Raised by every change after which another version could misread a region."""
INLINE_LAYOUT = 1
"""Raised by every change of what a C program that was compiled with vmalloc_inline.h knows of a library."""
PROCESSES_MAX = 1023
"""Process slots that processes can have, at most; one more is the region's own, for names."""
PROCESSES_FEW = 255
"""So many has a region of less than ..."""
PROCESSES_MANY_PAGES = 1 << 18
"""... so many pages if its maker does not say, and else the most."""
THREADS_MAX = 3840
"""Thread slots beside one for each process slot."""
PAGES_MAX = (1 << 30) - 1
"""Pages of a region: a word has 30 bits for a length."""
REGION_NAME_BYTES_MAX = 241
"""Of a region's own name: what a memfd's may have, without the "vmalloc:" in front of it."""
SOCKET_PATH_BYTES_MAX = 107
"""Of a socket that is a file: sun_path without its end."""
SERVE_WAIT_S = 5
"""For a process that serves a region at a socket: it may be stopped."""
NAMES_MAX = 1024
NAME_BYTES_MAX = 63
NAME_META_BYTES_MAX = 416
"""Of the description that is kept with a name."""
LEASES_MAX = 1 << 16
"""References inside messages at one time."""

# found by an address
NOTED_PAGES = 16
"""Whoever gets a range of more pages notes where it begins (core/face/find.c)."""

# defaults
THREADS_DEFAULT = 1024
LOCK_TIMEOUT_S = 10
LEASE_TTL_S = 60
"""How long an unclaimed lease outlives its owner."""

ADDRESS_SPACE_SHARE = 4
"""The default region takes at most one such part of the address space that RLIMIT_AS leaves,"""
SMALLEST_DEFAULT_BYTES = 16 << 20
"""and is never smaller than this."""
# threads that found no slot
THREAD_ASK_OPERATIONS = 64
"""One in so many operations of such a thread looks for a slot again ..."""
THREAD_ASK_SLOTS = 16
"""... at so many slots, the next ones each time."""

# nodes and pools
NODES_MAX = 128
"""The kernel's cap. Nodes = clamp(CPUs, 1, NODES_MAX) ..."""
PROCESS_GROUPS = 64
"""... for each of so many groups of processes, by turns, where magazines stand in front of memory: a place
that another process made resident faults once more in this one. But ..."""
NODES_OF_ALL_MAX = 1024
"""... so many nodes altogether."""
POOL_PAGES_MAX = 256
"""The largest exact size that a magazine or a pool keeps, in pages."""
POOL_CAP_PAGES = 8192
"""So many pages of ready ranges one pool keeps ..."""
POOL_CAP_RANGES_MIN = 16
"""... but so many ranges in any case."""
POOL_NEXT = 16
"""So many ranges that a pool's takers get next stand side by side as well, for them to look ahead."""
DECAY_PERCENT = 25
"""A purge gives back so much of each pool, rounded up."""

# slabs, of percpu
SLAB_CPUS_MAX = 1024
"""Possible CPUs that have slabs; threads on others use the pools behind."""
SLAB_CAP = 60
"""Most ranges of one size in a CPU's slab ..."""
SLAB_CAP_PAGES = 1024
"""... and so many pages, ..."""
SLAB_CAP_MIN = 4
"""... but so many ranges in any case."""

# magazines
MAGAZINE_CAP = 30
"""Most ranges of one size in a magazine ..."""
MAGAZINE_CAP_PAGES = 1024
"""... and so many pages, but two ranges in any case."""
MAGAZINE_REFILL_MAX = 16
"""Most ranges that a miss takes from a pool ..."""
MAGAZINE_REFILL_PAGES = 128
"""... and most pages, but one range in any case: the next request should get what was freed last."""
FLOW_PAGES = 16
"""Freed ranges of so many pages that another process allocated go where that one looks, into a pool, ...
and while space is short no magazine keeps a larger one."""
FLOW_BATCH_PAGES = 128
"""... as many together as have so many pages, ..."""
FLOW_LOT_RANGES = 16
"""... and of that size and smaller ones up to so many ranges, which begin in one aligned stretch of pages."""
MAGAZINE_SAMPLES = 5
"""Of so many of the largest ranges that a thread keeps it is asked whether they lie in memory."""
MAGAZINE_STOCK_PAGES = 64
"""A miss that comes to space takes twice as many ranges as the last of its size did, up to so many pages."""
CROWD_THREADS = 8
"""Where more threads than so many a node ever had a slot, a batch from a pool, what is warm or space ..."""
CROWD_BATCH_PAGES = 8
"""... is at most so many pages, but one range in any case: most of them do not run, and what they took beyond
their need nobody else gets."""
RUN_AFTER_PAGES = 512
"""A thread that asked space for so many pages, and had to wait for a lock, gets a run as well, of pages that
follow: it is cut without a lock. It has ..."""
RUN_SHARE = 2
"""... such a part of what the thread asked for, ..."""
RUN_FREE_SHARE = 256
"""... such a part of what is free, ..."""
RUN_PAGES_MAX = 1024
"""... and so many pages, at most."""
MAGAZINE_BUDGET_BYTES = 16 << 20
"""By so much all caps of one thread may grow: what lies there serves one size and one thread only. Or ..."""
MAGAZINE_BUDGET_SHARE = 16
"""... by one such part of what is free, ..."""
MAGAZINE_BUDGET_BYTES_MAX = 512 << 20
"""... up to so much. Of both ..."""
MAGAZINE_BUDGET_ALONE = 2
"""... so many times as much where no other thread ever was: nobody lacks what it keeps."""

# lazy and purge
LAZY_BYTES_PER_CPU_BIT = 32 << 20
"""The purge threshold is at least fls(CPUs) times this, as in the kernel,"""
LAZY_PEAK_PERCENT = 25
"""and at least so much of the recent peak of use where no memory lies behind;"""
WARM_ROOM_SHIFT = 4
"""where memory does, as much as brings what is lazy and what is used to the peak and that >> this,"""
WARM_MEMORY_SHARE = 2
"""up to one such part of the machine's memory."""
PEAK_SINK_PERCENT = 25
"""At each purge the recent peak sinks by so much of what lies above present use."""
WARM_SLACK_SHIFT = 3
"""A request above POOL_PAGES_MAX takes a warm range of at most its own size and that >> this, whole."""
WARM_STEPS_LOG = 3
"""Above POOL_PAGES_MAX the warm ranges have 1 << this lists a doubling of size."""
WARM_SORT_RANGES = 256
"""So many freed ranges are sorted into these lists at once,"""
WARM_SORT_AHEAD = 16
"""as many times, at most, before a large request takes a longer one than it asked for,"""
WARM_LOOK_RANGES = 8
"""and so many entries of a list, at most, are looked at for a fit,"""
WARM_LOOK_LARGE = 64
"""or so many for one above POOL_PAGES_MAX pages."""
WARM_JOIN_SHARE = 4
"""Neighbours are joined after one such part of the ranges that the last walk passed were sorted anew;
for a large request of no fewer pages than these, after any was."""
PURGE_STEP_RANGES = 32
"""So many lazy ranges, at most, a free above the threshold gives back itself, the oldest first, ..."""
PURGE_STEP_PAGES = 256
"""... and so many pages, or twice its own, ..."""
PURGE_STEP_PAGES_MAX = 4096
"""... up to so many."""
PURGE_STEP_PROCESSES = 64
"""Beside so many attached processes it is half of all that, beside twice as many a third: each has a mapping
of what is given back."""
RUNS_PER_LOCK = 64
"""What is given back goes to space by so many runs for one turn at its lock; others get theirs in between."""
PEAK_SINK_STEPS = 64
"""The recent peak also sinks at one in so many of these steps."""
DRAIN_BYTES = 8 << 20
"""All magazines are drained when the peak has risen by so much, or its share above, since they were last.
Less than this is not taken from magazines and pools for a request beyond the peak."""
ROOM_PAGES_FACTOR = 8
"""A request that found no room first joins so many times its pages of what is lazy."""
TIGHT_S = 1
"""So many seconds after a request found no room, what is freed goes to space at once."""
TIGHT_RESERVE_SHIFT = 3
"""Until then, if more of the region is idle than its pages >> this, large requests get ranges of few rounded
sizes, whole, and magazines keep some of these: of twice what is more than that ..."""
TIGHT_THREADS = 8
"""... the thread's share where there are so many threads, or more; ..."""
TIGHT_CAP = 4
"""... so many of each size, at most, or none."""
TIGHT_LOOK_OPERATIONS = 2048
"""After so many operations that were no hits a thread asks again how much that is."""
TIGHT_SLACK_SHIFT = 2
"""A large request gets a ready range of a rounded size up to its own pages >> this longer, ..."""
TIGHT_CUT_CAP = 2
"""... and one is cut to such a size where magazines keep so many of each, or much is idle and not ready."""
TIGHT_CLOSED_S = 2
"""If all neighbours' magazines were emptied and there is no room yet, all keep nothing large until so many
seconds from then, and then again as above."""
ROOM_ATTEMPTS = 8
"""How often a request that found no room makes some and tries again."""
PLACES_FEW = 256
"""An aligned request that could lie at so many places, or fewer, makes none while each is in use. What it
got goes back to space if that is of a pooled size, and aligned to more than any such range is long."""

MUCH_CLEAN_FACTOR = 8
"""Pages that go to space with their contents are given back beside a clean range so many times as long ..."""
CLEAN_TURN_PAGES = 1024
"""... if they are few, for it is done under the space lock: so many for one turn at it."""

# upkeep
TICK_MS = 200
"""The helper of a region does its round so often; a tick in between only ends leases."""
TURN_TICKS = 12
"""A watch turns after so many ticks: what lay unused through a whole turn and since then is idle."""
IDLE_DECAY_PERCENT = 25
"""So much of what is idle each tick gives back, the oldest first, ..."""
IDLE_DECAY_PAGES_MIN = 1024
"""... or so many pages, if there are."""
TICK_STEP_PAGES = 4096
"""A tick gives back in steps: so many pages, at most, ..."""
TICK_STEP_RANGES = 256
"""... and so many ranges for one turn at the purge lock."""
DIRTY_STEP_PAGES = 1 << 15
"""and of what went to space with its contents whole ranges, until they are so many pages, ..."""
DIRTY_LOOK_RANGES = 1024
"""... of so many free ones that are looked at for one turn at the space lock."""
HELPER_STALE_MS = 500
"""A helper that did not say for so long that it lives is replaced,"""
HELPER_LOOK_MS = 400
"""by whoever looks next; the others look this often."""
HELPER_BACKLOG_SHARE = 4
"""A free beside a helper gives back nothing until the threshold is exceeded by one such part of it."""
RECOVER_TICKS = 5
"""At one tick in so many it is asked whether somebody died, and whether memory is short."""
PRESSURE_PERCENT = 10
"""With less than so much of the memory available a tick gives back at once all that lay unused since the last
turn, and with half of that a share of everything that is warm, idle or not."""
PRESSURE_STALL_PERCENT = 10
"""The same when somebody waited for memory for so much of the last ten seconds (PSI), or four times that."""
CHANNEL_TICKS = 2
"""At one tick in so many somebody looks where the bytes of messages are, ..."""
CHANNEL_AGE_MS = 500
"""... but for messages younger than this; ..."""
CHANNEL_GRACE_MS = 2000
"""... those whose bytes nobody has end after so long, for they may be between reading and loading."""
# memory in advance, zeros
PREFAULT_PIECE_PAGES = 8192
"""prefault() makes so many pages resident at a time, at most, in each of its threads."""
PREFAULT_THREADS_MAX = 8
"""So many threads, at most, if the caller does not say."""
ZEROS_PUNCH_BYTES = 1 << 30
"""From here on zeros() discards dirty pages instead of writing to them: more than may stay warm."""

# monitoring
SURVEY_LARGEST_MAX = 64
"""So many of the largest ranges a look at all words tells."""
MONITOR_SHARE = 400
"""Looks at all words take at most one such part of a core: the slower one is, the later comes the next."""

# recordings of our own events
EVENTS = (
    "stamp",
    "alloc",
    "free",
    "failed",
    "refill",
    "overflow",
    "purge",
    "decay",
    "shrink",
    "discard",
    "attach",
    "detach",
    "die",
    "recover",
)
"""What a ring holds, by number from 1 on; four bits."""
EVENT_LEN_SHIFT = 4
EVENT_PAGE_SHIFT = 34
"""Of an event's first word, above its kind."""
EVENT_TICKS_BITS = 31
EVENT_CPU_SHIFT = 32
EVENT_LEVEL_SHIFT = 45
EVENT_ALIGN_SHIFT = 48
"""Of its second word: so many low bits of the stamp's ticks, to which an event adds the ticks since then, and
what is above them; the alignment, as a power of two, has five bits."""
EVENT_RING = 1 << 14
"""Events in each thread slot's ring; the oldest are overwritten."""
EVENT_BATCH = 256
"""One in so many events of a ring is a stamp: the time and the CPU of what follows."""

# hardened regions
GUARD_RECORD_BYTES = 256
"""The end of each range says where it was made,"""
GUARD_CANARY_BYTES = 64
"""before it are at least so many bytes that nobody may change."""
QUARANTINE_BYTES = 64 << 20
"""So much, at most, waits poisoned before it is used again, ..."""
QUARANTINE_SHARE = 8
"""... or one such part of the region, if that is less."""

# messages
COPY_IN_THRESHOLD_BYTES = 64 << 10
"""install() copies larger arrays into a region; smaller ones travel by value."""
PRIVATE_COPY_BYTES = 1 << 20
"""install(private=...): receivers copy arrays up to this size, and map larger ones privately ..."""
PRIVATE_MAPPINGS_SHARE = 4
"""... as long as these are at most one such part of the mappings that a process may have."""
STREAMED_BYTES = 4 << 20
"""Arrays and batches from this size on are copied into a region past the caches: they do not fit in there."""
MAPPED_AROUND_BYTES = 64 << 10
"""The system maps so much around a page that is read, by default; around one that is written, nothing."""
COPY_PIECE_BYTES = 32 << 20
"""An array is copied in by as many threads as it has such parts, ..."""
COPY_THREADS_MAX = 4
"""... as there are CPUs, or so many."""
FULL_TIMEOUT_S = 5
"""How long install() waits for pages when the region is full."""


def numbers() -> dict[str, int]:
    """Every number above, by name."""
    return {name: value for name, value in globals().items() if name.isupper() and isinstance(value, int)}
