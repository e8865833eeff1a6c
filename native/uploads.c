// Whole uploads: their pieces travel through staging buffers that a ring has lent, without a turn of the loop.
//
// Who copies takes the next piece, and a place for it in the buffer that is being filled. That departs when nobody writes to
// it and it is full, or no piece waits; mapped again, it takes the next. All of this is under the carrier's lock.
#include <stdlib.h>
#include <string.h>

#include "state.h"

enum { ALIGNMENT = 16 };                // of every piece: the largest texel block, so that any copy may start there
static const uint64_t ENOUGH = 4 << 20;  // bytes in a buffer that are not worth waiting for more

struct upload {
    uint64_t number;         // never another's: what was taken can still be cancelled by who has not heard of its end
    upload *before, *after;  // of all that were not taken
    upload *next;            // in its ring's queue, while it has pieces that nobody has begun
    ring *ring;
    gpu_handle to;
    bool to_texture;
    uint32_t mip_level;
    uint64_t start[3], end[3];  // of where it goes: bytes, or texels
    bool may_clash;             // an older one goes there as well
    uint32_t count, begun, ended;  // pieces
    uint64_t nbytes;               // of staging memory
    int32_t status;
    char *why;
    char *gone;       // why nothing may go there any more: not what is being copied either
    uint64_t serial;  // of the last submit
    double since;     // that a piece waits for a buffer, or 0
    trace_track task;  // that posted it
    double posted;
    carrier_source source;
    carrier_piece pieces[];
};

struct ring {
    ring *next;
    upload *first, *last;  // those that have pieces which nobody has begun
    staging *idle;         // the last that came back first: what it has may still be in a cache
    staging *filling;      // takes pieces
    uint32_t wanted;       // buffers that the loop gets when they come back
    carrier_ring_counts counts;
};

// -- the queue of a ring: each upload gives a piece, and goes behind the others --

static void push(ring *r, upload *u) {
    u->next = NULL;
    if (r->last) r->last->next = u;
    else r->first = u;
    r->last = u;
}

static void pull(ring *r, upload *u) {
    upload *before = NULL;
    for (upload *at = r->first; at; before = at, at = at->next) {
        if (at != u) continue;
        if (before) before->next = u->next;
        else r->first = u->next;
        if (r->last == u) r->last = before;
        return;
    }
}

// Those that go to one place do so in the order in which they were posted.
static bool overlaps(const upload *u, const upload *other) {
    if (u->to != other->to || u->mip_level != other->mip_level) return false;
    for (int i = 0; i < 3; i++)
        if (u->start[i] >= other->end[i] || other->start[i] >= u->end[i]) return false;
    return true;
}

static bool clashes(const upload *u) {
    if (!u->may_clash) return false;
    for (const upload *older = u->after; older; older = older->after)
        if (older->ended < older->count && overlaps(u, older)) return true;
    return false;
}

// Whose piece is the next.
static upload *next_of(const ring *r) {
    upload *u = r->first;
    while (u && clashes(u)) u = u->next;
    return u;
}

// -- buffers that are lent --

static void rest(ring *r, staging *b) {
    b->next = r->idle;
    r->idle = b;
    r->counts.idle++;
    trace_buffer(b->carrier, b, TRACE_AVAILABLE);
}

static staging *rise(ring *r) {
    staging *b = r->idle;
    if (!b) return NULL;
    r->idle = b->next;
    r->counts.idle--;
    uint32_t used = r->counts.lent - r->counts.idle;
    if (used > r->counts.most_used) r->counts.most_used = used;
    return b;
}

static void depart_filled(carrier *c, staging *b) {
    ring *r = b->ring;
    departure *d = b->load;
    bool is_part = next_of(r) != NULL;
    for (uint32_t i = 0; i < d->copy_count; i++) is_part |= d->uploads[i]->count > 1;
    r->counts.seals++;
    r->counts.sealed_bytes += b->taken;
    r->counts.cramped += is_part;
    if (b->taken > r->counts.sealed_most) r->counts.sealed_most = b->taken;
    b->load = NULL;
    trace_buffer(c, b, TRACE_FENCED);
    queue_departure(c, d);
}

// It takes no more pieces.
static void close_filling(carrier *c, ring *r) {
    staging *b = r->filling;
    r->filling = NULL;
    if (b && !b->writers) depart_filled(c, b);
}

static bool has_room(const staging *b, const carrier_piece *p) {
    return b && b->head < ENOUGH && b->head + p->nbytes <= b->size;
}

