// The carrier as Python sees it: numbers, tuples and bytes in and out; no object of Python's is known to a thread.
#define PY_SSIZE_T_CLEAN
#include "python_abi.h"

#include <stdlib.h>
#include <string.h>

#include "carrier.h"
#include "state.h"
#include "trace.h"
#include "writes.h"

#ifndef _WIN32
#include <unistd.h>
#else
#include <process.h>
#define getpid _getpid
#endif

typedef struct {
    PyObject_HEAD
    carrier *c;
    long process;  // a forked child has the memory, but none of the threads
    PyObject *times;  // what has the handles that it asks the GPU's time by
} Carrier;

static PyObject *none(void) {
    Py_INCREF(Py_None);
    return Py_None;
}

static PyObject *truth(bool value) { return PyBool_FromLong(value); }

static bool address_of(PyObject *number, void *into) {
    void *address = PyLong_AsVoidPtr(number);
    if (!address && PyErr_Occurred()) return false;
    memcpy(into, &address, sizeof address);
    return true;
}

// -- owners of what jobs read: exported buffers of Python objects --

static Py_buffer *owner_of(PyObject *data) {
    Py_buffer *owner = calloc(1, sizeof *owner);
    if (!owner) PyErr_NoMemory();
    else if (PyObject_GetBuffer(data, owner, PyBUF_STRIDED_RO) == 0) return owner;
    free(owner);
    return NULL;
}

// One that has no memory: an object that only has to be there.
static Py_buffer *owner_that_keeps(PyObject *object) {
    Py_buffer *owner = calloc(1, sizeof *owner);
    if (!owner) PyErr_NoMemory();
    else owner->obj = Py_NewRef(object);  // which releasing it lets go
    return owner;
}

static void release_owner(void *owner) {
    if (!owner) return;
    PyBuffer_Release(owner);
    free(owner);
}

// Numbers of a tuple, in memory that `free` takes back; NULL with an error, or when there is none.
static void *numbers(PyObject *tuple, size_t width, uint32_t *count) {
    *count = (uint32_t)PyTuple_Size(tuple);
    char *into = calloc(*count ? *count : 1, width);
    for (uint32_t i = 0; into && i < *count; i++) {
        uint64_t number = PyLong_AsUnsignedLongLong(PyTuple_GetItem(tuple, i));
        uint32_t half = (uint32_t)number;
        memcpy(into + i * width, width == 4 ? (void *)&half : (void *)&number, width);
    }
    if (!into) PyErr_NoMemory();
    return into;
}

// -- life --

static PyObject *Carrier_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *functions;
    unsigned long long device, queue, probe;
    int message_in_done;
    if (!PyArg_ParseTuple(args, "O!KKKp:Carrier", &PyTuple_Type, &functions, &device, &queue, &probe, &message_in_done))
        return NULL;
    gpu_functions table;
    Py_ssize_t count = sizeof table / sizeof(void *);
    if (PyTuple_Size(functions) != count) {
        PyErr_Format(PyExc_ValueError, "%zd functions are needed", count);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        if (!address_of(PyTuple_GetItem(functions, i), (char *)&table + gpu_function_names[i].offset)) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Carrier *self = (Carrier *)alloc(type, 0);
    if (!self) return NULL;
    self->process = (long)getpid();
    self->c = carrier_open(&table, (gpu_handle)(uintptr_t)device, (gpu_handle)(uintptr_t)queue, (gpu_handle)(uintptr_t)probe,
                           message_in_done);
    return (PyObject *)self;
}

static void Carrier_dealloc(PyObject *object) {
    Carrier *self = (Carrier *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->c && self->process == (long)getpid()) {
        carrier *c = self->c;
        carrier_stop(c);
        PyThreadState *state = PyEval_SaveThread();
        bool quiet = carrier_join(c, 1.0);
        PyEval_RestoreThread(state);
        if (quiet) carrier_each_owner(c, release_owner);  // else a thread may still read what they are
        if (quiet) Py_DecRef(self->times);
        state = PyEval_SaveThread();  // what is released may wait for somebody who reports an error
        carrier_drop(c);
        PyEval_RestoreThread(state);
    }
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF((PyObject *)type);
}

#define SELF carrier *c = ((Carrier *)self)->c

static PyObject *Carrier_start(PyObject *self, PyObject *unused) {
    (void)unused;
    SELF;
    return truth(carrier_start_gpu(c));
}

static PyObject *Carrier_add_copiers(PyObject *self, PyObject *count) {
    SELF;
    unsigned long wanted = PyLong_AsUnsignedLong(count);
    if (PyErr_Occurred()) return NULL;
    return truth(carrier_add_copiers(c, (unsigned)wanted));
}

static PyObject *Carrier_stop(PyObject *self, PyObject *unused) {
    (void)unused;
    SELF;
    carrier_stop(c);
    return none();
}

