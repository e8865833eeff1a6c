// Small writes of a batch, in one call each: what Python has found right before is repeated here.
//
// Python checks the first write to a destination, and for a texture the first of each form of data (its type, shape,
// layout and size); then it lets that be known, which is kept with the destination. A write that differs in its offset or
// origin alone is checked here, copied into the staging buffer that Python has lent, and recorded. Whatever is not as
// simple as that is UNKNOWN, and nothing has been done: Python, where all the rules are, decides.
#define PY_SSIZE_T_CLEAN
#include "writes.h"

#include <stdlib.h>
#include <string.h>

#include "carrier.h"
#include "state.h"

enum { UNKNOWN = -1, WRITTEN = 0 };  // what a write answers; or how many bytes of room it lacks
enum { MOST_LEVELS = 16, MOST_FORMS = 32, MOST_DTYPES = 32 };

static PyTypeObject *target_type, *forms_type, *plan_type;
static PyObject *known_name, *running_name, *texture_name, *origin_name, *level_name, *aspect_name, *offset_name, *row_name,
    *rows_name, *dtype_name, *handle_name;

// -- what is known --

// What tells the texels of one array from those of another, but for their values. All zero before it is filled in, so
// that two of them are compared as bytes.
typedef struct {
    PyTypeObject *type;
    PyObject *dtype;
    Py_ssize_t dimensions, itemsize, shape[BLOCK_DIMENSIONS];
    char format[32];
    uint32_t layout[4], size[4];  // as they were given; the last is whether they were
} signature;

typedef struct {
    signature of;
    block block;     // from `from` bytes behind the start of the data
    ptrdiff_t from;
    uint64_t nbytes;  // of staging memory
    uint32_t extent[3], bytes_per_row, rows_per_image;
} form;

// The forms of data that textures of one format were written with; the oldest goes first.
typedef struct {
    PyObject_HEAD
    uint32_t block_width, block_height, block_bytes, count;
    form forms[MOST_FORMS];
} Forms;

// A destination, kept as one of its attributes.
typedef struct {
    PyObject_HEAD
    PyObject *of;  // borrowed: it holds this
    uint64_t device, handle;
    uint64_t size;  // of a buffer
    uint64_t usable_at;  // the epoch in which it was found so
    Forms *forms;   // of a texture; NULL: a buffer
    uint32_t levels[MOST_LEVELS][3];  // in texels of whole blocks, of the mip levels that are known
    uint64_t lending;                 // where its newest record is, if that is the present one
    uint32_t bundle;
} Target;

static void Target_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_DecRef((PyObject *)((Target *)self)->forms);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static void Forms_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static void *new_object(PyTypeObject *type) { return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0); }

// What is known of a resource, as a new reference; NULL without an error: nothing.
static Target *known_target(PyObject *resource) {
    PyObject *known = PyObject_GetAttr(resource, known_name);
    if (known && Py_IS_TYPE(known, target_type) && ((Target *)known)->of == resource) return (Target *)known;
    Py_DecRef(known);
    PyErr_Clear();
    return NULL;
}

static Target *target_to_know(PyObject *resource, uint64_t device, uint64_t handle) {
    Target *t = known_target(resource);
    if (!t && (t = new_object(target_type))) {
        if (PyObject_SetAttr(resource, known_name, (PyObject *)t) < 0) {
            Py_DECREF(t);
            return NULL;
        }
        t->of = resource;
        t->device = device;
        t->handle = handle;
        t->usable_at = UINT64_MAX;  // in none yet
    }
    return t;
}

// -- numbers and data, as far as they are simple --

