/* SPDX-License-Identifier: MIT */
/* Registry: every region this process has attached, for its threads' ends, for fork and for detach. */
#include "base.h"

static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
static vm_region *registry;

uint64_t vm__new_attachment(void)
{
    static uint64_t last;
    return __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
}

void vm__registry_lock(void) { vm__mutex_lock(NULL, &registry_mutex, VM_RANK_REGISTRY); }
void vm__registry_unlock(void) { vm__mutex_unlock(NULL, &registry_mutex, VM_RANK_REGISTRY); }
vm_region *vm__registry(void) { return registry; }

bool vm__is_registered(const vm_region *r, uint64_t attachment)
{
    VM_ASSERT_RANK_HELD(NULL, VM_RANK_REGISTRY);
    const vm_region *at = registry;
    while (at && (at != r || at->attachment != attachment))
        at = at->next;
    return at;
}

static int join_and_register(vm_region *r)
{
    int rc = vm__tie(r, &r->tie);
    if (rc == 0)
        rc = vm__tie_to_this_process(&r->tie);
    int joined = rc ? rc : vm__join(r);
    if (joined < 0) {
        vm__untie(r, &r->tie);
        return joined;
    }
    vm__tie_without_number(r, &r->tie);
    r->next = registry;
    registry = r;
    return joined;
}

/* vm__join() with an OFD lock of its own. In one step for a fork: a child that inherits the tie before it is ours alone
 * would keep this process's slot alive. */
int vm__register(vm_region *r)
{
    vm__registry_lock();
    int joined = join_and_register(r);
    vm__registry_unlock();
    return joined;
}

/* From now on no thread of ours gives its slot of this region back by itself, and no child inherits. */
void vm__start_leaving(vm_region *r, const vm_thread *t)
{
    vm__registry_lock();
    r->is_leaving = true;
    vm__retire_threads(r, r->process, t);
    vm__registry_unlock();
}

void vm__unregister(vm_region *r)
{
    vm__registry_lock();
    for (vm_region **at = &registry; *at; at = &(*at)->next)
        if (*at == r) {
            *at = r->next;
            break;
        }
    vm__untie(r, &r->tie);
    vm__registry_unlock();
}
