/* libFuzzer for the codec in C: it is loaded into an interpreter of this program's own, and driven
 * by tests/fuzz/codec.py. What is to be found are errors of memory, so this and the codec are built
 * with sanitizers, and Python takes its memory from malloc, which they watch. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyObject *check;

static void
expect(int holds)
{
    if (!holds) {
        PyErr_Print();
        abort();
    }
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    PyPreConfig before;
    PyPreConfig_InitPythonConfig(&before);
    before.allocator = PYMEM_ALLOCATOR_MALLOC;
    expect(!PyStatus_Exception(Py_PreInitialize(&before)));
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;
    /* As if it were the interpreter of the environment that PYTHON names. */
    const char *python = getenv("PYTHON");
    expect(!PyStatus_Exception(
        PyConfig_SetBytesString(&config, &config.program_name, python ? python : (*argv)[0])));
    expect(!PyStatus_Exception(Py_InitializeFromConfig(&config)));
    PyConfig_Clear(&config);
    PyObject *module = PyImport_ImportModule("tests.fuzz.codec");
    expect(module != NULL);
    check = PyObject_GetAttrString(module, "check_native");
    expect(check != NULL);
    Py_DECREF(module);
    return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    PyObject *result = PyObject_CallFunction(check, "y#", (const char *)data, (Py_ssize_t)size);
    expect(result != NULL);
    Py_DECREF(result);
    return 0;
}