static bool read_number(PyObject *value, uint64_t *into) {
    if (!Py_IS_TYPE(value, &PyLong_Type)) return false;
    *into = PyLong_AsUnsignedLongLong(value);
    if (*into != UINT64_MAX || !PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
}

static bool read_half(PyObject *value, uint32_t *into) {
    uint64_t number;
    if (!read_number(value, &number) || number > UINT32_MAX) return false;
    *into = (uint32_t)number;
    return true;
}

static bool read_triple(PyObject *value, uint32_t otherwise, uint32_t into[3]) {
    bool is_tuple = Py_IS_TYPE(value, &PyTuple_Type);
    if (!is_tuple && !Py_IS_TYPE(value, &PyList_Type)) return false;
    Py_ssize_t count = is_tuple ? PyTuple_Size(value) : PyList_Size(value);
    if (count < 1 || count > 3) return false;
    for (Py_ssize_t i = 0; i < 3; i++) {
        into[i] = otherwise;
        if (i < count && !read_half(is_tuple ? PyTuple_GetItem(value, i) : PyList_GetItem(value, i), &into[i])) return false;
    }
    return true;
}

// An item of a dict, or NULL; counts those that are there.
static PyObject *item_of(PyObject *dict, PyObject *name, Py_ssize_t *found) {
    PyObject *item = PyDict_GetItemWithError(dict, name);
    if (item) ++*found;
    else if (PyErr_Occurred()) PyErr_Clear();
    return item && !Py_IsNone(item) ? item : NULL;
}

static bool read_layout(PyObject *layout, uint32_t into[4]) {
    if (Py_IsNone(layout)) return true;
    if (!Py_IS_TYPE(layout, &PyDict_Type)) return false;
    Py_ssize_t found = 0;
    PyObject *names[] = {offset_name, row_name, rows_name};
    for (int i = 0; i < 3; i++) {
        PyObject *item = item_of(layout, names[i], &found);
        if (item && !read_half(item, &into[i])) return false;
    }
    into[3] = 1;
    return found == PyDict_Size(layout);
}

static bool read_size(PyObject *size, uint32_t into[4]) {
    if (Py_IsNone(size)) return true;
    into[3] = 1;
    return read_triple(size, 1, into);
}

// Whether the items, whatever else they are, are not Python's: "O" outside of the names of fields.
static bool has_no_objects(const char *format) {
    bool in_name = false;
    for (; format && *format; format++) {
        if (*format == ':') in_name = !in_name;
        else if (*format == 'O' && !in_name) return false;
    }
    return true;
}

// Types of items that are not Python's, kept for good: asking numpy to spell one out takes longer than all the rest.
static PyObject *dtypes[MOST_DTYPES];
static int dtype_count;

static PyObject *dtype_of(PyObject *data) {
    if (Py_IS_TYPE(data, &PyBytes_Type) || Py_IS_TYPE(data, &PyByteArray_Type) || PyMemoryView_Check(data)) return NULL;
    PyObject *dtype = PyObject_GetAttr(data, dtype_name);
    if (!dtype) PyErr_Clear();
    return dtype;
}

static PyObject *kept_dtype(PyObject *dtype) {
    for (int i = 0; i < dtype_count; i++)
        if (dtypes[i] == dtype) return dtype;
    return NULL;
}

// The bytes of data in C order, if that is how they lie. Ends with `PyBuffer_Release`.
typedef struct {
    Py_buffer view;
    PyObject *dtype;  // one of those that are kept; NULL: the view has a format
} content;

static bool open_data(PyObject *data, content *c) {
    PyObject *dtype = dtype_of(data);
    c->dtype = kept_dtype(dtype);
    bool is_open = PyObject_GetBuffer(data, &c->view, c->dtype ? PyBUF_ND : PyBUF_ND | PyBUF_FORMAT) == 0;
    if (!is_open) PyErr_Clear();
    if (is_open && !c->dtype) {
        is_open = has_no_objects(c->view.format);
        if (!is_open) PyBuffer_Release(&c->view);
        else if (dtype && dtype_count < MOST_DTYPES) c->dtype = dtypes[dtype_count++] = Py_NewRef(dtype);
    }
    Py_DecRef(dtype);
    return is_open;
}

// Of data, or with `skip` 1 of each of the items of its first axis.
static bool sign(signature *s, PyTypeObject *type, const content *data, int skip, PyObject *layout, PyObject *size) {
    const Py_buffer *view = &data->view;
    const char *format = data->dtype ? "" : view->format ? view->format : "B";
    memset(s, 0, sizeof *s);
    if (view->ndim < skip || view->ndim - skip > BLOCK_DIMENSIONS || strlen(format) >= sizeof s->format) return false;
    s->type = type;
    s->dtype = data->dtype;
    s->dimensions = view->ndim - skip;
    s->itemsize = view->itemsize;
    for (int i = 0; i < s->dimensions; i++) s->shape[i] = view->shape[i + skip];
    strcpy(s->format, format);
    return read_layout(layout, s->layout) && read_size(size, s->size);
}

static const form *form_of(const Forms *forms, const signature *s) {
    for (uint32_t i = 0; i < MOST_FORMS && i < forms->count; i++)
        if (!memcmp(&forms->forms[i].of, s, sizeof *s)) return &forms->forms[i];
    return NULL;
}

// -- what Python lets be known --

PyObject *know_buffer(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *resource;
    unsigned long long device, handle, size;
    if (!PyArg_ParseTuple(args, "OKKK:know_buffer", &resource, &device, &handle, &size)) return NULL;
    Target *t = target_to_know(resource, device, handle);
    if (t) t->size = size;
    else PyErr_Clear();  // it takes no attributes
    Py_DecRef((PyObject *)t);
    Py_RETURN_NONE;
}

PyObject *know_usable(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *resource;
    unsigned long long epoch;
    if (!PyArg_ParseTuple(args, "OK:know_usable", &resource, &epoch)) return NULL;
    Target *t = known_target(resource);
    if (t) t->usable_at = epoch;
    Py_DecRef((PyObject *)t);
    Py_RETURN_NONE;
}

PyObject *name_handle(PyObject *module, PyObject *name) {
    (void)module;
    Py_DecRef(handle_name);
    handle_name = Py_NewRef(name);
    Py_RETURN_NONE;
}

PyObject *know_texture(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *resource, *forms;
    unsigned long long device, handle;
    unsigned int level, extent[3];
    if (!PyArg_ParseTuple(args, "OKKO!I(III):know_texture", &resource, &device, &handle, forms_type, &forms, &level,
                          &extent[0], &extent[1], &extent[2]))
        return NULL;
    Target *t = level < MOST_LEVELS ? target_to_know(resource, device, handle) : NULL;
    if (t) {
        if (!t->forms) t->forms = (Forms *)Py_NewRef(forms);
        memcpy(t->levels[level], extent, sizeof extent);
        Py_DECREF(t);
    } else {
        PyErr_Clear();
    }
    Py_RETURN_NONE;
}

static PyObject *Forms_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    unsigned int width, height, bytes;
    if (!PyArg_ParseTuple(args, "III:Forms", &width, &height, &bytes)) return NULL;
    Forms *self = new_object(type);
    if (!self) return NULL;
    self->block_width = width;
    self->block_height = height;
    self->block_bytes = bytes;
    return (PyObject *)self;
}

