// What the parts of the carrier share: jobs.c fills staging buffers, from files by files.c, gpu.c submits and polls,
// uploads.c has whole uploads, fate.c knows what is gone, ends.c tells. Each field says under which lock it is used.
#pragma once
#include <stdatomic.h>

#include "carrier.h"
#include "threads.h"
#include "trace.h"

typedef struct departure departure;
typedef struct job job;
typedef struct times times;

enum { SHARE = 256 << 10 };    // bytes of a job that a copy thread takes at a time: several copy one upload
enum { FIRST_MAP = 1 << 20 };  // bytes that the first mapping fills with zeros at a time: nobody can submit meanwhile

struct job {
    job *next;  // in the queue
    uint64_t id;
    block block;
    int file;           // that it reads, or -1
    uint64_t position;  // there, of the block's first byte: in place of `block.from`
    const block *blocks;  // many small ones in place of `block`, so many to a share; the owner has them
    uint64_t block_count, blocks_a_share;
    uint64_t shares;
    _Atomic uint64_t begun;
    uint32_t helpers;  // threads that are at it
    int32_t status;
    bool ended, rings;
    departure *waits;  // for it to end
    void *owner;
    upload *upload;  // that it is a piece of; such a job has no id, and nobody hears of it
    carrier_piece *piece;
    staging *into;
};

enum { QUEUED, TAKEN, SUBMITTED, DONE };

typedef struct {  // one queue submit, or a mark
    carrier *carrier;
    _Atomic int answer;  // 0: none yet; 1: done; 2: it never will be
    double since;
    uint64_t bytes;  // of its copies; 0: it has more to do than these
    bool is_mark;
    uint32_t trace;  // that has its submit
} group;

struct departure {
    departure *next;
    uint64_t serial;
    uint32_t lane, waiting;  // jobs that are not done
    int state;
    bool is_mark, is_urgent;
    bool is_told;      // the loop has a serial of it, and hears when that is reached
    double ready_at;   // when the last of them was
    uint64_t touches;  // a bit for each destination, shared by some
    uint64_t bytes;
    uint32_t buffer_count, copy_count, copy_room, command_count;
    uint32_t *buffers;
    carrier_copy *copies;
    upload **uploads;  // that the copies are pieces of; NULL: the loop made it, and hears of it
    gpu_handle *commands;
    char **reasons;  // of copies that are left out, or NULL
    group *group;
};

enum { NEW, READY, ELSEWHERE };

struct staging {  // a staging buffer; the GPU thread's own, but for what is atomic or lent
    carrier *carrier;
    gpu_handle handle;
    uint64_t size, zeroed;
    uint32_t map_mode, number;
    int state;
    bool asked;
    _Atomic bool forgotten;
    uint8_t *address;
    _Atomic int answer;  // as a group's

    // Under the lock, while it is lent:
    ring *ring;       // NULL: it is not
    staging *next;    // that is idle
    departure *load;  // while it is filled
    uint64_t head, taken;
    uint32_t writers;
    trace_lane traced;  // also while it is not
};

enum { MOST_BUFFERS = 4096, MOST_COPIERS = 64, ERROR_SIZE = 512 };

struct carrier {
    gpu_functions gpu;
    gpu_handle device, queue, probe;
    bool message_in_done, has_gpu_thread;
    carrier *next;  // under `fate`
    _Atomic int references;  // its owner, threads, and callbacks that wgpu may still make

    mutex lock;  // for all that follows
    condition work, news, ends_wait, ended;
    bool stopping, lost, told;
    bool has_news;  // for the GPU thread: look again before you wait
    bool wants_poll, poll_asked, listens, idle;
    unsigned copiers, idle_copiers, threads;

    job *first_job, *last_job;  // with shares that nobody may have begun
    job **jobs;                 // by the lower half of their id
    uint32_t job_room, job_count;
    uint64_t jobs_made, unfinished_jobs;

    ring *rings;
    upload *uploads, *oldest_upload;  // that were not taken
    uint64_t uploads_made, unfinished_uploads;

    departure *departures, *last_departure;  // by serial, until they are done
    uint64_t serial, done, reached;  // the last that was made, that is done, and that the loop was told of
    unsigned urgent;  // departures that are, and were not submitted

