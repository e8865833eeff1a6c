// A trace of what the carriers do, as events of Chrome's trace format. Off, each place that could tell something loads one
// number and goes on. On, everybody writes his own event, and holds a lock only to put it behind the others; what finds no
// room there is counted, not waited for. Events that belong together, as the two ends of a flow, are put or lost together.
#pragma once
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct carrier carrier;
typedef struct staging staging;

extern _Atomic uint32_t trace_number;
static inline uint32_t trace_is_on(void) { return atomic_load_explicit(&trace_number, memory_order_acquire); }  // → which

typedef struct {  // where events are drawn: a "thread" of a "process", which is a carrier, or a loop
    uint32_t trace, process, track;
} trace_track;

typedef struct {
    const char *name;  // NULL: it is not there
    uint64_t value;
} trace_argument;
enum { TRACE_SUBMITS = 256 };  // of the last, it is known when they were made

// A carrier's own: its process, and its tracks there. Made when a trace first hears of it.
typedef struct {
    _Atomic uint32_t trace;
    uint32_t process, gpu, queue, gpu_time, copiers;
    bool has_gpu_time;
    char title[64];  // of its device, as JSON has it
    struct {
        uint64_t fence;
        double at;
    } submits[TRACE_SUBMITS];  // by the lower bits of the fence
} trace_carrier;

enum { TRACE_NOTHING, TRACE_AVAILABLE, TRACE_IN_USE, TRACE_FENCED };
typedef struct {  // a staging buffer's; under the carrier's lock
    trace_track at;
    uint32_t ring, index;  // for its title
    int state;
    double since;
} trace_lane;

bool trace_begin(size_t room);  // bytes, twice; false: there is a trace, or no memory
void trace_end(void);           // nothing more is put; what was can still be taken
size_t trace_take(const char **text, uint64_t *lost);  // there until the next call
void trace_forget(void);        // and not even that

// With a title as JSON has a string, without its quotes.
uint32_t trace_add_process(uint32_t trace, const char *title);
trace_track trace_add_track(uint32_t trace, uint32_t process, const char *title);

// Those of another trace are dropped.
void trace_slice(trace_track, const char *name, double begin, double end, const trace_argument *, unsigned count);
void trace_flow(const char *name, trace_track from, double left, trace_track to, double arrived);
void trace_count(uint32_t trace, uint32_t process, const char *name, double value);

trace_track trace_gpu(carrier *, uint32_t trace);    // of its GPU thread
void trace_submitted(carrier *, uint32_t trace, uint64_t fence, double at);
// An upload of a task, until now; whose last submit had this fence. 0: none.
void trace_upload(carrier *, trace_track task, uint64_t bytes, double since, uint64_t fence);
trace_track trace_queue(carrier *, uint32_t trace);  // of what it has submitted, until that is done
trace_track trace_gpu_time(carrier *, uint32_t trace);
trace_track trace_copier(carrier *, uint32_t trace);  // of the thread that asks
void trace_buffer(carrier *, staging *, int state);   // with its lock: it is in this state from now on

void trace_before_fork(void);
void trace_after_fork(void);
