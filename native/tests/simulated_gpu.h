// A GPU for tests in C: it finishes work when it is told to, refuses copies, fails to map, and can be lost. What it is
// given is counted, as wgpu does, and looked at when it is submitted. One lock guards all of it, and what a test knows.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "../gpu.h"

typedef struct simulated_gpu simulated_gpu;
typedef struct thing thing;

typedef struct {
    thing *from, *to;
    uint64_t offset, to_offset, size;
} piece;  // of work: a copy

enum { BUFFER, TEXTURE, ENCODER, COMMANDS, DEVICE };

struct thing {
    int kind, references;
    simulated_gpu *gpu;
    bool is_gone;       // whoever destroys it has said so
    bool is_destroyed;
    bool is_used;       // by its owner: it may not be submitted
    bool is_wrong;      // an encoder that refused something
    bool is_submitted;
    uint8_t *memory;
    uint64_t size;
    bool is_mapped, is_asked;
    uint64_t mapped_from, mapped_to, used_by;  // the last submit with it
    gpu_map_info map_info;
    piece *pieces;
    uint32_t piece_count, piece_room;
    uint64_t mark;    // of the test's
    uint8_t *shadow;  // likewise: what is to be there when all is finished, or NULL
};

struct simulated_gpu {
    thing *device;
    bool is_lost, is_stepped, message_in_done;
    unsigned slow;       // a submit takes up to so many µs
    unsigned fails_map;  // one in so many mappings fails
    struct work *first, **last;
    struct done *first_done, **last_done;
    thing *asked[64];
    unsigned asked_count;
    uint64_t submitted, finished;
    void *owner;
    // With the lock, as it is submitted:
    void (*see_copy)(simulated_gpu *, const piece *);
    void (*see_commands)(simulated_gpu *, thing *);
    bool (*refuses)(simulated_gpu *, const piece *);
    void (*see_first_use)(simulated_gpu *, thing *, uint64_t at, const uint8_t *data, uint64_t size);
};

extern const gpu_functions simulated_functions;
extern uint64_t things_alive;

void simulated_lock(void);
void simulated_unlock(void);
uint64_t draw(uint64_t below);  // at random, without the lock
uint64_t draw_locked(uint64_t below);
void sow(uint64_t seed);
_Noreturn void fail(const char *format, ...);  // says which schedule it was

void simulated_open(simulated_gpu *);
void simulated_close(simulated_gpu *);  // answers all that was asked, as if lost
void simulated_finish(simulated_gpu *, uint64_t works);
void simulated_poll(simulated_gpu *);   // as anybody may
void simulated_lose(simulated_gpu *);

thing *make_thing(simulated_gpu *, int kind, uint64_t size);
void keep_thing(gpu_handle);
void release_thing(gpu_handle);
void destroy_thing(gpu_handle);
