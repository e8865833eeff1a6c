// The carrier on a simulated GPU, in schedules that are drawn from a seed: jobs, departures, whole uploads, buffers that are
// lent, cancels, destroys, visits, losses, stops, in any order. Each is looked at as it happens, and all of it in the end.
//
//     random_schedules stepped|threads SEED [COUNT]
//
// `stepped` makes each step of the threads' work itself; with `threads` there are real ones, and two more that finish the
// GPU's work and meddle. Linked with -Wl,--wrap=calloc,--wrap=free, which count what is not freed, and with pread and preadv,
// which give less than they could, and fail where a file is bad.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "../state.h"
#include "simulated_gpu.h"

enum { BUFFERS = 6, TARGETS = 6, LANES = 5, MOST = 400, MOST_COPIES = 8, MOST_ALL = 600 };
enum { SMALL = 64, LARGE = 1400000 };  // bytes of a copy; large ones have two shares
enum { MOST_WHOLES = 60, MOST_PIECES = 64, MOST_RINGS = 2 };
enum { COMING, HERE, GOING, LENT, DEAD };  // a staging buffer
enum { WRITTEN, COPIED, STRIDED, SCATTERED, READ, READ_SHORT, READ_WRONG, EMPTY, WAYS };
static const uint64_t MAGIC = 0xC0FFEE0000000000;        // of the first word of a copy, with its number
static const uint64_t WHOLE_MAGIC = 0xFADE000000000000;  // of every word of an upload, with its number, and the word's

typedef struct {  // one that fills a copy's place
    uint64_t id;
    uint8_t *owner;  // what it reads, or what stands for that
    bool ended, failed, cancelled, fails;
    unsigned buffer;
} task;

typedef struct {  // a copy
    uint64_t trip, index, offset, to_offset, size;
    thing *from, *to;
    task *task;
    bool is_refused, first_use, saw_first_use, dropped, submitted, left_out, wanted;
} copy;

typedef struct {
    uint64_t serial, submitted_as;  // the carrier's, and the GPU's
    uint32_t lane;
    bool is_mark, is_urgent, made, lost;
    copy *copies[2 * MOST_COPIES];
    thing *commands[2];
    unsigned buffers[2];
    uint32_t copy_count, command_count, buffer_count;
} trip;

typedef struct {  // a whole upload
    uint64_t it;
    thing *to;
    uint8_t *data, *seen;  // what it reads; and of each word, whether it was submitted, and used first
    unsigned ring;
    uint64_t words, row, at, refused;  // in all, and in a row; where the first goes; one that is, or UINT64_MAX
    uint64_t extent;                   // of the data
    uint64_t file_at, bad_at, bad;     // where they begin in the file, and cannot be read; and the word there; or UINT64_MAX
    int bad_error;                     // that it gives there; 0: it ends
    bool failed;                       // it did
    uint64_t arrived, submitted_as, serial;
    bool posted, ended, cancelled, wanted, first_use;
} whole;

typedef struct {
    ring *it;
    unsigned wanted, late;  // buffers that are to come back, and that were when fewer were wanted
} lender;

typedef struct {
    thing *thing;  // whose mark is the ring that has it
    uint32_t number;
    int state;
    unsigned ring;  // 1 for the first; 0: none
    uint64_t used;
    copy *staged[MOST_COPIES];
    unsigned staged_count, busy;
} place;

typedef struct {
    simulated_gpu gpu;
    carrier *c;
    thing *probe;
    uint64_t slot, slots, room;  // bytes of a copy; copies in a target, and in a staging buffer
    place buffers[BUFFERS];
    uint32_t forgotten[MOST];  // that will be told of once more
    unsigned forgotten_count;
    thing *targets[TARGETS];
    thing *all[MOST_ALL];  // targets and staging buffers, kept until the end
    unsigned all_count;
    task *tasks;
    copy *copies;
    trip *trips;
    whole *wholes;
    lender rings[MOST_RINGS];
    unsigned task_count, copy_count, trip_count, whole_count, ring_count;
    uint64_t reached, lanes[LANES], seen_in, seen_trip, seen_commands, polls_asked, polls;
    bool lost, told_lost, device_gone, stopped;
    thing *wanted;  // a target that its owner uses
} world;

static bool threads;
static uint64_t seed, step;
static int file = -1;
static uint64_t file_end;
static _Atomic int64_t memory;
static _Atomic bool calm, over;  // nobody meddles any more, since that may help on what waits; all is
static gpu_handle visited[64];
static unsigned visits;

_Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "random_schedules %s %llu: step %llu: ", threads ? "threads" : "stepped", (unsigned long long)seed,
            (unsigned long long)step);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    _exit(1);
}

static void hangs(int signal) {
    (void)signal;
    fail("it hangs");
}

void *__real_calloc(size_t, size_t);
void __real_free(void *);

void *__wrap_calloc(size_t count, size_t size) {
    atomic_fetch_add(&memory, 1);
    return __real_calloc(count, size);
}

void __wrap_free(void *what) {
    if (what) atomic_fetch_sub(&memory, 1);
    __real_free(what);
}

// -- what the bytes of a copy are --

static uint64_t word_of(uint64_t number, uint64_t k) { return k ? number * 0x9E3779B97F4A7C15ull + k : MAGIC + number; }

static void write_words(uint8_t *to, uint64_t number, uint64_t bytes, uint64_t step_between) {
    for (uint64_t k = 0; k < bytes / 8; k++) {
        uint64_t word = word_of(number, k);
        memcpy(to + k * step_between, &word, 8);
    }
}

static bool has_words(const uint8_t *at, uint64_t number, uint64_t bytes) {
    for (uint64_t k = 0; k < bytes / 8; k++) {
        uint64_t word;
        memcpy(&word, at + k * 8, 8);
        if (word != word_of(number, k)) return false;
    }
    return true;
}

static uint64_t whole_word(const world *w, const whole *u, uint64_t k) {
    return WHOLE_MAGIC | (uint64_t)(u - w->wholes) << 32 | k;
}

static uint64_t number_of(const world *w, const copy *p) { return (uint64_t)(p - w->copies); }

// -- what the GPU is given; with the lock --

static copy *copy_at(world *w, thing *from, uint64_t offset) {
    uint64_t word;
    memcpy(&word, from->memory + offset, 8);
    if (word - MAGIC >= w->copy_count) fail("a copy goes before its bytes are there");
    return &w->copies[word - MAGIC];
}

// The upload that a word is of, or NULL.
static whole *whole_of(world *w, uint64_t word) {
    uint64_t number = (word - WHOLE_MAGIC) >> 32;
    return word >= WHOLE_MAGIC && number < w->whole_count ? &w->wholes[number] : NULL;
}

// Where its word goes: a texture's rows are a slot apart.
static uint64_t place_of(const world *w, const whole *u, uint64_t k) { return u->at + k / u->row * w->slot + k % u->row * 8; }

static bool share_a_place(const world *w, const whole *u, const whole *v) {
    if (u->to != v->to) return false;
    if (u->to->kind == BUFFER) return u->at < v->at + 8 * v->words && v->at < u->at + 8 * u->words;
    uint64_t x = u->at % w->slot, y = u->at / w->slot, other_x = v->at % w->slot, other_y = v->at / w->slot;
    return x < other_x + 8 * v->row && other_x < x + 8 * u->row && y < other_y + v->words / v->row &&
           other_y < y + u->words / u->row;
}

static bool is_refused(simulated_gpu *gpu, const piece *p) {
    world *w = gpu->owner;
    uint64_t word;
    memcpy(&word, p->from->memory + p->offset, 8);
    whole *u = whole_of(w, word);
    if (u) return u->refused >= (uint32_t)word && u->refused < (uint32_t)word + p->size / 8;
    return word - MAGIC < w->copy_count && w->copies[word - MAGIC].is_refused;
}

static trip *go(world *w, uint64_t number) {
    if (!number || number > w->trip_count) fail("the GPU is given what never departed");
    trip *t = &w->trips[number - 1];
    if (w->seen_in == w->gpu.submitted && number < w->seen_trip) fail("departures of a submit are in no order");
    if (t->lane && w->lanes[t->lane] > number) fail("a departure overtakes another of its lane");
    if (t->lane) w->lanes[t->lane] = number;
    if (t->submitted_as && t->submitted_as != w->gpu.submitted) fail("a departure goes in two submits");
    t->submitted_as = w->seen_in = w->gpu.submitted;
    w->seen_trip = number;
    return t;
}

