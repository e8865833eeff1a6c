// What was destroyed, mapped or lost while work for it was on its way. See `carrier_gone`.
//
// What somebody destroys is left out of all departures that nobody has taken yet. While a submit is being made, a *visit*,
// its destruction is put off until the visit is over; so nobody waits for a submit, which on a software adapter takes as
// long as the GPU's work. `epoch` counts such events, so that a check which one has overtaken is made again.
#include <stdlib.h>
#include <string.h>

#include "state.h"

typedef struct visit visit;
struct visit {
    visit *next;
    gpu_handle queue;  // NULL: a look at memory
};

typedef struct postponed postponed;
struct postponed {
    postponed *next;
    gpu_handle resource;
    void (*destroy)(gpu_handle), (*release)(gpu_handle);
};

#ifdef _WIN32
static mutex fate = SRWLOCK_INIT;
static condition no_visit = CONDITION_VARIABLE_INIT;
#else
static mutex fate = PTHREAD_MUTEX_INITIALIZER;
static condition no_visit = PTHREAD_COND_INITIALIZER;
#endif
// Under `fate`, which comes before any carrier's lock:
static carrier *carriers;
static visit *visits;
static postponed *first_postponed, **last_postponed = &first_postponed;
static _Atomic uint64_t epoch;

void fate_lock(void) { mutex_lock(&fate); }
void fate_unlock(void) { mutex_unlock(&fate); }

void fate_each(void (*look)(carrier *)) {
    mutex_lock(&fate);
    for (carrier *c = carriers; c; c = c->next) look(c);
    mutex_unlock(&fate);
}

// A forked child gets a copy of every lock as it is, and no thread that would give it back: so they are taken for it. Its
// parent's carriers, and what those are about to do, are none of its business.
#ifndef _WIN32
static void before_fork(void) {
    mutex_lock(&fate);
    for (carrier *c = carriers; c; c = c->next) mutex_lock(&c->lock);
    trace_before_fork();
}

static void after_fork(void) {
    trace_after_fork();
    for (carrier *c = carriers; c; c = c->next) mutex_unlock(&c->lock);
    mutex_unlock(&fate);
}

static void in_child(void) {
    after_fork();
    atomic_store(&trace_number, 0);  // nobody writes it here
    carriers = NULL;
    visits = NULL;
    first_postponed = NULL;
    last_postponed = &first_postponed;
    condition_make(&no_visit);  // somebody may have waited for it
}

static void mind_forks(void) {
    static bool minded;
    if (!minded) minded = pthread_atfork(before_fork, after_fork, in_child) == 0;
}
#else
static void mind_forks(void) {}
#endif

void fate_add(carrier *c) {
    mutex_lock(&fate);
    mind_forks();
    c->next = carriers;
    carriers = c;
    mutex_unlock(&fate);
}

void fate_remove(carrier *c) {
    mutex_lock(&fate);
    for (carrier **at = &carriers; *at; at = &(*at)->next) {
        if (*at != c) continue;
        *at = c->next;
        break;
    }
    mutex_unlock(&fate);
}

uint64_t carrier_epoch(void) { return atomic_load(&epoch); }

void fate_visit(gpu_handle queue) {
    visit *v = grab(sizeof *v);
    *v = (visit){visits, queue};
    visits = v;
}

void fate_wake(void) {
    mutex_lock(&fate);
    condition_wake_all(&no_visit);
    mutex_unlock(&fate);
}

void carrier_visit(gpu_handle queue) {
    mutex_lock(&fate);
    fate_visit(queue);
    mutex_unlock(&fate);
}

// What was put off is not done under `fate`.
void fate_end_visit(gpu_handle queue) {
    postponed *now_due = NULL;
    visit **at = &visits, *over;
    while ((*at)->queue != queue) at = &(*at)->next;
    over = *at;
    *at = over->next;
    free(over);
    if (!visits) {
        now_due = first_postponed;
        first_postponed = NULL;
        last_postponed = &first_postponed;
    }
    condition_wake_all(&no_visit);
    mutex_unlock(&fate);
    while (now_due) {
        postponed *next = now_due->next;
        now_due->destroy(now_due->resource);
        now_due->release(now_due->resource);
        free(now_due);
        now_due = next;
    }
}