// (data, layout, size, its texels as an array, their steps, swap, (width, height, layers), (bytes per row, rows per image,
// bytes))
static PyObject *Forms_know(PyObject *self, PyObject *args) {
    Forms *forms = (Forms *)self;
    PyObject *data, *layout, *size, *texels, *steps;
    unsigned int swap;
    unsigned long long nbytes;
    form f = {0};
    if (!PyArg_ParseTuple(args, "OOOOO!I(III)(IIK):know", &data, &layout, &size, &texels, &PyTuple_Type, &steps, &swap,
                          &f.extent[0], &f.extent[1], &f.extent[2], &f.bytes_per_row, &f.rows_per_image, &nbytes))
        return NULL;
    content given;
    Py_buffer from;
    if (!open_data(data, &given)) Py_RETURN_FALSE;
    bool known = sign(&f.of, Py_TYPE(data), &given, 0, layout, size);
    if (known && PyObject_GetBuffer(texels, &from, PyBUF_STRIDED_RO) == 0) {
        f.block.swap = swap;
        known = block_of(&from, steps, &f.block);
        f.from = (const char *)from.buf - (const char *)given.view.buf;
        f.nbytes = nbytes;
        if (known) forms->forms[forms->count++ % MOST_FORMS] = f;
        PyBuffer_Release(&from);
    }
    PyBuffer_Release(&given.view);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(known);
}

static PyMethodDef Forms_methods[] = {
    {"know", Forms_know, METH_VARARGS, "What the texels of such data are, and how they lie in staging memory."},
    {0},
};

static PyType_Slot Forms_slots[] = {
    {Py_tp_new, Forms_new}, {Py_tp_dealloc, Forms_dealloc}, {Py_tp_methods, Forms_methods}, {0, NULL}};
static PyType_Spec Forms_spec = {
    .name = "aiostage.native.Forms", .basicsize = sizeof(Forms), .flags = Py_TPFLAGS_DEFAULT, .slots = Forms_slots};

static PyType_Slot Target_slots[] = {{Py_tp_dealloc, Target_dealloc}, {0, NULL}};
static PyType_Spec Target_spec = {.name = "aiostage.native.Target",
                                  .basicsize = sizeof(Target),
                                  .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                  .slots = Target_slots};

// -- many writes of texels that were found right --

typedef struct {
    Target *target;  // NULL: Python is to see to it
    uint64_t nbytes;  // of staging memory
    carrier_copy copy;  // but for where in staging memory
} planned;

typedef struct {
    PyObject_HEAD
    uint32_t count, room, block_room, view_count, view_room;
    uint64_t nbytes;
    planned *writes;
    block *blocks;  // of each: how its texels are copied; they go nowhere before it is recorded
    Py_buffer *views;  // of the data
} Plan;

static PyObject *Plan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    return PyArg_ParseTuple(args, ":Plan") ? new_object(type) : NULL;
}