static PyObject *Carrier_join(PyObject *self, PyObject *seconds) {
    SELF;
    double limit = PyFloat_AsDouble(seconds);
    if (PyErr_Occurred()) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    bool joined = carrier_join(c, limit);
    PyEval_RestoreThread(state);
    return truth(joined);
}

// -- ends --

static PyObject *Carrier_bell(PyObject *self, PyObject *unused) {
    (void)unused;
    SELF;
    return PyLong_FromLong(carrier_bell(c));
}

static PyObject *Carrier_wait(PyObject *self, PyObject *seconds) {
    SELF;
    double limit = PyFloat_AsDouble(seconds);
    if (PyErr_Occurred()) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    bool told = carrier_wait(c, limit);
    PyEval_RestoreThread(state);
    return truth(told);
}

static PyObject *Carrier_ends(PyObject *self, PyObject *most) {
    SELF;
    carrier_end ends[64];
    size_t left = PyLong_AsSize_t(most);
    if (PyErr_Occurred()) return NULL;
    PyObject *list = PyList_New(0);
    for (size_t count; list && (count = carrier_take_ends(c, ends, left < 64 ? left : 64)); left -= count) {
        double at = now();
        for (size_t i = 0; i < count; i++) {
            carrier_end *e = &ends[i];
            if (e->kind == END_JOB) release_owner(carrier_owner(c, e->id));
            if (e->kind == END_UPLOAD) release_owner(carrier_take_upload(c, e->id));
            PyObject *end = list ? Py_BuildValue("IiKKdz", e->kind, (int)e->status, (unsigned long long)e->id,
                                                 (unsigned long long)e->value, at - e->at, e->text)
                                 : NULL;
            free(e->text);
            if (!end || PyList_Append(list, end) < 0) {
                Py_DecRef(list);
                list = NULL;
            }
            Py_DecRef(end);
        }
    }
    return list;
}

// -- buffers and jobs --

static PyObject *Carrier_add_buffer(PyObject *self, PyObject *args) {
    SELF;
    unsigned long long handle, size;
    unsigned int mode;
    if (!PyArg_ParseTuple(args, "KKI:add_buffer", &handle, &size, &mode)) return NULL;
    uint32_t index = carrier_add_buffer(c, (gpu_handle)(uintptr_t)handle, size, mode);
    if (index == UINT32_MAX) return PyErr_Format(PyExc_ValueError, "more than %d staging buffers", MOST_BUFFERS);
    return PyLong_FromUnsignedLong(index);
}

static PyObject *Carrier_forget_buffer(PyObject *self, PyObject *index) {
    SELF;
    unsigned long i = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred()) return NULL;
    carrier_forget_buffer(c, (uint32_t)i);
    return none();
}

bool block_of(const Py_buffer *from, PyObject *steps, block *b) {
    if (from->ndim > BLOCK_DIMENSIONS || PyTuple_Size(steps) != from->ndim) {
        PyErr_Format(PyExc_ValueError, "data of %d dimensions, with steps for %zd", from->ndim, PyTuple_Size(steps));
        return false;
    }
    b->from = from->buf;
    b->run = (uint64_t)from->itemsize;
    b->dimensions = (uint32_t)from->ndim;
    for (int i = 0; i < from->ndim; i++) {
        b->count[i] = (uint64_t)from->shape[i];
        b->from_step[i] = from->strides[i];
        b->to_step[i] = PyLong_AsSsize_t(PyTuple_GetItem(steps, i));
    }
    if (PyErr_Occurred()) return false;
    if (b->swap && b->run % b->swap) {
        PyErr_SetString(PyExc_ValueError, "items are no multiple of what is swapped");
        return false;
    }
    block_simplify(b);
    return true;
}

static PyObject *Carrier_name_buffer(PyObject *self, PyObject *args) {
    SELF;
    unsigned int number, ring_number, index;
    if (!PyArg_ParseTuple(args, "III:name_buffer", &number, &ring_number, &index)) return NULL;
    carrier_name_buffer(c, number, ring_number, index);
    return none();
}

static PyObject *Carrier_show_buffer(PyObject *self, PyObject *args) {
    SELF;
    unsigned int number;
    int state;
    if (!PyArg_ParseTuple(args, "Ii:show_buffer", &number, &state)) return NULL;
    carrier_show_buffer(c, number, state);
    return none();
}

