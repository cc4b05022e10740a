/* What `_nativeloop` calls of the codec without going through Python's methods: the capsule
   `_native.interface` has one. */

#ifndef ASYNCWEBSOCKETS_NATIVE_H
#define ASYNCWEBSOCKETS_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#define CODEC_INTERFACE "asyncwebsockets._native.interface"

typedef struct {
    /* The one type that the functions take. */
    PyTypeObject *type;
    /* receive_data(data), for bytes: 0, or -1 with an exception. */
    int (*receive)(PyObject *codec, PyObject *data);
    /* next_message(limit): 0, or -1 with an exception. The event is NULL for None. */
    int (*next_message)(PyObject *codec, uint64_t limit, PyObject **event);
    /* pending(limit): 0, 1, or -1 with an exception. */
    int (*pending)(PyObject *codec, uint64_t limit);
    /* encode_message(data, True). */
    PyObject *(*encode_message)(PyObject *codec, PyObject *data);
    /* Write what encode_message returns into a buffer, if it is as simple as that: bytes or ASCII,
       uncompressed. Return its size, 0 if it does not fit or is otherwise to be encoded, or -1. */
    Py_ssize_t (*encode_into)(PyObject *codec, PyObject *data, char *buffer, Py_ssize_t space);
    /* The header alone of what encode_message returns, or NULL without an exception if the payload
       does not go out as the data is. */
    PyObject *(*encode_header)(PyObject *codec, PyObject *data);
    /* collecting(limit): 0, 1, or -1 with an exception. */
    int (*collecting)(PyObject *codec, uint64_t limit);
    /* While it collects a large message: where to write what is received, and how much fits there;
       0 without an exception if it does not, or -1. Behind that, `received` says how much it was. */
    Py_ssize_t (*reserve)(PyObject *codec, uint64_t limit, char **buffer);
    void (*received)(PyObject *codec, Py_ssize_t size);
} CodecInterface;

#endif