static void see_piece(world *w, whole *u, uint64_t first, const piece *p) {
    uint64_t last = first + p->size / 8 - 1;
    if (!u->posted || u->ended) fail("a piece of no upload is submitted");
    if (p->from->mark != u->ring + 1) fail("a piece goes from a buffer that its ring does not have");
    if (last >= u->words || p->to != u->to || p->to_offset != place_of(w, u, first) ||
        place_of(w, u, last) - place_of(w, u, first) != p->size - 8)
        fail("a piece goes to another place");
    for (uint64_t k = first; k <= last; k++) {
        uint64_t word;
        memcpy(&word, p->from->memory + p->offset + 8 * (k - first), 8);
        if (word != whole_word(w, u, k)) fail("a piece goes before all of its bytes are there");
        if (k == u->bad) fail("bytes go that could not be read");
        if (u->seen[k] & 1) fail("bytes of an upload go twice");
        u->seen[k] |= 1;
    }
    if (u->first_use && !(u->seen[first] & 2)) fail("a first use was not made");
    for (whole *later = u + 1; later < w->wholes + w->whole_count; later++)
        if (later->arrived && share_a_place(w, u, later)) fail("an upload overtakes another to the same place");
    u->arrived += last + 1 - first;
    u->submitted_as = w->gpu.submitted;
}

static void see_copy(simulated_gpu *gpu, const piece *p) {
    world *w = gpu->owner;
    uint64_t word;
    memcpy(&word, p->from->memory + p->offset, 8);
    memcpy(p->to->shadow + p->to_offset, p->from->memory + p->offset, p->size);
    whole *u = whole_of(w, word);
    if (u) {
        see_piece(w, u, (uint32_t)word, p);
        return;
    }
    copy *it = copy_at(w, p->from, p->offset);
    if (it->from != p->from || it->to != p->to || it->offset != p->offset || it->to_offset != p->to_offset ||
        it->size != p->size)
        fail("a copy is not what it was");
    if (!has_words(p->from->memory + p->offset, number_of(w, it), p->size)) fail("a copy goes before all of its bytes are there");
    if (p->from->mark) fail("a copy goes from a buffer that is lent");
    if (it->submitted) fail("a copy is submitted twice");
    if (it->dropped) fail("a copy that was dropped is submitted");
    if (it->task && (it->task->fails || it->task->cancelled)) fail("a copy is submitted whose job failed");
    if (it->first_use && !it->saw_first_use) fail("a first use was not made");
    uint64_t order = it->trip << 16 | (it->index + 1);
    if (order <= it->to->mark) fail("a copy overtakes another to the same place");
    it->to->mark = order;
    if (w->seen_commands == it->trip) fail("a copy comes after the commands of its departure");
    go(w, it->trip);
    it->submitted = true;
}

static void see_commands(simulated_gpu *gpu, thing *commands) {
    world *w = gpu->owner;
    go(w, commands->mark);
    w->seen_commands = commands->mark;
}

static void see_first_use(simulated_gpu *gpu, thing *texture, uint64_t at, const uint8_t *data, uint64_t size) {
    world *w = gpu->owner;
    uint64_t word;
    memcpy(&word, data, size);
    whole *u = whole_of(w, word);
    if (u) {
        uint64_t k = (uint32_t)word;
        if (u->to != texture || !u->first_use || k >= u->words || place_of(w, u, k) != at) fail("a first use of another place");
        u->seen[k] |= 2;
        return;
    }
    if (word - MAGIC >= w->copy_count) fail("a first use with other bytes");
    copy *p = &w->copies[word - MAGIC];
    if (p->to != texture || p->to_offset != at || !p->first_use || p->submitted) fail("a first use of another place");
    p->saw_first_use = true;
}

// -- ends --

static task *task_of(world *w, uint64_t id) {
    for (unsigned i = w->task_count; i--;)
        if (w->tasks[i].id == id) return &w->tasks[i];
    fail("the end of a job that nobody made");
}

static void hear_job(world *w, const carrier_end *e) {
    task *t = task_of(w, e->id);
    if (t->ended) fail("a job ends twice");
    if ((e->status == JOB_CANCELLED) != t->cancelled) fail("a job that was %scancelled ends with %d", t->cancelled ? "" : "not ", e->status);
    if (!t->cancelled && (e->status != JOB_DONE) != t->fails) fail("a job ends with %d", e->status);
    void *owner = carrier_owner(w->c, e->id);
    if (owner != t->owner) fail("a job has another's owner");
    free(owner);
    t->owner = NULL;
    t->ended = true;
    t->failed = e->status != JOB_DONE;
    w->buffers[t->buffer].busy--;
}

static trip *trip_of(world *w, uint64_t serial) {
    trip *t = w->trips, *end = w->trips + w->trip_count;
    while (t < end && t->serial != serial) t++;
    if (!serial || t == end) fail("the end of what never departed");
    if (t->made || t->lost) fail("a departure ends twice");
    return t;
}

static void hear_left_out(world *w, const carrier_end *e) {
    trip *t = trip_of(w, e->id);
    if (e->value >= t->copy_count) fail("a copy is left out that there is not");
    copy *p = t->copies[e->value];
    simulated_lock();
    bool may = (p->task && (p->task->fails || p->task->cancelled)) || p->to->is_gone || p->wanted || p->is_refused;
    bool submitted = p->submitted;
    simulated_unlock();
    if (!may) fail("a good copy is left out: %s", e->text);
    if (submitted) fail("a copy is left out that was submitted");
    if (p->left_out) fail("a copy is left out twice");
    if (!e->text || !*e->text) fail("a copy is left out for no reason");
    p->left_out = true;
}

static void hear_trip(world *w, const carrier_end *e, bool made) {
    trip *t = trip_of(w, e->id);
    simulated_lock();
    bool fell = made && w->gpu.is_lost;  // between the last look at the device and the submit
    for (uint32_t i = 0; i < t->copy_count; i++) {
        copy *p = t->copies[i];
        if (p->submitted && (!made || p->left_out)) fail("a copy is submitted that was left out, or lost");
        if (!p->submitted && made && !p->left_out && !fell) fail("a copy is neither submitted nor left out");
    }
    for (uint32_t i = 0; i < t->command_count; i++)
        if (t->commands[i]->is_submitted != made && !fell) fail("command buffers are not told of as they were");
    simulated_unlock();
    t->made = made;
    t->lost = !made;
    for (uint32_t i = 0; i < t->buffer_count; i++) w->buffers[t->buffers[i]].state = made ? COMING : DEAD;
}

// With the lock, as the next.
static bool reach_trip(world *w, trip *t, uint64_t serial) {
    if (t->serial <= w->reached || t->serial > serial) return false;
    if (t->lost || !(t->made || t->is_mark)) fail("what was not made is reached");
    if (t->submitted_as > w->gpu.finished) fail("what the GPU has not finished is reached");
    t->made = true;
    return t->serial == serial;
}

static bool reach_whole(world *w, const whole *u, uint64_t serial) {
    if (!u->serial || u->serial > serial) return false;
    if (u->submitted_as > w->gpu.finished) fail("an upload is reached that the GPU has not finished");
    return u->serial == serial;
}

static void hear_reached(world *w, const carrier_end *e) {
    bool known = false;
    if (e->id <= w->reached) fail("the same is reached again");
    if (w->told_lost) fail("a lost device reaches something");
    simulated_lock();
    for (unsigned i = 0; i < w->trip_count; i++) known |= reach_trip(w, &w->trips[i], e->id);
    for (unsigned i = 0; i < w->whole_count; i++) known |= reach_whole(w, &w->wholes[i], e->id);
    simulated_unlock();
    if (!known) fail("a serial is reached that nobody was told of");
    w->reached = e->id;
}

static whole *whole_that_is(world *w, uint64_t it) {
    for (whole *u = w->wholes + w->whole_count; u-- > w->wholes;)
        if (it && u->it == it && !u->ended) return u;
    fail("of an upload that nobody posted, or that has ended");
}