static PyObject *Carrier_copy(PyObject *self, PyObject *args) {
    SELF;
    PyObject *data, *steps;
    unsigned long long to;
    unsigned int swap;
    int rings;
    if (!PyArg_ParseTuple(args, "OKO!Ip:copy", &data, &to, &PyTuple_Type, &steps, &swap, &rings)) return NULL;
    Py_buffer *owner = owner_of(data);
    if (!owner) return NULL;
    block b = {.to = (uint8_t *)(uintptr_t)to, .swap = swap};
    if (!block_of(owner, steps, &b)) {
        release_owner(owner);
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(carrier_copy_block(c, &b, owner, rings));
}

static PyObject *Carrier_copy_plan(PyObject *self, PyObject *args) {
    SELF;
    PyObject *plan;
    unsigned long long first, last;
    int rings;
    uint64_t nbytes;
    if (!PyArg_ParseTuple(args, "OKKp:copy_plan", &plan, &first, &last, &rings)) return NULL;
    const block *blocks = blocks_of(plan, first, last, &nbytes);
    Py_buffer *owner = blocks ? owner_that_keeps(plan) : NULL;
    if (!owner) return NULL;
    return PyLong_FromUnsignedLongLong(carrier_copy_blocks(c, blocks, last - first, nbytes, owner, rings));
}

static PyObject *Carrier_read(PyObject *self, PyObject *args) {
    SELF;
    PyObject *keeps;
    unsigned long long to, position;
    const char *bytes;
    Py_ssize_t length;
    int file, rings;
    if (!PyArg_ParseTuple(args, "OiKKy#p:read", &keeps, &file, &position, &to, &bytes, &length, &rings)) return NULL;
    if (length != (Py_ssize_t)offsetof(carrier_piece, copy))
        return PyErr_Format(PyExc_ValueError, "a block has %zu bytes", offsetof(carrier_piece, copy));
    Py_buffer *owner = owner_that_keeps(keeps);
    if (!owner) return NULL;
    carrier_piece piece = {0};
    memcpy(&piece, bytes, (size_t)length);
    block b = block_of_piece(&piece, (uint8_t *)(uintptr_t)to, NULL);
    return PyLong_FromUnsignedLongLong(carrier_read_block(c, &b, file, position + (uint64_t)piece.from, owner, rings));
}

static PyObject *Carrier_cancel(PyObject *self, PyObject *job) {
    SELF;
    unsigned long long id = PyLong_AsUnsignedLongLong(job);
    if (PyErr_Occurred()) return NULL;
    return truth(carrier_cancel(c, id));
}

// -- whole uploads --

static PyObject *Carrier_entitle(PyObject *self, PyObject *title) {
    SELF;
    const char *utf8 = PyUnicode_AsUTF8AndSize(title, NULL);
    if (!utf8) return NULL;
    strncpy(c->traced.title, utf8, sizeof c->traced.title - 1);
    return none();
}

static PyObject *Carrier_time(PyObject *self, PyObject *args) {
    SELF;
    carrier_times times = {0};
    unsigned long long write, resolve, queries, resolved;
    PyObject *keeps, *results;
    uint32_t count;
    if (!PyArg_ParseTuple(args, "OKKKKO!d:time", &keeps, &write, &resolve, &queries, &resolved, &PyTuple_Type, &results,
                          &times.period))
        return NULL;
    gpu_handle *handles = numbers(results, 8, &count);
    if (!handles || PyErr_Occurred() || count != CARRIER_TIMES) {
        free(handles);
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "%d results are needed", CARRIER_TIMES);
    }
    memcpy(&times.write, &(void *){(void *)(uintptr_t)write}, sizeof times.write);
    memcpy(&times.resolve, &(void *){(void *)(uintptr_t)resolve}, sizeof times.resolve);
    times.queries = (gpu_handle)(uintptr_t)queries;
    times.resolved = (gpu_handle)(uintptr_t)resolved;
    memcpy(times.results, handles, sizeof times.results);
    free(handles);
    bool taken = carrier_time(c, &times);
    if (taken) ((Carrier *)self)->times = Py_NewRef(keeps);
    return truth(taken);
}

static PyObject *Carrier_show_upload(PyObject *self, PyObject *args) {
    SELF;
    trace_track task;
    unsigned long long bytes, fence;
    double since;
    if (!PyArg_ParseTuple(args, "(III)KdK:show_upload", &task.trace, &task.process, &task.track, &bytes, &since, &fence))
        return NULL;
    trace_upload(c, task, bytes, since, fence);
    return none();
}

static PyObject *Carrier_post_from(PyObject *self, PyObject *args) {
    SELF;
    if (!PyArg_ParseTuple(args, "III:post_from", &c->poster.trace, &c->poster.process, &c->poster.track)) return NULL;
    return none();
}

static PyObject *Carrier_add_ring(PyObject *self, PyObject *unused) {
    (void)unused;
    SELF;
    return PyLong_FromVoidPtr(carrier_add_ring(c));
}

static PyObject *Carrier_drop_ring(PyObject *self, PyObject *number) {
    SELF;
    ring *r;
    if (!address_of(number, &r)) return NULL;
    carrier_drop_ring(c, r);
    return none();
}

