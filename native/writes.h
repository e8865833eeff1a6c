// What module.c and writes.c know of each other.
#pragma once
#include <stdbool.h>

#include "python_abi.h"

#include "block.h"

// An array whose items go `steps` bytes apart along each of its axes; the caller says where to. false: with an error.
bool block_of(const Py_buffer *from, PyObject *steps, block *);

// What a plan has, as long as it lives; NULL: with an error.
const block *blocks_of(PyObject *plan, uint64_t first, uint64_t last, uint64_t *nbytes);

int add_writes(PyObject *module);  // its types; -1: with an error
PyObject *know_buffer(PyObject *module, PyObject *args), *know_texture(PyObject *module, PyObject *args);
