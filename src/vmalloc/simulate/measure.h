/* SPDX-License-Identifier: MIT */
/*
 * Measure: what the machine at hand charges, in ns. Each function measures one thing for a few milliseconds and
 * returns 0 or a negative errno. Who takes medians is calibrate.py.
 */
#ifndef VMALLOC_SIMULATE_MEASURE_H
#define VMALLOC_SIMULATE_MEASURE_H

#include <stddef.h>

int sim_measure_locked(double *add_ns, double *cas_ns);
/* A line goes to and fro between two CPUs; one way. -EINVAL if they may not be used. */
int sim_measure_line(int cpu_a, int cpu_b, double *ns);
/* A sleeping thread is woken by another on another CPU. */
int sim_measure_wake(int cpu_a, int cpu_b, double *ns);
/* First touch of a page, and 4 KiB cleared that are in the cache or not. */
int sim_measure_pages(double *touch_ns, double *hot_ns, double *cold_ns);
/* A page given back while so many other threads of this process run. */
int sim_measure_unmap(int threads, double *ns);

#endif