static PyObject *Carrier_lend(PyObject *self, PyObject *args) {
    SELF;
    PyObject *buffers;
    unsigned long long at;
    uint32_t count;
    if (!PyArg_ParseTuple(args, "KO!:lend", &at, &PyTuple_Type, &buffers)) return NULL;
    uint32_t *indices = numbers(buffers, 4, &count);
    if (indices && !PyErr_Occurred()) carrier_lend(c, (ring *)(uintptr_t)at, indices, count);
    free(indices);
    return PyErr_Occurred() ? NULL : none();
}

static PyObject *Carrier_take_back(PyObject *self, PyObject *number) {
    SELF;
    ring *r;
    uint8_t *address = NULL;
    if (!address_of(number, &r)) return NULL;
    uint32_t index = carrier_take_back(c, r, &address);
    if (index == UINT32_MAX) return none();
    return Py_BuildValue("IK", index, (unsigned long long)(uintptr_t)address);
}

static PyObject *Carrier_want(PyObject *self, PyObject *args) {
    SELF;
    unsigned long long at;
    unsigned int count;
    if (!PyArg_ParseTuple(args, "KI:want", &at, &count)) return NULL;
    carrier_want(c, (ring *)(uintptr_t)at, count);
    return none();
}

static PyObject *Carrier_ring_counts(PyObject *self, PyObject *number) {
    SELF;
    ring *r;
    if (!address_of(number, &r)) return NULL;
    carrier_ring_counts n = carrier_count_ring(c, r);
    return Py_BuildValue("IIIKKKKKKKKKKKd", n.lent, n.idle, n.most_used, n.pieces, n.bytes, n.in_flight, n.wanted, n.most_wanted,
                         n.seals, n.sealed_bytes, n.sealed_most, n.cramped, n.stalls, n.waiting, n.stall_seconds);
}

static PyObject *Carrier_lent_state(PyObject *self, PyObject *number) {
    SELF;
    unsigned long index = PyLong_AsUnsignedLong(number);
    if (PyErr_Occurred()) return NULL;
    return PyLong_FromLong(carrier_lent_state(c, (uint32_t)index));
}

static PyObject *Carrier_upload(PyObject *self, PyObject *args) {
    SELF;
    unsigned long long at, position, most, epoch;
    PyObject *data;
    int file;
    const char *pieces;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "KOiKy#KK:upload", &at, &data, &file, &position, &pieces, &length, &most, &epoch)) return NULL;
    if (!length || length % (Py_ssize_t)sizeof(carrier_piece))
        return PyErr_Format(PyExc_ValueError, "a piece has %zu bytes", sizeof(carrier_piece));
    Py_buffer *owner = file < 0 ? owner_of(data) : owner_that_keeps(data);
    if (!owner) return NULL;
    carrier_source source = {owner->buf, file, position, owner};
    uint64_t upload = carrier_upload(c, (ring *)(uintptr_t)at, (const carrier_piece *)pieces,
                                     (uint32_t)((size_t)length / sizeof(carrier_piece)), most, &source, epoch);
    if (!upload) release_owner(owner);
    return PyLong_FromUnsignedLongLong(upload);
}

static PyObject *Carrier_upload_bytes(PyObject *self, PyObject *args) {
    SELF;
    unsigned long long at, start, nbytes, to, to_offset, most, epoch;
    PyObject *data;
    if (!PyArg_ParseTuple(args, "KOKKKKKK:upload_bytes", &at, &data, &start, &nbytes, &to, &to_offset, &most, &epoch))
        return NULL;
    Py_buffer *owner = owner_of(data);
    if (!owner) return NULL;
    carrier_piece piece = {.from = (int64_t)start, .nbytes = nbytes, .run = nbytes,
                           .copy = {.kind = COPY_TO_BUFFER, .to = to, .to_offset = to_offset, .size = nbytes}};
    carrier_source source = {owner->buf, -1, 0, owner};
    uint64_t upload = carrier_upload(c, (ring *)(uintptr_t)at, &piece, 1, most, &source, epoch);
    if (!upload) release_owner(owner);
    return PyLong_FromUnsignedLongLong(upload);
}

static PyObject *Carrier_upload_known(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    SELF;
    ring *r;
    known_write w;
    if (count != 7) return PyErr_Format(PyExc_TypeError, "upload_known takes 7 arguments");
    uint64_t least = PyLong_AsUnsignedLongLong(args[5]), most = PyLong_AsUnsignedLongLong(args[6]);
    if (PyErr_Occurred() || !address_of(args[0], &r)) return NULL;
    int known = open_known(&w, (uint64_t)(uintptr_t)c->device, least, args[1], args[2], args[3], args[4]);
    if (known <= 0) return PyLong_FromLong(known);
    Py_buffer *owner = malloc(sizeof *owner);
    if (!owner) return PyErr_NoMemory();
    *owner = w.data;
    uint64_t nbytes = (uint64_t)owner->len;
    carrier_piece piece = {.nbytes = nbytes, .run = nbytes,
                           .copy = {.kind = COPY_TO_BUFFER, .to = w.handle, .to_offset = w.offset, .size = nbytes}};
    carrier_source source = {owner->buf, -1, 0, owner};
    uint64_t upload = carrier_upload(c, r, &piece, 1, most, &source, w.epoch);
    if (!upload) release_owner(owner);
    return upload ? PyLong_FromUnsignedLongLong(upload) : PyLong_FromLong(STALE);
}