    carrier_end *ends;
    size_t end_count, end_taken, end_room;
    int bell[2];

    // The GPU thread's own:
    staging *_Atomic buffers[MOST_BUFFERS];  // by the lower bits of their number; added under the lock
    _Atomic uint32_t buffer_count;
    uint32_t buffers_made;
    group *groups[1024];
    unsigned group_count, in_flight;
    bool holds;
    double latency, last_done, rate;  // of the last submit in seconds; when that was; bytes a second
    _Atomic uint64_t outstanding, submits, polls, merged;  // which others may ask

    trace_carrier traced;
    times *_Atomic times;  // NULL: the GPU is not asked
    trace_track poster;  // the loop's own: the task that posts an upload
};

// jobs.c
THREAD_RESULT copier_main(void *);
bool copy_one(carrier *, uint64_t index);
bool copy_piece(carrier *);
job *find_job(carrier *, uint64_t id);  // with the lock, as all that follows
void queue_job(carrier *, job *);
void forget_queue(carrier *);
void wake_copiers(carrier *, uint64_t most);

// files.c → JOB_DONE, JOB_SHORT or an errno
int read_share(const block *, int file, uint64_t position, uint64_t share, uint64_t index);

// uploads.c, with the lock
bool begin_piece(carrier *);                 // queues the job of the next that has a place
void piece_copied(carrier *, job *);
void end_piece(carrier *, departure *, uint32_t copy, bool made);
bool lend_again(carrier *, staging *);       // one that is mapped again; false: the loop gets it
void forget_lent(staging *);
void leave_out_uploads(carrier *, gpu_handle to, const char *why);  // NULL: all, since the device is lost
bool pieces_wait(const carrier *);           // and have a place
void each_upload_owner(carrier *, void (*take)(void *owner));
void free_rings(carrier *);

// A buffer's number is never another's: what waits to be told of one that was forgotten is not told of the next.
static inline staging *buffer_of(carrier *c, uint32_t number) { return c->buffers[number % MOST_BUFFERS]; }

// gpu.c
THREAD_RESULT gpu_main(void *);
bool depart_ready(carrier *);
bool poll_once(carrier *);
void lose(carrier *, const char *why);  // without the lock
void wake_gpu(carrier *);               // with it
bool is_lost(carrier *);                // in the GPU thread

// times.c, there as well
bool times_wanted(carrier *);
int times_begin(carrier *, gpu_handle encoder);  // → which; -1: not this time
void times_end(carrier *, gpu_handle encoder, int which);
void times_drop(carrier *, int which);  // it was not submitted
void times_ask(carrier *, int which, uint32_t trace, uint64_t fence, double since);  // it was
unsigned times_hear(carrier *);  // how many were answered

// fate.c
void fate_add(carrier *);
void fate_remove(carrier *);
void fate_lock(void);
void fate_unlock(void);
void fate_each(void (*)(carrier *));
void fate_wake(void);       // those who wait for a visit to end, without it
void fate_visit(gpu_handle queue);      // with it
void fate_end_visit(gpu_handle queue);  // with it; gives it back
void leave_out(departure *, uint32_t copy, const char *why);
void leave_out_of(departure *, const job *);  // if it failed, the copies that it was to fill
extern _Thread_local char *error_place;  // ERROR_SIZE bytes for what wgpu reports in this thread, or NULL

void add_copy(departure *, const carrier_copy *, upload *);
void queue_departure(carrier *, departure *);  // with the lock
void free_departure(carrier *, departure *);

// ends.c
void tell(carrier *, uint32_t kind, int32_t status, uint64_t id, uint64_t value, const char *text, bool rings);  // with
void ring_bell(carrier *);  // with
void open_bell(carrier *);
void close_bell(carrier *);

char *text_of(const char *);  // a copy
void *grab(size_t size);  // zeroed memory; ends the process when there is none, as does everybody else then
void *more_of(void *memory, size_t size, size_t wanted);  // the same with more room
void let_go(carrier *);   // of a reference
void end_thread(carrier *);  // the last that a thread does, with the lock, which it gives back
