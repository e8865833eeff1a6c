// See trace.h. What is put is text, which Python only has to write to a file.
#include "trace.h"

#include <stdlib.h>
#include <string.h>

#include "state.h"

enum { LINE = 1536 };  // bytes of an event, or of two that belong together; titles are cut by who gives them

typedef struct {
    size_t length;
    char text[LINE];
} line;

#ifdef _WIN32
static mutex lock = SRWLOCK_INIT;
#else
static mutex lock = PTHREAD_MUTEX_INITIALIZER;
#endif
_Atomic uint32_t trace_number;
// Under the lock, which comes after all others:
static uint32_t made;  // traces
static double began;
static char *text, *taken;
static size_t used, room;
static uint64_t lost;
static _Atomic uint32_t processes, tracks;
static _Atomic uint64_t flows;

// -- writing an event --

static void say(line *l, const char *some) {
    size_t length = strlen(some);
    if (length > sizeof l->text - l->length) length = sizeof l->text - l->length;
    memcpy(l->text + l->length, some, length);
    l->length += length;
}

static void say_number(line *l, uint64_t number) {
    char digits[24], *at = digits + sizeof digits;
    *--at = 0;
    do *--at = (char)('0' + number % 10);
    while (number /= 10);
    say(l, at);
}

static void say_field(line *l, const char *name, uint64_t number) {
    say(l, name);
    say_number(l, number);
}

// Microseconds with three decimals.
static void say_nanoseconds(line *l, const char *name, uint64_t nanoseconds) {
    say_field(l, name, nanoseconds / 1000);
    char rest[5] = {'.', (char)('0' + nanoseconds / 100 % 10), (char)('0' + nanoseconds / 10 % 10),
                    (char)('0' + nanoseconds % 10), 0};
    say(l, rest);
}

// Since the trace began; what was before that begins with it.
static uint64_t nanoseconds_at(double at) { return at > began ? (uint64_t)((at - began) * 1e9 + 0.5) : 0; }

static void say_where(line *l, const char *phase, trace_track at) {
    say(l, "{\"ph\":\"");
    say(l, phase);
    say_field(l, "\",\"pid\":", at.process);
    say_field(l, ",\"tid\":", at.track);
}

static void put_locked(uint32_t trace, const line *l) {
    if (!trace || trace != atomic_load(&trace_number)) return;
    if (used + l->length > room) {
        lost++;
        return;
    }
    memcpy(text + used, l->text, l->length);
    used += l->length;
}

static void put(uint32_t trace, const line *l) {
    mutex_lock(&lock);
    put_locked(trace, l);
    mutex_unlock(&lock);
}

void trace_slice(trace_track at, const char *name, double begin, double end, const trace_argument *arguments, unsigned count) {
    line l;
    l.length = 0;
    uint64_t from = nanoseconds_at(begin), to = nanoseconds_at(end);
    say_where(&l, "X", at);
    say_nanoseconds(&l, ",\"ts\":", from);
    say_nanoseconds(&l, ",\"dur\":", to > from ? to - from : 0);
    say(&l, ",\"name\":\"");
    say(&l, name);
    say(&l, "\"");
    say(&l, ",\"args\":{");
    bool any = false;
    for (unsigned i = 0; i < count; i++) {
        if (!arguments[i].name) continue;
        say(&l, any ? ",\"" : "\"");
        say(&l, arguments[i].name);
        say_field(&l, "\":", arguments[i].value);
        any = true;
    }
    say(&l, "}},\n");
    put(at.trace, &l);
}

static void say_end(line *l, const char *phase, const char *name, trace_track at, double when, uint64_t id) {
    say_where(l, phase, at);
    say_nanoseconds(l, ",\"ts\":", nanoseconds_at(when));
    say_field(l, ",\"id\":", id);
    say(l, ",\"cat\":\"flow\",\"name\":\"");
    say(l, name);
    say(l, *phase == 'f' ? "\",\"bp\":\"e\"},\n" : "\"},\n");
}

void trace_flow(const char *name, trace_track from, double left, trace_track to, double arrived) {
    line l;
    l.length = 0;
    uint64_t id = atomic_fetch_add(&flows, 1) + 1;
    say_end(&l, "s", name, from, left, id);
    say_end(&l, "f", name, to, arrived, id);
    put(to.trace == from.trace ? to.trace : 0, &l);
}

