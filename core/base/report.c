/* SPDX-License-Identifier: MIT */
/* Report: findings as text, kept until every lock is let go. */
#include "base.h"

#include <stdarg.h>
#include <stdio.h>

#define TEXTS_MOST 1000 /* findings that are kept as text; the others are only counted */

void vm__report(vm_report *p, const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t bytes = n < 0 ? 1 : (size_t)n < sizeof text ? (size_t)n + 1 : sizeof text;
    if (p->nr++ >= TEXTS_MOST)
        return;
    if (p->room - p->len < bytes) {
        size_t room = 2 * p->room + sizeof text;
        char *grown = realloc(p->text, room);
        if (!grown)
            return;
        p->text = grown;
        p->room = room;
    }
    memcpy(p->text + p->len, text, bytes);
    p->len += bytes;
}

void vm__report_clear(vm_report *p) { p->nr = 0, p->len = 0; }

int vm__report_end(vm_report *p, void (*say)(void *, const char *), void *arg)
{
    for (size_t at = 0; say && at < p->len; at += strlen(p->text + at) + 1)
        say(arg, p->text + at);
    if (say && p->nr > TEXTS_MOST)
        say(arg, "... and more of these, which are not listed");
    free(p->text);
    return p->nr;
}
