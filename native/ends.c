// What has happened, and the bell that says so.
#include <stdlib.h>
#include <string.h>

#include "state.h"

#if defined(__linux__)
#include <sys/eventfd.h>
#include <unistd.h>
#elif !defined(_WIN32)
#include <fcntl.h>
#include <unistd.h>
#endif

void open_bell(carrier *c) {
    c->bell[0] = c->bell[1] = -1;
#if defined(__linux__)
    c->bell[0] = c->bell[1] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
#elif !defined(_WIN32)
    if (pipe(c->bell) != 0) return;
    for (int i = 0; i < 2; i++) {
        fcntl(c->bell[i], F_SETFL, O_NONBLOCK);
        fcntl(c->bell[i], F_SETFD, FD_CLOEXEC);
    }
#endif
}

void close_bell(carrier *c) {
#ifndef _WIN32
    if (c->bell[0] >= 0) close(c->bell[0]);
    if (c->bell[1] >= 0 && c->bell[1] != c->bell[0]) close(c->bell[1]);
#else
    (void)c;
#endif
}

void ring_bell(carrier *c) {
    if (c->told) return;
    c->told = true;
    condition_wake_all(&c->ends_wait);
#ifndef _WIN32
    if (c->bell[1] >= 0) {
        uint64_t one = 1;
        ssize_t written = write(c->bell[1], &one, sizeof one);
        (void)written;  // a full pipe is readable, which is all that is wanted
    }
#endif
}

static void silence(carrier *c) {
    if (!c->told) return;
    c->told = false;
#ifndef _WIN32
    if (c->bell[0] >= 0) {
        uint64_t some[8];
        while (read(c->bell[0], some, sizeof some) > 0) {
        }
    }
#endif
}

void tell(carrier *c, uint32_t kind, int32_t status, uint64_t id, uint64_t value, const char *text, bool rings) {
    if (c->end_count == c->end_room) {
        size_t room = c->end_room ? 2 * c->end_room : 64;
        c->ends = more_of(c->ends, c->end_count * sizeof *c->ends, room * sizeof *c->ends);
        c->end_room = room;
    }
    c->ends[c->end_count++] = (carrier_end){kind, status, id, value, now(), text ? text_of(text) : NULL};
    if (rings) ring_bell(c);
}

int carrier_bell(carrier *c) { return c->bell[0]; }

bool carrier_wait(carrier *c, double seconds) {
    mutex_lock(&c->lock);
    if (!c->told && !c->stopping) condition_wait_for(&c->ends_wait, &c->lock, seconds);
    bool told = c->told;
    mutex_unlock(&c->lock);
    return told;
}

size_t carrier_take_ends(carrier *c, carrier_end *into, size_t most) {
    mutex_lock(&c->lock);
    size_t count = c->end_count - c->end_taken;
    if (count > most) count = most;
    if (count) memcpy(into, c->ends + c->end_taken, count * sizeof *into);
    c->end_taken += count;
    if (c->end_taken == c->end_count) {
        c->end_taken = c->end_count = 0;
        silence(c);
    }
    mutex_unlock(&c->lock);
    return count;
}
