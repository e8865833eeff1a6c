// The GPU thread: submits what may depart, has buffers mapped again, polls, and tells.
#include <stdlib.h>
#include <string.h>

#include "state.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif

enum { MOST_IN_FLIGHT = 2, MOST_AT_ONCE = 64 };
static const uint64_t ENOUGH = 16 << 20;  // bytes that go whatever is in flight: a submit leaves the link idle for 50 µs
static const double SHORTEST = 50e-6, LONGEST = 1e-3;  // seconds between two polls
static const double HELD = 500e-6;                     // that copies wait at most to go together

static gpu_handle handle_of(uint64_t number) { return (gpu_handle)(uintptr_t)number; }

void wake_gpu(carrier *c) {
    c->has_news = true;
    condition_wake(&c->news);
}

// -- losing the device --

void lose(carrier *c, const char *why) {
    mutex_lock(&c->lock);
    if (!c->lost) {
        c->lost = true;
        tell(c, END_LOST, 0, 0, 0, why, true);
        leave_out_uploads(c, NULL, why);
        wake_gpu(c);
    }
    mutex_unlock(&c->lock);
}

// Whether a call that changes nothing fails. In the GPU thread, whose errors go to `error_place`. It takes a microsecond,
// and is the last thing before each call in which wgpu-native aborts if the device is lost: a submit, a look at memory.
bool is_lost(carrier *c) {
    char error[ERROR_SIZE] = "", *before = error_place;
    error_place = error;
    c->gpu.write_buffer(c->queue, c->probe, 0, NULL, 0);
    error_place = before;
    if (*error) lose(c, error);
    return *error != 0;
}

// -- encoding --

typedef struct {
    carrier *c;
    gpu_handle encoder;
    gpu_handle *commands;  // of the submit
    unsigned count;
    gpu_handle *own;  // of those, what was encoded here
    unsigned own_count;
} submission;

static void encode_copy(carrier *c, gpu_handle encoder, const carrier_copy *copy) {
    if (copy->kind == COPY_TO_BUFFER) {
        c->gpu.copy_to_buffer(encoder, handle_of(copy->source), copy->offset, handle_of(copy->to), copy->to_offset,
                              copy->size);
        return;
    }
    gpu_texel_source source = {{copy->offset, copy->bytes_per_row, copy->rows_per_image}, handle_of(copy->source)};
    gpu_texel_target target = {handle_of(copy->to), copy->mip_level,
                               {copy->origin[0], copy->origin[1], copy->origin[2]}, copy->aspect};
    gpu_extent extent = {copy->extent[0], copy->extent[1], copy->extent[2]};
    c->gpu.copy_to_texture(encoder, &source, &target, &extent);
}

static void finish(submission *s) {
    if (!s->encoder) return;
    gpu_handle commands = s->c->gpu.finish(s->encoder, NULL);
    s->c->gpu.release_encoder(s->encoder);
    s->encoder = NULL;
    if (commands) s->own[s->own_count++] = s->commands[s->count++] = commands;
}

static void encode(submission *s, const departure *d) {
    for (uint32_t i = 0; i < d->copy_count; i++) {
        if (d->copies[i].left_out) continue;
        if (!s->encoder) s->encoder = s->c->gpu.create_encoder(s->c->device, NULL);
        if (s->encoder) encode_copy(s->c, s->encoder, &d->copies[i]);
    }
    if (!d->command_count) return;
    finish(s);
    for (uint32_t i = 0; i < d->command_count; i++) s->commands[s->count++] = d->commands[i];
}

static int begin_time(submission *s) {
    if (!times_wanted(s->c)) return -1;
    s->encoder = s->c->gpu.create_encoder(s->c->device, NULL);
    return s->encoder ? times_begin(s->c, s->encoder) : -1;
}

static void end_time(submission *s, int which) {
    if (!s->encoder) s->encoder = s->c->gpu.create_encoder(s->c->device, NULL);
    if (s->encoder) times_end(s->c, s->encoder, which);
}

static void release_own(submission *s) {
    for (unsigned i = 0; i < s->own_count; i++) s->c->gpu.release_commands(s->own[i]);
    s->own_count = s->count = 0;
}