static void check_status(const world *w, const whole *u, const carrier_end *e) {
    bool all = u->arrived == u->words, lost = w->gpu.is_lost || w->device_gone;
    bool unfit = u->to->is_gone || u->wanted || u->refused != UINT64_MAX, may = false;
    switch (e->status) {
    case JOB_DONE: may = all || w->gpu.is_lost; break;  // lost between the last look at the device and the submit
    case JOB_CANCELLED: may = u->cancelled; break;
    case UPLOAD_LEFT_OUT: may = unfit && e->text && *e->text; break;
    case UPLOAD_LOST: may = lost; break;
    default: may = u->failed && e->status == (u->bad_error ? u->bad_error : JOB_SHORT);
    }
    if (!may) fail("an upload of which %s ends with %d", all ? "all arrived" : "not all arrived", e->status);
    if (e->status != JOB_DONE && all) fail("all of an upload arrives, and it ends with %d", e->status);
    if (!lost && u->arrived && !e->value) fail("an upload ends with no serial, and some of it was submitted");
    if (!u->arrived && e->value && !unfit && !u->failed && !lost) fail("an upload ends with another's serial");
}

static void hear_whole(world *w, const carrier_end *e) {
    whole *u = whole_that_is(w, e->id);
    simulated_lock();
    check_status(w, u, e);
    u->ended = true;
    u->serial = e->value;
    if (u->serial <= w->reached) reach_whole(w, u, w->reached);
    simulated_unlock();
    void *owner = carrier_take_upload(w->c, u->it);
    if (owner != u->data) fail("an upload has another's owner");
    free(owner);
    u->data = NULL;
}

// A ring gives a buffer to the loop because that wanted one, or since it is of no use.
static void hear_lent_back(world *w, const place *b, bool is_mapped) {
    lender *r = &w->rings[b->ring - 1];
    if (!is_mapped) return;
    if (r->wanted) r->wanted--;
    else if (r->late) r->late--;
    else fail("a lent buffer is back that nobody wanted");
}

// It is the loop's.
static void have(place *b, uint64_t used) {
    memset(b->thing->memory, 0xEE, used);  // of which none may be submitted
    simulated_lock();
    b->thing->mark = 0;
    simulated_unlock();
    b->ring = 0;
    b->used = 0;
    b->state = HERE;
}

static void hear_back(world *w, const carrier_end *e) {
    place *b = NULL;
    for (unsigned i = 0; i < BUFFERS; i++)
        if (w->buffers[i].thing && w->buffers[i].number == e->id) b = &w->buffers[i];
    for (unsigned i = 0; !b && i < w->forgotten_count; i++)
        if (w->forgotten[i] == e->id) {
            w->forgotten[i] = w->forgotten[--w->forgotten_count];
            return;
        }
    if (!b) fail("a buffer is back that there is not");
    if (b->state != COMING && b->state != LENT) fail("a buffer is back that was not away");
    if (b->state == LENT) hear_lent_back(w, b, e->value);
    simulated_lock();
    bool mapped = b->thing->is_mapped, lost = w->gpu.is_lost || w->device_gone;
    simulated_unlock();
    for (unsigned i = 0; i < w->forgotten_count; i++)
        if (w->forgotten[i] == e->id) fail("a buffer is back as another, that has its number now");
    if (!e->value && !lost && !w->gpu.fails_map) fail("a buffer is not mapped, for no reason");
    if (e->value && !mapped && !lost) fail("a buffer is back that is not mapped");
    if (e->value && (uint8_t *)(uintptr_t)e->value != b->thing->memory) fail("a buffer is back elsewhere");
    if (e->value) have(b, b->state == LENT ? b->thing->size : b->used);
    else b->state = DEAD;
}

static void hear_loss(world *w, const carrier_end *e) {
    if (e->id) {
        hear_trip(w, e, false);
        return;
    }
    simulated_lock();
    bool lost = w->gpu.is_lost || w->device_gone;
    simulated_unlock();
    if (!lost) fail("a device is lost that is not: %s", e->text);
    if (w->told_lost) fail("a device is lost twice");
    w->told_lost = true;
}

static void hear(world *w, carrier_end *e) {
    switch (e->kind) {
    case END_JOB: hear_job(w, e); break;
    case END_LEFT_OUT: hear_left_out(w, e); break;
    case END_MADE: hear_trip(w, e, true); break;
    case END_BACK: hear_back(w, e); break;
    case END_REACHED: hear_reached(w, e); break;
    case END_LOST: hear_loss(w, e); break;
    case END_UPLOAD: hear_whole(w, e); break;
    case END_POLLED:
        if (++w->polls > w->polls_asked) fail("a poll that nobody asked for");
        break;
    default: fail("an end of no kind");
    }
    free(e->text);
}

static bool is_rung(carrier *c) {
    struct pollfd bell = {carrier_bell(c), POLLIN, 0};
    return poll(&bell, 1, 0) == 1;
}

static void take_ends(world *w) {
    carrier_end ends[5];
    bool rung = is_rung(w->c), had = false;
    for (size_t count; (count = carrier_take_ends(w->c, ends, 5));)
        for (size_t i = 0; i < count; i++) {
            had |= ends[i].kind != END_JOB;
            hear(w, &ends[i]);
        }
    if (threads) return;
    if (had && !rung) fail("nobody rang");
    if (is_rung(w->c)) fail("it rings for nothing");
}

// -- buffers and targets --

static void keep_until_the_end(world *w, thing *t) {
    if (w->all_count == MOST_ALL) fail("too many");
    w->all[w->all_count++] = t;
}

static void add_buffer(world *w, place *b) {
    *b = (place){.thing = make_thing(&w->gpu, BUFFER, w->room * w->slot), .state = COMING};
    b->number = carrier_add_buffer(w->c, b->thing, b->thing->size, draw(8) ? GPU_MAP_WRITE : GPU_MAP_READ);
}

static void ruin(thing *t) {  // its `is_gone` is set
    if (carrier_gone(t, "it was destroyed", keep_thing, destroy_thing, release_thing)) destroy_thing(t);
}

static void set_gone(thing *t) {
    simulated_lock();
    t->is_gone = true;
    simulated_unlock();
}

// One that is lent, and used or about to be, is not forgotten; but if nothing is under way any more, it may be.
static void forget_buffer(world *w, place *b, bool rests) {
    if (b->state == GOING || b->busy) return;
    if (b->state == LENT && !rests && (threads || carrier_lent_state(w->c, b->number) != LENT_IDLE)) return;
    bool is_away = b->state == LENT && carrier_lent_state(w->c, b->number) == LENT_AWAY;  // of a lost device
    carrier_forget_buffer(w->c, b->number);
    if (b->state == COMING || is_away) w->forgotten[w->forgotten_count++] = b->number;
    set_gone(b->thing);
    ruin(b->thing);
    release_thing(b->thing);
    *b = (place){0};
}

static void add_target(world *w, unsigned i) {
    thing *t = make_thing(&w->gpu, draw(3) ? BUFFER : TEXTURE, w->slots * w->slot);
    t->shadow = calloc(1, t->size);
    keep_until_the_end(w, t);
    simulated_lock();
    w->targets[i] = t;
    simulated_unlock();
}

// Takes a target away; by any thread.
static void ruin_target(world *w) {
    simulated_lock();
    unsigned i = (unsigned)draw_locked(TARGETS);
    thing *t = w->targets[i];
    if (t == w->wanted) t = NULL;
    if (t) {
        w->targets[i] = NULL;
        t->is_gone = true;
        t->references++;
    }
    bool visited_now = visits;
    simulated_unlock();
    if (!t) return;
    ruin(t);
    if (!threads && t->is_destroyed == visited_now) fail("destroyed during a visit, or not at once without one");
    release_thing(t);
}

// Its owner maps it, and gives it back.
static void want_target(world *w) {
    simulated_lock();
    thing *t = w->wanted ? NULL : w->targets[draw_locked(TARGETS)];
    w->wanted = t ? t : w->wanted;
    if (t) t->references++;
    for (unsigned i = 0; t && i < w->copy_count; i++) w->copies[i].wanted |= w->copies[i].to == t;
    for (unsigned i = 0; t && i < w->whole_count; i++) w->wholes[i].wanted |= w->wholes[i].to == t;
    simulated_unlock();
    if (!t) return;
    carrier_wait_for_use(t, "it is mapped");
    simulated_lock();
    t->is_used = true;
    simulated_unlock();
}