static staging *room_for(carrier *c, ring *r, const carrier_piece *p) {
    if (has_room(r->filling, p)) return r->filling;
    close_filling(c, r);
    staging *b = rise(r);
    if (!b) return NULL;
    departure *d = b->load = grab(sizeof *d);
    d->buffers = grab(sizeof *d->buffers);
    d->buffers[0] = b->number;
    d->buffer_count = 1;
    trace_buffer(c, b, TRACE_IN_USE);
    b->head = b->taken = 0;
    return r->filling = b;
}

bool lend_again(carrier *c, staging *b) {
    ring *r = b->ring;
    if (!r || b->forgotten) return false;
    r->counts.in_flight -= b->taken;
    b->taken = 0;
    if (r->wanted) {
        r->wanted--;
        r->counts.lent--;
        b->ring = NULL;
        return false;
    }
    rest(r, b);
    if (r->first) wake_copiers(c, 1);
    return true;
}

void forget_lent(staging *b) {
    ring *r = b->ring;
    if (!r) return;
    for (staging **at = &r->idle; *at; at = &(*at)->next) {
        if (*at != b) continue;
        *at = b->next;
        r->counts.idle--;
        break;
    }
    if (r->filling == b) r->filling = NULL;
    r->counts.in_flight -= b->taken;
    b->taken = 0;
    r->counts.lent--;
    b->ring = NULL;
}

// -- pieces --

static void stall(ring *r, upload *u) {
    if (u->since) return;
    u->since = now();
    r->counts.stalls++;
    r->counts.waiting++;
}

static void resume(ring *r, upload *u) {
    if (!u->since) return;
    double at = now();
    r->counts.stall_seconds += at - u->since;
    if (u->task.trace) trace_slice(u->task, "stall", u->since, at, NULL, 0);
    r->counts.waiting--;
    u->since = 0;
}

static void end_upload(carrier *c, upload *u) {
    u->ring->counts.wanted -= u->nbytes;
    trace_upload(c, u->task, u->nbytes, u->posted, u->serial);
    tell(c, END_UPLOAD, u->status, u->number, u->serial, u->why, true);
    for (departure *d = c->departures; d; d = d->next)
        if (d->serial == u->serial) d->is_told = true;
    if (u->serial > c->reached && u->serial <= c->done && !c->lost) {  // before it was told of
        c->reached = u->serial;
        tell(c, END_REACHED, 0, c->reached, 0, NULL, true);
    }
    wake_copiers(c, 1);  // for one that may have waited for it
}

// Its other pieces are not begun any more.
static void drop_rest(carrier *c, upload *u, int32_t status, const char *why) {
    if (u->begun == u->count) return;
    resume(u->ring, u);
    pull(u->ring, u);
    u->count = u->begun;
    if (u->status == JOB_DONE) {
        u->status = status;
        u->why = why ? text_of(why) : NULL;
    }
    if (u->ended == u->count) end_upload(c, u);
    if (!next_of(u->ring) && u->ring->filling && !u->ring->filling->writers) close_filling(c, u->ring);
}

void end_piece(carrier *c, departure *d, uint32_t index, bool made) {
    upload *u = d->uploads[index];
    const char *why = d->reasons ? d->reasons[index] : NULL;
    if (made && d->serial > u->serial) u->serial = d->serial;  // also of a submit without it: its buffer is away
    if (u->status == JOB_DONE && (why || !made)) {
        u->status = made ? UPLOAD_LEFT_OUT : UPLOAD_LOST;
        u->why = why ? text_of(why) : NULL;
    }
    if (++u->ended == u->count) end_upload(c, u);
}

bool pieces_wait(const carrier *c) {
    for (const ring *r = c->rings; r; r = r->next)
        if ((r->idle || r->filling) && next_of(r)) return true;
    return false;
}

block block_of_piece(const carrier_piece *p, uint8_t *to, const uint8_t *data) {
    block b = {.to = to, .from = data ? data + p->from : NULL, .run = p->run, .swap = p->swap, .dimensions = p->dimensions};
    memcpy(b.count, p->count, sizeof b.count);
    memcpy(b.to_step, p->to_step, sizeof b.to_step);
    memcpy(b.from_step, p->from_step, sizeof b.from_step);
    block_simplify(&b);
    return b;
}