// Each copy in an encoder of its own: those that fail alone are at fault, the others go on.
static void find_guilty(carrier *c, departure *d, char *error) {
    for (uint32_t i = 0; i < d->copy_count; i++) {
        if (d->copies[i].left_out) continue;
        *error = 0;
        gpu_handle encoder = c->gpu.create_encoder(c->device, NULL);
        if (!encoder) return;
        encode_copy(c, encoder, &d->copies[i]);
        gpu_handle commands = c->gpu.finish(encoder, NULL);
        c->gpu.release_encoder(encoder);
        if (commands) c->gpu.release_commands(commands);
        if (*error) leave_out(d, i, error);
    }
}

static staging *staging_of(carrier *c, const departure *d, uint64_t handle) {
    for (uint32_t i = 0; i < d->buffer_count; i++) {
        staging *b = buffer_of(c, d->buffers[i]);
        if (b->handle == handle_of(handle)) return b;
    }
    return NULL;
}

// wgpu clears a level before its first use. A copy from a buffer to z > 0 of a 3D texture does not count as one, until
// wgpu's pull request 9765 is in wgpu-native: what it writes is cleared with the rest by the next command that does count.
// So the first texel block of such a copy is written by the queue, right before its submit, which does; with zeros, if its
// source is no staging buffer.
static void use_first(carrier *c, const departure *d, const carrier_copy *copy) {
    static const uint8_t zeros[64];
    staging *b = staging_of(c, d, copy->source);
    const uint8_t *data = b && b->address ? b->address + copy->offset : zeros;
    gpu_texel_target target = {handle_of(copy->to), copy->mip_level,
                               {copy->origin[0], copy->origin[1], copy->origin[2]}, copy->aspect};
    gpu_texel_layout layout = {0, 256, 1};
    gpu_extent extent = {(uint32_t)copy->size, (uint32_t)(copy->size >> 32), 1};
    c->gpu.write_texture(c->queue, &target, data, (size_t)copy->to_offset, &layout, &extent);
}

// -- submitting --

static void callback_mapped(int32_t status, gpu_string message, void *userdata, void *unused) {
    (void)message, (void)unused;
    staging *b = userdata;
    carrier *c = b->carrier;  // from the answer on `b` is the GPU thread's
    atomic_store(&b->answer, status == GPU_SUCCESS ? 1 : 2);
    let_go(c);
}

static void callback_done(int32_t status, gpu_string message, void *userdata, void *unused) {
    (void)message, (void)unused;
    group *g = userdata;
    carrier *c = g->carrier;
    atomic_store(&g->answer, status == GPU_SUCCESS ? 1 : 2);
    let_go(c);
}

static void callback_done_without_message(int32_t status, void *userdata, void *unused) {
    callback_done(status, (gpu_string){0}, userdata, unused);
}

static void ask_for_buffer(carrier *c, staging *b) {
    char error[ERROR_SIZE] = "", *before = error_place;
    uint64_t size = b->zeroed < b->size ? (b->size - b->zeroed < FIRST_MAP ? b->size - b->zeroed : FIRST_MAP) : b->size;
    uint64_t offset = b->zeroed < b->size ? b->zeroed : 0;
    atomic_store(&b->answer, 0);
    b->asked = true;
    c->outstanding++;
    atomic_fetch_add(&c->references, 1);
    error_place = error;
    c->gpu.map(b->handle, b->map_mode, offset, size,
               (gpu_map_info){NULL, GPU_CALLBACK_ON_POLL, callback_mapped, b, NULL});
    error_place = before;
    int none = 0;
    if (*error && atomic_compare_exchange_strong(&b->answer, &none, 2)) let_go(c);
}

static group *ask_for_work(carrier *c, departure **list, unsigned count, bool is_mark) {
    group *g = grab(sizeof *g);
    bool has_more = false;
    for (unsigned k = 0; k < count; k++) {
        g->bytes += list[k]->bytes;
        has_more |= list[k]->command_count > 0;
    }
    if (has_more) g->bytes = 0;
    g->carrier = c;
    g->since = now();
    g->is_mark = is_mark;
    if (!is_mark) c->in_flight++;
    c->groups[c->group_count++] = g;
    c->outstanding++;
    atomic_fetch_add(&c->references, 1);
    gpu_work_done callback =
        c->message_in_done ? (gpu_work_done)callback_done : (gpu_work_done)callback_done_without_message;
    c->gpu.on_work_done(c->queue, (gpu_work_done_info){NULL, GPU_CALLBACK_ON_POLL, callback, g, NULL});
    return g;
}