static void Plan_dealloc(PyObject *self) {
    Plan *plan = (Plan *)self;
    PyTypeObject *type = Py_TYPE(self);
    for (uint32_t i = 0; i < plan->view_count; i++) PyBuffer_Release(&plan->views[i]);
    for (uint32_t i = 0; i < plan->count; i++) Py_DecRef((PyObject *)plan->writes[i].target);
    free(plan->views);
    free(plan->writes);
    free(plan->blocks);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

static Py_ssize_t Plan_length(PyObject *self) { return ((Plan *)self)->count; }

static void grow(void **array, uint32_t count, uint32_t *room, size_t width) {
    if (count < *room) return;
    uint32_t more = *room ? 2 * *room : 4;
    void *larger = grab(more * width);
    if (count) memcpy(larger, *array, count * width);
    free(*array);
    *array = larger;
    *room = more;
}

static void plan_write(Plan *plan, const planned *write, const block *b) {
    grow((void **)&plan->writes, plan->count, &plan->room, sizeof *plan->writes);
    grow((void **)&plan->blocks, plan->count, &plan->block_room, sizeof *plan->blocks);
    plan->writes[plan->count] = *write;
    plan->blocks[plan->count++] = *b;
    plan->nbytes += write->nbytes;
}

static void keep_view(Plan *plan, const Py_buffer *view) {
    grow((void **)&plan->views, plan->view_count, &plan->view_room, sizeof *plan->views);
    plan->views[plan->view_count++] = *view;
}

static PyObject *Plan_add_unknown(PyObject *self, PyObject *unused) {
    (void)unused;
    plan_write((Plan *)self, &(planned){0}, &(block){0});
    Py_RETURN_NONE;
}

static PyObject *Plan_nbytes(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((Plan *)self)->nbytes);
}

const block *blocks_of(PyObject *object, uint64_t first, uint64_t last, uint64_t *nbytes) {
    Plan *plan = (Plan *)object;
    if (!Py_IS_TYPE(object, plan_type) || first >= last || last > plan->count) {
        PyErr_SetString(PyExc_ValueError, "these are no writes of a plan");
        return NULL;
    }
    *nbytes = 0;
    for (uint64_t i = first; i < last; i++) *nbytes += plan->writes[i].nbytes;
    return plan->blocks + first;
}

static PyMethodDef Plan_methods[] = {
    {"add_unknown", Plan_add_unknown, METH_NOARGS, "One that Python is to see to."}, {0}};
static PyGetSetDef Plan_getset[] = {{"nbytes", Plan_nbytes, NULL, "Of staging memory.", NULL}, {0}};
static PyType_Slot Plan_slots[] = {{Py_tp_new, Plan_new},         {Py_tp_dealloc, Plan_dealloc}, {Py_tp_methods, Plan_methods},
                                   {Py_tp_getset, Plan_getset}, {Py_sq_length, Plan_length},   {0, NULL}};
static PyType_Spec Plan_spec = {
    .name = "aiostage.native.Plan", .basicsize = sizeof(Plan), .flags = Py_TPFLAGS_DEFAULT, .slots = Plan_slots};

// -- writes --

typedef struct {
    PyObject *destination;
    carrier_copy *records;
    uint32_t count, room;
} bundle;

// The small writes of one batch, into what it was lent of a staging buffer.
typedef struct {
    PyObject_HEAD
    PyObject *port, *types;  // the loop, and of what data the content is certain
    PyThreadState *thread;   // the loop's
    uint64_t device, most;             // bytes of one write
    uint64_t lending;                  // 0: nothing is lent
    uint8_t *address;
    uint64_t head, end, source;
    uint64_t used, writes;
    bundle *bundles;
    uint32_t bundle_count, bundle_room;
} Writes;

static uint64_t lendings;

static PyObject *Writes_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *port, *types;
    unsigned long long device, most;
    if (!PyArg_ParseTuple(args, "OO!KK:Writes", &port, &PyTuple_Type, &types, &device, &most)) return NULL;
    Writes *w = new_object(type);
    if (!w) return NULL;
    w->port = Py_NewRef(port);
    w->types = Py_NewRef(types);
    w->device = device;
    w->most = most;
    return (PyObject *)w;
}

static void forget_bundles(Writes *w) {
    bundle *bundles = w->bundles;
    uint32_t count = w->bundle_count;
    w->bundles = NULL;
    w->bundle_count = w->bundle_room = 0;
    for (uint32_t i = 0; i < count; i++) {
        free(bundles[i].records);
        Py_DECREF(bundles[i].destination);
    }
    free(bundles);
}

static void Writes_dealloc(PyObject *self) {
    Writes *w = (Writes *)self;
    PyTypeObject *type = Py_TYPE(self);
    forget_bundles(w);
    Py_DecRef(w->port);
    Py_DecRef(w->types);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF((PyObject *)type);
}

// (address, first free byte, size, handle): of a staging buffer, which nobody else writes behind that until `take`.
static PyObject *Writes_lend(PyObject *self, PyObject *args) {
    Writes *w = (Writes *)self;
    unsigned long long address, head, end, source;
    if (!PyArg_ParseTuple(args, "KKKK:lend", &address, &head, &end, &source)) return NULL;
    w->address = (uint8_t *)(uintptr_t)address;
    w->head = head;
    w->end = end;
    w->source = source;
    w->thread = PyThreadState_Get();
    w->lending = ++lendings;
    Py_RETURN_NONE;
}

