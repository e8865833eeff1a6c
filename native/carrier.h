// The carrier: all that happens off the event loop, on threads that know nothing of Python.
//
// Copy threads fill staging buffers. One GPU thread submits what has departed as soon as the jobs that it waits for are
// done, has the buffers mapped again, and polls. What has happened is collected as *ends*, behind one bell.
//
// Rules: no thread takes the interpreter's lock. Callbacks of wgpu store an answer and call nothing. What is native here
// is kept by references of wgpu's own (`keep_…`), and what a job reads belongs to its caller until its end was taken.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block.h"
#include "gpu.h"

typedef struct carrier carrier;

enum { COPY_TO_BUFFER, COPY_TO_TEXTURE };

// Packed by aiostage/carrier/departure.py: keep the two alike.
typedef struct {
    uint8_t kind, aspect;
    uint8_t first_use;  // of a 3D texture's level, as far as is known: see `use_first`
    uint8_t left_out;   // set by the carrier
    uint32_t mip_level;
    uint64_t job;  // that fills it: if that fails, the copy is left out. 0: none
    uint64_t source, offset;
    uint64_t to;
    uint64_t to_offset, size;  // of a buffer; of a texture: the bytes of a texel block, its width and height << 32
    uint32_t origin[3], extent[3];
    uint32_t bytes_per_row, rows_per_image;
} carrier_copy;

// A piece of a whole upload: a block of its data, and the copy that takes it on, whose source is yet to be found. Packed there
// as well; the block alone, as far as the copy, is what `block_of_piece` takes.
typedef struct {
    int64_t from;     // bytes from the start of the data
    uint64_t nbytes;  // of staging memory
    uint64_t run;     // the rest as a block has it
    uint32_t swap, dimensions;
    uint64_t count[BLOCK_DIMENSIONS];
    int64_t to_step[BLOCK_DIMENSIONS], from_step[BLOCK_DIMENSIONS];
    carrier_copy copy;
} carrier_piece;

typedef struct {
    uint32_t lane;    // those of one lane go in order; 0: of none
    bool is_mark;     // submits nothing: it is behind all that went before
    bool is_urgent;   // nobody's own submit overtakes it: see `carrier_settle`
    uint32_t buffer_count, copy_count, command_count, job_count;
    const uint32_t *buffers;
    const carrier_copy *copies;
    const gpu_handle *commands;
    const uint64_t *jobs;  // to wait for
} carrier_departure;

enum {
    END_JOB,       // id: the job; status: 0, an errno, or one of those below
    END_LEFT_OUT,  // id: the serial, value: which copy, text: why; comes before its END_MADE
    END_MADE,      // id: the serial
    END_BACK,      // id: the buffer, value: its address, or 0 if it will never be mapped
    END_REACHED,   // id: the GPU has finished all up to this serial, which the loop was told of
    END_LOST,      // id: the serial that was not submitted, or 0 for the device; text: why
    END_POLLED,    // what `carrier_poll_soon` asked for was done, and what it found has been told
    END_UPLOAD,    // id: the upload; status: 0, or why not all of it was submitted, an errno or one of those below, text:
                   // more; value: its last submit's serial
};
enum { JOB_DONE = 0, JOB_CANCELLED = -1, JOB_SHORT = -2, UPLOAD_LEFT_OUT = -3, UPLOAD_LOST = -4 };

typedef struct {
    uint32_t kind;
    int32_t status;
    uint64_t id, value;
    double at;   // by `now`
    char *text;  // to be freed by who takes it
} carrier_end;

// Without threads, each step is made by `carrier_step`. NULL: no memory.
carrier *carrier_open(const gpu_functions *, gpu_handle device, gpu_handle queue, gpu_handle probe, bool message_in_done);
bool carrier_start_gpu(carrier *);
bool carrier_add_copiers(carrier *, unsigned count);  // false: the system has no more threads, and there is none
void carrier_stop(carrier *);                         // begin nothing more
unsigned carrier_threads(carrier *);                  // how many still run
bool carrier_join(carrier *, double seconds);         // whether none does within that time
void carrier_drop(carrier *);                         // its owner is gone; it is freed with the last thread and callback

int carrier_bell(carrier *);          // a descriptor that is readable while ends wait, or -1
bool carrier_wait(carrier *, double seconds);  // the same, blocking
size_t carrier_take_ends(carrier *, carrier_end *, size_t most);

uint32_t carrier_add_buffer(carrier *, gpu_handle buffer, uint64_t size, uint32_t map_mode);  // it will be END_BACK;
                                                                                              // UINT32_MAX: too many
void carrier_forget_buffer(carrier *, uint32_t);
void carrier_name_buffer(carrier *, uint32_t, uint32_t ring, uint32_t index);  // in a trace
void carrier_show_buffer(carrier *, uint32_t, int state);  // one that is not lent is in this state, as TRACE_… has it