static void unwant_target(world *w) {
    simulated_lock();
    thing *t = w->wanted;
    if (t) t->is_used = false;
    w->wanted = NULL;
    simulated_unlock();
    if (t) release_thing(t);
}

// -- jobs and departures --

static uint64_t append(const uint8_t *data, uint64_t bytes) {
    uint64_t at = file_end;
    if (pwrite(file, data, bytes, (off_t)at) != (ssize_t)bytes) fail("no room for a file");
    file_end += bytes;
    return at;
}

static uint64_t in_file(uint64_t number, uint64_t bytes) {
    uint8_t *data = calloc(1, bytes);
    write_words(data, number, bytes, 8);
    uint64_t at = append(data, bytes);
    free(data);
    return at;
}

static void read_into(world *w, task *t, uint8_t *to, int from, uint64_t position, uint64_t bytes, bool rings) {
    block b = {.to = to, .run = bytes};
    t->id = carrier_read_block(w->c, &b, from, position, t->owner, rings);
}

static void start_task(world *w, copy *p, int way, unsigned buffer) {
    uint64_t number = number_of(w, p);
    uint8_t *to = p->from->memory + p->offset;
    bool rings = draw(2);
    task *t = &w->tasks[w->task_count++];
    uint64_t words = p->size / 8;
    *t = (task){.owner = calloc(1, way == STRIDED ? 3 * p->size : p->size + (way == SCATTERED ? words * sizeof(block) : 0)),
                .buffer = buffer};
    t->fails = way == READ_WRONG || way == READ_SHORT;
    if (way == COPIED || way == STRIDED) {
        uint64_t between = way == STRIDED ? 24 : 8;
        write_words(t->owner, number, p->size, between);
        block b = {.to = to, .from = t->owner, .run = 8, .dimensions = 1, .count = {p->size / 8}, .to_step = {8},
                   .from_step = {(int64_t)between}};
        block_simplify(&b);
        t->id = carrier_copy_block(w->c, &b, t->owner, rings);
    } else if (way == SCATTERED) {  // many small ones, the last first
        write_words(t->owner, number, p->size, 8);
        block *blocks = (block *)((uint8_t *)t->owner + p->size);
        for (uint64_t i = 0; i < words; i++)
            blocks[words - 1 - i] = (block){.to = to + 8 * i, .from = (uint8_t *)t->owner + 8 * i, .run = 8};
        t->id = carrier_copy_blocks(w->c, blocks, words, draw(2) ? p->size : p->size << 20, t->owner, rings);
    } else if (way == EMPTY) {
        write_words(to, number, p->size, 8);
        read_into(w, t, to, file, 0, 0, rings);
    } else {
        uint64_t at = way == READ_SHORT ? 1ull << 40 : in_file(number, p->size);  // beyond its end, or in it
        read_into(w, t, to, way == READ_WRONG ? 9999 : file, at, p->size, rings);
    }
    w->buffers[buffer].busy++;
    p->task = t;
}

static void stage(world *w) {
    unsigned buffer = (unsigned)draw(BUFFERS), target = (unsigned)draw(TARGETS);
    place *b = &w->buffers[buffer];
    simulated_lock();
    thing *to = w->targets[target];
    simulated_unlock();
    if (!to || !b->thing || b->state != HERE || b->staged_count == w->room || w->copy_count == MOST) return;
    int way = (int)draw(WAYS);
    copy *p = &w->copies[w->copy_count];
    simulated_lock();
    *p = (copy){.from = b->thing, .to = to, .offset = b->used, .to_offset = draw_locked(w->slots) * w->slot, .size = w->slot};
    p->is_refused = draw_locked(40) == 0;
    p->wanted = w->wanted == to;
    p->first_use = to->kind == TEXTURE && draw_locked(3) == 0;
    w->copy_count++;
    simulated_unlock();
    b->used += w->slot;
    if (way == WRITTEN) write_words(b->thing->memory + p->offset, number_of(w, p), p->size, 8);
    else start_task(w, p, way, buffer);
    b->staged[b->staged_count++] = p;
}

static carrier_copy packed(const copy *p) {
    carrier_copy it = {.job = p->task ? p->task->id : 0, .source = (uint64_t)(uintptr_t)p->from, .offset = p->offset,
                       .to = (uint64_t)(uintptr_t)p->to, .first_use = p->first_use};
    if (p->to->kind == BUFFER) {
        it.kind = COPY_TO_BUFFER;
        it.to_offset = p->to_offset;
        it.size = p->size;
        return it;
    }
    it.kind = COPY_TO_TEXTURE;
    it.aspect = GPU_ASPECT_ALL;
    it.to_offset = 8;
    it.size = 1 | 1ull << 32;
    it.origin[0] = (uint32_t)(p->to_offset % 64 / 4);
    it.origin[2] = (uint32_t)(p->to_offset / 64);
    it.extent[0] = (uint32_t)(p->size / 4);
    it.extent[1] = it.extent[2] = it.rows_per_image = 1;
    it.bytes_per_row = it.extent[0] * 4;
    return it;
}

// What may go, as its checks say now. As a ledger does it: after the epoch was asked for.
static uint32_t sift(world *w, trip *t, carrier_copy *records, copy **staged, unsigned count) {
    t->copy_count = 0;
    simulated_lock();
    for (unsigned i = 0; i < count; i++) {
        copy *p = staged[i];
        p->dropped = p->to->is_gone || w->wanted == p->to || (p->task && p->task->failed);
        if (p->dropped) continue;
        p->trip = (uint64_t)(t - w->trips) + 1;
        p->index = t->copy_count;
        records[t->copy_count] = packed(p);
        t->copies[t->copy_count++] = p;
    }
    simulated_unlock();
    return t->copy_count;
}

static void depart(world *w, bool is_mark) {
    static carrier_copy records[2 * MOST_COPIES];
    copy *staged[2 * MOST_COPIES];
    uint64_t jobs[2 * MOST_COPIES];
    uint32_t numbers[2];
    unsigned staged_count = 0, first = (unsigned)draw(BUFFERS);
    if (w->trip_count == MOST) return;
    trip *t = &w->trips[w->trip_count];
    *t = (trip){.is_mark = is_mark, .is_urgent = draw(3) == 0, .lane = (uint32_t)draw(LANES)};
    carrier_departure d = {.is_mark = is_mark, .is_urgent = t->is_urgent, .lane = t->lane};
    for (unsigned k = 0; k < BUFFERS && !is_mark && t->buffer_count < 2; k++) {
        place *b = &w->buffers[(first + k) % BUFFERS];
        if (!b->thing || b->state != HERE || !b->staged_count || draw(2)) continue;
        numbers[t->buffer_count] = b->number;
        t->buffers[t->buffer_count++] = (unsigned)(b - w->buffers);
        for (unsigned i = 0; i < b->staged_count; i++) {
            staged[staged_count++] = b->staged[i];
            if (b->staged[i]->task && !b->staged[i]->task->ended) jobs[d.job_count++] = b->staged[i]->task->id;
        }
        b->staged_count = 0;
        b->state = GOING;
    }
    if (!is_mark)
        for (uint64_t k = draw(3); k--;) {
            thing *commands = t->commands[t->command_count++] = make_thing(&w->gpu, COMMANDS, 0);
            commands->mark = w->trip_count + 1;
        }
    if (!is_mark && !staged_count && !t->command_count) return;
    simulated_lock();
    w->trip_count++;
    simulated_unlock();
    d.buffer_count = t->buffer_count, d.buffers = numbers;
    d.command_count = t->command_count, d.commands = (gpu_handle *)t->commands;
    d.copies = records, d.jobs = jobs;
    for (int tries = 0;; tries++) {
        uint64_t epoch = carrier_epoch();
        d.copy_count = sift(w, t, records, staged, staged_count);
        if (!threads && draw(10) == 0) ruin_target(w);
        t->serial = carrier_depart(w->c, &d, epoch);
        if (t->serial && t > w->trips && t->serial <= t[-1].serial) fail("a departure has another's serial");
        if (t->serial) return;
        if (tries == 1000) fail("it never departs");
    }
}

