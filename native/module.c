// The carrier as Python sees it: numbers, tuples and bytes in and out; no object of Python's is known to a thread.
#define PY_SSIZE_T_CLEAN
#include "python_abi.h"

#include <stdlib.h>
#include <string.h>

#include "carrier.h"
#include "state.h"
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

static void release_owner(void *owner) {
    if (!owner) return;
    PyBuffer_Release(owner);
    free(owner);
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

static PyObject *Carrier_ends(PyObject *self, PyObject *unused) {
    (void)unused;
    SELF;
    carrier_end ends[64];
    PyObject *list = PyList_New(0);
    for (size_t count; list && (count = carrier_take_ends(c, ends, 64));) {
        double at = now();
        for (size_t i = 0; i < count; i++) {
            carrier_end *e = &ends[i];
            if (e->kind == END_JOB) release_owner(carrier_owner(c, e->id));
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

static PyObject *Carrier_copy(PyObject *self, PyObject *args) {
    SELF;
    PyObject *data, *steps;
    unsigned long long to;
    unsigned int swap;
    int rings;
    if (!PyArg_ParseTuple(args, "OKO!Ip:copy", &data, &to, &PyTuple_Type, &steps, &swap, &rings)) return NULL;
    Py_buffer *owner = calloc(1, sizeof *owner);
    if (!owner) return PyErr_NoMemory();
    if (PyObject_GetBuffer(data, owner, PyBUF_STRIDED_RO) < 0) {
        free(owner);
        return NULL;
    }
    block b = {.to = (uint8_t *)(uintptr_t)to, .swap = swap};
    if (!block_of(owner, steps, &b)) {
        release_owner(owner);
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(carrier_copy_block(c, &b, owner, rings));
}

static PyObject *Carrier_read(PyObject *self, PyObject *args) {
    SELF;
    unsigned long long to, position, bytes;
    int file, rings;
    if (!PyArg_ParseTuple(args, "KiKKp:read", &to, &file, &position, &bytes, &rings)) return NULL;
    return PyLong_FromUnsignedLongLong(carrier_read_file(c, (uint8_t *)(uintptr_t)to, file, position, bytes, NULL, rings));
}

static PyObject *Carrier_cancel(PyObject *self, PyObject *job) {
    SELF;
    unsigned long long id = PyLong_AsUnsignedLongLong(job);
    if (PyErr_Occurred()) return NULL;
    return truth(carrier_cancel(c, id));
}

// -- departures --

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

static PyObject *Carrier_depart(PyObject *self, PyObject *args) {
    SELF;
    unsigned long long serial, epoch;
    unsigned int lane;
    int is_mark, is_urgent;
    PyObject *buffers, *commands, *jobs;
    const char *copies;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "KIppO!y#O!O!K:depart", &serial, &lane, &is_urgent, &is_mark, &PyTuple_Type, &buffers, &copies, &length,
                          &PyTuple_Type, &commands, &PyTuple_Type, &jobs, &epoch))
        return NULL;
    if (length % (Py_ssize_t)sizeof(carrier_copy)) {
        PyErr_Format(PyExc_ValueError, "a copy has %zu bytes", sizeof(carrier_copy));
        return NULL;
    }
    carrier_departure d = {.serial = serial, .lane = lane, .is_mark = is_mark, .is_urgent = is_urgent};
    uint32_t *buffer_numbers = numbers(buffers, 4, &d.buffer_count);
    gpu_handle *handles = numbers(commands, 8, &d.command_count);
    uint64_t *ids = numbers(jobs, 8, &d.job_count);
    bool departed = false;
    if (!PyErr_Occurred()) {
        d.buffers = buffer_numbers;
        d.commands = handles;
        d.jobs = ids;
        d.copies = (const carrier_copy *)copies;
        d.copy_count = (uint32_t)((size_t)length / sizeof(carrier_copy));
        departed = carrier_depart(c, &d, epoch);
    }
    free(buffer_numbers);
    free(handles);
    free(ids);
    return PyErr_Occurred() ? NULL : truth(departed);
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
    return Py_BuildValue("{sKsKsKsKsKsKsNsNsI}", "submits", n.submits, "polls", n.polls, "merged", n.merged, "outstanding",
                         n.outstanding, "queued", n.queued, "jobs", n.unfinished_jobs, "is_lost", truth(n.is_lost), "is_idle",
                         truth(n.is_idle), "threads", carrier_threads(c));
}

static PyMethodDef Carrier_methods[] = {
    {"start", Carrier_start, METH_NOARGS, "Start the GPU thread; False: the system has none left."},
    {"add_copiers", Carrier_add_copiers, METH_O, "Have so many copy threads; False: there is none."},
    {"stop", Carrier_stop, METH_NOARGS, "Begin nothing more."},
    {"join", Carrier_join, METH_O, "Wait so many seconds for the threads to end; whether they have."},
    {"bell", Carrier_bell, METH_NOARGS, "A descriptor that is readable while ends wait, or -1."},
    {"wait", Carrier_wait, METH_O, "Wait so many seconds for ends; whether there are any."},
    {"ends", Carrier_ends, METH_NOARGS, "What has happened: (kind, status, id, value, seconds ago, text) each."},
    {"add_buffer", Carrier_add_buffer, METH_VARARGS, "(handle, size, map mode) → index; it will be BACK."},
    {"forget_buffer", Carrier_forget_buffer, METH_O, "A buffer is about to be destroyed."},
    {"copy", Carrier_copy, METH_VARARGS, "(data, address, steps, swap, rings) → job."},
    {"read", Carrier_read, METH_VARARGS, "(address, file, position, bytes, rings) → job."},
    {"cancel", Carrier_cancel, METH_O, "Whether the job had not begun, and never will."},
    {"depart", Carrier_depart, METH_VARARGS,
     "(serial, lane, is urgent, is mark, buffers, copies, command buffers, jobs, epoch); False: something is gone since the epoch."},
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
    {"functions", module_functions, METH_NOARGS, "What a carrier calls: (name, type) each."},
    {"layouts", module_layouts, METH_NOARGS, "What it takes for granted: (name, offset or value, size) each."},
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
                     {"REACHED", END_REACHED}, {"LOST", END_LOST},         {"POLLED", END_POLLED}, {"COPY", STEP_COPY},
                     {"DEPART", STEP_DEPART},  {"POLL", STEP_POLL}};
    for (size_t i = 0; !failed && i < sizeof constants / sizeof *constants; i++)
        failed = PyModule_AddIntConstant(module, constants[i].name, constants[i].value);
    return failed ? failed : add_writes(module);
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aiostage.native",
    .m_doc = "The native carrier: copy threads and a GPU thread that never wait for the interpreter.",
    .m_size = 0,
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit_native(void) { return PyModuleDef_Init(&module_definition); }