// → a job, whose end comes in any case; with `rings` the bell is rung for it. 0: no memory
uint64_t carrier_copy_block(carrier *, const block *, void *owner, bool rings);
// Many that are small: `blocks` is there as long as the owner is.
uint64_t carrier_copy_blocks(carrier *, const block *blocks, uint64_t count, uint64_t bytes, void *owner, bool rings);
// From a file, where the block's first byte is at `position`; nothing is swapped.
uint64_t carrier_read_block(carrier *, const block *, int file, uint64_t position, void *owner, bool rings);
bool carrier_cancel(carrier *, uint64_t job);  // false: it has begun, and will end
void *carrier_owner(carrier *, uint64_t job);  // takes it; of a job whose end was taken
void carrier_each_owner(carrier *, void (*)(void *owner));  // takes all, uploads' too; no copier may run

// → the epoch that must not have changed between a check of what departs and the departure
uint64_t carrier_epoch(void);
// → its serial, one more than the last one's. 0: the epoch has changed
uint64_t carrier_depart(carrier *, const carrier_departure *, uint64_t epoch);

// Whole uploads go through buffers that a ring has lent, a piece in each or several in one, until all of it was submitted.
typedef struct ring ring;
typedef struct upload upload;
typedef struct {
    uint32_t lent, idle, most_used;  // buffers
    uint64_t pieces, bytes, in_flight;
    uint64_t wanted, most_wanted;  // bytes of uploads that have not ended
    uint64_t seals, sealed_bytes, sealed_most, cramped;  // as `StagingStats` has them, and the rest
    uint64_t stalls, waiting;
    double stall_seconds;
} carrier_ring_counts;
enum { LENT_IDLE, LENT_FILLING, LENT_AWAY };

ring *carrier_add_ring(carrier *);
void carrier_drop_ring(carrier *, ring *);  // whose buffers were forgotten; with uploads it stays
void carrier_lend(carrier *, ring *, const uint32_t *buffers, uint32_t count);  // mapped ones
uint32_t carrier_take_back(carrier *, ring *, uint8_t **address);  // one that is idle, or UINT32_MAX
void carrier_want(carrier *, ring *, uint32_t count);              // so many more are END_BACK when they come back
carrier_ring_counts carrier_count_ring(carrier *, ring *);
int carrier_lent_state(carrier *, uint32_t buffer);
typedef struct {  // what an upload reads
    const void *data;
    int file;           // or -1; which stays open as long as the owner is there
    uint64_t position;  // of the data in it
    void *owner;
} carrier_source;
// All pieces go to one destination, those to a buffer cut into `most` bytes. If one cannot be read, those that nobody has
// begun are dropped. → its number, 0: the epoch has changed
uint64_t carrier_upload(carrier *, ring *, const carrier_piece *, uint32_t count, uint64_t most, const carrier_source *,
                        uint64_t epoch);
block block_of_piece(const carrier_piece *, uint8_t *to, const uint8_t *data);  // of data in a file, NULL
void carrier_cancel_upload(carrier *, uint64_t upload);  // of what has not begun; of one that was taken nothing is left
void *carrier_take_upload(carrier *, uint64_t upload);   // → its owner; of one whose end was taken
void carrier_poll_soon(carrier *);
void carrier_listen(carrier *);  // ring for every job from now on

// What becomes of resources. `gone` is called by whoever destroys one, before it does: true, if it may do so now; if not,
// a submit is being made that uses what it checked before, and `destroy` is called after that.
bool carrier_gone(gpu_handle, const char *why, void (*keep)(gpu_handle), void (*destroy)(gpu_handle),
                  void (*release)(gpu_handle));
void carrier_device_gone(gpu_handle device, const char *why);
void carrier_wait_for_use(gpu_handle buffer, const char *why);  // about to be mapped: waits while a submit copies to it
void carrier_settle(gpu_handle queue);  // waits for what is urgent on it
void carrier_visit(gpu_handle queue);    // a submit of somebody else's, or with NULL a look: nothing is destroyed meanwhile
void carrier_unvisit(gpu_handle queue);
bool carrier_is_visited(gpu_handle queue);  // whether somebody submits to it now
// An error that wgpu reports in this thread. false: it is none of the carrier's
bool carrier_note_error(const char *text);

// What it takes to ask the GPU how long submits take, while a trace is written; not in the table, since few devices have it.
enum { CARRIER_TIMES = 16, CARRIER_TIMES_STEP = 256 };  // submits at a time; bytes between two of them in `resolved`
typedef struct {
    void (*write)(gpu_handle encoder, gpu_handle queries, uint32_t index);
    void (*resolve)(gpu_handle encoder, gpu_handle queries, uint32_t first, uint32_t count, gpu_handle into, uint64_t offset);
    gpu_handle queries, resolved, results[CARRIER_TIMES];
    double period;  // seconds of a tick
} carrier_times;
bool carrier_time(carrier *, const carrier_times *);  // these belong to its owner, as long as it has threads; false: it has some

typedef struct {
    uint64_t submits, polls, merged, outstanding, queued, unfinished;  // the last: jobs and uploads
    double oldest;  // seconds that the oldest submit has been in flight
    bool is_lost, is_idle;
} carrier_counts;
carrier_counts carrier_count(carrier *);

enum { STEP_COPY, STEP_PIECE, STEP_DEPART, STEP_POLL };
bool carrier_step(carrier *, int which, uint64_t index);  // false: nothing to do