static void cancel(world *w) {
    if (!w->task_count) return;
    task *t = &w->tasks[w->task_count - 1 - draw(w->task_count < 8 ? w->task_count : 8)];
    if (t->ended || t->cancelled) return;
    // Before anybody else can see it: the flag is what tells that it must not be submitted.
    bool cancelled = carrier_cancel(w->c, t->id);
    simulated_lock();
    t->cancelled = cancelled;
    simulated_unlock();
}

// -- whole uploads, and the buffers that are lent for them --

static uint64_t draw_place(world *w, whole *u) {
    uint64_t slots = w->slots, row = w->slot / 8;  // in words
    if (u->to->kind == BUFFER) {
        uint64_t all = slots * row, at = draw(all);
        if (draw(4) == 0) at = 0;
        u->words = u->row = at && draw(2) ? 1 + draw(all - at < 8 ? all - at : 8) : 1 + (all - at - 1) / (1 + draw(3));
        return 8 * at;
    }
    uint64_t x = w->slot == LARGE || draw(2) ? 0 : draw(row), y = draw(slots);  // large rows lie across others
    u->row = 1 + draw(row - x);
    u->words = u->row * (1 + draw(slots - y));
    return y * w->slot + 8 * x;
}

// Its bytes, some words apart.
static uint64_t make_data(world *w, whole *u) {
    uint64_t apart = u->to->kind == TEXTURE && draw(2) ? 24 : 8;
    u->extent = u->words * apart;
    u->data = calloc(1, u->extent);
    u->seen = calloc(u->words, 1);
    for (uint64_t k = 0; k < u->words; k++) {
        uint64_t word = whole_word(w, u, k);
        memcpy(u->data + k * apart, &word, 8);
    }
    return apart;
}

static carrier_piece piece_from(world *w, const whole *u, uint64_t first, uint64_t words, uint64_t apart) {
    copy like = {.to = u->to, .to_offset = place_of(w, u, first), .size = 8 * words, .first_use = u->first_use};
    carrier_piece p = {.from = (int64_t)(first * apart), .nbytes = 8 * words, .run = 8 * words, .copy = packed(&like)};
    if (apart == 8) return p;
    p.run = 8;
    p.dimensions = 1;
    p.count[0] = words;
    p.to_step[0] = 8;
    p.from_step[0] = (int64_t)apart;
    return p;
}

// One for each row of a texture, or half of it, and one or two for a buffer, where the carrier cuts them.
static uint32_t make_pieces(world *w, const whole *u, uint64_t apart, carrier_piece *pieces) {
    uint32_t count = 0;
    uint64_t half = draw(2) && u->row > 1 ? u->row / 2 : u->row;
    for (uint64_t row = 0; row < u->words; row += u->row) {
        pieces[count++] = piece_from(w, u, row, half, apart);
        if (half < u->row) pieces[count++] = piece_from(w, u, row + half, u->row - half, apart);
    }
    return count;
}

// A piece's even words first, and then the odd ones: they lie in a row in the data, and apart in staging memory.
static void deal_out(whole *u, carrier_piece *p) {
    uint64_t half = p->run / 16;
    uint8_t *dealt = calloc(1, p->run);
    for (uint64_t k = 0; k < 2 * half; k++) memcpy(dealt + 8 * (k % 2 * half + k / 2), u->data + p->from + 8 * k, 8);
    memcpy(u->data + p->from, dealt, p->run);
    free(dealt);
    p->run = 8;
    p->dimensions = 2;
    p->count[0] = 2, p->count[1] = half;
    p->to_step[0] = 8, p->to_step[1] = 16;
    p->from_step[0] = (int64_t)(8 * half), p->from_step[1] = 8;
}

// The data go to the file, where a word may be that cannot be read.
static void move_to_file(whole *u, carrier_piece *pieces, uint32_t count, uint64_t apart) {
    for (uint32_t i = 0; i < count && u->to->kind == TEXTURE; i++)
        if (!pieces[i].dimensions && pieces[i].run % 16 == 0 && draw(2)) deal_out(u, &pieces[i]);
    u->file_at = append(u->data, u->extent);
    if (draw(3)) return;
    uint64_t at = draw(u->words) * apart, word;
    memcpy(&word, u->data + at, 8);
    u->bad = (uint32_t)word;
    u->bad_at = u->file_at + at;
    u->bad_error = draw(2) ? EIO : 0;
}

static bool is_fit(world *w, whole *u) {
    simulated_lock();
    bool fit = !u->to->is_gone && w->wanted != u->to;
    simulated_unlock();
    return fit;
}

static void post(world *w, thing *to) {
    carrier_piece pieces[MOST_PIECES];
    if (w->whole_count == MOST_WHOLES) return;
    whole *u = &w->wholes[w->whole_count];
    *u = (whole){.to = to, .ring = (unsigned)draw(w->ring_count), .refused = UINT64_MAX, .file_at = UINT64_MAX,
                 .bad_at = UINT64_MAX, .bad = UINT64_MAX};
    u->at = draw_place(w, u);
    u->first_use = to->kind == TEXTURE && draw(3) == 0;
    if (draw(20) == 0) u->refused = draw(u->words);
    uint64_t apart = make_data(w, u), most = draw(2) ? w->slot : w->slot / 8 * (1 + draw(16));
    if (to->kind == TEXTURE || most > w->room * w->slot) most = w->slot;
    uint32_t count = make_pieces(w, u, apart, pieces);
    if (draw(3) == 0) move_to_file(u, pieces, count, apart);
    carrier_source source = {u->data, -1, 0, u->data};
    if (u->file_at != UINT64_MAX) source = (carrier_source){NULL, file, u->file_at, u->data};
    simulated_lock();
    w->whole_count++;
    u->posted = true;
    simulated_unlock();
    for (int tries = 0; !u->it; tries++) {
        uint64_t epoch = carrier_epoch();
        if (!is_fit(w, u)) break;
        if (tries == 1000) fail("it is never posted");
        if (!threads && draw(10) == 0) ruin_target(w);
        u->it = carrier_upload(w->c, w->rings[u->ring].it, pieces, count, most, &source, epoch);
    }
    if (u->it) return;
    simulated_lock();
    u->posted = false;
    simulated_unlock();
    free(u->data);
    u->data = NULL;
}

// Some that may be in each other's way.
static void post_some(world *w) {
    simulated_lock();
    thing *to = w->targets[draw_locked(TARGETS)];
    simulated_unlock();
    for (uint64_t k = 1 + draw(3); to && k--;) post(w, to);
}

static void cancel_whole(world *w) {
    if (!w->whole_count) return;
    whole *u = &w->wholes[w->whole_count - 1 - draw(w->whole_count < 6 ? w->whole_count : 6)];
    if (!u->posted) return;
    carrier_cancel_upload(w->c, u->it);
    u->cancelled |= !u->ended;
}

static bool is_free(const place *b) { return b->thing && b->state == HERE && !b->used && !b->staged_count && !b->busy; }

static uint32_t lend(world *w, unsigned ring, uint32_t most) {
    uint32_t numbers[BUFFERS], count = 0;
    for (unsigned i = 0; i < BUFFERS && count < most; i++) {
        place *b = &w->buffers[i];
        if (!is_free(b)) continue;
        numbers[count++] = b->number;
        b->state = LENT;
        b->ring = ring + 1;
        simulated_lock();
        b->thing->mark = b->ring;
        simulated_unlock();
    }
    if (count) carrier_lend(w->c, w->rings[ring].it, numbers, count);
    return count;
}

static bool take_back(world *w, unsigned ring) {
    uint8_t *address = NULL;
    uint32_t number = carrier_take_back(w->c, w->rings[ring].it, &address);
    if (number == UINT32_MAX) return false;
    place *b = w->buffers;
    while (b < w->buffers + BUFFERS && !(b->thing && b->number == number)) b++;
    if (b == w->buffers + BUFFERS || b->state != LENT || b->ring != ring + 1) fail("a buffer is taken back that was not lent");
    simulated_lock();
    bool is_good = b->thing->is_mapped || w->gpu.is_lost;
    simulated_unlock();
    if (!is_good || address != b->thing->memory) fail("a buffer is taken back that is not mapped");
    have(b, b->thing->size);
    return true;
}