static PyObject *Carrier_cancel_upload(PyObject *self, PyObject *number) {
    SELF;
    unsigned long long upload = PyLong_AsUnsignedLongLong(number);
    if (PyErr_Occurred()) return NULL;
    carrier_cancel_upload(c, upload);
    return none();
}

// -- departures --

static PyObject *Carrier_depart(PyObject *self, PyObject *args) {
    SELF;
    unsigned long long epoch;
    unsigned int lane;
    int is_mark, is_urgent;
    PyObject *buffers, *commands, *jobs;
    const char *copies;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "IppO!y#O!O!K:depart", &lane, &is_urgent, &is_mark, &PyTuple_Type, &buffers, &copies, &length,
                          &PyTuple_Type, &commands, &PyTuple_Type, &jobs, &epoch))
        return NULL;
    if (length % (Py_ssize_t)sizeof(carrier_copy)) {
        PyErr_Format(PyExc_ValueError, "a copy has %zu bytes", sizeof(carrier_copy));
        return NULL;
    }
    carrier_departure d = {.lane = lane, .is_mark = is_mark, .is_urgent = is_urgent};
    uint32_t *buffer_numbers = numbers(buffers, 4, &d.buffer_count);
    gpu_handle *handles = numbers(commands, 8, &d.command_count);
    uint64_t *ids = numbers(jobs, 8, &d.job_count);
    uint64_t serial = 0;
    if (!PyErr_Occurred()) {
        d.buffers = buffer_numbers;
        d.commands = handles;
        d.jobs = ids;
        d.copies = (const carrier_copy *)copies;
        d.copy_count = (uint32_t)((size_t)length / sizeof(carrier_copy));
        serial = carrier_depart(c, &d, epoch);
    }
    free(buffer_numbers);
    free(handles);
    free(ids);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLongLong(serial);
}

static PyObject *Carrier_poll_soon(PyObject *self, PyObject *unused) {
    (void)unused;
    SELF;
    carrier_poll_soon(c);
    return none();
}

static PyObject *Carrier_listen(PyObject *self, PyObject *unused) {
    (void)unused;
    SELF;
    carrier_listen(c);
    return none();
}

static PyObject *Carrier_step(PyObject *self, PyObject *args) {
    SELF;
    int which;
    unsigned long long index = 0;
    if (!PyArg_ParseTuple(args, "i|K:step", &which, &index)) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    bool any = carrier_step(c, which, index);
    PyEval_RestoreThread(state);
    return truth(any);
}

static PyObject *Carrier_counts(PyObject *self, PyObject *unused) {
    (void)unused;
    SELF;
    carrier_counts n = carrier_count(c);
    return Py_BuildValue("{sKsKsKsKsKsKsdsNsNsI}", "submits", n.submits, "polls", n.polls, "merged", n.merged, "outstanding",
                         n.outstanding, "queued", n.queued, "unfinished", n.unfinished, "oldest", n.oldest, "is_lost",
                         truth(n.is_lost), "is_idle", truth(n.is_idle), "threads", carrier_threads(c));
}