// false: the device is lost, and nothing was submitted.
static bool submit(carrier *c, departure **list, unsigned count, bool works, uint32_t trace) {
    char error[ERROR_SIZE] = "";
    gpu_handle *commands, *own;
    unsigned most = 3;
    error_place = error;
    for (unsigned k = 0; k < count; k++) {
        most += list[k]->command_count + 1;
        for (uint32_t i = 0; i < list[k]->copy_count; i++)
            if (list[k]->copies[i].first_use && !list[k]->copies[i].left_out) use_first(c, list[k], &list[k]->copies[i]);
        for (uint32_t i = 0; i < list[k]->buffer_count; i++) {
            staging *b = buffer_of(c, list[k]->buffers[i]);
            b->state = ELSEWHERE;
            b->address = NULL;
            c->gpu.unmap(b->handle);
        }
    }
    commands = grab(2 * most * sizeof *commands);
    own = commands + most;
    submission s = {c, NULL, commands, 0, own, 0};
    int timed = -1;
    for (int attempt = 0; works && attempt < 2; attempt++) {
        *error = 0;
        if (trace && attempt == 0) timed = begin_time(&s);
        for (unsigned k = 0; k < count; k++) encode(&s, list[k]);
        if (timed >= 0) end_time(&s, timed);
        finish(&s);
        if (!*error) break;
        if (timed >= 0) times_drop(c, timed);
        timed = -1;
        release_own(&s);
        if (attempt == 0 && !is_lost(c))
            for (unsigned k = 0; k < count; k++) find_guilty(c, list[k], error);
    }
    bool ok = !works || (!*error && !is_lost(c));
    double since = timed < 0 ? 0 : now();
    if (ok && works) c->gpu.submit(c->queue, s.count, s.commands);
    if (timed >= 0 && ok) times_ask(c, timed, trace, list[count - 1]->serial, since);
    else if (timed >= 0) times_drop(c, timed);
    if (!ok && *error) lose(c, error);
    release_own(&s);
    error_place = NULL;
    free(commands);
    c->submits += ok && works;
    return ok;
}

// -- what may depart --

static bool may_go(const departure *d, uint64_t touched, uint64_t lanes, bool any) {
    if (d->waiting) return false;
    if (!any) return true;
    return !d->is_mark && !(d->touches & touched) && !(d->lane && lanes & 1ull << d->lane % 64);
}

// With the lock: what may go now, the oldest first. One that waits for jobs holds up those of its lane, those that go where
// it goes, and marks. Copies alone wait a moment while the GPU has enough to do, to go with what comes then.
static unsigned choose(carrier *c, departure **list) {
    unsigned count = 0;
    uint64_t touched = 0, lanes = 0, bytes = 0;
    double oldest = now();
    bool any = false, may_wait = true;
    for (departure *d = c->departures; d && count < MOST_AT_ONCE; d = d->next) {
        if (d->state != QUEUED) continue;
        if (may_go(d, touched, lanes, any)) {
            list[count++] = d;
            bytes += d->bytes;
            may_wait &= !d->is_mark && !d->command_count && !d->is_urgent;
            if (d->ready_at < oldest) oldest = d->ready_at;
            continue;
        }
        any = true;
        touched |= d->touches;
        if (d->lane) lanes |= 1ull << d->lane % 64;
    }
    c->holds = count && may_wait && c->has_gpu_thread && c->in_flight >= MOST_IN_FLIGHT && bytes < ENOUGH &&
               now() - oldest < HELD;
    if (c->group_count + 1 >= sizeof c->groups / sizeof *c->groups) c->holds = true;
    return c->holds && !c->lost ? 0 : count;
}

