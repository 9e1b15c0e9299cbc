/* SPDX-License-Identifier: MIT */
/* The word of a range and the token of a lock: what is packed comes out again, alone. */
#include "check.h"
#include "base/layout.h"

static const vm_state states[] = {VM_FREE, VM_BUSY, VM_CACHED, VM_POOLED, VM_LAZY, VM_MOVING, VM_PURGING, VM_FREEING};
static const uint64_t flag_sets[] = {0, VM_WORD_DIRTY, VM_WORD_SHARED, VM_WORD_LISTED,
                                     VM_WORD_DIRTY | VM_WORD_SHARED | VM_WORD_LISTED};
static const uint64_t lengths[] = {0, 1, 2, 255, 256, 257, 1ull << 28, VM_PAGES_MAX - 1, VM_PAGES_MAX};
static const uint32_t owners[] = {0, 1, VM_PROCESSES - 1, VM_PROCESSES, VM_THREAD_SLOTS_MAX - 1, VM_OWNER_MASK - 1};
static const uint32_t incarnations[] = {0, 1, 2, VM_INC_MASK - 1, VM_INC_MASK};

#define LENGTH(array) (sizeof(array) / sizeof(array[0]))

static void zero_is_free_and_untouched(void)
{
    CHECK_EQ(vm__state(0), VM_FREE);
    CHECK_EQ(vm__len(0), 0); /* not a head */
    CHECK((0 & (VM_WORD_DIRTY | VM_WORD_SHARED)) == 0);
    CHECK_EQ(vm__word(VM_FREE, 0, 0, 0, 0), 0);
}

static void every_field_comes_back_whatever_the_others_hold(void)
{
    for (size_t s = 0; s < LENGTH(states); s++)
        for (size_t f = 0; f < LENGTH(flag_sets); f++)
            for (size_t l = 0; l < LENGTH(lengths); l++)
                for (size_t o = 0; o < LENGTH(owners); o++)
                    for (size_t i = 0; i < LENGTH(incarnations); i++) {
                        vm_word w = vm__word(states[s], flag_sets[f], lengths[l], owners[o], incarnations[i]);
                        CHECK_EQ(vm__state(w), states[s]);
                        CHECK_EQ(w & (VM_WORD_DIRTY | VM_WORD_SHARED | VM_WORD_LISTED), flag_sets[f]);
                        CHECK_EQ(vm__len(w), lengths[l]);
                        CHECK_EQ(vm__owner(w), owners[o]);
                        CHECK_EQ(vm__inc(w), incarnations[i]);
                        CHECK_EQ(w & ~VM_WORD_LEN_MASK,
                                 vm__word(states[s], flag_sets[f], 0, owners[o], incarnations[i]));
                    }
}

static void an_incarnation_wraps_inside_its_field(void)
{
    vm_word last = vm__word(VM_BUSY, 0, 7, 3, VM_INC_MASK);
    vm_word wrapped = vm__word(VM_BUSY, 0, 7, 3, VM_INC_MASK + 1);
    CHECK_EQ(vm__inc(last), VM_INC_MASK);
    CHECK_EQ(vm__inc(wrapped), 0);
    CHECK_EQ(vm__owner(wrapped), 3);
}

static void a_token_is_never_nobody_and_leaves_the_waiters_bit_alone(void)
{
    for (size_t o = 0; o < LENGTH(owners); o++)
        for (size_t i = 0; i < LENGTH(incarnations); i++) {
            vm_token t = vm__token(owners[o], incarnations[i]);
            CHECK(t != 0);
            CHECK_EQ(t & VM_TOKEN_WAITERS, 0);
            CHECK_EQ(vm__token_slot(t), owners[o]);
            CHECK_EQ(vm__token_inc(t), incarnations[i]);
            CHECK_EQ(vm__token_slot(t | VM_TOKEN_WAITERS), owners[o]);
            CHECK_EQ(vm__token_inc(t | VM_TOKEN_WAITERS), incarnations[i]);
        }
}

int main(void)
{
    zero_is_free_and_untouched();
    every_field_comes_back_whatever_the_others_hold();
    an_incarnation_wraps_inside_its_field();
    a_token_is_never_nobody_and_leaves_the_waiters_bit_alone();
    return 0;
}
