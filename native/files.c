// Reading a share of a block from a file, to where it belongs in staging memory.
#include <errno.h>

#include "state.h"

#ifdef _WIN32
intptr_t _get_osfhandle(int file);  // of <io.h>, which has another `tell`
#else
#include <sys/uio.h>
#include <unistd.h>
#endif

#ifdef _WIN32

static int read_at(int file, uint8_t *to, uint64_t position, uint64_t bytes) {
    while (bytes) {
        OVERLAPPED at = {.Offset = (DWORD)position, .OffsetHigh = (DWORD)(position >> 32)};
        DWORD got = 0;
        if (!ReadFile((HANDLE)_get_osfhandle(file), to, (DWORD)bytes, &got, &at))
            return GetLastError() == ERROR_HANDLE_EOF ? JOB_SHORT : EIO;
        if (got == 0) return JOB_SHORT;
        to += got;
        position += got;
        bytes -= got;
    }
    return JOB_DONE;
}

int read_share(const block *b, int file, uint64_t position, uint64_t share, uint64_t index) {
    int status = JOB_DONE;
    for (block_runs r = block_begin(b, share, index); r.left && status == JOB_DONE; block_next(b, &r))
        status = read_at(file, b->to + r.to, position + (uint64_t)r.from, r.bytes);
    return status;
}

#else

enum { ROWS = 64 };  // that one call reads: it costs as much as copying some 10 KiB

// What lies in a row in the file, and apart in memory.
static int read_rows(int file, struct iovec *rows, int count, uint64_t position) {
    while (count) {
        ssize_t got = count == 1 ? pread(file, rows->iov_base, rows->iov_len, (off_t)position)
                                 : preadv(file, rows, count, (off_t)position);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno;
        if (got == 0) return JOB_SHORT;
        position += (uint64_t)got;
        for (; count && (size_t)got >= rows->iov_len; rows++, count--) got -= (ssize_t)rows->iov_len;
        if (!count) break;
        rows->iov_base = (uint8_t *)rows->iov_base + got;
        rows->iov_len -= (size_t)got;
    }
    return JOB_DONE;
}

int read_share(const block *b, int file, uint64_t position, uint64_t share, uint64_t index) {
    int status = JOB_DONE;
    block_runs r = block_begin(b, share, index);
    while (r.left && r.bytes && status == JOB_DONE) {
        struct iovec rows[ROWS];
        int64_t first = r.from;
        int count = 0;
        for (; r.left && count < ROWS && r.from == first + count * (int64_t)r.bytes; block_next(b, &r))
            rows[count++] = (struct iovec){b->to + r.to, (size_t)r.bytes};
        status = read_rows(file, rows, count, position + (uint64_t)first);
    }
    return status;
}

#endif