static void free_contents(carrier *c, departure *d) {
    for (uint32_t i = 0; i < d->copy_count; i++) {
        if (d->reasons) free(d->reasons[i]);
        if (d->uploads) continue;  // which keep what they need
        const carrier_copy *copy = &d->copies[i];
        (copy->kind == COPY_TO_BUFFER ? c->gpu.release_buffer : c->gpu.release_texture)(handle_of(copy->to));
        c->gpu.release_buffer(handle_of(copy->source));
    }
    for (uint32_t i = 0; i < d->command_count; i++) c->gpu.release_commands(d->commands[i]);
    free(d->buffers);
    free(d->copies);
    free(d->uploads);
    free(d->commands);
    free(d->reasons);
    d->copy_count = d->command_count = d->buffer_count = 0;
    d->buffers = NULL, d->copies = NULL, d->uploads = NULL, d->commands = NULL, d->reasons = NULL;
}

void free_departure(carrier *c, departure *d) {
    free_contents(c, d);
    free(d);
}

static void tell_made(carrier *c, departure *d, bool made) {
    if (d->uploads) {
        for (uint32_t i = 0; i < d->copy_count; i++) end_piece(c, d, i, made);
        return;
    }
    for (uint32_t i = 0; made && d->reasons && i < d->copy_count; i++)
        if (d->reasons[i]) tell(c, END_LEFT_OUT, 0, d->serial, i, d->reasons[i], true);
    d->is_told = true;
    if (!made) tell(c, END_LOST, 0, d->serial, 0, "the device was lost before the submit", true);
    else if (!d->is_mark) tell(c, END_MADE, 0, d->serial, 0, NULL, true);
}

static void trace_submit(carrier *c, uint32_t trace, departure **list, unsigned count, double since, bool made, bool works) {
    uint64_t copies = 0, commands = 0, bytes = 0;
    for (unsigned k = 0; k < count; k++) {
        copies += list[k]->copy_count;
        commands += list[k]->command_count;
        bytes += list[k]->bytes;
        if (made) trace_submitted(c, trace, list[k]->serial, since);
    }
    trace_argument arguments[] = {{"fence", list[count - 1]->serial}, {"fences", count}, {"copies", copies}, {"bytes", bytes},
                                  {commands ? "command_buffers" : NULL, commands}};
    const char *name = !made ? "lost submit" : works ? "submit" : "fence";
    trace_slice(trace_gpu(c, trace), name, since, now(), arguments, 5);
}

bool depart_ready(carrier *c) {
    departure *list[MOST_AT_ONCE];
    fate_lock();
    mutex_lock(&c->lock);
    unsigned count = choose(c, list);
    bool lost = c->lost;
    for (unsigned k = 0; k < count; k++) list[k]->state = TAKEN;
    mutex_unlock(&c->lock);
    if (!count) {
        fate_unlock();
        return false;
    }
    fate_visit(c->queue);
    fate_unlock();
    uint32_t trace = trace_is_on();
    double since = trace ? now() : 0;
    bool works = false;
    for (unsigned k = 0; k < count; k++) works |= !list[k]->is_mark;
    bool made = !lost && submit(c, list, count, works, trace);
    group *g = made ? ask_for_work(c, list, count, !works) : NULL;
    if (made) {
        c->merged += count - 1;
        for (unsigned k = 0; k < count; k++)
            for (uint32_t i = 0; i < list[k]->buffer_count; i++) ask_for_buffer(c, buffer_of(c, list[k]->buffers[i]));
        g->trace = trace;
    }
    if (trace) trace_submit(c, trace, list, count, since, made, works);  // before anybody hears of it
    mutex_lock(&c->lock);
    for (unsigned k = 0; k < count; k++) {
        departure *d = list[k];
        tell_made(c, d, made);
        d->state = made ? SUBMITTED : DONE;
        c->urgent -= d->is_urgent;
        d->group = g;
    }
    mutex_unlock(&c->lock);
    fate_lock();
    fate_end_visit(c->queue);
    for (unsigned k = 0; k < count; k++) free_contents(c, list[k]);
    return true;
}

// -- polling --

static double start_of(const carrier *c, const group *g) { return g->since > c->last_done ? g->since : c->last_done; }

static void note_time(carrier *c, const group *g) {
    double at = now(), took = at - start_of(c, g);
    c->latency = at - g->since;
    if (g->bytes >= 1 << 20 && took > 0) c->rate = c->rate ? (c->rate + (double)g->bytes / took) / 2 : (double)g->bytes / took;
    c->last_done = at;
}

static void heard(carrier *c) {
    if (c->outstanding) c->outstanding--;  // when the device is lost none counts as such
}

