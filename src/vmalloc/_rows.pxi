# SPDX-License-Identifier: MIT
# Part of _core.pyx: rows of equal length, copied one behind the other into a region, past the caches.
#
# A batch is larger than the caches of the CPU that makes it, and another one reads it. An ordinary store fetches the
# line that it is about to overwrite; a streaming store does not, which saves a third of the memory traffic.

cdef extern from *:
    """
    #if defined(__SSE2__)
    #include <emmintrin.h>
    #define STREAM_ALIGN 16

    /* To an address that is a multiple of STREAM_ALIGN, a multiple of 64 bytes. */
    static void stream_lines(char *to, const char *from, size_t nbytes)
    {
        for (size_t i = 0; i < nbytes; i += 64)
            for (int part = 0; part < 64; part += STREAM_ALIGN)
                _mm_stream_si128((__m128i *)(to + i + part), _mm_loadu_si128((const __m128i *)(from + i + part)));
    }

    static void stream_row(char *to, const char *from, size_t nbytes)
    {
        size_t head = -(size_t)to % STREAM_ALIGN;
        if (head > nbytes)
            head = nbytes;
        size_t lines = (nbytes - head) & ~(size_t)63;
        memcpy(to, from, head);
        stream_lines(to + head, from + head, lines);
        memcpy(to + head + lines, from + head + lines, nbytes - head - lines);
    }

    static void streams_are_done(void) { _mm_sfence(); }
    #else
    static void stream_row(char *to, const char *from, size_t nbytes) { memcpy(to, from, nbytes); }
    static void streams_are_done(void) {}
    #endif
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