void trace_count(uint32_t trace, uint32_t process, const char *name, double value) {
    line l;
    l.length = 0;
    say_field(&l, "{\"ph\":\"C\",\"pid\":", process);
    say_nanoseconds(&l, ",\"ts\":", nanoseconds_at(now()));
    say(&l, ",\"name\":\"");
    say(&l, name);
    say_nanoseconds(&l, "\",\"args\":{\"value\":", value > 0 ? (uint64_t)(value * 1e3) : 0);
    say(&l, "}},\n");
    put(trace, &l);
}

// -- processes and tracks --

static void say_title(line *l, const char *what, trace_track at, const char *title) {
    say_where(l, "M", at);
    say(l, ",\"ts\":0,\"name\":\"");
    say(l, what);
    say(l, "\",\"args\":{\"name\":\"");
    say(l, title);
    say(l, "\"}},\n");
}

static void say_order(line *l, const char *what, trace_track at) {
    say_where(l, "M", at);
    say(l, ",\"ts\":0,\"name\":\"");
    say(l, what);
    say_field(l, "\",\"args\":{\"sort_index\":", at.track ? at.track : at.process);
    say(l, "}},\n");
}

static uint32_t add_process(uint32_t trace, const char *title) {
    line l;
    l.length = 0;
    trace_track at = {trace, atomic_fetch_add(&processes, 1) + 1, 0};
    say_title(&l, "process_name", at, title);
    say_order(&l, "process_sort_index", at);
    put_locked(trace, &l);
    return at.process;
}

static uint32_t new_track(void) { return atomic_fetch_add(&tracks, 1) + 1000; }  // no process has such a number

static trace_track entitle(trace_track at, const char *title) {
    line l;
    l.length = 0;
    say_title(&l, "thread_name", at, title);
    say_order(&l, "thread_sort_index", at);
    put_locked(at.trace, &l);
    return at;
}

static trace_track add_track(uint32_t trace, uint32_t process, const char *title) {
    return entitle((trace_track){trace, process, new_track()}, title);
}

uint32_t trace_add_process(uint32_t trace, const char *title) {
    mutex_lock(&lock);
    uint32_t process = add_process(trace, title);
    mutex_unlock(&lock);
    return process;
}

trace_track trace_add_track(uint32_t trace, uint32_t process, const char *title) {
    mutex_lock(&lock);
    trace_track at = add_track(trace, process, title);
    mutex_unlock(&lock);
    return at;
}

static trace_carrier *tracks_of(carrier *c, uint32_t trace) {
    trace_carrier *t = &c->traced;
    if (atomic_load_explicit(&t->trace, memory_order_acquire) == trace) return t;
    mutex_lock(&lock);
    if (atomic_load(&t->trace) != trace) {
        t->process = add_process(trace, *t->title ? t->title : "a device");
        t->gpu = add_track(trace, t->process, "GPU thread").track;
        t->queue = add_track(trace, t->process, "queue, as the polls saw it").track;
        t->gpu_time = new_track();  // above what comes later, if ever it has something
        t->has_gpu_time = false;
        t->copiers = 0;
        memset(t->submits, 0, sizeof t->submits);
        atomic_store(&t->trace, trace);
    }
    mutex_unlock(&lock);
    return t;
}

trace_track trace_gpu(carrier *c, uint32_t trace) {
    const trace_carrier *t = tracks_of(c, trace);
    return (trace_track){trace, t->process, t->gpu};
}

void trace_submitted(carrier *c, uint32_t trace, uint64_t fence, double at) {
    trace_carrier *t = tracks_of(c, trace);
    mutex_lock(&lock);
    t->submits[fence % TRACE_SUBMITS].fence = fence;
    t->submits[fence % TRACE_SUBMITS].at = at;
    mutex_unlock(&lock);
}

static double submit_of(carrier *c, uint32_t trace, uint64_t fence) {
    const trace_carrier *t = tracks_of(c, trace);
    mutex_lock(&lock);
    double at = t->submits[fence % TRACE_SUBMITS].fence == fence ? t->submits[fence % TRACE_SUBMITS].at : 0;
    mutex_unlock(&lock);
    return at;
}