// One after another: what is submitted while the GPU is busy begins when that is done.
static void trace_done(carrier *c, uint32_t trace, const group *g, double began) {
    trace_argument arguments[] = {{g->bytes ? "bytes" : NULL, g->bytes}};
    trace_slice(trace_queue(c, trace), g->is_mark ? "fence" : "GPU", began, c->last_done, arguments, 1);
}

static void hear_groups(carrier *c) {
    bool lost = false;
    uint32_t trace = trace_is_on();
    unsigned kept = 0;
    mutex_lock(&c->lock);
    for (unsigned i = 0; i < c->group_count; i++) {
        group *g = c->groups[i];
        int answer = atomic_load(&g->answer);
        if (!answer) {
            c->groups[kept++] = g;
            continue;
        }
        lost |= answer == 2;
        heard(c);
        double began = start_of(c, g);
        note_time(c, g);
        if (trace) trace_done(c, trace, g, began);
        if (!g->is_mark) c->in_flight--;
        for (departure *d = c->departures; d; d = d->next)
            if (d->group == g) {
                if (trace && g->trace == trace) trace_flow("fence", trace_gpu(c, trace), g->since, trace_queue(c, trace), began);
                d->state = DONE;
                d->group = NULL;
            }
        free(g);
    }
    c->group_count = kept;
    lost = lost && !c->lost;
    // A lost device reports success for what it never finished.
    uint64_t reached = c->reached;
    while (c->departures && c->departures->state == DONE && !lost) {
        departure *d = c->departures;
        c->done = d->serial;
        if (d->is_told) reached = d->serial;
        c->departures = d->next;
        if (!c->departures) c->last_departure = NULL;
        free(d);
    }
    if (reached != c->reached && !c->lost) tell(c, END_REACHED, 0, reached, 0, NULL, true);
    c->reached = reached;
    mutex_unlock(&c->lock);
    if (lost) lose(c, "the GPU did not finish its work");
}

static void take_buffer(carrier *c, staging *b) {
    carrier_visit(NULL);
    mutex_lock(&c->lock);
    bool lost = c->lost || b->forgotten;
    mutex_unlock(&c->lock);
    if (!lost && !is_lost(c)) {  // the poll of a device that was lost tells that its buffers are mapped, and destroys them
        b->address = b->map_mode == GPU_MAP_READ ? (uint8_t *)(uintptr_t)c->gpu.const_address(b->handle, 0, b->size)
                                                 : c->gpu.address(b->handle, 0, b->size);
        b->state = READY;
    }
    mutex_lock(&c->lock);
    if (!b->address || !lend_again(c, b)) tell(c, END_BACK, 0, b->number, (uint64_t)(uintptr_t)b->address, NULL, true);
    mutex_unlock(&c->lock);
    carrier_unvisit(NULL);
}

// Whoever destroys it has it forgotten before: so if it is not, it is there until this is over.
static bool ask_again(carrier *c, staging *b, bool unmaps) {
    carrier_visit(NULL);
    bool asks = !b->forgotten;
    if (asks && unmaps) c->gpu.unmap(b->handle);
    if (asks) ask_for_buffer(c, b);
    carrier_unvisit(NULL);
    return asks;
}

static void hear_buffers(carrier *c) {
    for (uint32_t i = 0; i < c->buffer_count; i++) {
        staging *b = c->buffers[i];
        int answer = b && b->asked ? atomic_load(&b->answer) : 0;
        if (!answer) continue;
        b->asked = false;
        heard(c);
        bool is_new = answer == 1 && b->zeroed < b->size;
        if (is_new) b->zeroed += FIRST_MAP;
        if (is_new && ask_again(c, b, true)) continue;
        if (answer == 1) {
            take_buffer(c, b);
        } else {
            mutex_lock(&c->lock);
            tell(c, END_BACK, 0, b->number, 0, NULL, true);
            mutex_unlock(&c->lock);
        }
    }
}

static void forget_buffers(carrier *c, uint32_t count) {
    mutex_lock(&c->lock);
    for (uint32_t i = 0; i < count; i++) {
        staging *b = c->buffers[i];
        if (!b || !b->forgotten || b->asked) continue;
        c->buffers[i] = NULL;
        free(b);
    }
    mutex_unlock(&c->lock);
}