bool begin_piece(carrier *c) {
    for (ring *r = c->rings; r && !c->lost; r = r->next) {
        upload *u = next_of(r);
        if (!u) continue;
        carrier_piece *p = &u->pieces[u->begun];
        staging *b = room_for(c, r, p);
        if (!b) {
            stall(r, u);
            continue;
        }
        resume(r, u);
        pull(r, u);
        if (++u->begun < u->count) push(r, u);
        p->copy.source = (uint64_t)(uintptr_t)b->handle;
        p->copy.offset = b->head;
        r->counts.pieces++;
        r->counts.bytes += p->nbytes;
        r->counts.in_flight += p->nbytes;
        b->taken += p->nbytes;
        b->writers++;
        job *j = grab(sizeof *j);
        *j = (job){.file = u->source.file, .upload = u, .piece = p, .into = b};
        j->block = block_of_piece(p, b->address + b->head, u->source.data);
        j->position = u->source.position + (uint64_t)p->from;
        b->head = (b->head + p->nbytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        queue_job(c, j);
        return true;
    }
    return false;
}

void piece_copied(carrier *c, job *j) {
    staging *b = j->into;
    departure *d = b->load;
    upload *u = j->upload;
    add_copy(d, &j->piece->copy, u);
    if (u->gone) leave_out(d, d->copy_count - 1, u->gone);
    if (j->status != JOB_DONE) {
        leave_out(d, d->copy_count - 1, "its data could not be read");
        if (u->status == JOB_DONE) u->status = j->status;
        drop_rest(c, u, j->status, NULL);
    }
    b->writers--;
    if (!b->writers && (b != b->ring->filling || !next_of(b->ring) || c->lost)) {
        if (b == b->ring->filling) b->ring->filling = NULL;
        depart_filled(c, b);
    }
}

// -- what the loop calls --

ring *carrier_add_ring(carrier *c) {
    ring *r = grab(sizeof *r);
    mutex_lock(&c->lock);
    r->next = c->rings;
    c->rings = r;
    mutex_unlock(&c->lock);
    return r;
}

void carrier_drop_ring(carrier *c, ring *r) {
    mutex_lock(&c->lock);
    bool is_used = false;
    for (upload *u = c->uploads; u; u = u->after) is_used |= u->ring == r;
    ring **at = &c->rings;
    while (*at && *at != r) at = &(*at)->next;
    if (*at && !is_used) {
        *at = r->next;
        free(r);
    }
    mutex_unlock(&c->lock);
}

void carrier_lend(carrier *c, ring *r, const uint32_t *buffers, uint32_t count) {
    mutex_lock(&c->lock);
    for (uint32_t i = 0; i < count; i++) {
        staging *b = buffer_of(c, buffers[i]);
        b->ring = r;
        r->counts.lent++;
        rest(r, b);
    }
    if (r->first) wake_copiers(c, count);
    mutex_unlock(&c->lock);
}

// By a piece that waits for nothing else.
static bool is_about_to_be_used(const ring *r, const staging *b) {
    const upload *u = b == r->idle ? next_of(r) : NULL;
    return u && !has_room(r->filling, &u->pieces[u->begun]);
}

uint32_t carrier_take_back(carrier *c, ring *r, uint8_t **address) {
    mutex_lock(&c->lock);
    staging *b = r->idle && is_about_to_be_used(r, r->idle) ? r->idle->next : r->idle;
    if (b) {
        *address = b->address;
        forget_lent(b);
    }
    mutex_unlock(&c->lock);
    return b ? b->number : UINT32_MAX;
}

void carrier_want(carrier *c, ring *r, uint32_t count) {
    mutex_lock(&c->lock);
    r->wanted = count;
    mutex_unlock(&c->lock);
}

carrier_ring_counts carrier_count_ring(carrier *c, ring *r) {
    mutex_lock(&c->lock);
    carrier_ring_counts counts = r->counts;
    mutex_unlock(&c->lock);
    return counts;
}

int carrier_lent_state(carrier *c, uint32_t buffer) {
    mutex_lock(&c->lock);
    staging *b = buffer_of(c, buffer);
    int state = LENT_AWAY;  // also of one that the loop is about to hear of
    if (b && b->ring && (b->load || is_about_to_be_used(b->ring, b))) state = LENT_FILLING;
    else if (b && b->ring && !b->taken) state = LENT_IDLE;
    mutex_unlock(&c->lock);
    return state;
}

// How many parts of at most so many bytes it is cut into: bytes for a buffer are, texels come as they are to go.
static uint32_t parts_of(const carrier_piece *p, uint64_t most) {
    return p->dimensions || p->nbytes <= most ? 1 : (uint32_t)((p->nbytes + most - 1) / most);
}

static void note_place(upload *u, const carrier_copy *copy) {
    for (int i = 0; i < 3; i++) {
        uint64_t start = u->to_texture ? copy->origin[i] : i ? 0 : copy->to_offset;
        uint64_t end = start + (u->to_texture ? copy->extent[i] : i ? 1 : copy->size);
        if (start < u->start[i] || !u->count) u->start[i] = start;
        if (end > u->end[i]) u->end[i] = end;
    }
}

static void take_part(carrier_piece *p, uint64_t start, uint64_t most) {
    p->from += (int64_t)start;
    p->copy.to_offset += start;
    p->nbytes = p->run = p->copy.size = p->nbytes - start < most ? p->nbytes - start : most;
}

static upload *make_upload(ring *r, const carrier_piece *given, uint32_t count, uint64_t most) {
    uint32_t total = 0;
    for (uint32_t i = 0; i < count; i++) total += parts_of(&given[i], most);
    upload *u = grab(sizeof *u + total * sizeof *u->pieces);
    u->ring = r;
    u->to = (gpu_handle)(uintptr_t)given->copy.to;
    u->to_texture = given->copy.kind == COPY_TO_TEXTURE;
    u->mip_level = given->copy.mip_level;
    for (uint32_t i = 0; i < count; i++) {
        note_place(u, &given[i].copy);
        uint32_t parts = parts_of(&given[i], most);
        for (uint32_t k = 0; k < parts; k++) {
            carrier_piece *p = &u->pieces[u->count++];
            *p = given[i];
            if (parts > 1) take_part(p, k * most, most);
            u->nbytes += p->nbytes;
        }
    }
    return u;
}

static void unlink_upload(carrier *c, upload *u) {
    if (u->before) u->before->after = u->after;
    else c->uploads = u->after;
    if (u->after) u->after->before = u->before;
    else c->oldest_upload = u->before;
}

// Those end first that were posted first, mostly.
static upload *find_upload(carrier *c, uint64_t number) {
    upload *u = c->oldest_upload;
    while (u && u->number != number) u = u->before;
    return u;
}

static void free_upload(carrier *c, upload *u) {
    (u->to_texture ? c->gpu.release_texture : c->gpu.release_buffer)(u->to);
    free(u->why);
    free(u->gone);
    free(u);
}

uint64_t carrier_upload(carrier *c, ring *r, const carrier_piece *pieces, uint32_t count, uint64_t most,
                        const carrier_source *source, uint64_t checked_at) {
    uint64_t number = 0;
    bool wakes = false;
    upload *u = make_upload(r, pieces, count, most);
    u->source = *source;
    u->task = c->poster;
    if (u->task.trace) u->posted = now();
    (u->to_texture ? c->gpu.keep_texture : c->gpu.keep_buffer)(u->to);
    fate_lock();
    if (checked_at == carrier_epoch()) {
        mutex_lock(&c->lock);
        number = u->number = ++c->uploads_made;
        u->after = c->uploads;
        if (u->after) u->after->before = u;
        else c->oldest_upload = u;
        c->uploads = u;
        c->unfinished_uploads++;
        for (upload *older = u->after; older; older = older->after)
            u->may_clash |= older->ended < older->count && overlaps(u, older);
        push(r, u);
        r->counts.wanted += u->nbytes;
        if (r->counts.wanted > r->counts.most_wanted) r->counts.most_wanted = r->counts.wanted;
        if (c->lost) drop_rest(c, u, UPLOAD_LOST, NULL);
        else wakes = c->idle_copiers > 0;
        mutex_unlock(&c->lock);
    }
    fate_unlock();
    if (wakes) condition_wake(&c->work);  // who needs none of the locks any more
    if (!number) free_upload(c, u);
    return number;
}

void carrier_cancel_upload(carrier *c, uint64_t number) {
    mutex_lock(&c->lock);
    upload *u = find_upload(c, number);
    if (u) drop_rest(c, u, JOB_CANCELLED, NULL);
    mutex_unlock(&c->lock);
}

// Its caller has the destination still, so that letting go of it waits for nobody.
void *carrier_take_upload(carrier *c, uint64_t number) {
    mutex_lock(&c->lock);
    upload *u = find_upload(c, number);
    void *owner = u->source.owner;
    c->unfinished_uploads--;
    unlink_upload(c, u);
    mutex_unlock(&c->lock);
    free_upload(c, u);
    return owner;
}

// -- what others see to --

void leave_out_uploads(carrier *c, gpu_handle resource, const char *why) {
    for (upload *u = c->uploads, *after; u; u = after) {
        after = u->after;
        if (resource && u->to != resource) continue;
        if (resource && !u->gone) u->gone = text_of(why);
        drop_rest(c, u, resource ? UPLOAD_LEFT_OUT : UPLOAD_LOST, why);
    }
}

void each_upload_owner(carrier *c, void (*take)(void *)) {
    for (upload *u = c->uploads; u; u = u->after) {
        if (u->source.owner) take(u->source.owner);
        u->source.owner = NULL;
    }
}

void free_rings(carrier *c) {
    while (c->uploads) {
        upload *u = c->uploads;
        unlink_upload(c, u);
        free_upload(c, u);
    }
    while (c->rings) {
        ring *r = c->rings;
        c->rings = r->next;
        free(r);
    }
}