static PyMethodDef Carrier_methods[] = {
    {"start", Carrier_start, METH_NOARGS, "Start the GPU thread; False: the system has none left."},
    {"add_copiers", Carrier_add_copiers, METH_O, "Have so many copy threads; False: there is none."},
    {"stop", Carrier_stop, METH_NOARGS, "Begin nothing more."},
    {"join", Carrier_join, METH_O, "Wait so many seconds for the threads to end; whether they have."},
    {"bell", Carrier_bell, METH_NOARGS, "A descriptor that is readable while ends wait, or -1."},
    {"wait", Carrier_wait, METH_O, "Wait so many seconds for ends; whether there are any."},
    {"ends", Carrier_ends, METH_O, "(most): what has happened, (kind, status, id, value, seconds ago, text) each."},
    {"add_buffer", Carrier_add_buffer, METH_VARARGS, "(handle, size, map mode) → index; it will be BACK."},
    {"forget_buffer", Carrier_forget_buffer, METH_O, "A buffer is about to be destroyed."},
    {"name_buffer", Carrier_name_buffer, METH_VARARGS, "(buffer, ring, index): what it is called in a trace."},
    {"show_buffer", Carrier_show_buffer, METH_VARARGS, "(buffer, AVAILABLE, IN_USE or FENCED): for a trace; lent, it is as it is."},
    {"copy", Carrier_copy, METH_VARARGS, "(data, address, steps, swap, rings) → job."},
    {"copy_plan", Carrier_copy_plan, METH_VARARGS, "(plan, first, last, rings) → job, for writes that were recorded."},
    {"read", Carrier_read, METH_VARARGS, "(what keeps the file, file, position, address, block, rings) → job."},
    {"cancel", Carrier_cancel, METH_O, "Whether the job had not begun, and never will."},
    {"entitle", Carrier_entitle, METH_O, "What it is called in a trace: ASCII, as JSON has it."},
    {"time", Carrier_time, METH_VARARGS,
     "(what keeps the rest, write, resolve, queries, resolved, results, seconds of a tick): ask the GPU's time in traces."},
    {"show_upload", Carrier_show_upload, METH_VARARGS,
     "(track, bytes, since, the fence of its last submit or 0): for a trace, one that went by places and is over."},
    {"post_from", Carrier_post_from, METH_VARARGS, "(trace, process, track): of the task that posts the next upload."},
    {"add_ring", Carrier_add_ring, METH_NOARGS, "→ a number for those below."},
    {"drop_ring", Carrier_drop_ring, METH_O, "Whose buffers were forgotten."},
    {"lend", Carrier_lend, METH_VARARGS, "(ring, buffers): mapped ones, for its uploads."},
    {"take_back", Carrier_take_back, METH_O, "(ring) → (buffer, address) of one that nobody uses, or None."},
    {"want", Carrier_want, METH_VARARGS, "(ring, count): that many of those that come back are to be BACK."},
    {"ring_counts", Carrier_ring_counts, METH_O, "carrier_ring_counts, in order."},
    {"lent_state", Carrier_lent_state, METH_O, "LENT_IDLE, LENT_FILLING or LENT_AWAY."},
    {"upload", Carrier_upload, METH_VARARGS,
     "(ring, data, -1, 0, pieces, most, epoch) → upload; 0: something is gone since the epoch. From a file: what keeps it, it,\n"
     "and where the data begin there, in place of the three after the ring."},
    {"upload_bytes", Carrier_upload_bytes, METH_VARARGS,
     "(ring, contiguous data, start, bytes, buffer, offset, most, epoch) → upload, likewise."},
    {"upload_known", (PyCFunction)(void (*)(void))Carrier_upload_known, METH_FASTCALL,
     "(ring, buffer, offset, data, types, least, most) → upload, of more bytes than `least`. 0: Python decides. STALE: it\n"
     "is to find out whether the buffer is usable still."},
    {"cancel_upload", Carrier_cancel_upload, METH_O, "Begin no more of it."},
    {"depart", Carrier_depart, METH_VARARGS,
     "(lane, is urgent, is mark, buffers, copies, command buffers, jobs, epoch) → serial; 0: something is gone since the epoch."},
    {"listen", Carrier_listen, METH_NOARGS, "Ring for the end of every job from now on."},
    {"poll_soon", Carrier_poll_soon, METH_NOARGS, "Have the GPU thread poll."},
    {"step", Carrier_step, METH_VARARGS, "Make one step of a carrier without threads."},
    {"counts", Carrier_counts, METH_NOARGS, "What it has done, and has to do."},
    {0},
};

static PyType_Slot Carrier_slots[] = {
    {Py_tp_new, Carrier_new},
    {Py_tp_dealloc, Carrier_dealloc},
    {Py_tp_methods, Carrier_methods},
    {0, NULL},
};

static PyType_Spec Carrier_spec = {
    .name = "aiostage.native.Carrier",
    .basicsize = sizeof(Carrier),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = Carrier_slots,
};

// -- fate --

static PyObject *module_epoch(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromUnsignedLongLong(carrier_epoch());
}

static PyObject *module_gone(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long resource;
    const char *why;
    PyObject *keep, *destroy, *release;
    void (*f[3])(gpu_handle);
    if (!PyArg_ParseTuple(args, "KsOOO:gone", &resource, &why, &keep, &destroy, &release)) return NULL;
    if (!address_of(keep, &f[0]) || !address_of(destroy, &f[1]) || !address_of(release, &f[2])) return NULL;
    return truth(carrier_gone((gpu_handle)(uintptr_t)resource, why, f[0], f[1], f[2]));
}

static PyObject *module_device_gone(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long device;
    const char *why;
    if (!PyArg_ParseTuple(args, "Ks:device_gone", &device, &why)) return NULL;
    carrier_device_gone((gpu_handle)(uintptr_t)device, why);
    return none();
}

static PyObject *module_wait_for_use(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long buffer;
    const char *why;
    if (!PyArg_ParseTuple(args, "Ks:wait_for_use", &buffer, &why)) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    carrier_wait_for_use((gpu_handle)(uintptr_t)buffer, why);
    PyEval_RestoreThread(state);
    return none();
}

static PyObject *module_settle(PyObject *module, PyObject *queue) {
    (void)module;
    gpu_handle handle;
    if (!address_of(queue, &handle)) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    carrier_settle(handle);
    PyEval_RestoreThread(state);
    return none();
}

