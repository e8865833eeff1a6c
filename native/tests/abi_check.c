// Prints the sizes and numbers of python_abi.h as assertions about the real <Python.h>: tests/test_build.py compiles and runs
// this with the one, and compiles what it prints with the other.
#include "../python_abi.h"

#include <stddef.h>
#include <stdio.h>

#define SIZE(type) printf("_Static_assert(sizeof(" #type ") == %zu, \"" #type "\");\n", sizeof(type));
#define FIELD(type, field)                                                                                         \
    printf("_Static_assert(offsetof(" #type ", " #field ") == %zu, \"" #type "." #field "\");\n", offsetof(type, field)); \
    printf("_Static_assert(sizeof(((" #type " *)0)->" #field ") == %zu, \"" #type "." #field "\");\n",              \
           sizeof(((type *)0)->field));
#define NUMBER(name) printf("_Static_assert(" #name " == %lld, \"" #name "\");\n", (long long)(name));

int main(void) {
    SIZE(Py_ssize_t) SIZE(Py_hash_t)
    NUMBER(PY_SSIZE_T_MAX) NUMBER(PY_SSIZE_T_MIN)
    SIZE(PyObject) FIELD(PyObject, ob_refcnt) FIELD(PyObject, ob_type)
    SIZE(PyVarObject) FIELD(PyVarObject, ob_base) FIELD(PyVarObject, ob_size)
    SIZE(PyMethodDef) FIELD(PyMethodDef, ml_name) FIELD(PyMethodDef, ml_meth) FIELD(PyMethodDef, ml_flags)
    FIELD(PyMethodDef, ml_doc)
    SIZE(PyMemberDef) FIELD(PyMemberDef, name) FIELD(PyMemberDef, type) FIELD(PyMemberDef, offset)
    FIELD(PyMemberDef, flags) FIELD(PyMemberDef, doc)
    SIZE(PyGetSetDef) FIELD(PyGetSetDef, name) FIELD(PyGetSetDef, get) FIELD(PyGetSetDef, set) FIELD(PyGetSetDef, doc)
    FIELD(PyGetSetDef, closure)
    SIZE(PyType_Slot) FIELD(PyType_Slot, slot) FIELD(PyType_Slot, pfunc)
    SIZE(PyType_Spec) FIELD(PyType_Spec, name) FIELD(PyType_Spec, basicsize) FIELD(PyType_Spec, itemsize)
    FIELD(PyType_Spec, flags) FIELD(PyType_Spec, slots)
    SIZE(PyModuleDef_Base) FIELD(PyModuleDef_Base, ob_base) FIELD(PyModuleDef_Base, m_init)
    FIELD(PyModuleDef_Base, m_index) FIELD(PyModuleDef_Base, m_copy)
    SIZE(PyModuleDef_Slot) FIELD(PyModuleDef_Slot, slot) FIELD(PyModuleDef_Slot, value)
    SIZE(PyModuleDef) FIELD(PyModuleDef, m_base) FIELD(PyModuleDef, m_name) FIELD(PyModuleDef, m_doc)
    FIELD(PyModuleDef, m_size) FIELD(PyModuleDef, m_methods) FIELD(PyModuleDef, m_slots) FIELD(PyModuleDef, m_traverse)
    FIELD(PyModuleDef, m_clear) FIELD(PyModuleDef, m_free)
    SIZE(Py_buffer) FIELD(Py_buffer, buf) FIELD(Py_buffer, obj) FIELD(Py_buffer, len) FIELD(Py_buffer, itemsize)
    FIELD(Py_buffer, readonly) FIELD(Py_buffer, ndim) FIELD(Py_buffer, format) FIELD(Py_buffer, shape)
    FIELD(Py_buffer, strides) FIELD(Py_buffer, suboffsets) FIELD(Py_buffer, internal)
    SIZE(PySendResult) NUMBER(PYGEN_RETURN) NUMBER(PYGEN_ERROR) NUMBER(PYGEN_NEXT)
    SIZE(PyGILState_STATE) NUMBER(PyGILState_LOCKED) NUMBER(PyGILState_UNLOCKED)
#include "abi_numbers.h"  // NUMBER(…) for each number that python_abi.h defines: made by the test
    return 0;
}
