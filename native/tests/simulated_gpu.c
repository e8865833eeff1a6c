#include "simulated_gpu.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../carrier.h"
#include "../threads.h"

typedef struct work work;
struct work {
    work *next;
    uint64_t number;
    thing **commands;
    size_t count;
};

typedef struct done done;
struct done {
    done *next;
    uint64_t after;
    gpu_work_done_info info;
};

uint64_t things_alive;
static mutex lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t random_state;

void simulated_lock(void) { mutex_lock(&lock); }
void simulated_unlock(void) { mutex_unlock(&lock); }

void sow(uint64_t seed) { random_state = seed * 0x9E3779B97F4A7C15ull + 1; }

uint64_t draw_locked(uint64_t below) {
    uint64_t x = random_state += 0x9E3779B97F4A7C15ull;  // splitmix64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ x >> 27) * 0x94D049BB133111EBull;
    return (x ^ x >> 31) % below;
}

uint64_t draw(uint64_t below) {
    mutex_lock(&lock);
    uint64_t drawn = draw_locked(below);
    mutex_unlock(&lock);
    return drawn;
}

static void note(const char *text) {
    if (!carrier_note_error(text)) fail("an error that nobody hears of: %s", text);
}

// -- things --

thing *make_thing(simulated_gpu *gpu, int kind, uint64_t size) {
    thing *t = calloc(1, sizeof *t);
    *t = (thing){.kind = kind, .references = 1, .gpu = gpu, .size = size, .memory = size ? calloc(1, size) : NULL};
    mutex_lock(&lock);
    things_alive++;
    mutex_unlock(&lock);
    return t;
}

static void release_locked(thing *t) {
    if (t->references < 1) fail("released too often");
    if (--t->references) return;
    for (uint32_t i = 0; i < t->piece_count; i++) {
        release_locked(t->pieces[i].from);
        release_locked(t->pieces[i].to);
    }
    free(t->pieces);
    free(t->memory);
    free(t->shadow);
    free(t);
    things_alive--;
}

void keep_thing(gpu_handle handle) {
    mutex_lock(&lock);
    thing *t = handle;
    if (t->references < 1) fail("kept after its end");
    t->references++;
    mutex_unlock(&lock);
}

void release_thing(gpu_handle handle) {
    mutex_lock(&lock);
    release_locked(handle);
    mutex_unlock(&lock);
}

void destroy_thing(gpu_handle handle) {
    mutex_lock(&lock);
    thing *t = handle;
    if (t->is_destroyed) fail("destroyed twice");
    if (!t->is_gone) fail("destroyed, and nobody wanted that");
    t->is_destroyed = true;
    t->is_mapped = false;
    if (t->kind == DEVICE) t->gpu->is_lost = true;
    mutex_unlock(&lock);
}

// -- recording --

static gpu_handle create_encoder(gpu_handle device, const void *descriptor) {
    (void)descriptor;
    thing *d = device, *encoder = make_thing(d->gpu, ENCODER, 0);
    mutex_lock(&lock);
    bool lost = encoder->is_wrong = d->gpu->is_lost;
    mutex_unlock(&lock);
    if (lost) note("the device is lost");
    return encoder;
}

static void record(thing *encoder, piece p) {
    mutex_lock(&lock);
    simulated_gpu *gpu = encoder->gpu;
    if (p.to->is_destroyed || p.from->is_destroyed) fail("a copy of what was destroyed is recorded");
    bool refused = gpu->refuses(gpu, &p), lost = gpu->is_lost;
    encoder->is_wrong |= refused || lost;
    if (encoder->piece_count == encoder->piece_room) {
        piece *before = encoder->pieces;
        encoder->piece_room = before ? 2 * encoder->piece_room : 4;
        encoder->pieces = calloc(encoder->piece_room, sizeof p);
        if (before) memcpy(encoder->pieces, before, encoder->piece_count * sizeof p);
        free(before);
    }
    encoder->pieces[encoder->piece_count++] = p;
    p.from->references++;
    p.to->references++;
    mutex_unlock(&lock);
    if (refused) note("a copy is refused");
    else if (lost) note("the device is lost");
}