static PyObject *Writes_take(PyObject *self, PyObject *unused) {
    (void)unused;
    Writes *w = (Writes *)self;
    PyObject *copies = PyList_New(0);
    for (uint32_t i = 0; copies && i < w->bundle_count; i++) {
        const bundle *b = &w->bundles[i];
        PyObject *pair = Py_BuildValue("Oy#", b->destination, (const char *)b->records,
                                       (Py_ssize_t)(b->count * sizeof *b->records));
        if (!pair || PyList_Append(copies, pair) < 0) {
            Py_DECREF(copies);
            copies = NULL;
        }
        Py_DecRef(pair);
    }
    if (!copies) return NULL;
    PyObject *taken = Py_BuildValue("KKKN", (unsigned long long)w->head, (unsigned long long)w->used,
                                    (unsigned long long)w->writes, copies);
    if (!taken) return NULL;
    w->lending = w->used = w->writes = 0;
    forget_bundles(w);
    return taken;
}

// -- recording --

// Those to one destination stay in order: there is but one bundle that its next record goes to, the last of its own.
static carrier_copy *next_record(Writes *w, Target *t) {
    if (t->lending != w->lending) {
        grow((void **)&w->bundles, w->bundle_count, &w->bundle_room, sizeof *w->bundles);
        w->bundles[w->bundle_count] = (bundle){.destination = Py_NewRef(t->of)};
        t->lending = w->lending;
        t->bundle = w->bundle_count++;
    }
    bundle *b = &w->bundles[t->bundle];
    grow((void **)&b->records, b->count, &b->room, sizeof *b->records);
    return &b->records[b->count++];
}

// The record before, if bytes that are next to it at both ends can go with it.
static carrier_copy *record_to_extend(Writes *w, const Target *t, uint64_t offset, uint64_t to_offset) {
    if (t->lending != w->lending) return NULL;
    bundle *b = &w->bundles[t->bundle];
    carrier_copy *last = b->records + b->count - 1;
    return last->offset + last->size == offset && last->to_offset + last->size == to_offset ? last : NULL;
}

static void record_bytes(Writes *w, Target *t, uint64_t offset, uint64_t to_offset, uint64_t nbytes) {
    carrier_copy *last = record_to_extend(w, t, offset, to_offset);
    if (last) {
        last->size += nbytes;
        return;
    }
    *next_record(w, t) = (carrier_copy){.kind = COPY_TO_BUFFER,
                                        .source = w->source,
                                        .offset = offset,
                                        .to = t->handle,
                                        .to_offset = to_offset,
                                        .size = nbytes};
}

static void record_texels(Writes *w, Target *t, uint64_t offset, const carrier_copy *copy) {
    carrier_copy *record = next_record(w, t);
    *record = *copy;
    record->source = w->source;
    record->offset = offset;
}

// Room for a write in what is lent; false: there is none.
static bool find_room(Writes *w, uint64_t nbytes, uint64_t alignment, uint64_t *offset) {
    *offset = (w->head + alignment - 1) & ~(alignment - 1);
    return w->lending && *offset + nbytes <= w->end;
}

static void take_room(Writes *w, uint64_t offset, uint64_t nbytes) {
    w->head = offset + nbytes;
    w->used += nbytes;
    w->writes++;
}

static bool fits(const Target *t, uint64_t offset, uint64_t nbytes) {
    return offset % 4 == 0 && nbytes % 4 == 0 && nbytes && nbytes <= t->size && offset <= t->size - nbytes;
}

// -- checking --

// Whether it is called on the batch's loop: 1, 0, or -1 with an error that came in between, as Ctrl-C does.
static int is_here(Writes *w) {
    if (PyThreadState_Get() != w->thread) return w->lending ? 0 : 1;
    PyObject *ask = PyObject_GetAttr(w->port, running_name), *answer = ask ? PyObject_CallNoArgs(ask) : NULL;
    int here = answer ? PyObject_IsTrue(answer) : -1;
    Py_DecRef(ask);
    Py_DecRef(answer);
    return here;
}

static Target *target_of(Writes *w, PyObject *resource, bool is_texture) {
    Target *t = known_target(resource);
    if (t && t->device == w->device && !t->forms == !is_texture) return t;
    Py_DecRef((PyObject *)t);
    return NULL;
}

static bool is_certain(PyObject *types, PyObject *data) {
    Py_ssize_t count = PyTuple_Size(types);
    for (Py_ssize_t i = 0; i < count; i++)
        if (Py_IS_TYPE(data, (PyTypeObject *)PyTuple_GetItem(types, i))) return true;
    return false;
}

static bool arguments(const char *name, Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) return true;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, not %zd", name, wanted, given);
    return false;
}