static void want(world *w, unsigned ring, unsigned count) {
    lender *r = &w->rings[ring];
    take_ends(w);
    if (threads) r->late += r->wanted;  // which may be on their way
    r->wanted = count;
    carrier_want(w->c, r->it, count);
}

// With nobody else at work: another ring in its place, if nothing of it is left.
static void change_ring(world *w, unsigned ring) {
    for (unsigned i = 0; i < BUFFERS; i++)
        if (w->buffers[i].thing && w->buffers[i].ring == ring + 1) return;
    for (unsigned i = 0; i < w->whole_count; i++)
        if (w->wholes[i].posted && !w->wholes[i].ended && w->wholes[i].ring == ring) return;
    carrier_drop_ring(w->c, w->rings[ring].it);
    w->rings[ring] = (lender){.it = carrier_add_ring(w->c)};
}

static bool all_is_heard(world *w) {
    mutex_lock(&w->c->lock);
    bool all = w->c->end_count == w->c->end_taken;
    mutex_unlock(&w->c->lock);
    return all;
}

static uint64_t open_wholes(const world *w, unsigned ring) {
    uint64_t open = 0;
    for (unsigned i = 0; i < w->whole_count; i++)
        open += w->wholes[i].posted && !w->wholes[i].ended && w->wholes[i].ring == ring;
    return open;
}

// Between two steps, or at rest: what a ring says of itself, and what is known of its buffers.
static void check_ring(world *w, unsigned ring) {
    carrier_ring_counts n = carrier_count_ring(w->c, w->rings[ring].it);
    uint64_t lent = 0, idle = 0, taken = 0;
    for (unsigned i = 0; i < BUFFERS; i++) {
        place *b = &w->buffers[i];
        if (!b->thing || b->ring != ring + 1) continue;
        lent++;
        idle += carrier_lent_state(w->c, b->number) == LENT_IDLE;
        mutex_lock(&w->c->lock);
        taken += buffer_of(w->c, b->number)->taken;
        mutex_unlock(&w->c->lock);
    }
    if (n.lent != lent) fail("a ring has %u buffers, and counts %u", (unsigned)lent, n.lent);
    if (n.in_flight != taken) fail("a ring has %u bytes in flight, and counts %u", (unsigned)taken, (unsigned)n.in_flight);
    if (idle > n.idle || idle + 1 < n.idle || n.idle > lent) fail("a ring has %u idle buffers, and counts %u", (unsigned)idle, n.idle);
    if ((n.idle < lent) != (n.in_flight > 0)) fail("idle buffers and bytes in flight do not add up");
    if (n.most_used > BUFFERS || n.most_used < lent - n.idle) fail("fewer buffers were used than are");
    if (n.waiting > open_wholes(w, ring)) fail("an upload waits that has ended");
    if (n.waiting > n.stalls) fail("an upload waits that never began to");
}

static void check_ring_at_rest(world *w, unsigned ring) {
    carrier_ring_counts n = carrier_count_ring(w->c, w->rings[ring].it);
    check_ring(w, ring);
    if (n.waiting) fail("uploads wait, and all have ended");
    if (n.sealed_bytes != n.bytes) fail("not all that was begun was sealed");
    if (!w->lost && !w->gpu.fails_map && (n.in_flight || n.idle != n.lent)) fail("bytes are in flight, and all have arrived");
}

// -- steps --

static bool reads_of(const job *j, const whole *u) {
    if (j->file >= 0) return u->file_at <= j->position && j->position < u->file_at + u->extent;
    return u->data <= j->block.from && j->block.from < u->data + u->extent;
}

// A piece whose bytes are still to be copied.
static void begin(world *w) {
    mutex_lock(&w->c->lock);
    bool found = begin_piece(w->c);
    job j = found ? *w->c->last_job : (job){0};
    mutex_unlock(&w->c->lock);
    if (!found) return;
    const whole *u = w->wholes;
    while (u < w->wholes + w->whole_count && !(u->data && reads_of(&j, u))) u++;
    if (u == w->wholes + w->whole_count) fail("a piece is begun of no upload");
    if (u->cancelled || u->failed || u->to->is_gone || w->wanted == u->to) fail("a piece is begun of an upload that is over");
}

static void poll_step(world *w) {
    carrier_ring_counts before[MOST_RINGS];
    bool heard = all_is_heard(w);
    for (unsigned i = 0; i < w->ring_count; i++) before[i] = carrier_count_ring(w->c, w->rings[i].it);
    carrier_step(w->c, STEP_POLL, 0);
    for (unsigned i = 0; heard && i < w->ring_count; i++) {
        carrier_ring_counts n = carrier_count_ring(w->c, w->rings[i].it);
        if (n.idle > before[i].idle && before[i].lent - n.lent < w->rings[i].wanted) fail("a buffer is lent again that is wanted");
    }
}

static void visit(world *w) {
    if (visits == sizeof visited / sizeof *visited) return;
    carrier_visit(visited[visits++] = draw(2) ? w->gpu.device : NULL);
}

static void unvisit(void) {
    if (!visits) return;
    unsigned i = (unsigned)draw(visits);
    gpu_handle queue = visited[i];
    visited[i] = visited[--visits];
    carrier_unvisit(queue);
}

static void lose_device(world *w) {
    if (w->lost) return;
    w->lost = true;
    if (draw(2)) {
        simulated_lose(&w->gpu);
        return;
    }
    simulated_lock();
    w->device_gone = w->gpu.device->is_gone = true;
    simulated_unlock();
    carrier_device_gone(w->gpu.device, "the device was destroyed");
    ruin(w->gpu.device);
}

static void settle(world *w) {
    carrier_settle(w->gpu.device);
    if (!threads || w->lost || w->stopped) return;
    simulated_lock();
    for (unsigned i = 0; i < w->trip_count; i++) {
        trip *t = &w->trips[i];
        for (uint32_t k = 0; t->is_urgent && k < t->command_count; k++)
            if (!t->commands[k]->is_submitted) fail("what is urgent is not settled");
    }
    simulated_unlock();
}

static void change_buffer(world *w) {
    place *b = &w->buffers[draw(BUFFERS)];
    if (b->thing) forget_buffer(w, b, false);
    if (!b->thing && w->forgotten_count < MOST) add_buffer(w, b);
}

static void work_step(world *w) {
    if (threads) {
        if (draw(4) == 0) carrier_wait(w->c, 1e-4);
        return;
    }
    switch (draw(6)) {
    case 0: carrier_step(w->c, STEP_COPY, draw(3)); break;
    case 1: carrier_step(w->c, STEP_DEPART, 0); break;
    case 2: poll_step(w); break;
    case 3: simulated_finish(&w->gpu, draw(3)); break;
    case 4: carrier_step(w->c, STEP_PIECE, 0); break;
    case 5: begin(w); break;
    }
}

static void ring_step(world *w) {
    unsigned ring = (unsigned)draw(w->ring_count);
    uint64_t drawn = draw(100);
    if (drawn < 40) post_some(w);
    else if (drawn < 70) lend(w, ring, 1 + (uint32_t)draw(2));
    else if (drawn < 78) take_back(w, ring);
    else if (drawn < 83) want(w, ring, (unsigned)draw(3));
    else if (drawn < 97) cancel_whole(w);
    else change_ring(w, ring);
}