void carrier_unvisit(gpu_handle queue) {
    mutex_lock(&fate);
    fate_end_visit(queue);
}

bool carrier_is_visited(gpu_handle queue) {
    mutex_lock(&fate);
    bool visited = false;
    for (visit *v = visits; v; v = v->next) visited |= v->queue == queue;
    mutex_unlock(&fate);
    return visited;
}

// -- what is left out --

static uint64_t bit_of(uint64_t handle) { return 1ull << ((handle * 0x9E3779B97F4A7C15ull) >> 58); }

void leave_out(departure *d, uint32_t copy, const char *why) {
    if (d->copies[copy].left_out) return;
    d->copies[copy].left_out = true;
    uint32_t room = d->copy_room ? d->copy_room : d->copy_count;  // more may come
    if (!d->reasons) d->reasons = grab(room * sizeof *d->reasons);
    d->reasons[copy] = text_of(why);
}

void leave_out_of(departure *d, const job *j) {
    if (j->status == JOB_DONE) return;
    const char *why = j->status == JOB_CANCELLED ? "it was cancelled" : "its data could not be read";
    for (uint32_t i = 0; i < d->copy_count; i++)
        if (d->copies[i].job == j->id) leave_out(d, i, why);
}

// Whether a copy goes there; with `why_not` none will.
static bool goes_to(departure *d, gpu_handle resource, const char *why_not) {
    bool found = false;
    if (!(d->touches & bit_of((uint64_t)(uintptr_t)resource))) return false;
    for (uint32_t i = 0; i < d->copy_count; i++) {
        if (d->copies[i].to != (uint64_t)(uintptr_t)resource) continue;
        found = true;
        if (why_not) leave_out(d, i, why_not);
    }
    return found;
}

static void leave_out_everywhere(gpu_handle resource, const char *why) {
    atomic_fetch_add(&epoch, 1);
    for (carrier *c = carriers; c; c = c->next) {
        mutex_lock(&c->lock);
        for (departure *d = c->departures; d; d = d->next)
            if (d->state == QUEUED) goes_to(d, resource, why);
        for (uint32_t i = 0; i < c->buffer_count; i++)
            if (c->buffers[i] && c->buffers[i]->load) goes_to(c->buffers[i]->load, resource, why);
        leave_out_uploads(c, resource, why);
        mutex_unlock(&c->lock);
    }
}

bool carrier_gone(gpu_handle resource, const char *why, void (*keep)(gpu_handle), void (*destroy)(gpu_handle),
                  void (*release)(gpu_handle)) {
    keep(resource);
    mutex_lock(&fate);
    leave_out_everywhere(resource, why);
    bool may = !visits;
    if (!may) {
        postponed *p = grab(sizeof *p);
        *p = (postponed){NULL, resource, destroy, release};
        *last_postponed = p;
        last_postponed = &p->next;
    }
    mutex_unlock(&fate);
    if (may) release(resource);
    return may;
}

void carrier_device_gone(gpu_handle device, const char *why) {
    mutex_lock(&fate);
    atomic_fetch_add(&epoch, 1);
    for (carrier *c = carriers; c; c = c->next)
        if (c->device == device) lose(c, why);
    mutex_unlock(&fate);
}

static bool is_being_used(gpu_handle resource) {
    for (carrier *c = carriers; c; c = c->next) {
        bool found = false;
        mutex_lock(&c->lock);
        for (departure *d = c->departures; d && !found; d = d->next) found = d->state == TAKEN && goes_to(d, resource, NULL);
        mutex_unlock(&c->lock);
        if (found) return true;
    }
    return false;
}

void carrier_wait_for_use(gpu_handle buffer, const char *why) {
    mutex_lock(&fate);
    leave_out_everywhere(buffer, why);
    while (is_being_used(buffer)) condition_wait(&no_visit, &fate);
    mutex_unlock(&fate);
}

// Whoever submits, stops or loses wakes those who wait.
static bool is_settled(gpu_handle queue) {
    for (carrier *c = carriers; c; c = c->next) {
        mutex_lock(&c->lock);
        bool waits = c->queue == queue && c->urgent && c->has_gpu_thread && !c->stopping && !c->lost;
        mutex_unlock(&c->lock);
        if (waits) return false;
    }
    return true;
}

