# SPDX-License-Identifier: MIT
# Part of _core.pyx: rows of equal length, copied one behind the other into a region, past the caches.
#
# A batch is larger than the caches of the CPU that makes it, and another one reads it. An ordinary store fetches the
# line that it is about to overwrite; a streaming store does not, which saves a third of the memory traffic.

cdef extern from *:
    """
    #define LINE 64 /* bytes; what is stored of a line in one go need not be gathered before it is written */

    #if defined(__x86_64__)
    #include <immintrin.h>

    /* Both: to an address that is a multiple of LINE, a multiple of LINE bytes. */
    __attribute__((target("avx"))) static void stream_halves(char *to, const char *from, size_t nbytes)
    {
        for (size_t i = 0; i < nbytes; i += sizeof(__m256i))
            _mm256_stream_si256((__m256i *)(to + i), _mm256_loadu_si256((const __m256i *)(from + i)));
    }

    static void stream_quarters(char *to, const char *from, size_t nbytes)
    {
        for (size_t i = 0; i < nbytes; i += sizeof(__m128i))
            _mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(from + i)));
    }

    static void stream_lines(char *to, const char *from, size_t nbytes)
    {
        if (__builtin_cpu_supports("avx"))
            stream_halves(to, from, nbytes);
        else
            stream_quarters(to, from, nbytes);
    }

    static void streams_are_done(void) { _mm_sfence(); }
    #else
    static void stream_lines(char *to, const char *from, size_t nbytes) { memcpy(to, from, nbytes); }
    static void streams_are_done(void) {}
    #endif

    static size_t least(size_t a, size_t b) { return a < b ? a : b; }

    static void stream_part(char *to, const char *from, size_t nbytes)
    {
        size_t head = least(-(size_t)to % LINE, nbytes), lines = (nbytes - head) / LINE * LINE;
        memcpy(to, from, head);
        stream_lines(to + head, from + head, lines);
        memcpy(to + head + lines, from + head + lines, nbytes - head - lines);
    }

    /* Pages that are there and that this process has not mapped yet: a read maps all that lie around, a write one.
     * A new worker would meet a fault at each page of each block. */
    static void stream_row(char *to, const char *from, size_t nbytes)
    {
        while (nbytes) {
            size_t part = least(VM_MAPPED_AROUND_BYTES - (size_t)to % VM_MAPPED_AROUND_BYTES, nbytes);
            (void)*(volatile char *)to;
            stream_part(to, from, part);
            to += part, from += part, nbytes -= part;
        }
    }
    """
    void stream_row(char *to, const char *source, size_t nbytes) nogil
    void streams_are_done() nogil


def stream_rows(into, Py_ssize_t offset, list rows not None, Py_ssize_t nbytes):
    """Copy rows of `nbytes` bytes, given by their addresses, one behind the other into a writable buffer.

    The caller keeps the rows alive, and no other thread changes the list. ValueError: they do not fit.
    """
    cdef Py_buffer view
    cdef Py_ssize_t i, nr = len(rows)
    cdef size_t *addresses = <size_t *>c_malloc(max(nr, 1) * sizeof(size_t))
    if addresses == NULL:
        raise MemoryError
    try:
        for i in range(nr):
            addresses[i] = rows[i]
        PyObject_GetBuffer(into, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            if nbytes <= 0 or not 0 <= offset <= view.len or nr > (view.len - offset) // nbytes:
                raise ValueError(f"{nr} rows of {nbytes} bytes at {offset} do not fit into {view.len}")
            with nogil:
                for i in range(nr):
                    stream_row(<char *>view.buf + offset + i * nbytes, <const char *>addresses[i], nbytes)
                streams_are_done()
        finally:
            PyBuffer_Release(&view)
    finally:
        c_free(addresses)
