// How long the GPU takes: two timestamps around what a submit has, while a trace is written, on devices that have them. All
// of it is the GPU thread's, but for `carrier_time`.
#include <stdlib.h>

#include "state.h"

// Seconds between the beginnings of two. To time one takes some 50 µs on a software adapter, and those of a stream of small
// uploads are alike; frames come less often.
static const double PAUSE = 10e-3;

typedef struct {  // a submit that is being timed
    carrier *carrier;
    gpu_handle result;
    bool is_busy;
    _Atomic int answer;  // as a group's
    uint32_t trace;
    uint64_t fence;
    double since;
} slot;

struct times {
    carrier_times gpu;
    double next;  // before which none is timed
    double shift, last;  // from the GPU's clock to ours, as far as is known; when the last that was drawn ended
    bool has_shift;
    slot slots[CARRIER_TIMES];
};

bool carrier_time(carrier *c, const carrier_times *given) {
    times *t = grab(sizeof *t), *none = NULL;
    t->gpu = *given;
    for (int i = 0; i < CARRIER_TIMES; i++) {
        t->slots[i].carrier = c;
        t->slots[i].result = given->results[i];
    }
    if (atomic_compare_exchange_strong(&c->times, &none, t)) return true;
    free(t);
    return false;
}

bool times_wanted(carrier *c) {
    const times *t = atomic_load(&c->times);
    return t && now() >= t->next;
}

int times_begin(carrier *c, gpu_handle encoder) {
    times *t = atomic_load(&c->times);
    for (int i = 0; i < CARRIER_TIMES; i++) {
        if (t->slots[i].is_busy) continue;
        t->slots[i].is_busy = true;
        t->next = now() + PAUSE;
        t->gpu.write(encoder, t->gpu.queries, (uint32_t)(2 * i));
        return i;
    }
    return -1;  // so many are on their way: this one goes without
}

void times_end(carrier *c, gpu_handle encoder, int which) {
    times *t = atomic_load(&c->times);
    uint64_t offset = (uint64_t)which * CARRIER_TIMES_STEP;
    t->gpu.write(encoder, t->gpu.queries, (uint32_t)(2 * which + 1));
    t->gpu.resolve(encoder, t->gpu.queries, (uint32_t)(2 * which), 2, t->gpu.resolved, offset);
    c->gpu.copy_to_buffer(encoder, t->gpu.resolved, offset, t->slots[which].result, 0, 2 * sizeof(uint64_t));
}

void times_drop(carrier *c, int which) { atomic_load(&c->times)->slots[which].is_busy = false; }

static void callback_mapped(int32_t status, gpu_string message, void *userdata, void *unused) {
    (void)message, (void)unused;
    slot *s = userdata;
    carrier *c = s->carrier;
    atomic_store(&s->answer, status == GPU_SUCCESS ? 1 : 2);
    let_go(c);
}

void times_ask(carrier *c, int which, uint32_t trace, uint64_t fence, double since) {
    slot *s = &atomic_load(&c->times)->slots[which];
    char error[ERROR_SIZE] = "", *before = error_place;
    s->trace = trace;
    s->fence = fence;
    s->since = since;
    atomic_store(&s->answer, 0);
    c->outstanding++;
    atomic_fetch_add(&c->references, 1);
    error_place = error;
    c->gpu.map(s->result, GPU_MAP_READ, 0, 2 * sizeof(uint64_t),
               (gpu_map_info){NULL, GPU_CALLBACK_ON_POLL, callback_mapped, s, NULL});
    error_place = before;
    int none = 0;
    if (*error && atomic_compare_exchange_strong(&s->answer, &none, 2)) let_go(c);
}

// The GPU's clock is another: nothing begins before it was submitted, and what comes next to that tells how far they are apart.
static void draw(carrier *c, times *t, const slot *s, const uint64_t *ticks) {
    double begin = (double)ticks[0] * t->gpu.period, end = (double)ticks[1] * t->gpu.period;
    if (ticks[1] < ticks[0]) return;  // it was reset meanwhile
    if (!t->has_shift || begin + t->shift < s->since) t->shift = s->since - begin;
    t->has_shift = true;
    begin += t->shift;
    end += t->shift;
    if (begin < t->last) begin = t->last;  // clocks drift
    if (end < begin) end = begin;
    t->last = end;
    trace_argument argument = {"fence", s->fence};
    trace_slice(trace_gpu_time(c, s->trace), "GPU time", begin, end, &argument, 1);
}

static void read_times(carrier *c, times *t, slot *s) {
    carrier_visit(NULL);
    if (!is_lost(c)) {  // as for staging buffers
        const uint64_t *ticks = c->gpu.const_address(s->result, 0, 2 * sizeof(uint64_t));
        if (ticks) draw(c, t, s, ticks);
        c->gpu.unmap(s->result);
    }
    carrier_unvisit(NULL);
}

unsigned times_hear(carrier *c) {
    times *t = atomic_load(&c->times);
    unsigned count = 0;
    for (int i = 0; t && i < CARRIER_TIMES; i++) {
        slot *s = &t->slots[i];
        int answer = s->is_busy ? atomic_exchange(&s->answer, 0) : 0;
        if (!answer) continue;
        count++;
        if (answer == 1) read_times(c, t, s);
        s->is_busy = false;
    }
    return count;
}