static void copy_to_buffer(gpu_handle encoder, gpu_handle from, uint64_t offset, gpu_handle to, uint64_t to_offset,
                           uint64_t size) {
    record(encoder, (piece){from, to, offset, to_offset, size});
}

// A texture is a stack of rows: `z` is which, and `x` where in it.
static uint64_t place_of(const gpu_texel_target *target) { return target->origin.z * 64ull + target->origin.x * 4ull; }

static void copy_to_texture(gpu_handle encoder, const gpu_texel_source *source, const gpu_texel_target *target,
                            const gpu_extent *extent) {
    record(encoder, (piece){source->buffer, target->texture, source->layout.offset, place_of(target), 4ull * extent->width});
}

static gpu_handle finish(gpu_handle encoder, const void *descriptor) {
    (void)descriptor;
    thing *e = encoder, *commands = make_thing(e->gpu, COMMANDS, 0);
    mutex_lock(&lock);
    commands->pieces = e->pieces;
    commands->piece_count = e->piece_count;
    commands->is_wrong = e->is_wrong;
    e->pieces = NULL;
    e->piece_count = 0;
    mutex_unlock(&lock);
    return commands;
}

// -- submitting, and doing --

static void see(simulated_gpu *gpu, thing *commands) {
    if (commands->is_submitted) fail("command buffers are submitted twice");
    if (commands->is_wrong && !gpu->is_lost) fail("a command buffer with an error in it is submitted");
    commands->is_submitted = true;
    for (uint32_t i = 0; i < commands->piece_count; i++) {
        piece *p = &commands->pieces[i];
        if (p->to->is_destroyed || p->from->is_destroyed) fail("what was destroyed is submitted");
        if (p->to->is_used) fail("what its owner uses is submitted");
        if (p->from->is_mapped || p->from->is_asked) fail("what is mapped is submitted");
        p->from->used_by = gpu->submitted;
        gpu->see_copy(gpu, p);
    }
    if (!commands->piece_count) gpu->see_commands(gpu, commands);
}

static void submit(gpu_handle queue, size_t count, const gpu_handle *commands) {
    thing *device = queue;
    simulated_gpu *gpu = device->gpu;
    if (gpu->slow) usleep((useconds_t)draw(gpu->slow));
    mutex_lock(&lock);
    bool lost = gpu->is_lost;
    if (device->is_destroyed) fail("a submit on a device that was destroyed");
    if (lost && gpu->is_stepped) fail("a submit on a device that is known to be lost");
    if (!lost) {
        work *w = calloc(1, sizeof *w);
        *w = (work){.number = ++gpu->submitted, .count = count, .commands = calloc(count + 1, sizeof(thing *))};
        for (size_t i = 0; i < count; i++) {
            w->commands[i] = commands[i];
            w->commands[i]->references++;
            see(gpu, w->commands[i]);
        }
        *gpu->last = w;
        gpu->last = &w->next;
    }
    mutex_unlock(&lock);
    if (lost) note("the device is lost");
}

static void free_work(simulated_gpu *gpu) {
    work *w = gpu->first;
    gpu->first = w->next;
    if (!gpu->first) gpu->last = &gpu->first;
    for (size_t i = 0; i < w->count; i++) release_locked(w->commands[i]);
    free(w->commands);
    free(w);
}

static void finish_one(simulated_gpu *gpu) {
    work *w = gpu->first;
    for (size_t i = 0; i < w->count; i++)
        for (uint32_t k = 0; k < w->commands[i]->piece_count; k++) {
            piece *p = &w->commands[i]->pieces[k];
            if (!p->to->is_destroyed) memcpy(p->to->memory + p->to_offset, p->from->memory + p->offset, p->size);
        }
    gpu->finished = w->number;
    free_work(gpu);
}

