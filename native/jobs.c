// Copy threads, and what they do: fill staging memory from memory, or from files.
#include <stdlib.h>
#include <string.h>

#include "state.h"

#ifdef __linux__
#include <sys/prctl.h>
#endif

enum { FAN_OUT = 3 };  // threads that one wakes which was woken: waking all would take it longer than copying

// -- making, finding and taking jobs --

job *find_job(carrier *c, uint64_t id) {
    uint32_t slot = (uint32_t)id - 1;
    job *j = id && slot < c->job_room ? c->jobs[slot] : NULL;
    return j && j->id == id ? j : NULL;
}

static uint32_t free_slot(carrier *c) {
    if (c->job_count == c->job_room) {
        uint32_t room = c->job_room ? 2 * c->job_room : 64;
        c->jobs = more_of(c->jobs, c->job_room * sizeof *c->jobs, room * sizeof *c->jobs);
        c->job_room = room;
    }
    uint32_t slot = (uint32_t)(c->jobs_made % c->job_room);
    while (c->jobs[slot]) slot = (slot + 1) % c->job_room;
    return slot;
}

// Who wakes up wakes others, as long as there is something for them: the loop pays for few.
void wake_copiers(carrier *c, uint64_t most) {
    for (uint64_t i = 0; i < most && i < c->idle_copiers; i++) condition_wake(&c->work);
}

void queue_job(carrier *c, job *j) {
    if (j->blocks) j->shares = (j->block_count + j->blocks_a_share - 1) / j->blocks_a_share;
    else j->shares = block_shares(&j->block, SHARE);
    c->unfinished_jobs++;
    if (c->last_job) c->last_job->next = j;
    else c->first_job = j;
    c->last_job = j;
}

static uint64_t add_job(carrier *c, job *j) {
    mutex_lock(&c->lock);
    uint32_t slot = free_slot(c);
    uint64_t id = j->id = (++c->jobs_made << 32) | (slot + 1);
    c->jobs[slot] = j;
    c->job_count++;
    queue_job(c, j);
    wake_copiers(c, 1);
    mutex_unlock(&c->lock);
    return id;
}

uint64_t carrier_copy_block(carrier *c, const block *b, void *owner, bool rings) {
    job *j = grab(sizeof *j);
    j->block = *b;
    j->file = -1;
    j->owner = owner;
    j->rings = rings;
    return add_job(c, j);
}

uint64_t carrier_copy_blocks(carrier *c, const block *blocks, uint64_t count, uint64_t bytes, void *owner, bool rings) {
    job *j = grab(sizeof *j);
    j->blocks = blocks;
    j->block_count = count;
    j->blocks_a_share = bytes > SHARE ? count * SHARE / bytes : count;
    if (!j->blocks_a_share) j->blocks_a_share = 1;
    j->file = -1;
    j->owner = owner;
    j->rings = rings;
    return add_job(c, j);
}

uint64_t carrier_read_block(carrier *c, const block *b, int file, uint64_t position, void *owner, bool rings) {
    job *j = grab(sizeof *j);
    j->block = *b;
    j->file = file;
    j->position = position;
    j->owner = owner;
    j->rings = rings;
    return add_job(c, j);
}

static void unqueue(carrier *c, job *j) {
    job *before = NULL;
    for (job *at = c->first_job; at; before = at, at = at->next) {
        if (at != j) continue;
        if (before) before->next = j->next;
        else c->first_job = j->next;
        if (c->last_job == j) c->last_job = before;
        j->next = NULL;
        return;
    }
}

static void end_job(carrier *c, job *j) {
    j->ended = true;
    c->unfinished_jobs--;
    if (j->upload) {
        piece_copied(c, j);
        free(j);
        return;
    }
    departure *d = j->waits;
    if (d) {
        j->waits = NULL;
        leave_out_of(d, j);
        if (--d->waiting == 0) {
            d->ready_at = now();
            wake_gpu(c);
        }
    }
    tell(c, END_JOB, j->status, j->id, 0, NULL, j->rings || c->listens || j->status != JOB_DONE);
}

bool carrier_cancel(carrier *c, uint64_t id) {
    mutex_lock(&c->lock);
    job *j = find_job(c, id);
    bool cancelled = j && !j->ended && j->helpers == 0;
    if (cancelled) {
        unqueue(c, j);
        j->status = JOB_CANCELLED;
        end_job(c, j);
    }
    mutex_unlock(&c->lock);
    return cancelled;
}