// -- large writes --

static bool is_released(PyObject *resource) {
    PyObject *handle = handle_name ? PyObject_GetAttr(resource, handle_name) : NULL;
    bool released = handle && Py_IsNone(handle);
    if (!handle) PyErr_Clear();
    Py_DecRef(handle);
    return released;
}

int open_known(known_write *w, uint64_t device, uint64_t least, PyObject *buffer, PyObject *offset, PyObject *data,
               PyObject *types) {
    w->epoch = carrier_epoch();
    if (!PyTuple_Check(types) || !is_certain(types, data)) return 0;
    Target *t = known_target(buffer);
    if (!t) return 0;
    content c;
    int known = t->device == device && !t->forms && !is_released(buffer) && read_number(offset, &w->offset) && open_data(data, &c);
    if (known) {
        if ((uint64_t)c.view.len <= least || !fits(t, w->offset, (uint64_t)c.view.len)) known = 0;
        else if (t->usable_at != w->epoch) known = STALE;
        if (known <= 0) PyBuffer_Release(&c.view);
    }
    w->handle = t->handle;
    if (known > 0) w->data = c.view;
    Py_DECREF(t);
    return known;
}

// -- one write --

static int64_t write_bytes(Writes *w, Target *t, uint64_t to_offset, const Py_buffer *data) {
    uint64_t nbytes = (uint64_t)data->len, offset;
    if (nbytes > w->most || !fits(t, to_offset, nbytes)) return UNKNOWN;
    if (!find_room(w, nbytes, 4, &offset)) return (int64_t)nbytes;
    memcpy(w->address + offset, data->buf, nbytes);
    record_bytes(w, t, offset, to_offset, nbytes);
    take_room(w, offset, nbytes);
    return WRITTEN;
}

// (buffer, offset, data, data offset, size)
static PyObject *Writes_buffer(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (!arguments("buffer", count, 5)) return NULL;
    Writes *w = (Writes *)self;
    uint64_t to_offset, data_offset;
    int64_t answer = UNKNOWN;
    if (!read_number(args[1], &to_offset) || !read_number(args[3], &data_offset) || data_offset || !Py_IsNone(args[4]) ||
        !is_certain(w->types, args[2]))
        return PyLong_FromLong(UNKNOWN);
    Target *t = target_of(w, args[0], false);
    if (!t) return PyLong_FromLong(UNKNOWN);
    int here = is_here(w);
    content data;
    if (here > 0 && open_data(args[2], &data)) {
        answer = write_bytes(w, t, to_offset, &data.view);
        PyBuffer_Release(&data.view);
    }
    Py_DECREF(t);
    return here < 0 ? NULL : PyLong_FromLongLong(answer);
}

// Where texels go: a `destination`, as far as it is simple.
typedef struct {
    Target *target;
    uint32_t level, origin[3];
} goal;

static bool read_goal(Writes *w, PyObject *destination, goal *g) {
    *g = (goal){0};
    if (!Py_IS_TYPE(destination, &PyDict_Type)) return false;
    Py_ssize_t found = 0;
    PyObject *texture = item_of(destination, texture_name, &found), *origin = item_of(destination, origin_name, &found);
    if (!texture || (origin && !read_triple(origin, 0, g->origin))) return false;
    if (found < PyDict_Size(destination)) {
        PyObject *level = item_of(destination, level_name, &found), *aspect = item_of(destination, aspect_name, &found);
        if (found < PyDict_Size(destination) || (level && !read_half(level, &g->level)) || g->level >= MOST_LEVELS) return false;
        if (aspect && (!Py_IS_TYPE(aspect, &PyUnicode_Type) || PyUnicode_CompareWithASCIIString(aspect, "all"))) return false;
    }
    g->target = target_of(w, texture, true);
    return g->target != NULL;
}

// The form of data with this signature, if it may go there.
static const form *form_for(const Writes *w, const goal *g, const signature *s) {
    const Forms *forms = g->target->forms;
    const form *f = form_of(forms, s);
    if (!f || f->nbytes > w->most || g->origin[0] % forms->block_width || g->origin[1] % forms->block_height) return NULL;
    const uint32_t *limit = g->target->levels[g->level];
    for (int i = 0; i < 3; i++)
        if ((uint64_t)g->origin[i] + f->extent[i] > limit[i]) return NULL;
    return f;
}

static planned plan_texels(const goal *g, const form *f) {
    const Forms *forms = g->target->forms;
    planned p = {.target = g->target,
                 .nbytes = f->nbytes,
                 .copy = {.kind = COPY_TO_TEXTURE,
                          .aspect = 1,  // all
                          .mip_level = g->level,
                          .to = g->target->handle,
                          .to_offset = forms->block_bytes,
                          .size = forms->block_width | (uint64_t)forms->block_height << 32,
                          .bytes_per_row = f->bytes_per_row,
                          .rows_per_image = f->rows_per_image}};
    memcpy(p.copy.origin, g->origin, sizeof g->origin);
    memcpy(p.copy.extent, f->extent, sizeof f->extent);
    return p;
}