static PyObject *module_visit(PyObject *module, PyObject *queue) {
    (void)module;
    gpu_handle handle;
    if (!address_of(queue, &handle)) return NULL;
    carrier_visit(handle);
    return none();
}

static PyObject *module_unvisit(PyObject *module, PyObject *queue) {
    (void)module;
    gpu_handle handle;
    if (!address_of(queue, &handle)) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    carrier_unvisit(handle);
    PyEval_RestoreThread(state);
    return none();
}

static PyObject *module_is_visited(PyObject *module, PyObject *queue) {
    (void)module;
    gpu_handle handle;
    return address_of(queue, &handle) ? truth(carrier_is_visited(handle)) : NULL;
}

static PyObject *module_note_error(PyObject *module, PyObject *text) {
    (void)module;
    const char *utf8 = PyUnicode_AsUTF8AndSize(text, NULL);
    return utf8 ? truth(carrier_note_error(utf8)) : NULL;
}

// -- traces --

static PyObject *module_trace_begin(PyObject *module, PyObject *room) {
    (void)module;
    size_t bytes = PyLong_AsSize_t(room);
    if (PyErr_Occurred()) return NULL;
    return PyLong_FromUnsignedLong(trace_begin(bytes) ? trace_is_on() : 0);
}

static PyObject *module_trace_end(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyThreadState *state = PyEval_SaveThread();
    trace_end();
    PyEval_RestoreThread(state);
    return none();
}

static PyObject *module_trace_take(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    const char *text;
    uint64_t lost;
    size_t length = trace_take(&text, &lost);
    return Py_BuildValue("y#K", text ? text : "", (Py_ssize_t)length, (unsigned long long)lost);
}

static PyObject *module_trace_forget(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    trace_forget();
    return none();
}

static PyObject *module_trace_process(PyObject *module, PyObject *args) {
    (void)module;
    unsigned int trace;
    const char *title;
    if (!PyArg_ParseTuple(args, "Is:trace_process", &trace, &title)) return NULL;
    return PyLong_FromUnsignedLong(trace_add_process(trace, title));
}

static PyObject *module_trace_track(PyObject *module, PyObject *args) {
    (void)module;
    unsigned int trace, process;
    const char *title;
    if (!PyArg_ParseTuple(args, "IIs:trace_track", &trace, &process, &title)) return NULL;
    trace_track at = trace_add_track(trace, process, title);
    return Py_BuildValue("III", at.trace, at.process, at.track);
}

static PyObject *module_now(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyFloat_FromDouble(now());
}

static PyObject *module_trace_stall(PyObject *module, PyObject *args) {
    (void)module;
    trace_track at;
    unsigned long long bytes;
    double seconds;
    if (!PyArg_ParseTuple(args, "(III)Kd:trace_stall", &at.trace, &at.process, &at.track, &bytes, &seconds)) return NULL;
    trace_argument argument = {"bytes", bytes};
    double end = now();
    trace_slice(at, "stall", end - seconds, end, &argument, 1);
    return none();
}

static PyObject *module_trace_lag(PyObject *module, PyObject *args) {
    (void)module;
    unsigned int trace, process;
    double seconds;
    if (!PyArg_ParseTuple(args, "IId:trace_lag", &trace, &process, &seconds)) return NULL;
    trace_count(trace, process, "loop lag, ms", seconds * 1e3);
    return none();
}

// -- our idea of wgpu-native --

static PyObject *module_functions(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *list = PyList_New(0);
    for (const gpu_function_name *f = gpu_function_names; list && f->name; f++) {
        PyObject *item = Py_BuildValue("ss", f->name, f->type);
        if (!item || PyList_Append(list, item) < 0) {
            Py_DecRef(list);
            list = NULL;
        }
        Py_DecRef(item);
    }
    return list;
}

static PyObject *module_layouts(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *list = PyList_New(0);
    for (const gpu_layout *l = gpu_layouts; list && l->name; l++) {
        PyObject *item = Py_BuildValue("snn", l->name, (Py_ssize_t)l->offset, (Py_ssize_t)l->size);
        if (!item || PyList_Append(list, item) < 0) {
            Py_DecRef(list);
            list = NULL;
        }
        Py_DecRef(item);
    }
    return list;
}

