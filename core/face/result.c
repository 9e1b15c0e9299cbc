/* SPDX-License-Identifier: MIT */
/* Result: what an error of vmalloc.h means to whoever reads it. The Python face has longer texts (results.py). */
#include "face.h"

const char *vm_strerror(int result)
{
    switch (result < 0 ? -result : 0) {
    case 0:
        return "no error";
    case ENOSPC:
        return "no free range of that size";
    case EDQUOT:
        return "this process's quota is used up";
    case ENOENT:
        return "no live range, name or region of that kind";
    case ESTALE:
        return "the range was freed since, and its pages may be another's";
    case EBUSY:
        return "a process holds a lock of the region and does not run";
    case EAGAIN:
        return "a lock was taken, and the call was not to wait";
    case EUCLEAN:
        return "the region is corrupt";
    case ENOLCK:
        return "all process slots of the region are taken";
    case EXFULL:
        return "all leases of the region are taken";
    case EROFS:
        return "the region was attached read-only";
    case EACCES:
        return "the region is another user's";
    case EOWNERDEAD:
        return "this mapping was inherited by a raw clone; attach anew";
    case EPROTO:
        return "a region of another format or page size";
    case ENOEXEC:
        return "no vmalloc region";
    case EEXIST:
        return "several regions, or another name, fit already";
    default:
        return strerror(-result);
    }
}