// A poll of a lost device frees the memory of all its buffers, under those that still write to it: copy threads, and users
// with a slot open, to whom no harm may come. So none is made, and that memory goes with the device. As a visit, since
// nobody may destroy it in between.
static void poll_unless_lost(carrier *c) {
    carrier_visit(NULL);
    mutex_lock(&c->lock);
    bool lost = c->lost;
    mutex_unlock(&c->lock);
    if (lost || is_lost(c)) c->outstanding = 0;  // nothing more is told of it
    else c->gpu.poll(c->device, 0, NULL);
    c->polls++;
    carrier_unvisit(NULL);
}

bool poll_once(carrier *c) {
    char ignored[ERROR_SIZE] = "";  // of what a lost device refuses; that it is lost, its maps will say
    error_place = ignored;
    mutex_lock(&c->lock);
    bool asked = c->poll_asked;
    c->wants_poll = c->poll_asked = false;
    uint32_t count = c->buffer_count;
    mutex_unlock(&c->lock);
    for (uint32_t i = 0; i < count; i++) {
        staging *b = c->buffers[i];
        if (!b || b->state != NEW) continue;
        b->state = ELSEWHERE;
        ask_again(c, b, false);
    }
    bool any = c->outstanding > 0;
    uint32_t trace = trace_is_on();
    double since = trace ? now() : 0;
    uint64_t owed = c->outstanding;
    poll_unless_lost(c);
    hear_groups(c);
    hear_buffers(c);
    for (unsigned told = times_hear(c); told; told--) heard(c);
    if (trace && c->outstanding < owed) trace_slice(trace_gpu(c, trace), "poll", since, now(), NULL, 0);
    forget_buffers(c, count);
    error_place = NULL;
    if (asked) {
        mutex_lock(&c->lock);
        tell(c, END_POLLED, 0, 0, 0, NULL, true);
        mutex_unlock(&c->lock);
    }
    return any;
}

static double within(double pause) { return pause < SHORTEST ? SHORTEST : pause > LONGEST ? LONGEST : pause; }

// A sleep and a poll cost some 10 µs of CPU, a late poll costs latency. When copies are done can be told from their bytes: a
// little before that is the next poll. Of other work nothing is known: then the pause is a quarter of the time that the oldest
// submit has been in flight, or of the distance to when the last one came back, whichever is shorter.
static double pause_of(const carrier *c) {
    if (!c->group_count) return SHORTEST;
    const group *g = c->groups[0];
    double at = now();
    if (g->bytes && c->rate) {
        double left = start_of(c, g) + (double)g->bytes / c->rate - at;
        return within(left > 0 ? left * 0.8 : -left / 2);
    }
    if (c->holds) return SHORTEST;
    double age = at - g->since, distance = age - c->latency;
    if (distance < 0) distance = -distance;
    return within((age < distance ? age : distance) / 4);
}

THREAD_RESULT gpu_main(void *with) {
    carrier *c = with;
#ifdef __linux__
    prctl(PR_SET_NAME, "aiostage gpu", 0, 0, 0);
    prctl(PR_SET_TIMERSLACK, 2000, 0, 0, 0);  // nanoseconds; 50 µs by itself
#endif
    for (;;) {
        mutex_lock(&c->lock);
        bool stopping = c->stopping, wants_poll = c->wants_poll;
        c->has_news = false;
        mutex_unlock(&c->lock);
        if (stopping) break;
        bool moved = depart_ready(c);
        if (c->outstanding || wants_poll || moved) poll_once(c);
        if (moved || (c->holds && !c->outstanding)) continue;  // what was held back may go now
        mutex_lock(&c->lock);
        c->idle = !c->outstanding;
        if (!c->has_news && !c->stopping) {
            if (c->outstanding) condition_wait_for(&c->news, &c->lock, pause_of(c));
            else condition_wait(&c->news, &c->lock);
        }
        c->idle = false;
        mutex_unlock(&c->lock);
    }
    for (int i = 0; i < 100 && c->outstanding; i++) {  // mappings of buffers that are destroyed now end with a poll
        poll_once(c);
        mutex_lock(&c->lock);
        condition_wait_for(&c->news, &c->lock, SHORTEST);
        mutex_unlock(&c->lock);
    }
    mutex_lock(&c->lock);
    end_thread(c);
    return 0;
}