void trace_upload(carrier *c, trace_track task, uint64_t bytes, double since, uint64_t fence) {
    if (!task.trace || task.trace != trace_is_on()) return;
    trace_argument arguments[] = {{"bytes", bytes}, {fence ? "fence" : NULL, fence}};
    double submitted = fence ? submit_of(c, task.trace, fence) : 0;
    trace_slice(task, "upload", since, now(), arguments, 2);
    if (submitted > since) trace_flow("upload", task, since, trace_gpu(c, task.trace), submitted);
}

trace_track trace_queue(carrier *c, uint32_t trace) {
    const trace_carrier *t = tracks_of(c, trace);
    return (trace_track){trace, t->process, t->queue};
}

trace_track trace_copier(carrier *c, uint32_t trace) {
    static _Thread_local trace_track mine;
    trace_carrier *t = tracks_of(c, trace);
    if (mine.trace == trace && mine.process == t->process) return mine;
    line title;
    title.length = 0;
    mutex_lock(&lock);
    say_field(&title, "copy thread ", ++t->copiers);
    title.text[title.length] = 0;
    mine = add_track(trace, t->process, title.text);
    mutex_unlock(&lock);
    return mine;
}

trace_track trace_gpu_time(carrier *c, uint32_t trace) {
    trace_carrier *t = tracks_of(c, trace);
    trace_track at = {trace, t->process, t->gpu_time};
    mutex_lock(&lock);
    if (!t->has_gpu_time) entitle(at, "GPU time, by timestamps");
    t->has_gpu_time = true;
    mutex_unlock(&lock);
    return at;
}

static void end_lane(trace_lane *b, double at) {
    static const char *const names[] = {NULL, "available", "in_use", "fenced"};
    if (b->state) trace_slice(b->at, names[b->state], b->since, at, NULL, 0);
    b->state = TRACE_NOTHING;
}

static void begin_lane(carrier *c, trace_lane *b, uint32_t trace) {
    line title;
    title.length = 0;
    say_field(&title, "ring ", b->ring);
    say_field(&title, ", buffer ", b->index);
    title.text[title.length] = 0;
    b->at = trace_add_track(trace, tracks_of(c, trace)->process, title.text);
    b->state = TRACE_NOTHING;
}

void trace_buffer(carrier *c, staging *s, int state) {
    trace_lane *b = &s->traced;
    uint32_t trace = trace_is_on();
    if (!trace) return;
    if (b->at.trace != trace) {
        if (!state) return;
        begin_lane(c, b, trace);
    }
    if (b->state == state) return;
    double at = now();
    end_lane(b, at);
    b->state = state;
    b->since = at;
}

// -- a trace's life --

bool trace_begin(size_t bytes) {
    mutex_lock(&lock);
    bool begins = !atomic_load(&trace_number);
    if (begins) {
        free(text);
        free(taken);
        text = calloc(1, bytes);
        taken = calloc(1, bytes);
        begins = text && taken;
    }
    if (begins) {
        room = bytes;
        used = 0;
        lost = 0;
        began = now();
        atomic_store(&processes, 0);
        atomic_store(&tracks, 0);
        atomic_store(&flows, 0);
        if (!++made) made = 1;
        atomic_store(&trace_number, made);
    }
    mutex_unlock(&lock);
    return begins;
}

static void end_lanes(carrier *c) {
    mutex_lock(&c->lock);
    for (uint32_t i = 0; i < c->buffer_count; i++)
        if (c->buffers[i] && c->buffers[i]->traced.at.trace == trace_is_on()) end_lane(&c->buffers[i]->traced, now());
    mutex_unlock(&c->lock);
}

void trace_end(void) {
    fate_each(end_lanes);
    mutex_lock(&lock);
    atomic_store(&trace_number, 0);
    mutex_unlock(&lock);
}

size_t trace_take(const char **into, uint64_t *count) {
    mutex_lock(&lock);
    char *full = text;
    size_t length = used;
    text = taken;
    taken = full;
    used = 0;
    *count = lost;
    lost = 0;
    mutex_unlock(&lock);
    *into = full;
    return length;
}

void trace_forget(void) {
    mutex_lock(&lock);
    free(text);
    free(taken);
    text = taken = NULL;
    used = room = 0;
    mutex_unlock(&lock);
}

// A forked child has nobody that writes.
void trace_before_fork(void) { mutex_lock(&lock); }
void trace_after_fork(void) { mutex_unlock(&lock); }
