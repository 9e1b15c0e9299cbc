/* SPDX-License-Identifier: MIT */
/*
 * OPERATIONS: everything a process can do to a region, and what must be there first; the steps are in steps_*.c.
 *
 * Both lists are what test_crash.c and test_step.c run. A function named as a verb in the imperative is the
 * victim's, unless the list has it in a column of the survivor's.
 */
#include "steps.h"

const operation operations[] = {
    {"first alloc of a process", .before = forget_slots, .run = take_one},
    {"alloc hit", .setup = warm_up, .run = take_one},
    {"alloc miss and refill", .setup = warm_up_forty, .run = take_forty},
    {"alloc aligned, split", .setup = warm_up, .run = take_first_aligned},
    {"alloc large, warm", .setup = shelve, .run = take_large_warm},
    {"alloc warm, split", .setup = free_one_twice_as_long, .run = take_large_warm},
    {"alloc warm, joined", .setup = free_neighbours, .run = take_their_sum, .flags = ALONE},
    {"alloc warm, small", .setup = free_small_ones, .run = take_forty},
    {"warm lists of the dead", .before = die_with_the_warm_lock, .setup = shelve, .run = take_large_warm,
     .flags = ALONE},
    {"alloc over the threshold", .setup = lower_the_threshold, .run = take_cold_over_the_threshold,
     .after = raise_the_threshold, .flags = ALONE},
    {"alloc out of space", .setup = use_up_most, .run = ask_for_too_much, .flags = HUNGRY},
    {"alloc bulk", .setup = warm_up, .run = take_bulk},
    {"alloc congruent", .setup = warm_up, .run = take_congruent},
    {"alloc while locked", .setup = warm_up, .run = take_while_locked, .flags = ONE_DEATH},
    {"alloc and free without a slot", .before = occupy_slots, .run = take_and_free_many, .after = vacate_slots,
     .flags = ALONE},
    {"resize small", .setup = hold_twenty, .run = resize_to_ten},
    {"resize large", .setup = hold_large, .run = resize_to_ten},
    {"resize larger", .setup = hold_twenty, .run = resize_to_fifty},
    {"free own", .setup = hold_two, .run = let_go},
    {"free own, warm", .setup = hold_warm, .run = let_go},
    {"alloc aligned, warm", .setup = free_aligned_first, .run = take_aligned},
    {"free large", .setup = hold_large, .run = let_go},
    {"free and keep", .setup = hold_large, .run = let_go_and_keep},
    {"prefault", .run = prefault, .after = forget_the_floor, .flags = ALONE},
    {"free in a hardened region", .before = harden, .setup = hold_two, .run = let_go, .after = soften, .flags = ALONE},
    {"free foreign", .run = free_gift_0},
    {"free foreign large", .run = free_gift_2},
    {"free, overflow", .setup = hold_forty, .run = let_go},
    {"free, pool overflow", .setup = hold_thirtyfive_big, .run = let_go, .flags = HUNGRY},
    {"free over the threshold", .setup = lower_the_threshold, .run = let_go, .after = raise_the_threshold,
     .flags = ALONE},
    {"share", .setup = hold_two, .run = share_held},
    {"adopt", .before = share_gifts, .run = adopt_gifts},
    {"adopt stale", .before = share_gifts, .run = adopt_stale},
    {"drop", .before = share_gifts, .setup = adopt_gifts, .run = drop_gifts},
    {"drop, last holder", .before = share_gifts, .setup = adopt_gifts, .meanwhile = drop_gifts_here, .run = drop_gifts},
    {"send", .before = forget_leases, .setup = hold_two, .run = lease_held, .later = claim_what_was_sent},
    {"send and let go", .setup = hold_two, .run = send_and_let_go, .later = claim_what_was_sent},
    {"send and let go, then claim before recovery", .setup = hold_two, .run = send_and_let_go,
     .after = claim_what_was_sent},
    {"send again", .setup = use_leases_before, .run = lease_held, .later = claim_what_was_sent},
    {"send what is shared", .before = share_gifts, .setup = adopt_gifts, .run = lease_gift_0},
    {"claim", .before = lease_gift_0, .run = claim_gift},
    {"claim what nobody holds", .before = lease_gift_and_let_go, .run = claim_gift_twice},
    {"claim stale", .before = lease_gift_and_let_go, .run = claim_stale},
    {"claim in vain", .before = stop_in_freeing, .run = claim_impatiently, .after = go_on_from_freeing, .flags = ALONE},
    {"drop a lease", .setup = hold_two_and_lease, .run = drop_lease},
    {"drop the last lease", .setup = hold_and_send, .run = drop_lease},
    {"expire leases", .before = lease_gift_and_let_go, .run = expire_all},
    {"expire leases of the dead", .before = leave_a_lease_of_the_dead, .run = recover_and_purge,
     .after = lengthen_leases, .flags = ALONE},
    {"name", .setup = hold_two, .run = name_held},
    {"name replaced", .setup = name_first_and_hold_another, .run = name_held},
    {"name deleted", .setup = name_and_let_go, .run = unname},
    {"name got", .setup = name_and_let_go, .run = get_name},
    {"purge", .setup = make_a_mess, .run = purge},
    {"shrink and drain", .setup = make_a_mess, .run = shrink},
    {"merge with both sides", .setup = free_the_middle_of_three, .run = purge},
    {"attach", .run = attach},
    {"attach and detach", .run = attach_and_detach},
    {"attach in a dead one's place", .before = leave_no_clean_process_slot, .run = attach, .flags = ALONE},
    {"fork", .before = share_gifts, .setup = hold_of_every_kind, .run = fork_and_wait},
    {"fork, and the child stays", .before = share_gifts, .setup = hold_of_every_kind, .run = fork_and_let_go},
    {"fork without descriptors", .before = share_gifts, .setup = use_up_descriptors, .run = fork_without_a_slot},
    {"fork in a dead one's place", .before = leave_no_clean_process_slot, .run = fork_and_wait, .flags = ALONE},
    {"thread exit", .setup = warm_up, .run = run_a_thread},
    {"thread exit while drained", .setup = warm_up, .run = run_a_thread_while_drained, .flags = ALONE},
    {"recover a process that was killed", .before = let_another_be_killed, .run = recover, .flags = ONCE},
    {"join while another is dead", .before = let_another_be_killed, .run = attach, .flags = ONCE},
    {"recover a mess", .before = leave_a_mess, .run = recover, .flags = ALONE},
    {"adopt in a mess", .before = leave_a_mess, .run = adopt_gifts, .flags = ALONE},
    {"alloc and free in a mess", .before = leave_a_mess, .run = take_and_free_many, .flags = ALONE},
    {"shrink in a mess", .before = leave_a_mess, .run = shrink, .flags = ALONE},
    {"send in a mess", .before = leave_a_mess, .setup = hold_two, .run = lease_held, .flags = ALONE},
    {"names in a mess", .before = leave_a_mess, .setup = hold_two, .run = name_held, .flags = ALONE},
    {"pools in use by the dead", .before = leave_pools_in_use, .run = take_and_free_many, .flags = LLIST | ALONE},
    {"space locked by the dead", .before = die_with_the_space_lock, .run = take_and_free_many, .flags = ALONE},
    {"scan with a range in motion", .before = set_in_motion, .run = recover, .after = come_to_rest, .flags = ALONE},
    {"drained by the dead", .setup = drain_myself, .run = take_and_free_many, .flags = ALONE},
    {"purge without memory", .setup = make_a_mess, .run = purge_without_memory, .flags = ALONE},
    {"drop while another adopts", .before = share_gifts, .setup = adopt_gifts, .meanwhile = drop_gifts_here,
     .run = drop_gifts_while_adopted, .after = take_over, .flags = ALONE | BETWEEN},
    {"share while it is another's", .setup = hold_two, .run = share_while_reused, .flags = ALONE | BETWEEN},
    {"create", .run = create, .flags = MAGAZINE | ALONE | PRIVATE},
    {"check and repair", .setup = make_a_mess, .run = check_and_repair, .flags = ALONE},
    {"repair damage", .before = damage, .run = repair, .after = repair, .flags = ALONE},
    {"meet corruption", .setup = break_a_word, .run = meet_it, .after = mend_the_word, .flags = ALONE},
    {"purge with a lying index", .setup = let_the_index_lie, .run = purge, .after = mend_hints, .flags = ALONE},
    {"alloc with a lying index", .setup = let_the_index_promise_too_much, .run = take_large_warm, .after = mend_hints,
     .flags = ALONE},
    {"purge with a lying list", .setup = let_a_list_lie, .run = purge, .flags = ALONE},
    {"alloc with lying warm lists", .setup = let_warm_lists_lie, .run = take_large_warm, .after = mend_hints,
     .flags = ALONE},
    {"scan while a pool is in use", .before = use_pools_forever, .setup = make_a_mess, .run = purge_impatiently,
     .after = stop_using_pools, .flags = LLIST | ALONE},
    {"purge while space is locked", .setup = make_a_mess, .meanwhile = hold_space_lock, .run = purge_impatiently,
     .after = release_space_lock, .flags = ALONE},
};

/* What may meet a death half-way through another operation. */
const operation second_operations[] = {
    {"recover", .run = recover},         {"then adopt", .run = try_to_adopt},
    {"then names", .run = try_names},    {"then send", .run = send_and_claim},
    {"then fork", .run = fork_and_wait}, {"then alloc", .run = take_and_free_many},
};
const size_t nr_operations = LENGTH(operations), nr_second_operations = LENGTH(second_operations);

bool is_design_selected(vm_pools d)
{
    const char *only = getenv("VM_CRASH_DESIGN");
    return !only || strcmp(only, vm_pools_name(d)) == 0;
}
bool is_selected(const operation *op, vm_pools d)
{
    const char *only = getenv("VM_CRASH_ONLY");
    return (!(op->flags & DESIGNS) || op->flags & 1u << d) && (!only || strstr(op->name, only));
}
