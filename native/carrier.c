// A carrier's life: opened, given threads and buffers, stopped, and freed when nobody points at it any more.
#include "carrier.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

void *grab(size_t size) {
    void *memory = calloc(1, size ? size : 1);
    if (memory) return memory;
    fputs("aiostage: out of memory\n", stderr);
    abort();
}

void *more_of(void *memory, size_t size, size_t wanted) {
    void *more = grab(wanted);
    if (size) memcpy(more, memory, size);
    free(memory);
    return more;
}

char *text_of(const char *text) { return strcpy(grab(strlen(text) + 1), text); }

static void destroy(carrier *c) {
    while (c->departures) {
        departure *d = c->departures;
        c->departures = d->next;
        free_departure(c, d);
    }
    for (size_t i = c->end_taken; i < c->end_count; i++) free(c->ends[i].text);
    for (uint32_t i = 0; i < c->buffer_count; i++) {
        if (c->buffers[i] && c->buffers[i]->load) free_departure(c, c->buffers[i]->load);
        free(c->buffers[i]);
    }
    forget_queue(c);
    free_rings(c);
    for (unsigned i = 0; i < c->group_count; i++) free(c->groups[i]);
    for (uint32_t i = 0; i < c->job_room; i++) free(c->jobs[i]);
    free(c->jobs);
    free(atomic_load(&c->times));
    free(c->ends);
    close_bell(c);
    condition_end(&c->work);
    condition_end(&c->news);
    condition_end(&c->ends_wait);
    condition_end(&c->ended);
    mutex_end(&c->lock);
    free(c);
}

void let_go(carrier *c) {
    if (atomic_fetch_sub(&c->references, 1) == 1) destroy(c);
}

carrier *carrier_open(const gpu_functions *gpu, gpu_handle device, gpu_handle queue, gpu_handle probe, bool message_in_done) {
    carrier *c = grab(sizeof *c);
    c->gpu = *gpu;
    c->device = device;
    c->queue = queue;
    c->probe = probe;
    c->message_in_done = message_in_done;
    atomic_store(&c->references, 1);
    mutex_make(&c->lock);
    condition_make(&c->work);
    condition_make(&c->news);
    condition_make(&c->ends_wait);
    condition_make(&c->ended);
    open_bell(c);
    fate_add(c);
    return c;
}

static bool start(carrier *c, thread_main run) {
    atomic_fetch_add(&c->references, 1);
    c->threads++;
    if (thread_start(run, c)) return true;
    c->threads--;
    atomic_fetch_sub(&c->references, 1);
    return false;
}

void end_thread(carrier *c) {
    c->threads--;
    ring_bell(c);
    condition_wake_all(&c->ended);
    mutex_unlock(&c->lock);
    let_go(c);
}

bool carrier_start_gpu(carrier *c) {
    mutex_lock(&c->lock);
    bool started = c->has_gpu_thread || (c->has_gpu_thread = start(c, gpu_main));
    mutex_unlock(&c->lock);
    return started;
}

bool carrier_add_copiers(carrier *c, unsigned count) {
    mutex_lock(&c->lock);
    while (c->copiers < count && c->copiers < MOST_COPIERS && start(c, copier_main)) c->copiers++;
    bool any = c->copiers > 0;
    mutex_unlock(&c->lock);
    return any;
}

void carrier_stop(carrier *c) {
    mutex_lock(&c->lock);
    c->stopping = true;
    condition_wake_all(&c->work);
    condition_wake_all(&c->ends_wait);
    wake_gpu(c);
    mutex_unlock(&c->lock);
    fate_wake();
}

unsigned carrier_threads(carrier *c) {
    mutex_lock(&c->lock);
    unsigned threads = c->threads;
    mutex_unlock(&c->lock);
    return threads;
}

bool carrier_join(carrier *c, double seconds) {
    double until = now() + seconds;
    mutex_lock(&c->lock);
    while (c->threads && now() < until) condition_wait_for(&c->ended, &c->lock, until - now());
    bool joined = c->threads == 0;
    mutex_unlock(&c->lock);
    return joined;
}

void carrier_drop(carrier *c) {
    carrier_stop(c);
    fate_remove(c);
    let_go(c);
}

uint32_t carrier_add_buffer(carrier *c, gpu_handle handle, uint64_t size, uint32_t map_mode) {
    staging *b = grab(sizeof *b);
    *b = (staging){.carrier = c, .handle = handle, .size = size, .map_mode = map_mode, .state = NEW};
    if (size <= FIRST_MAP) b->zeroed = size;
    mutex_lock(&c->lock);
    uint32_t index = 0, number = UINT32_MAX;
    while (index < c->buffer_count && c->buffers[index]) index++;
    if (index == MOST_BUFFERS) {
        free(b);
    } else {
        b->number = number = (c->buffers_made++ * MOST_BUFFERS + index) & INT32_MAX;
        c->buffers[index] = b;
        if (index == c->buffer_count) c->buffer_count++;
        c->wants_poll = true;
        wake_gpu(c);
    }
    mutex_unlock(&c->lock);
    return number;
}

// As the transitions of uploads.c have it.
static int lent_lane(const staging *b) { return b->load ? TRACE_IN_USE : b->taken ? TRACE_FENCED : TRACE_AVAILABLE; }

void carrier_forget_buffer(carrier *c, uint32_t number) {
    mutex_lock(&c->lock);
    staging *b = buffer_of(c, number);
    if (b && b->number == number) {
        b->forgotten = true;
        trace_buffer(c, b, TRACE_NOTHING);
        forget_lent(b);
    }
    c->wants_poll = true;
    wake_gpu(c);
    mutex_unlock(&c->lock);
}

void carrier_name_buffer(carrier *c, uint32_t number, uint32_t ring, uint32_t index) {
    mutex_lock(&c->lock);
    staging *b = buffer_of(c, number);
    b->traced.ring = ring;
    b->traced.index = index;
    mutex_unlock(&c->lock);
}

void carrier_show_buffer(carrier *c, uint32_t number, int state) {
    mutex_lock(&c->lock);
    staging *b = buffer_of(c, number);
    if (b && b->number == number && !b->forgotten) trace_buffer(c, b, b->ring ? lent_lane(b) : state);
    mutex_unlock(&c->lock);
}

void carrier_listen(carrier *c) {
    mutex_lock(&c->lock);
    c->listens = true;
    if (c->end_count != c->end_taken) ring_bell(c);
    mutex_unlock(&c->lock);
}

void carrier_poll_soon(carrier *c) {
    mutex_lock(&c->lock);
    c->wants_poll = c->poll_asked = true;
    wake_gpu(c);
    mutex_unlock(&c->lock);
}

bool carrier_step(carrier *c, int which, uint64_t index) {
    if (which == STEP_COPY) return copy_one(c, index);
    if (which == STEP_PIECE) return copy_piece(c);
    return which == STEP_DEPART ? depart_ready(c) : poll_once(c);
}

carrier_counts carrier_count(carrier *c) {
    mutex_lock(&c->lock);
    uint64_t queued = 0;
    double oldest = 0;
    for (departure *d = c->departures; d; d = d->next) {
        queued += d->state == QUEUED;
        if (!oldest && d->group) oldest = now() - d->group->since;
    }
    uint64_t unfinished = c->unfinished_jobs + c->unfinished_uploads;
    carrier_counts counts = {c->submits, c->polls, c->merged, c->outstanding, queued, unfinished, oldest, c->lost, c->idle};
    mutex_unlock(&c->lock);
    return counts;
}