void *carrier_owner(carrier *c, uint64_t id) {
    mutex_lock(&c->lock);
    job *j = find_job(c, id);
    void *owner = j ? j->owner : NULL;
    if (j && j->ended) {
        c->jobs[(uint32_t)id - 1] = NULL;
        c->job_count--;
        free(j);
    }
    mutex_unlock(&c->lock);
    return owner;
}

void forget_queue(carrier *c) {
    while (c->first_job) {
        job *j = c->first_job;
        c->first_job = j->next;
        if (j->upload) free(j);  // in no table
    }
    c->last_job = NULL;
}

void carrier_each_owner(carrier *c, void (*take)(void *)) {
    forget_queue(c);
    for (uint32_t i = 0; i < c->job_room; i++) {
        if (c->jobs[i] && c->jobs[i]->owner) take(c->jobs[i]->owner);
        free(c->jobs[i]);
        c->jobs[i] = NULL;
    }
    c->job_count = 0;
    each_upload_owner(c, take);
}

// -- doing them --

static void copy_blocks(const job *j, uint64_t index) {
    uint64_t first = index * j->blocks_a_share, last = first + j->blocks_a_share;
    for (uint64_t i = first; i < last && i < j->block_count; i++) block_copy(&j->blocks[i]);
}

static int do_share(const job *j, uint64_t index) {
    if (j->blocks) {
        copy_blocks(j, index);
        return JOB_DONE;
    }
    if (j->file >= 0) return read_share(&j->block, j->file, j->position, SHARE, index);
    block_copy_share(&j->block, SHARE, index);
    return JOB_DONE;
}

static uint64_t bytes_of_share(const job *j, uint64_t index) {
    if (!j->blocks) {
        block_runs runs = block_begin(&j->block, SHARE, index);
        return runs.bytes * runs.left;
    }
    uint64_t bytes = 0, first = index * j->blocks_a_share, last = first + j->blocks_a_share;
    for (uint64_t i = first; i < last && i < j->block_count; i++) bytes += block_bytes(&j->blocks[i]);
    return bytes;
}

static void trace_work(carrier *c, uint32_t trace, const job *j, double since, uint64_t bytes) {
    trace_argument arguments[] = {{"bytes", bytes}, {j->into ? "buffer" : NULL, j->into ? j->into->traced.index : 0}};
    trace_slice(trace_copier(c, trace), j->file < 0 ? "copy" : "read", since, now(), arguments, 2);
}

// With the lock, which is given away meanwhile: shares of it, beside others, until none is left. The last to leave ends it.
static void run_job(carrier *c, job *j) {
    uint64_t begun = atomic_load(&j->begun), others = j->shares > begun + 1 ? j->shares - begun - 1 : 0;
    if (!others) others = (c->first_job != j || j->next || pieces_wait(c)) ? 1 : 0;
    wake_copiers(c, others < FAN_OUT ? others : FAN_OUT);
    j->helpers++;
    mutex_unlock(&c->lock);
    int status = JOB_DONE;
    uint32_t trace = trace_is_on();
    uint64_t bytes = 0;
    double since = trace ? now() : 0;
    for (uint64_t index; (index = atomic_fetch_add(&j->begun, 1)) < j->shares;) {
        int failed = do_share(j, index);
        if (trace) bytes += bytes_of_share(j, index);
        if (status == JOB_DONE) status = failed;
        if (failed) atomic_store(&j->begun, j->shares);  // nobody needs the others
    }
    if (bytes) trace_work(c, trace, j, since, bytes);
    mutex_lock(&c->lock);
    unqueue(c, j);
    if (j->status == JOB_DONE) j->status = status;
    if (--j->helpers == 0) end_job(c, j);
}

THREAD_RESULT copier_main(void *with) {
    carrier *c = with;
#ifdef __linux__
    prctl(PR_SET_NAME, "aiostage copy", 0, 0, 0);
#endif
    mutex_lock(&c->lock);
    while (!c->stopping) {
        if (c->first_job || begin_piece(c)) {
            run_job(c, c->first_job);
            continue;
        }
        c->idle_copiers++;
        condition_wait(&c->work, &c->lock);
        c->idle_copiers--;
    }
    end_thread(c);
    return 0;
}

bool copy_one(carrier *c, uint64_t index) {
    mutex_lock(&c->lock);
    job *j = c->first_job;
    while (j && index--) j = j->next;
    bool found = j != NULL;
    if (found) run_job(c, j);
    mutex_unlock(&c->lock);
    return found;
}

bool copy_piece(carrier *c) {
    mutex_lock(&c->lock);
    bool found = begin_piece(c);
    if (found) run_job(c, c->last_job);
    mutex_unlock(&c->lock);
    return found;
}
