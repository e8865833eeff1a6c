// What module.c and writes.c know of each other.
#pragma once
#include <stdbool.h>

#include "python_abi.h"

#include "block.h"

// An array whose items go `steps` bytes apart along each of its axes; the caller says where to. false: with an error.
bool block_of(const Py_buffer *from, PyObject *steps, block *);

// What a plan has, as long as it lives; NULL: with an error.
const block *blocks_of(PyObject *plan, uint64_t first, uint64_t last, uint64_t *nbytes);

// A large write of contiguous bytes, as far as it is known to be right.
typedef struct {
    uint64_t handle, offset, epoch;
    Py_buffer data;  // to be released
} known_write;
enum { STALE = -1 };
// (buffer, offset, data, types of data). 1: it is; 0: Python decides; STALE: it may be, if the buffer is usable still.
int open_known(known_write *, uint64_t device, uint64_t least, PyObject *buffer, PyObject *offset, PyObject *data,
               PyObject *types);

int add_writes(PyObject *module);  // its types; -1: with an error
PyObject *know_buffer(PyObject *module, PyObject *args), *know_usable(PyObject *module, PyObject *args), *know_texture(PyObject *module, PyObject *args),
    *name_handle(PyObject *module, PyObject *name);