static void any_step(world *w) {
    uint64_t drawn = draw(130);
    if (drawn < 25) stage(w);
    else if (drawn < 55) work_step(w);
    else if (drawn < 67) depart(w, false);
    else if (drawn < 70) depart(w, true);
    else if (drawn < 80) take_ends(w);
    else if (drawn < 84) cancel(w);
    else if (drawn < 87) ruin_target(w);
    else if (drawn < 89) change_buffer(w);
    else if (drawn < 91 && !threads) visit(w);
    else if (drawn < 93 && !threads) unvisit();
    else if (drawn < 94) simulated_poll(&w->gpu);
    else if (drawn < 95) carrier_poll_soon(w->c), w->polls_asked++;
    else if (drawn < 96 && !threads) want_target(w);
    else if (drawn < 97 && !threads) unwant_target(w);
    else if (drawn < 98) settle(w);
    else if (drawn < 99) carrier_listen(w->c);
    else if (drawn < 100) carrier_count(w->c);
    else ring_step(w);
    for (unsigned i = 0; i < w->ring_count && !threads && all_is_heard(w); i++) check_ring(w, i);
    for (unsigned i = 0; i < TARGETS; i++) {
        simulated_lock();
        bool is_there = w->targets[i];
        simulated_unlock();
        if (!is_there && w->all_count + 8 < MOST_ALL) add_target(w, i);
    }
}


// -- who works beside it, with threads --

static world *worlds;
static unsigned world_count;

static void *finish_work(void *unused) {
    while (!atomic_load(&over)) {
        world *w = &worlds[draw(world_count)];
        simulated_finish(&w->gpu, draw(3));
        if (draw(3) == 0) simulated_poll(&w->gpu);
        usleep((useconds_t)draw(100));
    }
    return unused;
}

static void look(world *w) {
    carrier_visit(w->gpu.device);
    simulated_lock();
    thing *t = w->targets[draw_locked(TARGETS)];
    if (t && t->is_gone) t = NULL;
    if (t) t->references++;
    simulated_unlock();
    usleep((useconds_t)draw(100));
    simulated_lock();
    if (t && t->is_destroyed) fail("destroyed during a visit");
    simulated_unlock();
    if (!carrier_is_visited(w->gpu.device)) fail("a visit is forgotten");
    carrier_unvisit(w->gpu.device);
    if (t) release_thing(t);
}

static void *meddle(void *unused) {
    while (!atomic_load(&over)) {
        world *w = &worlds[draw(world_count)];
        switch (atomic_load(&calm) ? 4 : draw(6)) {
        case 0: ruin_target(w); break;
        case 1: look(w); break;
        case 2: want_target(w), usleep((useconds_t)draw(100)), unwant_target(w); break;
        case 3: carrier_settle(w->gpu.device); break;
        case 4: usleep(200); break;
        case 5:
            if (carrier_note_error("of somebody else's")) fail("an error of another thread's is taken");
        }
    }
    return unused;
}

// -- what files give --

ssize_t __real_pread(int, void *, size_t, off_t);
ssize_t __real_preadv(int, const struct iovec *, int, off_t);

// How many bytes of those that are wanted; or -1, or 0.
static ssize_t given(uint64_t at, uint64_t bytes) {
    whole *bad = NULL;
    simulated_lock();
    if (draw_locked(16) == 0) {
        simulated_unlock();
        errno = EINTR;
        return -1;
    }
    if (draw_locked(8) == 0) bytes = 1 + draw_locked(bytes);
    for (unsigned i = 0; i < world_count; i++)
        for (whole *u = worlds[i].wholes; u < worlds[i].wholes + worlds[i].whole_count; u++) {
            if (at > u->bad_at || u->bad_at - at >= bytes) continue;
            bytes = u->bad_at - at;
            if (!bytes) bad = u;
        }
    if (bad) {
        bad->failed = true;
        errno = bad->bad_error;
    }
    simulated_unlock();
    return bad && bad->bad_error ? -1 : (ssize_t)bytes;
}

ssize_t __wrap_pread(int from, void *to, size_t bytes, off_t at) {
    ssize_t got = given((uint64_t)at, bytes);
    return got > 0 ? __real_pread(from, to, (size_t)got, at) : got;
}

ssize_t __wrap_preadv(int from, const struct iovec *to, int count, off_t at) {
    struct iovec rows[64];
    uint64_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += (rows[i] = to[i]).iov_len;
    ssize_t got = given((uint64_t)at, bytes);
    if (got <= 0) return got;
    uint64_t left = (uint64_t)got;
    for (int i = 0; i < count; i++) {
        if (rows[i].iov_len > left) rows[i].iov_len = left;
        left -= rows[i].iov_len;
    }
    return __real_preadv(from, rows, count, at);
}

// -- a schedule, from its beginning to its end --

static void open_world(world *w) {
    *w = (world){.slots = 16, .slot = SMALL, .room = draw(2) ? MOST_COPIES : 1 + draw(2)};
    w->tasks = calloc(MOST, sizeof *w->tasks);
    w->copies = calloc(MOST, sizeof *w->copies);
    w->trips = calloc(MOST, sizeof *w->trips);
    w->wholes = calloc(MOST_WHOLES, sizeof *w->wholes);
    if (draw(threads ? 20 : 60) == 0) w->slots = 2, w->slot = LARGE;
    w->gpu = (simulated_gpu){.owner = w, .see_copy = see_copy, .see_commands = see_commands, .refuses = is_refused,
                             .see_first_use = see_first_use, .is_stepped = !threads, .message_in_done = draw(2)};
    simulated_open(&w->gpu);
    if (threads && draw(2)) w->gpu.slow = 200;
    if (draw(8) == 0) w->gpu.fails_map = 10;
    w->probe = make_thing(&w->gpu, BUFFER, 0);
    w->c = carrier_open(&simulated_functions, w->gpu.device, w->gpu.device, w->probe, w->gpu.message_in_done);
    if (threads && !(carrier_start_gpu(w->c) && carrier_add_copiers(w->c, 1 + (unsigned)draw(3)))) fail("no threads");
    for (unsigned i = 0; i < TARGETS; i++) add_target(w, i);
    for (unsigned i = 0; i < 4; i++) add_buffer(w, &w->buffers[i]);
    w->ring_count = 1 + (unsigned)draw(MOST_RINGS);
    for (unsigned i = 0; i < w->ring_count; i++) w->rings[i].it = carrier_add_ring(w->c);
}

static bool is_at_rest(world *w) {
    carrier_counts n = carrier_count(w->c);
    mutex_lock(&w->c->lock);
    bool idle = n.is_idle && !w->c->has_news;  // it may not have woken yet
    mutex_unlock(&w->c->lock);
    return !n.unfinished && !n.queued && !n.outstanding && (!threads || idle);
}

// For uploads that have no buffer any more: what is free, or another ring has, or a new one.
static void provide(world *w, unsigned ring) {
    for (unsigned i = 0; i < BUFFERS; i++)
        if (w->buffers[i].state == LENT && w->buffers[i].ring == ring + 1) return;
    if (lend(w, ring, 1)) return;
    for (unsigned i = 0; i < w->ring_count; i++)
        if (i != ring && take_back(w, i)) lend(w, ring, 1);
    for (unsigned i = 0; i < BUFFERS; i++) {
        const place *b = &w->buffers[i];
        if (b->thing && (b->state == COMING || b->state == GOING || (b->state == LENT && b->ring == ring + 1))) return;
    }
    change_buffer(w);
}

static void work_on(world *w) {
    if (threads) {
        carrier_wait(w->c, 1e-3);
        return;
    }
    while (carrier_step(w->c, STEP_COPY, 0) || carrier_step(w->c, STEP_PIECE, 0)) {
    }
    carrier_step(w->c, STEP_DEPART, 0);
    simulated_finish(&w->gpu, 100);
    poll_step(w);
}

// What nothing that happens later helps on. Some stays without a buffer, when what it has submitted is done.
static void post_last(world *w) {
    for (unsigned ring = 0; ring < w->ring_count; ring++) {
        if (draw(2)) lend(w, ring, 1);
        if (draw(2)) want(w, ring, 1);
    }
    post_some(w);
    for (uint64_t k = draw(4); k--;) work_on(w);
    for (uint64_t k = draw(3); k--;) cancel_whole(w);
    if (draw(10) == 0) lose_device(w);
}

static void come_to_rest(world *w) {
    for (int i = 0; i < 20000; i++) {
        for (unsigned ring = 0; ring < w->ring_count; ring++)
            if (open_wholes(w, ring)) provide(w, ring);
        work_on(w);
        bool rests = is_at_rest(w);
        take_ends(w);
        if (rests) return;
    }
    fail("it never comes to rest");
}