void carrier_settle(gpu_handle queue) {
    mutex_lock(&fate);
    while (!is_settled(queue)) condition_wait(&no_visit, &fate);
    mutex_unlock(&fate);
}

// -- departing --

static void note_copy(departure *d, const carrier_copy *copy) {
    d->touches |= bit_of(copy->to);
    d->bytes += copy->kind == COPY_TO_BUFFER ? copy->size
                                             : (uint64_t)copy->bytes_per_row * copy->rows_per_image * copy->extent[2];
}

static void *copy_of(const void *from, size_t bytes) { return bytes ? memcpy(grab(bytes), from, bytes) : NULL; }

// The upload keeps the destination, and its ring the buffer: nothing of wgpu's is called with the lock.
void add_copy(departure *d, const carrier_copy *copy, upload *u) {
    if (d->copy_count == d->copy_room) {
        uint32_t room = d->copy_room ? 2 * d->copy_room : 4;
        d->copies = more_of(d->copies, d->copy_room * sizeof *d->copies, room * sizeof *d->copies);
        d->uploads = more_of(d->uploads, d->copy_room * sizeof *d->uploads, room * sizeof *d->uploads);
        if (d->reasons) d->reasons = more_of(d->reasons, d->copy_room * sizeof *d->reasons, room * sizeof *d->reasons);
        d->copy_room = room;
    }
    d->uploads[d->copy_count] = u;
    d->copies[d->copy_count++] = *copy;
    note_copy(d, copy);
}

static departure *make_departure(carrier *c, const carrier_departure *given) {
    departure *d = grab(sizeof *d);
    d->lane = given->lane;
    d->is_mark = given->is_mark;
    d->is_urgent = given->is_urgent;
    d->buffer_count = given->buffer_count;
    d->copy_count = given->copy_count;
    d->command_count = given->command_count;
    d->buffers = copy_of(given->buffers, given->buffer_count * sizeof *d->buffers);
    d->copies = copy_of(given->copies, given->copy_count * sizeof *d->copies);
    d->commands = copy_of(given->commands, given->command_count * sizeof *d->commands);
    for (uint32_t i = 0; i < d->copy_count; i++) {
        const carrier_copy *copy = &d->copies[i];
        note_copy(d, copy);
        (copy->kind == COPY_TO_BUFFER ? c->gpu.keep_buffer : c->gpu.keep_texture)((gpu_handle)(uintptr_t)copy->to);
        c->gpu.keep_buffer((gpu_handle)(uintptr_t)copy->source);
    }
    for (uint32_t i = 0; i < d->command_count; i++) c->gpu.keep_commands(d->commands[i]);
    return d;
}

static void wait_for_jobs(carrier *c, departure *d, const uint64_t *jobs, uint32_t count) {
    for (uint32_t k = 0; k < count; k++) {
        job *j = find_job(c, jobs[k]);
        if (j && !j->ended) {
            j->waits = d;
            d->waiting++;
        } else if (j) {
            leave_out_of(d, j);
        }
    }
}

void queue_departure(carrier *c, departure *d) {
    d->serial = ++c->serial;
    c->urgent += d->is_urgent;
    if (c->last_departure) c->last_departure->next = d;
    else c->departures = d;
    c->last_departure = d;
    d->ready_at = now();
    if (!d->waiting) wake_gpu(c);
}

uint64_t carrier_depart(carrier *c, const carrier_departure *given, uint64_t checked_at) {
    departure *d = make_departure(c, given);
    uint64_t serial = 0;
    mutex_lock(&fate);
    if (checked_at == atomic_load(&epoch)) {
        mutex_lock(&c->lock);
        wait_for_jobs(c, d, given->jobs, given->job_count);
        queue_departure(c, d);
        serial = d->serial;
        mutex_unlock(&c->lock);
    }
    mutex_unlock(&fate);
    if (!serial) free_departure(c, d);
    return serial;
}

// -- errors --

_Thread_local char *error_place;

bool carrier_note_error(const char *text) {
    if (!error_place) return false;
    if (!*error_place) {  // the first tells most
        strncpy(error_place, text, ERROR_SIZE - 1);
        error_place[ERROR_SIZE - 1] = 0;
    }
    return true;
}