static block block_from(const form *f, const void *data) {
    block b = f->block;
    b.from = (const uint8_t *)data + f->from;
    return b;
}

// Its copy, and where its bytes are to go: false: there is no room.
static bool place_texels(Writes *w, const planned *p, block *b) {
    uint64_t offset;
    if (!find_room(w, p->nbytes, 16, &offset)) return false;
    b->to = w->address + offset;
    record_texels(w, p->target, offset, &p->copy);
    take_room(w, offset, p->nbytes);
    return true;
}

static int64_t write_texels(Writes *w, const goal *g, const form *f, const void *data) {
    planned p = plan_texels(g, f);
    block b = block_from(f, data);
    if (!place_texels(w, &p, &b)) return (int64_t)f->nbytes;
    block_copy(&b);
    return WRITTEN;
}

// (destination, data, data layout, size)
static PyObject *Writes_texture(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    if (!arguments("texture", count, 4)) return NULL;
    Writes *w = (Writes *)self;
    int64_t answer = UNKNOWN;
    goal g;
    if (!is_certain(w->types, args[1]) || !read_goal(w, args[0], &g)) return PyLong_FromLong(UNKNOWN);
    int here = is_here(w);
    content data;
    if (here > 0 && open_data(args[1], &data)) {
        signature s;
        const form *f = sign(&s, Py_TYPE(args[1]), &data, 0, args[2], args[3]) ? form_for(w, &g, &s) : NULL;
        if (f) answer = write_texels(w, &g, f, data.view.buf);
        PyBuffer_Release(&data.view);
    }
    Py_DECREF(g.target);
    return here < 0 ? NULL : PyLong_FromLongLong(answer);
}

// -- many --

// (buffer, offsets, data, first, last): pieces of equal length to offsets of 64 bits. Returns the first that is not done.
static PyObject *Writes_buffers(PyObject *self, PyObject *args) {
    Writes *w = (Writes *)self;
    PyObject *buffer;
    Py_buffer offsets, data;
    Py_ssize_t first, last;
    if (!PyArg_ParseTuple(args, "Oy*y*nn:buffers", &buffer, &offsets, &data, &first, &last)) return NULL;
    Py_ssize_t count = offsets.len / (Py_ssize_t)sizeof(uint64_t);
    uint64_t nbytes = count ? (uint64_t)(data.len / count) : 0, offset;
    Target *t = target_of(w, buffer, false);
    int here = t ? is_here(w) : 0;
    for (; here > 0 && first < last && first < count; first++) {
        uint64_t to_offset = ((const uint64_t *)offsets.buf)[first];
        if (nbytes > w->most || !fits(t, to_offset, nbytes) || !find_room(w, nbytes, 4, &offset)) break;
        memcpy(w->address + offset, (const char *)data.buf + (uint64_t)first * nbytes, nbytes);
        record_bytes(w, t, offset, to_offset, nbytes);
        take_room(w, offset, nbytes);
    }
    Py_DecRef((PyObject *)t);
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&data);
    return here < 0 ? NULL : PyLong_FromSsize_t(first);
}

// Those of a list, each with a form of its own. Returns the first that is not known to be right.
static Py_ssize_t plan_list(Writes *w, Plan *plan, PyObject *destinations, PyObject *data, Py_ssize_t first, Py_ssize_t last) {
    bool going = last <= PyList_Size(data);
    for (; going && first < last; first += going) {
        goal g;
        content found;
        signature s;
        PyObject *item = PyList_GetItem(data, first);
        if (!read_goal(w, PyList_GetItem(destinations, first), &g)) break;
        const form *f = NULL;
        going = is_certain(w->types, item) && open_data(item, &found);
        if (going && sign(&s, Py_TYPE(item), &found, 0, Py_None, Py_None)) f = form_for(w, &g, &s);
        if (f) {
            planned p = plan_texels(&g, f);
            block b = block_from(f, found.view.buf);
            plan_write(plan, &p, &b);
            keep_view(plan, &found.view);
            continue;
        }
        if (going) PyBuffer_Release(&found.view);
        Py_DECREF(g.target);
        break;
    }
    return first;
}