void simulated_finish(simulated_gpu *gpu, uint64_t works) {
    mutex_lock(&lock);
    while (works-- && gpu->first && !gpu->is_lost) finish_one(gpu);
    mutex_unlock(&lock);
}

void simulated_lose(simulated_gpu *gpu) {
    mutex_lock(&lock);
    gpu->is_lost = true;
    mutex_unlock(&lock);
}

// -- mapping --

static void answer(gpu_map_info info, bool ok) { info.callback(ok ? GPU_SUCCESS : 3, (gpu_string){0}, info.userdata1, NULL); }

static void unmap(gpu_handle buffer) {
    thing *b = buffer;
    mutex_lock(&lock);
    if (!b->is_mapped && !b->is_destroyed && !b->gpu->is_lost) fail("unmapped, and was not mapped");
    b->is_mapped = false;
    mutex_unlock(&lock);
}

static uint64_t map(gpu_handle buffer, uint64_t mode, size_t offset, size_t size, gpu_map_info info) {
    thing *b = buffer;
    simulated_gpu *gpu = b->gpu;
    mutex_lock(&lock);
    if (mode != GPU_MAP_WRITE && mode != GPU_MAP_READ) fail("mapped as %d", (int)mode);
    if (b->is_mapped || b->is_asked) fail("mapped twice");
    if (offset + size > b->size) fail("mapped beyond its end");
    // As wgpu does: it reports, and then has answered, or never will.
    bool fails = gpu->is_lost || b->is_destroyed || (gpu->fails_map && !draw_locked(gpu->fails_map));
    bool answers = draw_locked(2);
    if (!fails) {
        b->is_asked = true;
        b->references++;
        b->map_info = info;
        b->mapped_from = offset;
        b->mapped_to = offset + size;
        if (gpu->asked_count == sizeof gpu->asked / sizeof *gpu->asked) fail("too many mappings");
        gpu->asked[gpu->asked_count++] = b;
    }
    mutex_unlock(&lock);
    if (fails) {
        note("it cannot be mapped");
        if (answers) answer(info, false);
    }
    return 0;
}

static void *address(gpu_handle buffer, size_t offset, size_t size) {
    thing *b = buffer;
    mutex_lock(&lock);
    if (b->is_destroyed) fail("the address of what was destroyed is asked for");
    bool inside = offset >= b->mapped_from && offset + size <= b->mapped_to;
    if (!b->gpu->is_lost && !(b->is_mapped && inside)) fail("the address of what is not mapped is asked for");
    mutex_unlock(&lock);
    return b->memory + offset;
}

static const void *const_address(gpu_handle buffer, size_t offset, size_t size) { return address(buffer, offset, size); }

// -- polling --

static bool take_map(simulated_gpu *gpu, bool all, gpu_map_info *info, bool *ok) {
    for (unsigned i = 0; i < gpu->asked_count; i++) {
        thing *b = gpu->asked[i];
        bool over = gpu->is_lost || b->is_destroyed;
        if (!over && b->used_by > gpu->finished) continue;
        if (!all && draw_locked(4) == 0) continue;  // not yet
        *ok = !over && !(gpu->fails_map && !draw_locked(gpu->fails_map));
        *info = b->map_info;
        b->is_asked = false;
        b->is_mapped = *ok;
        gpu->asked[i] = gpu->asked[--gpu->asked_count];
        release_locked(b);
        return true;
    }
    return false;
}

static done *take_done(simulated_gpu *gpu, bool all) {
    for (done **at = &gpu->first_done; *at; at = &(*at)->next) {
        done *d = *at;
        if (!gpu->is_lost && d->after > gpu->finished) continue;
        if (!all && draw_locked(4) == 0) continue;
        *at = d->next;
        if (gpu->last_done == &d->next) gpu->last_done = at;
        return d;
    }
    return NULL;
}