static PyMethodDef module_methods[] = {
    {"epoch", module_epoch, METH_NOARGS, "Changes whenever a resource is gone."},
    {"gone", module_gone, METH_VARARGS,
     "(resource, why, keep, destroy, release): whether it may be destroyed now; if not, it will be after a submit."},
    {"device_gone", module_device_gone, METH_VARARGS, "(device, why)"},
    {"wait_for_use", module_wait_for_use, METH_VARARGS, "(buffer, why): it is about to be mapped."},
    {"settle", module_settle, METH_O, "Wait for what is urgent on a queue."},
    {"visit", module_visit, METH_O, "Have nothing destroyed until `unvisit`: a submit to a queue is made, or with 0 a look."},
    {"unvisit", module_unvisit, METH_O, NULL},
    {"is_visited", module_is_visited, METH_O, "Whether somebody submits to a queue now."},
    {"note_error", module_note_error, METH_O, "An error of wgpu's in this thread; whether the carrier made the call."},
    {"now", module_now, METH_NOARGS, "By the clock of carriers and traces, in seconds."},
    {"trace_begin", module_trace_begin, METH_O, "(room in bytes) → its number; 0: there is one, or no memory. See native/trace.h."},
    {"trace_end", module_trace_end, METH_NOARGS, "Nothing more is put in it."},
    {"trace_take", module_trace_take, METH_NOARGS, "→ (events, how many were lost) since the last call; from one thread at a time."},
    {"trace_forget", module_trace_forget, METH_NOARGS, "Give its memory back."},
    {"trace_process", module_trace_process, METH_VARARGS, "(trace, title) → its number. Titles are as JSON has strings."},
    {"trace_track", module_trace_track, METH_VARARGS, "(trace, process, title) → (trace, process, track)."},
    {"trace_stall", module_trace_stall, METH_VARARGS, "(track, bytes, seconds): one that ends now."},
    {"trace_lag", module_trace_lag, METH_VARARGS, "(trace, process, seconds)."},
    {"functions", module_functions, METH_NOARGS, "What a carrier calls: (name, type) each."},
    {"layouts", module_layouts, METH_NOARGS, "What it takes for granted: (name, offset or value, size) each."},
    {"know_usable", know_usable, METH_VARARGS, "(buffer, epoch): it was neither destroyed nor mapped in this epoch."},
    {"name_handle", name_handle, METH_O, "The attribute that is None when a resource was released."},
    {"know_buffer", know_buffer, METH_VARARGS, "(buffer, device, handle, size): it may be written to."},
    {"know_texture", know_texture, METH_VARARGS,
     "(texture, device, handle, forms, mip level, (width, height, layers) of its blocks): it may be written to."},
    {0},
};

static int module_exec(PyObject *module) {
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
        PyErr_SetString(PyExc_ImportError, "aiostage works in the main interpreter only, as wgpu does");
        return -1;
    }
    PyObject *type = PyType_FromModuleAndSpec(module, &Carrier_spec, NULL);
    if (!type) return -1;
    int failed = PyModule_AddObjectRef(module, "Carrier", type);
    Py_DECREF(type);
    static const struct {
        const char *name;
        int value;
    } constants[] = {{"JOB", END_JOB},         {"LEFT_OUT", END_LEFT_OUT}, {"MADE", END_MADE},     {"BACK", END_BACK},
                     {"REACHED", END_REACHED}, {"LOST", END_LOST},         {"POLLED", END_POLLED}, {"COPY", STEP_COPY},     {"PIECE", STEP_PIECE},
                     {"DEPART", STEP_DEPART},  {"POLL", STEP_POLL},        {"UPLOAD", END_UPLOAD}, {"LENT_IDLE", LENT_IDLE},
                     {"LENT_FILLING", LENT_FILLING}, {"LENT_AWAY", LENT_AWAY}, {"STALE", STALE},
                     {"AVAILABLE", TRACE_AVAILABLE}, {"IN_USE", TRACE_IN_USE}, {"FENCED", TRACE_FENCED}, {"TIMES", CARRIER_TIMES}, {"TIMES_STEP", CARRIER_TIMES_STEP}};
    for (size_t i = 0; !failed && i < sizeof constants / sizeof *constants; i++)
        failed = PyModule_AddIntConstant(module, constants[i].name, constants[i].value);
    return failed ? failed : add_writes(module);
}

// What later Pythons ask, and earlier ones do not know: in the numbers of 3.12 and 3.13. Without the interpreter's lock it
// has never been run, so a free-threaded Python takes it again for this module; its threads need none in any case.
enum { SLOT_INTERPRETERS = 3, SLOT_LOCK = 4 };
static void *const ONLY_THE_MAIN_ONE = (void *)0, *const IS_NEEDED = (void *)0;

static PyModuleDef_Slot module_slots[4] = {{Py_mod_exec, module_exec}};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aiostage.native",
    .m_doc = "The native carrier: copy threads and a GPU thread that never wait for the interpreter.",
    .m_size = 0,
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit_native(void) {
    PyModuleDef_Slot *next = module_slots + 1;
    if (Py_Version >= 0x030C0000) *next++ = (PyModuleDef_Slot){SLOT_INTERPRETERS, ONLY_THE_MAIN_ONE};
    if (Py_Version >= 0x030D0000) *next++ = (PyModuleDef_Slot){SLOT_LOCK, IS_NEEDED};
    return PyModuleDef_Init(&module_definition);
}