// The newest serial that the loop was told of.
static uint64_t newest(const world *w) {
    uint64_t serial = w->trip_count ? w->trips[w->trip_count - 1].serial : 0;
    for (unsigned i = 0; i < w->whole_count; i++)
        if (w->wholes[i].serial > serial) serial = w->wholes[i].serial;
    return serial;
}

// What has ended so far is looked at as it comes; now all must have.
static void check_ends(world *w) {
    for (unsigned i = 0; i < w->task_count; i++)
        if (!w->tasks[i].ended) fail("a job never ended");
    for (unsigned i = 0; i < w->trip_count; i++)
        if (!w->trips[i].made && !w->trips[i].lost && !(w->trips[i].is_mark && w->lost)) fail("departure %u never ended", i + 1);
    for (unsigned i = 0; i < BUFFERS; i++)
        if (!w->lost && w->buffers[i].thing && (w->buffers[i].state == COMING || w->buffers[i].state == GOING))
            fail("a buffer never came back");
    for (unsigned i = 0; i < w->whole_count; i++)
        if (w->wholes[i].posted && !w->wholes[i].ended) fail("an upload never ended");
    for (unsigned i = 0; i < w->ring_count; i++) check_ring_at_rest(w, i);
    if (w->polls != w->polls_asked && !(w->polls && w->polls_asked)) fail("a poll was asked for, and none made");
    if (w->lost) return;
    if (w->reached != newest(w)) fail("%u departed, and %u were reached", (unsigned)newest(w), (unsigned)w->reached);
    if (w->told_lost) fail("it is lost, and nobody lost it");
}

// In the order in which it was submitted.
static void check_contents(world *w) {
    for (unsigned i = 0; i < w->all_count; i++) {
        thing *t = w->all[i];
        if (!t->is_gone && memcmp(t->memory, t->shadow, t->size)) fail("a target holds what was not copied to it last");
    }
}

static void forget_all(world *w) {
    for (unsigned i = 0; i < BUFFERS; i++) {
        place *b = &w->buffers[i];
        if (!b->thing) continue;
        if (b->state == GOING || b->busy || (b->state == LENT && w->stopped)) continue;  // it is still worked with: only with the carrier
        forget_buffer(w, b, true);
    }
}

static void drop_rings(world *w) {
    for (unsigned i = 0; i < w->ring_count; i++) {
        carrier_ring_counts n = carrier_count_ring(w->c, w->rings[i].it);
        if (n.lent || n.idle || n.in_flight) fail("a ring has something of buffers that were forgotten");
        carrier_drop_ring(w->c, w->rings[i].it);
    }
}

static void free_owner(void *owner) { free(owner); }

static void close_carrier(world *w) {
    bool joins = draw(3) || !w->stopped;
    if (!joins) {
        atomic_fetch_add(&w->c->references, 1);  // to see when the others have let go
        carrier_drop(w->c);
        do simulated_close(&w->gpu);
        while (atomic_load(&w->c->references) > 1 && !usleep(50));
        let_go(w->c);
        for (unsigned i = 0; i < w->task_count; i++) free(w->tasks[i].owner);
        for (unsigned i = 0; i < w->whole_count; i++) free(w->wholes[i].data);
        return;
    }
    carrier_stop(w->c);
    if (!carrier_join(w->c, 20)) fail("the threads do not end");
    if (draw(2)) take_ends(w);
    carrier_each_owner(w->c, free_owner);
    carrier_drop(w->c);
    simulated_close(&w->gpu);
}

static void close_world(world *w) {
    close_carrier(w);
    for (unsigned i = 0; i < w->all_count; i++)
        if (w->all[i]->is_gone && !w->all[i]->is_destroyed) fail("what was to be destroyed never was");
    for (unsigned i = 0; i < w->all_count; i++) release_thing(w->all[i]);
    for (unsigned i = 0; i < BUFFERS; i++)
        if (w->buffers[i].thing) release_thing(w->buffers[i].thing);
    for (unsigned i = 0; i < w->trip_count; i++)
        for (uint32_t k = 0; k < w->trips[i].command_count; k++) release_thing(w->trips[i].commands[k]);
    release_thing(w->probe);
    release_thing(w->gpu.device);
    free(w->tasks);
    free(w->copies);
    free(w->trips);
    for (unsigned i = 0; i < w->whole_count; i++) free(w->wholes[i].seen);
    free(w->wholes);
}

// A trace of every third schedule; which takes what it may, and neither draws anything nor is waited for.
static bool is_traced(void) { return seed % 3 == 0; }

static void look_at_trace(void) {
    const char *text;
    uint64_t lost;
    size_t length = trace_take(&text, &lost);
    if (length && (text[0] != '{' || memcmp(text + length - 3, "},\n", 3))) fail("a trace has no whole events");
    for (size_t i = 0; i + 1 < length; i++)
        if (text[i] == '\n' && (text[i - 1] != ',' || text[i - 2] != '}' || text[i + 1] != '{')) fail("an event is torn");
}

static void begin_trace(void) {
    if (!is_traced()) return;
    if (!trace_begin(8192) || trace_begin(8192)) fail("one trace begins, and no second");
    uint32_t trace = trace_is_on(), process = trace_add_process(trace, "a loop");
    for (unsigned i = 0; i < world_count; i++) worlds[i].c->poster = trace_add_track(trace, process, "a task");
}

static void end_trace(void) {
    if (!is_traced()) return;
    trace_end();
    look_at_trace();
    trace_forget();
}

static void run_steps(void) {
    uint64_t steps = 20 + draw(threads ? 200 : 100), loss = draw(5) ? UINT64_MAX : draw(steps);
    for (step = 1; step <= steps; step++) {
        world *w = &worlds[draw(world_count)];
        if (step == loss) lose_device(w);
        any_step(w);
        if (is_traced() && step % 16 == 0) look_at_trace();
        if (threads && draw(10) == 0) usleep((useconds_t)draw(200));
    }
}

static void run_schedule(void) {
    static world both[2];
    pthread_t workers[2];
    sow(seed);
    file_end = 0;
    worlds = both;
    world_count = draw(4) ? 1 : 2;
    atomic_store(&over, false);
    atomic_store(&calm, false);
    for (unsigned i = 0; i < world_count; i++) open_world(&worlds[i]);
    begin_trace();
    if (threads && (pthread_create(&workers[0], NULL, finish_work, NULL) || pthread_create(&workers[1], NULL, meddle, NULL)))
        fail("no threads");
    run_steps();
    while (visits) unvisit();
    bool stops = draw(6) == 0;
    atomic_store(&calm, draw(4));
    for (unsigned i = 0; i < world_count; i++) {
        if (stops) {
            carrier_stop(worlds[i].c);
            worlds[i].stopped = true;
        } else {
            if (draw(2)) post_last(&worlds[i]);
            come_to_rest(&worlds[i]);
        }
    }
    atomic_store(&over, true);
    if (seed % 2) end_trace();  // while threads still run, or after them
    for (int i = 0; i < 2 && threads; i++) pthread_join(workers[i], NULL);
    for (unsigned i = 0; i < world_count; i++) {
        world *w = &worlds[i];
        if (w->wanted) unwant_target(w);
        if (!stops) check_ends(w);
        if (!stops && !w->lost) check_contents(w);
        if (draw(2)) {
            forget_all(w);
            if (!stops) drop_rings(w);
        }
        close_world(w);
    }
    if (seed % 2 == 0) end_trace();
    for (int i = 0; i < 20000 && atomic_load(&memory); i++) usleep(100);  // a thread that was joined may be about to let go
    if (things_alive) fail("%u things are never released", (unsigned)things_alive);
    if (atomic_load(&memory)) fail("%d pieces of memory are never freed", (int)atomic_load(&memory));
}

int main(int count, char **words) {
    if (count < 3) return 2;
    threads = !strcmp(words[1], "threads");
    uint64_t first = strtoull(words[2], NULL, 10), schedules = count > 3 ? strtoull(words[3], NULL, 10) : 1;
    FILE *some = tmpfile();
    if (!some) return 2;
    file = fileno(some);
    signal(SIGALRM, hangs);
    for (seed = first; seed < first + schedules; seed++) {
        alarm(60);
        run_schedule();
    }
    printf("%llu schedules\n", (unsigned long long)schedules);
    return 0;
}