static void tell_done(simulated_gpu *gpu, gpu_work_done_info info, bool well) {
    typedef void (*with_message)(int32_t, gpu_string, void *, void *);
    typedef void (*without)(int32_t, void *, void *);
    if (gpu->message_in_done) ((with_message)info.callback)(well ? GPU_SUCCESS : 3, (gpu_string){0}, info.userdata1, NULL);
    else ((without)info.callback)(well ? GPU_SUCCESS : 3, info.userdata1, NULL);
}

static void deliver(simulated_gpu *gpu, bool all) {
    gpu_map_info info;
    bool ok;
    mutex_lock(&lock);
    for (done *d; (d = take_done(gpu, all));) {
        // A device that was lost may say that it has done what it never will.
        bool well = d->after <= gpu->finished || (gpu->is_stepped && !all && draw_locked(2));
        mutex_unlock(&lock);
        tell_done(gpu, d->info, well);
        free(d);
        mutex_lock(&lock);
    }
    while (take_map(gpu, all, &info, &ok)) {
        mutex_unlock(&lock);
        answer(info, ok);
        mutex_lock(&lock);
    }
    mutex_unlock(&lock);
}

void simulated_poll(simulated_gpu *gpu) { deliver(gpu, false); }

static uint32_t poll_device(gpu_handle device, uint32_t wait, const void *submission) {
    (void)submission;
    if (wait) fail("a poll that waits");
    deliver(((thing *)device)->gpu, false);
    return 0;
}

static uint64_t on_work_done(gpu_handle queue, gpu_work_done_info info) {
    simulated_gpu *gpu = ((thing *)queue)->gpu;
    done *d = calloc(1, sizeof *d);
    mutex_lock(&lock);
    *d = (done){NULL, gpu->submitted, info};
    *gpu->last_done = d;
    gpu->last_done = &d->next;
    mutex_unlock(&lock);
    return 0;
}

static void write_buffer(gpu_handle queue, gpu_handle buffer, uint64_t offset, const void *data, size_t size) {
    (void)buffer, (void)offset, (void)data, (void)size;
    simulated_gpu *gpu = ((thing *)queue)->gpu;
    mutex_lock(&lock);
    bool lost = gpu->is_lost;
    mutex_unlock(&lock);
    if (lost) note("the device is lost");
}

static void write_texture(gpu_handle queue, const gpu_texel_target *target, const void *data, size_t size,
                          const gpu_texel_layout *layout, const gpu_extent *extent) {
    (void)layout;
    simulated_gpu *gpu = ((thing *)queue)->gpu;
    thing *texture = target->texture;
    mutex_lock(&lock);
    if (texture->is_destroyed) fail("what was destroyed is written");
    if (extent->width != 1 || extent->height != 1 || extent->depth != 1) fail("a first use of more than one block");
    gpu->see_first_use(gpu, texture, place_of(target), data, size);
    mutex_unlock(&lock);
}

// -- life --

void simulated_open(simulated_gpu *gpu) {
    gpu->last = &gpu->first;
    gpu->last_done = &gpu->first_done;
    gpu->device = make_thing(gpu, DEVICE, 0);
}

void simulated_close(simulated_gpu *gpu) {
    simulated_lose(gpu);
    deliver(gpu, true);
    mutex_lock(&lock);
    while (gpu->first) free_work(gpu);
    mutex_unlock(&lock);
}

const gpu_functions simulated_functions = {
    .create_encoder = create_encoder,
    .copy_to_buffer = copy_to_buffer,
    .copy_to_texture = copy_to_texture,
    .finish = finish,
    .release_encoder = release_thing,
    .keep_commands = keep_thing,
    .release_commands = release_thing,
    .keep_buffer = keep_thing,
    .release_buffer = release_thing,
    .keep_texture = keep_thing,
    .release_texture = release_thing,
    .submit = submit,
    .unmap = unmap,
    .map = map,
    .address = address,
    .const_address = const_address,
    .poll = poll_device,
    .on_work_done = on_work_done,
    .write_buffer = write_buffer,
    .write_texture = write_texture,
};
