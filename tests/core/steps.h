/* SPDX-License-Identifier: MIT */
/* Steps: one function for each thing that a victim or a survivor does in operations.c. */
#ifndef VM_TESTS_STEPS_H
#define VM_TESTS_STEPS_H

#include "stage.h"

/* ---- steps_ranges.c ---- */
void hold(stage *s, uint64_t nr_pages, size_t count);
void let_go(stage *s);
void let_go_and_keep(stage *s);
void prefault(stage *s);
void forget_the_floor(stage *s);
void harden(stage *s);
void soften(stage *s);
void warm_up(stage *s);
void take_one(stage *s);
void forget_slots(stage *s);
void take_first_aligned(stage *s);
void warm_up_forty(stage *s);
void take_forty(stage *s);
void hold_forty(stage *s);
void shelve(stage *s);
void take_large_warm(stage *s);
void free_one_twice_as_long(stage *s);
void free_neighbours(stage *s);
void take_their_sum(stage *s);
void free_small_ones(stage *s);
void leave_only_pairs(stage *s);
void join_pairs(stage *s);
void leave_dirty_space(stage *s);
void leave_much_ready(stage *s);
void take_what_is_ready(stage *s);
void use_up_most(stage *s);
void ask_for_too_much(stage *s);
void take_bulk(stage *s);
void take_congruent(stage *s);
void hold_twenty(stage *s);
void hold_large(stage *s);
void resize_to_ten(stage *s);
void resize_to_fifty(stage *s);
void free_gift_0(stage *s);
void free_gift_2(stage *s);
void hold_thirtyfive_big(stage *s);
void lower_the_threshold(stage *s);
void take_cold_over_the_threshold(stage *s);
void raise_the_threshold(stage *s);
void occupy_slots(stage *s);
void vacate_slots(stage *s);
void take_and_free_many(stage *s);
void share_held(stage *s);
void hold_two(stage *s);
void share_gifts(stage *s);
void adopt_gifts(stage *s);
void adopt_stale(stage *s);
void drop_gifts(stage *s);
void drop_gifts_here(stage *s);
void try_to_adopt(stage *s);

/* ---- steps_sharing.c ---- */
void lease_held(stage *s);
void forget_leases(stage *s);
void send_and_let_go(stage *s);
void lease_gift_0(stage *s);
void lease_gift_and_let_go(stage *s);
void claim_gift(stage *s);
void claim_gift_twice(stage *s);
void claim_stale(stage *s);
void read_gift(stage *s);
void lease_message_held(stage *s);
void lease_into_a_channel(stage *s);
void mark_reads(stage *s);
void leave_a_message(stage *s);
void receive_message(stage *s);
void pass_on(stage *s);
void receive_through_a_window(stage *s);
void leave_a_lost_message(stage *s);
void leave_a_message_of_the_dead(stage *s);
void end_oldest(stage *s);
void claim_what_was_sent(stage *s);
void hold_two_and_lease(stage *s);
void hold_and_send(stage *s);
void drop_lease(stage *s);
void use_leases_before(stage *s);
void expire_all(stage *s);
void send_and_claim(stage *s);
void leave_a_lease_of_the_dead(stage *s);
void recover_and_purge(stage *s);
void lengthen_leases(stage *s);
void name_held(stage *s);
void name_first_and_hold_another(stage *s);
void unname(stage *s);
void name_and_let_go(stage *s);
void get_name(stage *s);
void try_names(stage *s);
void make_a_mess(stage *s);
void purge(stage *s);
void shrink(stage *s);
void recover(stage *s);
void free_the_middle_of_three(stage *s);
void attach(stage *s);
void attach_and_detach(stage *s);
void leave_no_clean_process_slot(stage *s);
void fork_and_wait(stage *s);
void fork_and_let_go(stage *s);
void fork_without_a_slot(stage *s);
void hold_of_every_kind(stage *s);
void use_up_descriptors(stage *s);
void run_a_thread(stage *s);
void run_a_thread_while_drained(stage *s);

/* ---- steps_deaths.c ---- */
void leave_a_mess(stage *s);
void let_another_be_killed(stage *s);
void die_with_the_warm_lock(stage *s);
void die_with_closed_lists(stage *s);
void die_with_the_space_lock(stage *s);
void leave_pools_in_use(stage *s);
void set_in_motion(stage *s);
void come_to_rest(stage *s);
void drain_myself(stage *s);
void hold_warm(stage *s);
void free_aligned_first(stage *s);
void take_aligned(stage *s);
void purge_without_memory(stage *s);
void drop_gifts_while_adopted(stage *s);
void share_while_reused(stage *s);
void take_over(stage *s);
void create(stage *s);
void check_and_repair(stage *s);
void damage(stage *s);
void repair(stage *s);
void stop_in_freeing(stage *s);
void go_on_from_freeing(stage *s);
void claim_impatiently(stage *s);
void break_a_word(stage *s);
void meet_it(stage *s);
void mend_the_word(stage *s);
void let_the_index_lie(stage *s);
void let_the_index_promise_too_much(stage *s);
void let_a_list_lie(stage *s);
void let_warm_lists_lie(stage *s);
void mend_hints(stage *s);
void take_while_locked(stage *s);
void use_pools_forever(stage *s);
void stop_using_pools(stage *s);
void purge_impatiently(stage *s);
void hold_space_lock(stage *s);
void release_space_lock(stage *s);

/* ---- steps_upkeep.c ---- */
void shelve_and_mark(stage *s);
void warm_up_forty_and_mark(stage *s);
void leave_much_idle(stage *s);
void tick_thrice(stage *s);
void set_a_quota(stage *s);
void use_up_the_quota(stage *s);
void lift_the_quota(stage *s);
void set_all_limits(stage *s);
void lift_all_limits(stage *s);
void serve_as_helper(stage *s);
void seem_to_have_a_helper(stage *s);
void forget_the_helper(stage *s);

#endif