// Likewise those along the first axis of an array.
static Py_ssize_t plan_array(Writes *w, Plan *plan, PyObject *destinations, PyObject *data, Py_ssize_t first, Py_ssize_t last) {
    content found;
    signature s;
    if (!is_certain(w->types, data) || !open_data(data, &found)) return first;
    const Py_buffer *view = &found.view;
    bool going = sign(&s, Py_TYPE(data), &found, 1, Py_None, Py_None) && last <= view->shape[0];
    for (; going && first < last; first++) {
        goal g;
        if (!read_goal(w, PyList_GetItem(destinations, first), &g)) break;
        const form *f = form_for(w, &g, &s);
        if (!f) {
            Py_DECREF(g.target);
            break;
        }
        planned p = plan_texels(&g, f);
        block b = block_from(f, (const char *)view->buf + first * (view->len / view->shape[0]));
        plan_write(plan, &p, &b);
    }
    keep_view(plan, view);
    return first;
}

// (plan, list of destinations, list of data or array of them, last): adds those from the plan's length on. Returns its
// length; less than `last`: the next is not known to be right.
static PyObject *Writes_plan(PyObject *self, PyObject *args) {
    PyObject *plan, *destinations, *data;
    Py_ssize_t last;
    if (!PyArg_ParseTuple(args, "O!O!On:plan", plan_type, &plan, &PyList_Type, &destinations, &data, &last)) return NULL;
    if (last > PyList_Size(destinations)) last = PyList_Size(destinations);
    Py_ssize_t first = ((Plan *)plan)->count;
    first = (Py_IS_TYPE(data, &PyList_Type) ? plan_list : plan_array)((Writes *)self, (Plan *)plan, destinations, data, first, last);
    return PyLong_FromSsize_t(first);
}

// (plan, first, last, now): records them, and copies their texels now, or leaves that to `Carrier.copy_plan`. Returns the
// first that is not recorded.
static PyObject *Writes_record(PyObject *self, PyObject *args) {
    Writes *w = (Writes *)self;
    PyObject *object;
    Py_ssize_t first, last;
    int now;
    if (!PyArg_ParseTuple(args, "O!nnp:record", plan_type, &object, &first, &last, &now)) return NULL;
    Plan *plan = (Plan *)object;
    int here = is_here(w);
    if (here < 0) return NULL;
    for (; here && first < last && first < plan->count; first++) {
        if (!plan->writes[first].target || !place_texels(w, &plan->writes[first], &plan->blocks[first])) break;
        if (now) block_copy(&plan->blocks[first]);
    }
    return PyLong_FromSsize_t(first);
}

static PyMethodDef Writes_methods[] = {
    {"lend", Writes_lend, METH_VARARGS, "(address, first free byte, size, handle): write there from now on, until `take`."},
    {"take", Writes_take, METH_NOARGS, "(first free byte, bytes, writes, [(destination, records)]), and nothing is lent any more."},
    {"buffer", (PyCFunction)(void (*)(void))Writes_buffer, METH_FASTCALL,
     "(buffer, offset, data, data offset, size): 0: done; else nothing is: -1: unknown; or so many bytes of room are lacking."},
    {"texture", (PyCFunction)(void (*)(void))Writes_texture, METH_FASTCALL, "(destination, data, data layout, size): likewise."},
    {"buffers", Writes_buffers, METH_VARARGS, "(buffer, offsets, data, first, last): the first that is not done."},
    {"plan", Writes_plan, METH_VARARGS,
     "(plan, destinations, data, last): add those from its length on; returns its length then."},
    {"record", Writes_record, METH_VARARGS,
     "(plan, first, last, now): the first that is not recorded. Their texels are copied now, or by `Carrier.copy_plan`."},
    {0},
};

static PyType_Slot Writes_slots[] = {
    {Py_tp_new, Writes_new}, {Py_tp_dealloc, Writes_dealloc}, {Py_tp_methods, Writes_methods}, {0, NULL}};
static PyType_Spec Writes_spec = {
    .name = "aiostage.native.Writes", .basicsize = sizeof(Writes), .flags = Py_TPFLAGS_DEFAULT, .slots = Writes_slots};

// -- the module --

static const struct {
    PyObject **into;
    const char *text;
} names[] = {{&known_name, "_aiostage_known"}, {&running_name, "is_running"}, {&texture_name, "texture"},
             {&origin_name, "origin"},         {&level_name, "mip_level"}, {&aspect_name, "aspect"},
             {&offset_name, "offset"},         {&row_name, "bytes_per_row"}, {&rows_name, "rows_per_image"}, {&dtype_name, "dtype"}};

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, (PyTypeObject *)type) < 0) Py_CLEAR(type);
    return (PyTypeObject *)type;  // kept for good
}

int add_writes(PyObject *module) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!(*names[i].into = PyUnicode_InternFromString(names[i].text))) return -1;
    target_type = add_type(module, &Target_spec);
    forms_type = target_type ? add_type(module, &Forms_spec) : NULL;
    plan_type = forms_type ? add_type(module, &Plan_spec) : NULL;
    return plan_type && add_type(module, &Writes_spec) ? 0 : -1;
}
