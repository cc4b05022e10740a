/* What runs for every message beside the codec, in C: `Waiter` and the way to ask for a
   cancellation of _loop.py, the account of pace.py, and the short ways of _pipe.py, _lane.py and
   _front.py. Each does what its twin in Python does. `Stepped` has none: there a task does it. */

#include "_native.h"

#include <structmember.h>

#include <stdbool.h>

#ifdef _WIN32
#include <windows.h>
#else
#include <errno.h>
#include <sys/socket.h>
#include <time.h>
#endif

/* As in pace.py. */
#define MAX_OPERATIONS 128
#define MAX_BYTES (64 * 1024)
#define MAX_NANOSECONDS 1000000
#define MIN_BYTES (MAX_BYTES / MAX_OPERATIONS)

/* As in _pipe.py. */
#define READ_SIZE (64 * 1024)
#define MAX_JOINED (64 * 1024)

/* Attributes and methods, by their interned names. */
#define NAMES(X) \
    X(call_soon) X(context) X(cancel_scope) X(_cancel_called) X(_shield) X(_parent_scope) \
    X(pending) X(collecting) X(next_message) X(receive_data) X(encode_message) X(write) X(clogged) \
    X(write_behind) X(_take_queued) X(_read) X(_decode_soon) X(_drain) \
    X(send) X(recv) X(data_received) X(flush) X(_flush_later) X(_keep_unsent) \
    X(_reading_broke) X(_receive_failed) X(_receive_otherwise) X(_end_turn) \
    X(begin_receive) X(_receive_next) X(throw) X(close) X(cancel) X(uncancel) \
    X(args)

struct Stepped;
struct Turn;
struct Pipe;

typedef struct {
    PyTypeObject *Waiter, *Stepped, *CancellationLook, *Account, *Pipe, *Lane, *Turn, *Front;
    /* The class last seen to be derived from one of these. */
    PyTypeObject *seen_Account, *seen_Pipe, *seen_Lane;
    /* A turn that has ended and may be used again. */
    struct Turn *spare_turn;
    /* The module of the codec, and what it offers. */
    PyObject *native;
    const CodecInterface *codec;
    /* What a socket is read into, READ_SIZE bytes. */
    char *buffer;
    /* The pipe that joins what it sends in a buffer of MAX_JOINED bytes, and how much that is: one
       of those that handle what has come, of which every thread may have one. NULL for none. */
    struct Pipe *joiner;
    char *joined;
    Py_ssize_t joined_size;
    PyObject *CancelledError;
    /* asyncio's functions that say which task runs. */
    PyObject *enter_task, *leave_task;
    /* wsproto's ConnectionState.OPEN. */
    PyObject *open;
    /* The names of call_soon's arguments by keyword. */
    PyObject *context_alone;
#define DECLARE(name) PyObject *name;
    NAMES(DECLARE)
#undef DECLARE
} State;

static PyModuleDef module_def;

/* Whether an object is of a type, the quicker way for the one class that nearly all are of. */
static bool
is_a(PyObject *object, PyTypeObject *type, PyTypeObject **seen)
{
    if (Py_IS_TYPE(object, *seen))
        return true;
    if (!PyObject_TypeCheck(object, type))
        return false;
    Py_XSETREF(*seen, (PyTypeObject *)Py_NewRef(Py_TYPE(object)));
    return true;
}

#define IS_A(state, object, name) is_a(object, (state)->name, &(state)->seen_##name)

/* The module's state, by a type of it or one that is derived from that. */
static State *
state_of(PyTypeObject *type)
{
    while (type != NULL && (!(type->tp_flags & Py_TPFLAGS_HEAPTYPE)
                            || ((PyHeapTypeObject *)type)->ht_module == NULL
                            || PyModule_GetDef(((PyHeapTypeObject *)type)->ht_module) != &module_def))
        type = type->tp_base;
    return type == NULL ? NULL : PyType_GetModuleState(type);
}


/* ---- Waiter ---- */

typedef struct {
    PyObject_HEAD
    State *state;
    PyObject *loop;
    /* While a task waits: the callback that resumes it, and the context to call that in. */
    PyObject *wakeup, *context;
    /* What it goes on with: a value, or a CancelledError. NULL for None. */
    PyObject *value, *cancelled;
    /* What to step in place of the task, while a task waits; or NULL. */
    struct Stepped *stepped;
    /* Whether that is being done, and whether the task was cancelled meanwhile. */
    bool stepping, refused;
    /* Whether the next step of `await` is its first, which yields. */
    bool begun;
    /* What a task looks at in what was yielded to it. */
    char blocking;
} Waiter;

static PyObject *
waiter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"loop", NULL};
    PyObject *loop;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Waiter", names, &loop))
        return NULL;
    Waiter *self = (Waiter *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = state_of(type);
    self->loop = Py_NewRef(loop);
    return (PyObject *)self;
}

static PyObject *
waiter_await(Waiter *self)
{
    if (self->wakeup != NULL) {
        PyErr_SetString(PyExc_RuntimeError, "another task waits already");
        return NULL;
    }
    Py_CLEAR(self->value);
    Py_CLEAR(self->cancelled);
    self->begun = true;
    return Py_NewRef(self);
}

static PySendResult
waiter_send(Waiter *self, PyObject *Py_UNUSED(sent), PyObject **result)
{
    if (self->begun) {
        self->begun = false;
        self->blocking = 1;
        *result = Py_NewRef(self);
        return PYGEN_NEXT;
    }
    *result = self->value != NULL ? self->value : Py_NewRef(Py_None);
    self->value = NULL;
    return PYGEN_RETURN;
}

/* Return what was yielded, or raise StopIteration with what was returned. */
static PyObject *
as_iteration(PySendResult how, PyObject *result)
{
    if (how != PYGEN_RETURN)
        return result;
    if (result == Py_None)
        PyErr_SetNone(PyExc_StopIteration);
    else {
        /* As an instance: a tuple would be taken as its arguments. */
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
        if (stop != NULL)
            PyErr_SetObject(PyExc_StopIteration, stop);
        Py_XDECREF(stop);
    }
    Py_DECREF(result);
    return NULL;
}

/* The same for a Python that asks in the older way. */
static PyObject *
waiter_next(Waiter *self)
{
    PyObject *result;
    PySendResult how = waiter_send(self, Py_None, &result);
    return as_iteration(how, result);
}

/* Run the task's next step, in its context. */
static int
run_wakeup(Waiter *self)
{
    PyObject *wakeup = self->wakeup, *context = self->context;
    self->wakeup = self->context = NULL;
    Py_CLEAR(self->stepped);
    int result = -1;
    if (PyContext_Enter(context) == 0) {
        PyObject *none = PyObject_CallOneArg(wakeup, (PyObject *)self);
        result = none == NULL ? -1 : 0;
        Py_XDECREF(none);
        if (PyContext_Exit(context) < 0)
            result = -1;
    }
    Py_DECREF(wakeup);
    Py_DECREF(context);
    return result;
}

/* Have the loop do so with its next turn. */
static int
schedule_wakeup(Waiter *self)
{
    PyObject *wakeup = self->wakeup, *context = self->context;
    self->wakeup = self->context = NULL;
    Py_CLEAR(self->stepped);
    PyObject *args[] = {self->loop, wakeup, (PyObject *)self, context};
    PyObject *handle =
        PyObject_VectorcallMethod(self->state->call_soon, args, 3, self->state->context_alone);
    Py_DECREF(wakeup);
    Py_DECREF(context);
    Py_XDECREF(handle);
    return handle == NULL ? -1 : 0;
}

static int step(Waiter *self);

/* Let the task go on with a value, NULL for None. */
static int
resume_with(Waiter *self, PyObject *value)
{
    if (self->wakeup == NULL)
        return 0;
    Py_XSETREF(self->value, Py_XNewRef(value));
    return self->stepped != NULL ? step(self) : run_wakeup(self);
}

static PyObject *
waiter_resume(Waiter *self, PyObject *const *args, Py_ssize_t count)
{
    if (count > 1)
        return PyErr_Format(PyExc_TypeError, "expected at most 1 argument, got %zd", count);
    if (resume_with(self, count == 1 ? args[0] : NULL) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
waiter_wake(Waiter *self, PyObject *Py_UNUSED(none))
{
    if (self->wakeup != NULL && schedule_wakeup(self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
waiter_waiting(Waiter *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->wakeup != NULL);
}

static PyObject *
waiter_get_loop(Waiter *self, PyObject *Py_UNUSED(none))
{
    return Py_NewRef(self->loop);
}

static PyObject *
waiter_add_done_callback(Waiter *self, PyObject *const *args, Py_ssize_t count, PyObject *names)
{
    if (count != 1 || names == NULL || PyTuple_GET_SIZE(names) != 1
        || PyUnicode_Compare(PyTuple_GET_ITEM(names, 0), self->state->context) != 0) {
        PyErr_SetString(PyExc_TypeError, "expected a callback and its context");
        return NULL;
    }
    Py_XSETREF(self->wakeup, Py_NewRef(args[0]));
    Py_XSETREF(self->context, Py_NewRef(args[1]));
    Py_RETURN_NONE;
}

static PyObject *
waiter_done(Waiter *self, PyObject *Py_UNUSED(none))
{
    return PyBool_FromLong(self->wakeup == NULL);
}

static PyObject *
waiter_cancel(Waiter *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"msg", NULL};
    PyObject *message = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:cancel", names, &message))
        return NULL;
    if (self->wakeup == NULL) {
        self->refused = self->stepping;
        Py_RETURN_FALSE;
    }
    PyObject *type = self->state->CancelledError;
    PyObject *error =
        message == Py_None ? PyObject_CallNoArgs(type) : PyObject_CallOneArg(type, message);
    if (error == NULL)
        return NULL;
    Py_XSETREF(self->cancelled, error);
    if (schedule_wakeup(self) < 0)
        return NULL;
    Py_RETURN_TRUE;
}

static PyObject *
waiter_result(Waiter *self, PyObject *Py_UNUSED(none))
{
    if (self->cancelled != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(self->cancelled), self->cancelled);
        return NULL;
    }
    Py_RETURN_NONE;
}

static int
waiter_traverse(Waiter *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->loop);
    Py_VISIT(self->wakeup);
    Py_VISIT(self->context);
    Py_VISIT(self->value);
    Py_VISIT(self->cancelled);
    Py_VISIT(self->stepped);
    return 0;
}

/* The loop is not let go of: a task may still ask for it. */
static int
waiter_clear(Waiter *self)
{
    Py_CLEAR(self->wakeup);
    Py_CLEAR(self->context);
    Py_CLEAR(self->value);
    Py_CLEAR(self->cancelled);
    Py_CLEAR(self->stepped);
    return 0;
}

static void
waiter_dealloc(Waiter *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    waiter_clear(self);
    Py_XDECREF(self->loop);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef waiter_methods[] = {
    {"resume", (PyCFunction)(void (*)(void))waiter_resume, METH_FASTCALL,
     PyDoc_STR("resume($self, value=None, /)\n--\n\n"
               "Run the task that waits, if one does, until it waits again.")},
    {"wake", (PyCFunction)waiter_wake, METH_NOARGS,
     PyDoc_STR("wake($self)\n--\n\n"
               "Have the task that waits, if one does, go on with the next turn of the loop.")},
    {"get_loop", (PyCFunction)waiter_get_loop, METH_NOARGS,
     PyDoc_STR("get_loop($self)\n--\n\nReturn the loop.")},
    {"add_done_callback", (PyCFunction)(void (*)(void))waiter_add_done_callback,
     METH_FASTCALL | METH_KEYWORDS,
     PyDoc_STR("add_done_callback($self, wakeup, /, *, context)\n--\n\n"
               "Take the callback that resumes the task.")},
    {"done", (PyCFunction)waiter_done, METH_NOARGS,
     PyDoc_STR("done($self)\n--\n\nWhether the task was told to go on.")},
    {"cancel", (PyCFunction)(void (*)(void))waiter_cancel, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("cancel($self, msg=None)\n--\n\n"
               "Have the task go on with CancelledError; False if it goes on already.")},
    {"result", (PyCFunction)waiter_result, METH_NOARGS,
     PyDoc_STR("result($self)\n--\n\nRaise CancelledError if it was cancelled.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef waiter_members[] = {
    {"_asyncio_future_blocking", T_BOOL, offsetof(Waiter, blocking), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef waiter_getset[] = {
    {"waiting", (getter)waiter_waiting, NULL, PyDoc_STR("Whether a task waits."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot waiter_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("_loop.PureWaiter, but fast.")},
    {Py_tp_new, waiter_new},
    {Py_tp_dealloc, waiter_dealloc},
    {Py_tp_traverse, waiter_traverse},
    {Py_tp_clear, waiter_clear},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, waiter_next},
    {Py_am_await, waiter_await},
    {Py_am_send, waiter_send},
    {Py_tp_methods, waiter_methods},
    {Py_tp_members, waiter_members},
    {Py_tp_getset, waiter_getset},
    {0, NULL},
};

static PyType_Spec waiter_spec = {
    .name = "asyncwebsockets._nativeloop.Waiter",
    .basicsize = sizeof(Waiter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = waiter_slots,
};


/* ---- Stepped ---- */

/* Awaits a coroutine. Where the coroutine waits for a `Waiter`, that steps it itself, as the task
   would, and nobody else need know as long as it waits for the same waiter again: the task, and
   whatever awaits this, stay as they are. Any other outcome of a step is kept, and the task is
   woken to fetch it. */
typedef struct Stepped {
    PyObject_HEAD
    State *state;
    PyObject *coroutine, *loop, *task;
    /* What a step has come to: what was yielded, returned or raised; NULL for nothing. */
    PyObject *outcome;
    PySendResult how;
} Stepped;

static PyObject *
stepped_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"coroutine", "loop", "task", NULL};
    PyObject *coroutine, *loop, *task;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO:Stepped", names, &coroutine, &loop, &task))
        return NULL;
    Stepped *self = (Stepped *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = state_of(type);
    self->coroutine = Py_NewRef(coroutine);
    self->loop = Py_NewRef(loop);
    self->task = Py_NewRef(task);
    return (PyObject *)self;
}

/* Have a waiter that is yielded to the task step the coroutine. */
static PyObject *
attach(Stepped *self, PyObject *yielded)
{
    if (yielded != NULL && Py_IS_TYPE(yielded, self->state->Waiter))
        Py_XSETREF(((Waiter *)yielded)->stepped, (Stepped *)Py_NewRef(self));
    return yielded;
}

/* Give what a step has come to. */
static PySendResult
fetch(Stepped *self, PyObject **result)
{
    PyObject *outcome = self->outcome;
    self->outcome = NULL;
    if (self->how == PYGEN_ERROR) {
        PyErr_SetObject((PyObject *)Py_TYPE(outcome), outcome);
        Py_DECREF(outcome);
        *result = NULL;
    }
    else
        *result = self->how == PYGEN_NEXT ? attach(self, outcome) : outcome;
    return self->how;
}

static PySendResult
stepped_send(Stepped *self, PyObject *sent, PyObject **result)
{
    if (self->outcome != NULL)
        return fetch(self, result);
    PySendResult how = PyIter_Send(self->coroutine, sent, result);
    if (how == PYGEN_NEXT)
        attach(self, *result);
    return how;
}

static PyObject *
stepped_next(Stepped *self)
{
    PyObject *result;
    PySendResult how = stepped_send(self, Py_None, &result);
    return as_iteration(how, result);
}

/* Take the exception that was raised. */
static PyObject *
raised(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *class, *error, *traceback;
    PyErr_Fetch(&class, &error, &traceback);
    PyErr_NormalizeException(&class, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    Py_XDECREF(class);
    Py_XDECREF(traceback);
    return error;
#endif
}

/* Step the coroutine as its task: the value to go on with is in the waiter. */
static PySendResult
step_as_task(Stepped *self, PyObject *context, PyObject **result)
{
    State *state = self->state;
    PyObject *args[] = {self->loop, self->task};
    *result = NULL;
    if (PyContext_Enter(context) < 0)
        return PYGEN_ERROR;
    PySendResult how = PYGEN_ERROR;
    PyObject *entered = PyObject_Vectorcall(state->enter_task, args, 2, NULL);
    if (entered != NULL) {
        how = PyIter_Send(self->coroutine, Py_None, result);
        /* The way out is to be gone whatever was raised. */
        PyObject *error = how == PYGEN_ERROR ? raised() : NULL;
        PyObject *left = PyObject_Vectorcall(state->leave_task, args, 2, NULL);
        if (left == NULL) {
            Py_CLEAR(*result);
            Py_CLEAR(error);
            how = PYGEN_ERROR;
        }
        else if (error != NULL)
            PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_XDECREF(error);
        Py_XDECREF(left);
        Py_DECREF(entered);
    }
    PyObject *error = how == PYGEN_ERROR ? raised() : NULL;
    if (PyContext_Exit(context) < 0) {
        Py_CLEAR(*result);
        Py_XDECREF(error);
        return PYGEN_ERROR;
    }
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return how;
}

/* Step what waits for a waiter; wake its task only if it waits for that no more. */
static int
step(Waiter *self)
{
    PyObject *wakeup = self->wakeup, *context = self->context, *result;
    Stepped *stepped = self->stepped;
    self->wakeup = self->context = NULL;
    self->stepped = NULL;
    self->stepping = true;
    self->refused = false;
    PySendResult how = step_as_task(stepped, context, &result);
    self->stepping = false;
    self->wakeup = wakeup;
    self->context = context;
    if (result == (PyObject *)self && how == PYGEN_NEXT) {
        Py_DECREF(result);
        Py_XSETREF(self->stepped, stepped);
        /* The task has noted its cancellation, and looks at that with its next step. */
        return self->refused ? schedule_wakeup(self) : 0;
    }
    stepped->how = how;
    stepped->outcome = how == PYGEN_ERROR ? raised() : result;
    Py_DECREF(stepped);
    return run_wakeup(self);
}

/* Cancel the task anew with the error that it has just raised: that was for its next wait. */
static int
put_off(Stepped *self, PyObject *error)
{
    State *state = self->state;
    PyObject *none = Py_NewRef(Py_None);
    /* Since Python 3.11, how often a task was cancelled is counted. */
    if (PyObject_HasAttr(self->task, state->uncancel))
        Py_SETREF(none, PyObject_CallMethodNoArgs(self->task, state->uncancel));
    PyObject *reasons = none == NULL ? NULL : PyObject_GetAttr(error, state->args);
    PyObject *cancel = reasons == NULL ? NULL : PyObject_GetAttr(self->task, state->cancel);
    PyObject *cancelled = cancel == NULL ? NULL : PyObject_CallObject(cancel, reasons);
    Py_XDECREF(none);
    Py_XDECREF(reasons);
    Py_XDECREF(cancel);
    Py_XDECREF(cancelled);
    return cancelled == NULL ? -1 : 0;
}

/* Raise an exception in the coroutine. If a step has come to something already, the task was
   cancelled in that step, and would have learned of it later: it would have cancelled what was
   yielded, and what was returned or raised comes first. */
static PyObject *
stepped_throw(Stepped *self, PyObject *args)
{
    if (self->outcome != NULL && PyTuple_GET_SIZE(args) > 0
        && PyObject_TypeCheck(PyTuple_GET_ITEM(args, 0), (PyTypeObject *)self->state->CancelledError)) {
        if (self->how != PYGEN_NEXT) {
            if (put_off(self, PyTuple_GET_ITEM(args, 0)) < 0)
                return NULL;
            return stepped_next(self);
        }
        PyObject *cancelled = PyObject_CallMethodNoArgs(self->outcome, self->state->cancel);
        int done = cancelled == NULL ? -1 : PyObject_IsTrue(cancelled);
        Py_XDECREF(cancelled);
        if (done != 0)
            return done < 0 ? NULL : stepped_next(self);
    }
    Py_CLEAR(self->outcome);
    PyObject *method = PyObject_GetAttr(self->coroutine, self->state->throw);
    PyObject *result = method == NULL ? NULL : PyObject_CallObject(method, args);
    Py_XDECREF(method);
    return attach(self, result);
}

static PyObject *
stepped_close(Stepped *self, PyObject *Py_UNUSED(none))
{
    Py_CLEAR(self->outcome);
    return PyObject_CallMethodNoArgs(self->coroutine, self->state->close);
}

static int
stepped_traverse(Stepped *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->coroutine);
    Py_VISIT(self->loop);
    Py_VISIT(self->task);
    Py_VISIT(self->outcome);
    return 0;
}

static void
stepped_dealloc(Stepped *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->coroutine);
    Py_XDECREF(self->loop);
    Py_XDECREF(self->task);
    Py_XDECREF(self->outcome);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef stepped_methods[] = {
    {"throw", (PyCFunction)stepped_throw, METH_VARARGS,
     PyDoc_STR("throw($self, type, value=None, traceback=None, /)\n--\n\n"
               "Go on with an exception, as a coroutine does.")},
    {"close", (PyCFunction)stepped_close, METH_NOARGS,
     PyDoc_STR("close($self)\n--\n\nEnd, as a coroutine does.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stepped_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Awaits a coroutine that a `Waiter` may step by itself.")},
    {Py_tp_new, stepped_new},
    {Py_tp_dealloc, stepped_dealloc},
    {Py_tp_traverse, stepped_traverse},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, stepped_next},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, stepped_send},
    {Py_tp_methods, stepped_methods},
    {0, NULL},
};

static PyType_Spec stepped_spec = {
    .name = "asyncwebsockets._nativeloop.Stepped",
    .basicsize = sizeof(Stepped),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = stepped_slots,
};


/* ---- CancellationLook ---- */

typedef struct {
    PyObject_HEAD
    State *state;
    /* The running tasks: a function of the loop, or what has them by their loops. */
    PyObject *current_task;
    /* The loop, weakly: what is kept for as long as a loop lives must not keep that. */
    PyObject *loop, *task_states;
    /* The task last looked at, weakly, and its state. */
    PyObject *last, *last_state;
    /* The class of the scopes last seen, and where its attributes are in them. */
    PyTypeObject *scope_type;
    Py_ssize_t cancel_called, shield, parent_scope;
} Look;

static PyObject *
look_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"current_task", "loop", "task_states", NULL};
    PyObject *current_task, *loop, *task_states;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO!:CancellationLook", names, &current_task,
                                     &loop, &PyDict_Type, &task_states))
        return NULL;
    Look *self = (Look *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = state_of(type);
    self->current_task = Py_NewRef(current_task);
    self->task_states = Py_NewRef(task_states);
    self->loop = PyWeakref_NewRef(loop, NULL);
    if (self->loop == NULL)
        Py_CLEAR(self);
    return (PyObject *)self;
}

/* Return the task that runs, None if there is none. */
static PyObject *
running_task(Look *self)
{
    PyObject *loop = PyWeakref_GET_OBJECT(self->loop);
    if (!PyDict_CheckExact(self->current_task))
        return PyObject_CallOneArg(self->current_task, loop);
    PyObject *task = PyDict_GetItemWithError(self->current_task, loop);
    return task == NULL && PyErr_Occurred() ? NULL : Py_NewRef(task == NULL ? Py_None : task);
}

/* Return the innermost cancel scope of the running task, None if there is none. */
static PyObject *
innermost_scope(Look *self)
{
    PyObject *task = running_task(self);
    if (task == NULL || task == Py_None)
        return task;
    if (self->last == NULL || PyWeakref_GET_OBJECT(self->last) != task) {
        PyObject *key = PyWeakref_NewRef(task, NULL);
        Py_XSETREF(self->last, key);
        Py_CLEAR(self->last_state);
        if (key != NULL) {
            PyObject *task_state = PyDict_GetItemWithError(self->task_states, key);
            /* Until its first scope, a task has none. */
            if (task_state == NULL)
                Py_CLEAR(self->last);
            else
                self->last_state = Py_NewRef(task_state);
        }
    }
    Py_DECREF(task);
    if (self->last_state == NULL)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    return PyObject_GetAttr(self->last_state, self->state->cancel_scope);
}

/* Whether an attribute of an object is true, or -1. */
static int
has(PyObject *object, PyObject *name)
{
    PyObject *value = PyObject_GetAttr(object, name);
    int result = value == NULL ? -1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return result;
}

/* Return where the instances of a type have a slot (``__slots__``), 0 if they have none of that
   name. */
static Py_ssize_t
slot_of(PyTypeObject *type, PyObject *name)
{
    PyObject *descriptor = PyObject_GetAttr((PyObject *)type, name);
    Py_ssize_t offset = 0;
    if (descriptor == NULL)
        PyErr_Clear();
    else if (Py_IS_TYPE(descriptor, &PyMemberDescr_Type)) {
        PyMemberDef *member = ((PyMemberDescrObject *)descriptor)->d_member;
        if (member->type == T_OBJECT_EX)
            offset = member->offset;
    }
    Py_XDECREF(descriptor);
    return offset;
}

/* Whether the slots of scopes of this type are known. */
static bool
knows_scopes(Look *self, PyTypeObject *type)
{
    State *state = self->state;
    if (type != self->scope_type) {
        Py_XSETREF(self->scope_type, (PyTypeObject *)Py_NewRef(type));
        self->cancel_called = slot_of(type, state->_cancel_called);
        self->shield = slot_of(type, state->_shield);
        self->parent_scope = slot_of(type, state->_parent_scope);
    }
    return self->cancel_called > 0 && self->shield > 0 && self->parent_scope > 0;
}

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))

/* The same as below, without a call. */
static int
is_cancelled_by_slots(Look *self, PyObject *scope)
{
    do {
        if (SLOT(scope, self->cancel_called) == Py_True)
            return 1;
        if (SLOT(scope, self->shield) == Py_True)
            return 0;
        scope = SLOT(scope, self->parent_scope);
    } while (scope != NULL && Py_IS_TYPE(scope, self->scope_type));
    return scope == Py_None || scope == NULL ? 0 : -1;
}

/* Whether the running task's next checkpoint would raise, or -1. */
static int
is_cancelled(Look *self)
{
    State *state = self->state;
    PyObject *scope = innermost_scope(self);
    if (scope != NULL && scope != Py_None && knows_scopes(self, Py_TYPE(scope))) {
        int result = is_cancelled_by_slots(self, scope);
        if (result >= 0) {
            Py_DECREF(scope);
            return result;
        }
    }
    while (scope != NULL && scope != Py_None) {
        int cancelled = has(scope, state->_cancel_called);
        int shielded = cancelled == 0 ? has(scope, state->_shield) : cancelled;
        if (shielded != 0) {
            Py_DECREF(scope);
            return cancelled != 0 ? cancelled : shielded < 0 ? -1 : 0;
        }
        Py_SETREF(scope, PyObject_GetAttr(scope, state->_parent_scope));
    }
    Py_XDECREF(scope);
    return scope == NULL ? -1 : 0;
}

static PyObject *
look_call(Look *self, PyObject *args, PyObject *kwargs)
{
    if (PyTuple_GET_SIZE(args) != 0 || (kwargs != NULL && PyDict_GET_SIZE(kwargs) != 0)) {
        PyErr_SetString(PyExc_TypeError, "expected no arguments");
        return NULL;
    }
    int result = is_cancelled(self);
    return result < 0 ? NULL : PyBool_FromLong(result);
}

static int
look_traverse(Look *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->current_task);
    Py_VISIT(self->loop);
    Py_VISIT(self->task_states);
    Py_VISIT(self->last);
    Py_VISIT(self->last_state);
    Py_VISIT(self->scope_type);
    return 0;
}

static void
look_dealloc(Look *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->current_task);
    Py_XDECREF(self->loop);
    Py_XDECREF(self->task_states);
    Py_XDECREF(self->last);
    Py_XDECREF(self->last_state);
    Py_XDECREF(self->scope_type);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot look_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("What _loop.cancellation_look returns on asyncio, but fast.")},
    {Py_tp_new, look_new},
    {Py_tp_dealloc, look_dealloc},
    {Py_tp_traverse, look_traverse},
    {Py_tp_call, look_call},
    {0, NULL},
};

static PyType_Spec look_spec = {
    .name = "asyncwebsockets._nativeloop.CancellationLook",
    .basicsize = sizeof(Look),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = look_slots,
};


/* ---- Account ---- */

typedef struct {
    PyObject_HEAD
    State *state;
    PyObject *cancelled;
    Py_ssize_t left;
    int64_t until;
    Py_ssize_t turn;
} Account;

static int64_t
now(void)
{
#ifdef _WIN32
    LARGE_INTEGER count, frequency;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&frequency);
    return (int64_t)((double)count.QuadPart * 1e9 / (double)frequency.QuadPart);
#else
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
#endif
}

static void
start_anew(Account *self)
{
    self->turn++;
    self->left = MAX_BYTES;
    self->until = now() + MAX_NANOSECONDS;
}

static PyObject *
account_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"cancelled", NULL};
    PyObject *cancelled;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:Account", names, &cancelled))
        return NULL;
    Account *self = (Account *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = state_of(type);
    self->cancelled = Py_NewRef(cancelled);
    start_anew(self);
    return (PyObject *)self;
}

static PyObject *
account_reset(Account *self, PyObject *Py_UNUSED(none))
{
    start_anew(self);
    Py_RETURN_NONE;
}

/* Count an operation; whether a checkpoint is due before it, or -1. */
static int
is_due(Account *self, Py_ssize_t size)
{
    if (size < MIN_BYTES)
        size = MIN_BYTES;
    self->left = size < self->left ? self->left - size : 0;
    if (self->left == 0 || now() >= self->until)
        return 1;
    if (Py_IS_TYPE(self->cancelled, self->state->CancellationLook))
        return is_cancelled((Look *)self->cancelled);
    PyObject *cancelled = PyObject_CallNoArgs(self->cancelled);
    int result = cancelled == NULL ? -1 : PyObject_IsTrue(cancelled);
    Py_XDECREF(cancelled);
    return result;
}

static PyObject *
account_due(Account *self, PyObject *number)
{
    Py_ssize_t size = PyNumber_AsSsize_t(number, NULL);
    if (size == -1 && PyErr_Occurred())
        return NULL;
    int result = is_due(self, size);
    return result < 0 ? NULL : PyBool_FromLong(result);
}

static int
account_traverse(Account *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->cancelled);
    return 0;
}

static void
account_dealloc(Account *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_XDECREF(self->cancelled);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef account_methods[] = {
    {"reset", (PyCFunction)account_reset, METH_NOARGS,
     PyDoc_STR("reset($self)\n--\n\nStart anew: the scheduler has run.")},
    {"due", (PyCFunction)account_due, METH_O,
     PyDoc_STR("due($self, size, /)\n--\n\n"
               "Count an operation on `size` bytes; whether a checkpoint is due before it.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef account_members[] = {
    {"turn", T_PYSSIZET, offsetof(Account, turn), READONLY,
     PyDoc_STR("Counts how often the scheduler was seen to run.")},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot account_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("pace.PureAccount, but fast.")},
    {Py_tp_new, account_new},
    {Py_tp_dealloc, account_dealloc},
    {Py_tp_traverse, account_traverse},
    {Py_tp_methods, account_methods},
    {Py_tp_members, account_members},
    {0, NULL},
};

static PyType_Spec account_spec = {
    .name = "asyncwebsockets._nativeloop.Account",
    .basicsize = sizeof(Account),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = account_slots,
};


/* ---- Pipe ---- */

typedef struct Pipe {
    PyObject_HEAD
    State *module;
    PyObject *sock, *pace, *sink, *failure, *backlog;
    /* The socket's descriptor. Who closes the socket does not read any more, and notes a failure. */
    int descriptor;
    /* Whether the last read has brought all that was asked for. */
    bool more;
    Py_ssize_t written, sent, turn, pieces_sent;
    char blocked, joins, in_turn, clogged;
} Pipe;

typedef struct {
    PyObject_HEAD
    State *module;
    PyObject *codec, *transport, *pace, *state, *receiver, *queue, *late, *violation;
    Py_ssize_t limit;
    char undecoded, taken, heard, whole;
} Lane;

static bool lane_is_waited_for(Lane *self);
static PyObject *lane_go_on(Lane *self);
static PyObject *lane_broke(Lane *self);

static PyObject *lane_data_received(Lane *self, PyObject *data);

static PyObject *
pipe_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Pipe *self = (Pipe *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->module = state_of(type);
    return (PyObject *)self;
}

/* Whether its subclass has set up what the methods need, and the garbage collector has not taken
   it away again. */
static bool
pipe_is_set_up(Pipe *self)
{
    bool result = self->sock != NULL && self->sink != NULL && self->failure != NULL
                  && self->backlog != NULL
                  && self->pace != NULL && IS_A(self->module, self->pace, Account);
    if (!result)
        PyErr_SetString(PyExc_AttributeError, "the pipe is not set up");
    return result;
}

/* Take the OSError that was raised, or return NULL and leave what it is. */
static PyObject *
caught_os_error(void)
{
    return PyErr_ExceptionMatches(PyExc_OSError) ? raised() : NULL;
}

/* Sockets do not block here, and so the GIL is kept: to let go of it and to get it back costs as
   much as a small message takes in the kernel. */
#ifdef _WIN32

static Py_ssize_t
socket_send(Pipe *self, PyObject *data)
{
    PyObject *number = PyObject_CallMethodOneArg(self->sock, self->module->send, data);
    Py_ssize_t sent = number == NULL ? -1 : PyLong_AsSsize_t(number);
    Py_XDECREF(number);
    return sent;
}

static Py_ssize_t
receive_into_codec(Pipe *Py_UNUSED(self), Lane *Py_UNUSED(sink))
{
    return 0;
}

static PyObject *
socket_receive(Pipe *self)
{
    return PyObject_CallMethod(self->sock, "recv", "i", READ_SIZE);
}

#else

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

/* Send bytes. Return how many the socket has taken, or -1 with an exception. */
static Py_ssize_t
socket_send(Pipe *self, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return -1;
    Py_ssize_t sent = send(self->descriptor, view.buf, (size_t)view.len, MSG_NOSIGNAL);
    if (sent < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    PyBuffer_Release(&view);
    return sent;
}

/* Receive more of a message that is being collected. Return how much that is, 0 if it is to be
   received otherwise, or -1 with an exception. */
static Py_ssize_t
receive_into_codec(Pipe *self, Lane *sink)
{
    char *buffer;
    if (!sink->whole || !lane_is_waited_for(sink)
        || !Py_IS_TYPE(sink->codec, self->module->codec->type))
        return 0;
    const CodecInterface *codec = self->module->codec;
    Py_ssize_t space = codec->reserve(sink->codec, (uint64_t)sink->limit, &buffer);
    if (space < 0) {
        PyObject *none = lane_broke(sink);
        Py_XDECREF(none);
        return none == NULL ? -1 : 0;
    }
    if (space == 0)
        return 0;
    Py_ssize_t size = recv(self->descriptor, buffer, (size_t)space, 0);
    /* An end, or an error, comes again. */
    if (size <= 0)
        return 0;
    codec->received(sink->codec, size);
    return size;
}

/* Return what the socket has received, b"" at the end. */
static PyObject *
socket_receive(Pipe *self)
{
    /* Small pieces are copied, which costs less than to allocate for a large one. */
    PyObject *data = self->more ? PyBytes_FromStringAndSize(NULL, READ_SIZE) : NULL;
    if (data == NULL && self->more)
        return NULL;
    char *buffer = data != NULL ? PyBytes_AS_STRING(data) : self->module->buffer;
    Py_ssize_t size = recv(self->descriptor, buffer, READ_SIZE, 0);
    if (size < 0) {
        Py_XDECREF(data);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    self->more = size == READ_SIZE;
    if (data == NULL)
        return PyBytes_FromStringAndSize(buffer, size);
    if (size < READ_SIZE)
        _PyBytes_Resize(&data, size);
    return data;
}

#endif

/* Keep what the socket has not taken, or note that it is broken. */
static PyObject *
keep_unsent(Pipe *self, PyObject *data, PyObject *error)
{
    PyObject *args[] = {(PyObject *)self, data, error};
    return PyObject_VectorcallMethod(self->module->_keep_unsent, args, 3, NULL);
}

/* Where to write what goes out at the end of this turn, and into `space` how much fits there: the
   pipe handles what has come, and nothing stands in its backlog. NULL if that is not so. */
static char *
begin_joining(Pipe *self, Py_ssize_t *space)
{
    State *module = self->module;
    if (!self->in_turn || !self->joins || self->blocked || self->failure != Py_None
        || PyList_GET_SIZE(self->backlog) > 0
        || (module->joiner != self && module->joiner != NULL))
        return NULL;
    if (module->joiner == NULL)
        module->joined_size = 0;
    *space = MAX_JOINED - module->joined_size - 1;
    return module->joined + module->joined_size;
}

static void
end_joining(Pipe *self, Py_ssize_t size)
{
    self->module->joiner = self;
    self->module->joined_size += size;
    self->written += size;
}

/* Have what was joined stand in the backlog, as everything else that is to be sent. */
static int
spill(Pipe *self)
{
    State *module = self->module;
    if (module->joiner != self)
        return 0;
    module->joiner = NULL;
    PyObject *data = PyBytes_FromStringAndSize(module->joined, module->joined_size);
    int result = data == NULL ? -1 : PyList_Append(self->backlog, data);
    Py_XDECREF(data);
    return result;
}

static PyObject *
pipe_write_behind(Pipe *self, PyObject *data)
{
    if (!pipe_is_set_up(self))
        return NULL;
    if (self->failure != Py_None)
        Py_RETURN_NONE;
    Py_ssize_t size = PyObject_Size(data);
    if (size < 0 || spill(self) < 0 || PyList_Append(self->backlog, data) < 0)
        return NULL;
    self->written += size;
    if (self->blocked)
        Py_RETURN_NONE;
    if (!self->joins || self->written - self->sent >= MAX_JOINED)
        return PyObject_CallMethodNoArgs((PyObject *)self, self->module->flush);
    if (PyList_GET_SIZE(self->backlog) == 1 && !self->in_turn)
        return PyObject_CallMethodNoArgs((PyObject *)self, self->module->_flush_later);
    Py_RETURN_NONE;
}

/* Write a frame that is too large to be joined with others, and comes as its header and its
   payload. */
static PyObject *
pipe_write_frame(Pipe *self, PyObject *header, PyObject *payload)
{
    if (self->failure != Py_None)
        Py_RETURN_NONE;
    if (spill(self) < 0)
        return NULL;
    Py_ssize_t before = PyList_GET_SIZE(self->backlog);
    if (PyList_Append(self->backlog, header) < 0)
        return NULL;
    if (PyList_Append(self->backlog, payload) < 0) {
        /* Half a frame must not go out. */
        PyObject *error = raised();
        PyList_SetSlice(self->backlog, before, before + 1, NULL);
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
        return NULL;
    }
    self->written += PyBytes_GET_SIZE(header) + PyBytes_GET_SIZE(payload);
    if (self->blocked)
        Py_RETURN_NONE;
    return PyObject_CallMethodNoArgs((PyObject *)self, self->module->flush);
}

static PyObject *
pipe_write(Pipe *self, PyObject *data)
{
    State *module = self->module;
    if (!pipe_is_set_up(self))
        return NULL;
    Py_ssize_t turn = ((Account *)self->pace)->turn;
    if (PyList_GET_SIZE(self->backlog) > 0 || module->joiner == self
        || (self->joins && self->turn == turn))
        return pipe_write_behind(self, data);
    if (self->failure != Py_None)
        Py_RETURN_NONE;
    Py_ssize_t size = PyObject_Size(data);
    if (size < 0)
        return NULL;
    self->turn = turn;
    self->written += size;
    Py_ssize_t sent = socket_send(self, data);
    if (sent < 0) {
        PyObject *error = caught_os_error();
        PyObject *none = error == NULL ? NULL : keep_unsent(self, data, error);
        Py_XDECREF(error);
        return none;
    }
    self->sent += sent;
    self->pieces_sent++;
    if (sent >= size)
        Py_RETURN_NONE;
    PyObject *view = PyMemoryView_FromObject(data);
    PyObject *rest = view == NULL ? NULL : PySequence_GetSlice(view, sent, size);
    Py_XDECREF(view);
    PyObject *none = rest == NULL ? NULL : keep_unsent(self, rest, Py_None);
    Py_XDECREF(rest);
    return none;
}

/* Send what was joined. */
static PyObject *
send_joined(Pipe *self)
{
    State *module = self->module;
#ifdef _WIN32
    return spill(self) < 0 ? NULL : PyObject_CallMethodNoArgs((PyObject *)self, module->_end_turn);
#else
    Py_ssize_t size = module->joined_size;
    Py_ssize_t sent = send(self->descriptor, module->joined, (size_t)size, MSG_NOSIGNAL);
    int number = sent < 0 ? errno : 0;
    /* What is written from here on goes out at once. */
    self->turn = -1;
    if (sent > 0) {
        self->sent += sent;
        self->pieces_sent++;
    }
    if (sent == size) {
        module->joiner = NULL;
        Py_RETURN_NONE;
    }
    Py_ssize_t gone = sent > 0 ? sent : 0;
    PyObject *rest = PyBytes_FromStringAndSize(module->joined + gone, size - gone);
    module->joiner = NULL;
    if (rest == NULL)
        return NULL;
    PyObject *error = Py_NewRef(Py_None);
    if (sent < 0) {
        errno = number;
        PyErr_SetFromErrno(PyExc_OSError);
        Py_SETREF(error, raised());
    }
    PyObject *none = error == NULL ? NULL : keep_unsent(self, rest, error);
    Py_DECREF(rest);
    Py_XDECREF(error);
    return none;
#endif
}

/* Hand on what was received: bytes, or NULL if the sink's codec has it already. */
static PyObject *
pipe_hand_on(Pipe *self, PyObject *data)
{
    State *module = self->module;
    start_anew((Account *)self->pace);
    PyObject *sink = Py_NewRef(self->sink);
    self->in_turn = 1;
    PyObject *none = data == NULL ? lane_go_on((Lane *)sink)
                     : IS_A(module, sink, Lane)
                         ? lane_data_received((Lane *)sink, data)
                         : PyObject_CallMethodOneArg(sink, module->data_received, data);
    self->in_turn = 0;
    Py_DECREF(sink);
    if (none == NULL) {
        PyObject *error = raised();
        if (spill(self) == 0)
            PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
        return NULL;
    }
    if (module->joiner == self)
        Py_SETREF(none, send_joined(self));
    else if (self->backlog != NULL && PyList_GET_SIZE(self->backlog) > 0)
        Py_SETREF(none, PyObject_CallMethodNoArgs((PyObject *)self, module->_end_turn));
    return none;
}

static PyObject *
pipe_on_readable(Pipe *self, PyObject *Py_UNUSED(none))
{
    State *module = self->module;
    if (!pipe_is_set_up(self))
        return NULL;
    if (IS_A(module, self->sink, Lane)) {
        Py_ssize_t collected = receive_into_codec(self, (Lane *)self->sink);
        if (collected < 0)
            return NULL;
        if (collected > 0)
            return pipe_hand_on(self, NULL);
    }
    PyObject *data = socket_receive(self);
    if (data == NULL) {
        PyObject *error = caught_os_error();
        PyObject *none = error == NULL ? NULL
                                       : PyObject_CallMethodOneArg((PyObject *)self,
                                                                   module->_receive_failed, error);
        Py_XDECREF(error);
        return none;
    }
    Py_ssize_t size = PyObject_Size(data);
    if (size <= 0 || self->sink == Py_None) {
        PyObject *none = size < 0 ? NULL
                                  : PyObject_CallMethodOneArg((PyObject *)self,
                                                              module->_receive_otherwise, data);
        Py_DECREF(data);
        return none;
    }
    PyObject *none = pipe_hand_on(self, data);
    Py_DECREF(data);
    return none;
}

static int
pipe_traverse(Pipe *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->sock);
    Py_VISIT(self->pace);
    Py_VISIT(self->sink);
    Py_VISIT(self->failure);
    Py_VISIT(self->backlog);
    return 0;
}

static int
pipe_clear(Pipe *self)
{
    Py_CLEAR(self->sock);
    Py_CLEAR(self->pace);
    Py_CLEAR(self->sink);
    Py_CLEAR(self->failure);
    Py_CLEAR(self->backlog);
    return 0;
}

static void
pipe_dealloc(Pipe *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    pipe_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef pipe_methods[] = {
    {"write", (PyCFunction)pipe_write, METH_O,
     PyDoc_STR("write($self, data, /)\n--\n\n"
               "Send bytes, or take them to be sent behind those before.")},
    {"write_behind", (PyCFunction)pipe_write_behind, METH_O,
     PyDoc_STR("write_behind($self, data, /)\n--\n\n"
               "Take bytes to be sent with the others of this turn.")},
    {"on_readable", (PyCFunction)pipe_on_readable, METH_NOARGS,
     PyDoc_STR("on_readable($self)\n--\n\n"
               "Hand on what the socket has received. Called by the loop.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef pipe_members[] = {
    {"_pace", T_OBJECT_EX, offsetof(Pipe, pace), 0, NULL},
    {"_sink", T_OBJECT_EX, offsetof(Pipe, sink), 0, NULL},
    {"_failure", T_OBJECT_EX, offsetof(Pipe, failure), 0, NULL},
    {"_written", T_PYSSIZET, offsetof(Pipe, written), 0, NULL},
    {"_sent", T_PYSSIZET, offsetof(Pipe, sent), 0, NULL},
    {"_turn", T_PYSSIZET, offsetof(Pipe, turn), 0, NULL},
    {"pieces_sent", T_PYSSIZET, offsetof(Pipe, pieces_sent), 0, NULL},
    {"_blocked", T_BOOL, offsetof(Pipe, blocked), 0, NULL},
    {"_joins", T_BOOL, offsetof(Pipe, joins), 0, NULL},
    {"_in_turn", T_BOOL, offsetof(Pipe, in_turn), 0, NULL},
    {"clogged", T_BOOL, offsetof(Pipe, clogged), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *
pipe_get_sock(Pipe *self, void *Py_UNUSED(closure))
{
    if (self->sock == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_sock");
        return NULL;
    }
    return Py_NewRef(self->sock);
}

static int
pipe_set_sock(Pipe *self, PyObject *sock, void *Py_UNUSED(closure))
{
    if (sock == NULL) {
        PyErr_SetString(PyExc_AttributeError, "a pipe keeps its socket");
        return -1;
    }
    int descriptor = PyObject_AsFileDescriptor(sock);
    if (descriptor < 0)
        return -1;
    self->descriptor = descriptor;
    Py_XSETREF(self->sock, Py_NewRef(sock));
    return 0;
}

static PyObject *
pipe_get_backlog(Pipe *self, void *Py_UNUSED(closure))
{
    if (self->backlog == NULL) {
        PyErr_SetString(PyExc_AttributeError, "_backlog");
        return NULL;
    }
    return spill(self) < 0 ? NULL : Py_NewRef(self->backlog);
}

static int
pipe_set_backlog(Pipe *self, PyObject *backlog, void *Py_UNUSED(closure))
{
    if (backlog == NULL || !PyList_CheckExact(backlog)) {
        PyErr_SetString(PyExc_TypeError, "a pipe's backlog is a list");
        return -1;
    }
    if (spill(self) < 0)
        return -1;
    Py_XSETREF(self->backlog, Py_NewRef(backlog));
    return 0;
}

static PyGetSetDef pipe_getset[] = {
    {"_backlog", (getter)pipe_get_backlog, (setter)pipe_set_backlog, NULL, NULL},
    {"_sock", (getter)pipe_get_sock, (setter)pipe_set_sock, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot pipe_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("_pipe.PurePipe, but fast.")},
    {Py_tp_new, pipe_new},
    {Py_tp_dealloc, pipe_dealloc},
    {Py_tp_traverse, pipe_traverse},
    {Py_tp_clear, pipe_clear},
    {Py_tp_methods, pipe_methods},
    {Py_tp_members, pipe_members},
    {Py_tp_getset, pipe_getset},
    {0, NULL},
};

static PyType_Spec pipe_spec = {
    .name = "asyncwebsockets._nativeloop.Pipe",
    .basicsize = sizeof(Pipe),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = pipe_slots,
};


/* ---- Lane ---- */

static PyObject *
lane_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Lane *self = (Lane *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->module = state_of(type);
    return (PyObject *)self;
}

/* Whether the channel has set up what the methods need, and the garbage collector has not taken
   it away again. */
static bool
is_set_up(Lane *self)
{
    bool result = self->codec != NULL && self->transport != NULL && self->queue != NULL
                  && self->pace != NULL && IS_A(self->module, self->pace, Account);
    if (!result)
        PyErr_SetString(PyExc_AttributeError, "the channel is not set up");
    return result;
}

static bool
is_open(Lane *self)
{
    return self->state == self->module->open;
}

/* Whether a list has items. */
static bool
has_items(PyObject *list)
{
    return list != NULL && PyList_CheckExact(list) && PyList_GET_SIZE(list) > 0;
}

static bool
has_native_codec(Lane *self)
{
    return Py_IS_TYPE(self->codec, self->module->codec->type);
}

/* Call a method of a codec in Python with the limit of messages. */
static PyObject *
ask_codec(Lane *self, PyObject *method)
{
    PyObject *limit = PyLong_FromSsize_t(self->limit);
    if (limit == NULL)
        return NULL;
    PyObject *args[] = {self->codec, limit};
    PyObject *answer = PyObject_VectorcallMethod(method, args, 2, NULL);
    Py_DECREF(limit);
    return answer;
}

static int
codec_receive(Lane *self, PyObject *data)
{
    if (has_native_codec(self))
        return self->module->codec->receive(self->codec, data);
    PyObject *none = PyObject_CallMethodOneArg(self->codec, self->module->receive_data, data);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

/* The codec's next message, NULL without an exception for None. */
static int
codec_next_message(Lane *self, PyObject **event)
{
    if (has_native_codec(self))
        return self->module->codec->next_message(self->codec, (uint64_t)self->limit, event);
    *event = ask_codec(self, self->module->next_message);
    if (*event == NULL)
        return -1;
    if (*event == Py_None)
        Py_CLEAR(*event);
    return 0;
}

/* Whether a message is under way that is wanted as a whole, or -1. */
static int
codec_collecting(Lane *self)
{
    if (!self->whole)
        return 0;
    if (has_native_codec(self))
        return self->module->codec->collecting(self->codec, (uint64_t)self->limit);
    PyObject *collecting = ask_codec(self, self->module->collecting);
    int result = collecting == NULL ? -1 : PyObject_IsTrue(collecting);
    Py_XDECREF(collecting);
    return result;
}

static int
codec_pending(Lane *self)
{
    if (has_native_codec(self))
        return self->module->codec->pending(self->codec, (uint64_t)self->limit);
    PyObject *pending = ask_codec(self, self->module->pending);
    int result = pending == NULL ? -1 : PyObject_IsTrue(pending);
    Py_XDECREF(pending);
    return result;
}

static PyObject *
codec_encode_message(Lane *self, PyObject *data)
{
    if (has_native_codec(self))
        return self->module->codec->encode_message(self->codec, data);
    PyObject *args[] = {self->codec, data, Py_True};
    return PyObject_VectorcallMethod(self->module->encode_message, args, 3, NULL);
}

/* The codec's next message, and note whether there is more behind it. */
static int
next_message(Lane *self, PyObject **event)
{
    if (codec_next_message(self, event) < 0)
        return -1;
    if (*event == NULL)
        return 0;
    int undecoded = codec_pending(self);
    if (undecoded < 0) {
        Py_CLEAR(*event);
        return -1;
    }
    self->undecoded = (char)undecoded;
    return 0;
}

static PyObject *
lane_begin_receive(Lane *self, PyObject *Py_UNUSED(none))
{
    Py_ssize_t queued = is_set_up(self) ? PyObject_Size(self->queue) : -1;
    if (queued < 0)
        return NULL;
    if (queued > 0)
        return PyObject_CallMethodNoArgs((PyObject *)self, self->module->_take_queued);
    if (!is_open(self) || self->violation != Py_None)
        Py_RETURN_NONE;
    if (self->undecoded) {
        int due = is_due((Account *)self->pace, 0);
        if (due != 0)
            return due < 0 ? NULL : Py_NewRef(Py_None);
        PyObject *event;
        if (next_message(self, &event) < 0)
            return NULL;
        if (event != NULL) {
            self->taken = 1;
            return event;
        }
    }
    self->whole = 1;
    return Py_NewRef(self->receiver != NULL ? self->receiver : Py_None);
}

static PyObject *
read_otherwise(Lane *self, PyObject *data)
{
    return PyObject_CallMethodOneArg((PyObject *)self, self->module->_read, data);
}

/* End the connection for what was raised while it read, which nobody awaits. */
static PyObject *
lane_broke(Lane *self)
{
    if (!PyErr_ExceptionMatches(PyExc_Exception))
        return NULL;
    PyObject *error = raised();
    PyObject *none =
        PyObject_CallMethodOneArg((PyObject *)self, self->module->_reading_broke, error);
    Py_DECREF(error);
    return none;
}

static PyObject *
lane_data_received(Lane *self, PyObject *data)
{
    if (!is_set_up(self))
        return NULL;
    self->heard = 1;
    if (!PyBytes_CheckExact(data) || PyBytes_GET_SIZE(data) == 0 || !lane_is_waited_for(self))
        return read_otherwise(self, data);
    return codec_receive(self, data) < 0 ? lane_broke(self) : lane_go_on(self);
}

/* Whether a task waits for the next message, and none is there. */
static bool
lane_is_waited_for(Lane *self)
{
    return !self->undecoded && self->receiver != NULL
           && Py_IS_TYPE(self->receiver, self->module->Waiter)
           && ((Waiter *)self->receiver)->wakeup != NULL;
}

/* Resume who waits with the next message, if that has come. */
static PyObject *
lane_go_on(Lane *self)
{
    State *module = self->module;
    PyObject *event;
    if (!is_set_up(self))
        return NULL;
    self->heard = 1;
    if (next_message(self, &event) < 0)
        return lane_broke(self);
    if (event == NULL) {
        int collecting = codec_collecting(self);
        if (collecting != 0)
            return collecting < 0 ? lane_broke(self) : Py_NewRef(Py_None);
        return read_otherwise(self, Py_None);
    }
    PyObject *receiver = Py_NewRef(self->receiver);
    int resumed = resume_with((Waiter *)receiver, event);
    Py_DECREF(receiver);
    Py_DECREF(event);
    if (resumed < 0)
        return NULL;
    if (self->undecoded)
        return PyObject_CallMethodNoArgs((PyObject *)self, module->_decode_soon);
    Py_RETURN_NONE;
}

/* Whether a transport is to be drained before more is written, or -1. */
static int
is_clogged(Lane *self, PyObject *transport)
{
    if (IS_A(self->module, transport, Pipe))
        return ((Pipe *)transport)->clogged;
    return has(transport, self->module->clogged);
}

/* Write a large message without a copy, if that can be: return None, or NULL, without an exception
   if it cannot. */
static PyObject *
write_large(Lane *self, PyObject *data)
{
    Pipe *pipe = (Pipe *)self->transport;
    if (!PyBytes_CheckExact(data) || PyBytes_GET_SIZE(data) < MAX_JOINED || !has_native_codec(self)
        || !IS_A(self->module, (PyObject *)pipe, Pipe) || !pipe_is_set_up(pipe))
        return NULL;
    PyObject *header = self->module->codec->encode_header(self->codec, data);
    if (header == NULL)
        return NULL;
    Py_INCREF(pipe);
    PyObject *none = pipe_write_frame(pipe, header, data);
    Py_DECREF(pipe);
    Py_DECREF(header);
    return none;
}

/* Encode a message to where the pipe joins what answers the messages of one read, if that can be:
   return None, or NULL, without an exception if it cannot. */
static PyObject *
write_joined(Lane *self, PyObject *data)
{
    State *module = self->module;
    Pipe *pipe = (Pipe *)self->transport;
    Py_ssize_t space;
    if (!has_native_codec(self) || !IS_A(module, (PyObject *)pipe, Pipe) || !pipe_is_set_up(pipe)
        || !(self->undecoded || module->joiner == pipe))
        return NULL;
    char *buffer = begin_joining(pipe, &space);
    Py_ssize_t size =
        buffer == NULL ? 0 : module->codec->encode_into(self->codec, data, buffer, space);
    if (size <= 0)
        return NULL;
    end_joining(pipe, size);
    Py_RETURN_NONE;
}

/* Write a frame. What answers the messages of one read goes out together. */
static PyObject *
write_frame(Lane *self, PyObject *transport, PyObject *frame)
{
    State *module = self->module;
    if (!IS_A(module, transport, Pipe))
        return PyObject_CallMethodOneArg(
            transport, self->undecoded ? module->write_behind : module->write, frame);
    Pipe *pipe = (Pipe *)transport;
    return self->undecoded ? pipe_write_behind(pipe, frame) : pipe_write(pipe, frame);
}

static PyObject *
lane_write_message(Lane *self, PyObject *data)
{
    if (!is_set_up(self))
        return NULL;
    PyObject *none = write_joined(self, data);
    if (none == NULL && !PyErr_Occurred())
        none = write_large(self, data);
    if (none != NULL || PyErr_Occurred())
        return none;
    PyObject *frame = codec_encode_message(self, data);
    if (frame == NULL)
        return NULL;
    PyObject *transport = Py_NewRef(self->transport);
    none = write_frame(self, transport, frame);
    Py_DECREF(transport);
    Py_DECREF(frame);
    return none;
}

static PyObject *
lane_begin_send(Lane *self, PyObject *data)
{
    State *module = self->module;
    Py_ssize_t size;
    if (!is_set_up(self))
        return NULL;
    if (PyBytes_CheckExact(data))
        size = PyBytes_GET_SIZE(data);
    else if (PyUnicode_CheckExact(data))
        size = PyUnicode_GET_LENGTH(data);
    else
        Py_RETURN_FALSE;
    if (!is_open(self) || has_items(self->late))
        Py_RETURN_FALSE;
    int hindered = is_clogged(self, self->transport);
    if (hindered == 0)
        hindered = is_due((Account *)self->pace, size);
    if (hindered != 0)
        return hindered < 0 ? NULL : Py_NewRef(Py_False);
    PyObject *transport = Py_NewRef(self->transport);
    PyObject *none = lane_write_message(self, data);
    int clogged = none == NULL ? -1 : is_clogged(self, transport);
    Py_DECREF(transport);
    Py_XDECREF(none);
    if (clogged <= 0)
        return clogged < 0 ? NULL : Py_NewRef(Py_None);
    return PyObject_CallMethodNoArgs((PyObject *)self, module->_drain);
}

static int
lane_traverse(Lane *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->codec);
    Py_VISIT(self->transport);
    Py_VISIT(self->pace);
    Py_VISIT(self->state);
    Py_VISIT(self->receiver);
    Py_VISIT(self->queue);
    Py_VISIT(self->late);
    Py_VISIT(self->violation);
    return 0;
}

static int
lane_clear(Lane *self)
{
    Py_CLEAR(self->codec);
    Py_CLEAR(self->transport);
    Py_CLEAR(self->pace);
    Py_CLEAR(self->state);
    Py_CLEAR(self->receiver);
    Py_CLEAR(self->queue);
    Py_CLEAR(self->late);
    Py_CLEAR(self->violation);
    return 0;
}

static void
lane_dealloc(Lane *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    lane_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef lane_methods[] = {
    {"begin_receive", (PyCFunction)lane_begin_receive, METH_NOARGS,
     PyDoc_STR("begin_receive($self)\n--\n\n"
               "Return a whole message, or what brings one or None.")},
    {"data_received", (PyCFunction)lane_data_received, METH_O,
     PyDoc_STR("data_received($self, data, /)\n--\n\n"
               "Handle what a pipe has read by itself: resume who receives with a message.")},
    {"begin_send", (PyCFunction)lane_begin_send, METH_O,
     PyDoc_STR("begin_send($self, data, /)\n--\n\n"
               "Send a message if that needs no waiting; return what to await for the rest.")},
    {"_write_message", (PyCFunction)lane_write_message, METH_O,
     PyDoc_STR("_write_message($self, data, /)\n--\n\n"
               "Write a message, or what ends one in fragments.")},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef lane_members[] = {
    {"_codec", T_OBJECT_EX, offsetof(Lane, codec), 0, NULL},
    {"_transport", T_OBJECT_EX, offsetof(Lane, transport), 0, NULL},
    {"_pace", T_OBJECT_EX, offsetof(Lane, pace), 0, NULL},
    {"_state", T_OBJECT_EX, offsetof(Lane, state), 0, NULL},
    {"_receiver", T_OBJECT_EX, offsetof(Lane, receiver), 0, NULL},
    {"_queue", T_OBJECT_EX, offsetof(Lane, queue), 0, NULL},
    {"_violation", T_OBJECT_EX, offsetof(Lane, violation), 0, NULL},
    {"_late", T_OBJECT_EX, offsetof(Lane, late), 0, NULL},
    {"_limit", T_PYSSIZET, offsetof(Lane, limit), 0, NULL},
    {"_undecoded", T_BOOL, offsetof(Lane, undecoded), 0, NULL},
    {"_taken", T_BOOL, offsetof(Lane, taken), 0, NULL},
    {"_whole", T_BOOL, offsetof(Lane, whole), 0, NULL},
    {"_heard", T_BOOL, offsetof(Lane, heard), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot lane_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("_lane.PureLane, but fast.")},
    {Py_tp_new, lane_new},
    {Py_tp_dealloc, lane_dealloc},
    {Py_tp_traverse, lane_traverse},
    {Py_tp_clear, lane_clear},
    {Py_tp_methods, lane_methods},
    {Py_tp_members, lane_members},
    {0, NULL},
};

static PyType_Spec lane_spec = {
    .name = "asyncwebsockets._nativeloop.Lane",
    .basicsize = sizeof(Lane),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = lane_slots,
};


/* ---- Front ---- */

typedef struct {
    PyObject_HEAD
    State *module;
    PyObject *channel;
    char idle, receiving;
} Front;

/* What `__anext__` returns: the coroutine of PureFront. */
typedef struct Turn {
    PyObject_HEAD
    State *module;
    Front *front;
    enum { BEGINNING, WAITING, DELEGATING, ENDED } stage;
    /* The waiter it waits for, or the coroutine that does the rest. */
    PyObject *inner;
} Turn;

static PyObject *
front_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Front *self = (Front *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->module = state_of(type);
    return (PyObject *)self;
}

static PyObject *
front_anext(Front *self)
{
    State *module = self->module;
    Turn *turn = module->spare_turn;
    module->spare_turn = NULL;
    if (turn == NULL) {
        turn = PyObject_GC_New(Turn, module->Turn);
        if (turn == NULL)
            return NULL;
        turn->module = module;
    }
    turn->front = (Front *)Py_NewRef(self);
    turn->stage = BEGINNING;
    turn->inner = NULL;
    PyObject_GC_Track(turn);
    return (PyObject *)turn;
}

static PyObject *
begin_receive(Front *self)
{
    if (self->channel == NULL) {
        PyErr_SetString(PyExc_AttributeError, "the connection has no channel");
        return NULL;
    }
    return IS_A(self->module, self->channel, Lane)
               ? lane_begin_receive((Lane *)self->channel, NULL)
               : PyObject_CallMethodNoArgs(self->channel, self->module->begin_receive);
}

/* Wait for nothing any more. */
static void
leave_waiter(Turn *self)
{
    if (self->stage == WAITING) {
        self->front->receiving = 0;
        self->front->idle = 1;
    }
    self->stage = ENDED;
    Py_CLEAR(self->inner);
}

static PySendResult
turn_delegate(Turn *self, PyObject *sent, PyObject **result)
{
    if (self->stage != DELEGATING) {
        leave_waiter(self);
        self->inner =
            PyObject_CallMethodNoArgs((PyObject *)self->front, self->module->_receive_next);
        if (self->inner == NULL)
            return PYGEN_ERROR;
        self->stage = DELEGATING;
    }
    PyObject *inner = Py_NewRef(self->inner);
    PySendResult how = PyIter_Send(inner, sent, result);
    Py_DECREF(inner);
    if (how != PYGEN_NEXT)
        leave_waiter(self);
    return how;
}

static PySendResult
turn_send(Turn *self, PyObject *sent, PyObject **result)
{
    Front *front = self->front;
    *result = NULL;
    if (self->stage == BEGINNING && front->idle) {
        PyObject *event = begin_receive(front);
        if (event == NULL) {
            self->stage = ENDED;
            return PYGEN_ERROR;
        }
        if (Py_IS_TYPE(event, self->module->Waiter)) {
            self->inner = event;
            PyObject *same = waiter_await((Waiter *)event);
            if (same == NULL) {
                leave_waiter(self);
                return PYGEN_ERROR;
            }
            Py_DECREF(same);
            self->stage = WAITING;
            front->receiving = 1;
            front->idle = 0;
            return waiter_send((Waiter *)event, Py_None, result);
        }
        if (event != Py_None) {
            self->stage = ENDED;
            *result = event;
            return PYGEN_RETURN;
        }
        Py_DECREF(event);
    }
    else if (self->stage == WAITING) {
        /* It was told to go on, so this is what with. */
        waiter_send((Waiter *)self->inner, Py_None, result);
        if (*result != Py_None) {
            leave_waiter(self);
            return PYGEN_RETURN;
        }
        Py_CLEAR(*result);
    }
    else if (self->stage == ENDED) {
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
        return PYGEN_ERROR;
    }
    return turn_delegate(self, sent, result);
}

static PyObject *
turn_next(Turn *self)
{
    PyObject *result;
    PySendResult how = turn_send(self, Py_None, &result);
    return as_iteration(how, result);
}

static PyObject *
turn_send_method(Turn *self, PyObject *sent)
{
    PyObject *result;
    PySendResult how = turn_send(self, sent, &result);
    return as_iteration(how, result);
}

static PyObject *
turn_throw(Turn *self, PyObject *args)
{
    PyObject *error, *value = NULL, *traceback = NULL;
    if (!PyArg_UnpackTuple(args, "throw", 1, 3, &error, &value, &traceback))
        return NULL;
    if (self->stage == DELEGATING) {
        PyObject *inner = Py_NewRef(self->inner);
        PyObject *method = PyObject_GetAttr(inner, self->module->throw);
        PyObject *result = method == NULL ? NULL : PyObject_CallObject(method, args);
        Py_XDECREF(method);
        Py_DECREF(inner);
        if (result == NULL)
            leave_waiter(self);
        return result;
    }
    leave_waiter(self);
    if (PyExceptionInstance_Check(error))
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    else if (PyExceptionClass_Check(error))
        PyErr_SetObject(error, value);
    else
        PyErr_Format(PyExc_TypeError, "expected an exception, got %R", error);
    return NULL;
}

static PyObject *
turn_close(Turn *self, PyObject *Py_UNUSED(none))
{
    PyObject *inner = self->stage == DELEGATING ? Py_NewRef(self->inner) : NULL;
    PyObject *result =
        inner == NULL ? Py_NewRef(Py_None) : PyObject_CallMethodNoArgs(inner, self->module->close);
    Py_XDECREF(inner);
    leave_waiter(self);
    return result;
}

static int
turn_traverse(Turn *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->front);
    Py_VISIT(self->inner);
    return 0;
}

static void
turn_dealloc(Turn *self)
{
    PyTypeObject *type = Py_TYPE(self);
    State *module = self->module;
    PyObject_GC_UnTrack(self);
    leave_waiter(self);
    Py_CLEAR(self->front);
    if (module->spare_turn == NULL) {
        /* The next one, without an allocation; it has its type's reference. */
        module->spare_turn = (Turn *)PyObject_Init((PyObject *)self, type);
        Py_DECREF(type);
        return;
    }
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef turn_methods[] = {
    {"send", (PyCFunction)turn_send_method, METH_O,
     PyDoc_STR("send($self, value, /)\n--\n\nGo on, as a coroutine does.")},
    {"throw", (PyCFunction)turn_throw, METH_VARARGS,
     PyDoc_STR("throw($self, type, value=None, traceback=None, /)\n--\n\n"
               "Go on with an exception, as a coroutine does.")},
    {"close", (PyCFunction)turn_close, METH_NOARGS,
     PyDoc_STR("close($self)\n--\n\nEnd, as a coroutine does.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot turn_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("What `Front.__anext__` returns.")},
    {Py_tp_dealloc, turn_dealloc},
    {Py_tp_traverse, turn_traverse},
    {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, turn_next},
    {Py_am_await, PyObject_SelfIter},
    {Py_am_send, turn_send},
    {Py_tp_methods, turn_methods},
    {0, NULL},
};

static PyType_Spec turn_spec = {
    .name = "asyncwebsockets._nativeloop.Turn",
    .basicsize = sizeof(Turn),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE
             | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = turn_slots,
};

static int
front_traverse(Front *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->channel);
    return 0;
}

static int
front_clear(Front *self)
{
    Py_CLEAR(self->channel);
    return 0;
}

static void
front_dealloc(Front *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    front_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef front_members[] = {
    {"_channel", T_OBJECT_EX, offsetof(Front, channel), 0, NULL},
    {"_idle", T_BOOL, offsetof(Front, idle), 0, NULL},
    {"_receiving", T_BOOL, offsetof(Front, receiving), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot front_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("_front.PureFront, but fast.")},
    {Py_tp_new, front_new},
    {Py_tp_dealloc, front_dealloc},
    {Py_tp_traverse, front_traverse},
    {Py_tp_clear, front_clear},
    {Py_am_aiter, PyObject_SelfIter},
    {Py_am_anext, front_anext},
    {Py_tp_members, front_members},
    {0, NULL},
};

static PyType_Spec front_spec = {
    .name = "asyncwebsockets._nativeloop.Front",
    .basicsize = sizeof(Front),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
    .slots = front_slots,
};


/* ---- The module ---- */

/* Add a type, and return it as well; NULL with an exception. */
static PyTypeObject *
add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

/* Import a name from a module. */
static PyObject *
import_from(const char *module_name, const char *name)
{
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL)
        return NULL;
    PyObject *object = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return object;
}

static int
module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
#define INTERN(name) \
    state->name = PyUnicode_InternFromString(#name); \
    if (state->name == NULL) \
        return -1;
    NAMES(INTERN)
#undef INTERN
    state->context_alone = PyTuple_Pack(1, state->context);
    if (state->context_alone == NULL)
        return -1;
    state->native = PyImport_ImportModule("asyncwebsockets._native");
    state->codec = PyCapsule_Import(CODEC_INTERFACE, 0);
    if (state->native == NULL || state->codec == NULL)
        return -1;
    state->CancelledError = import_from("asyncio.exceptions", "CancelledError");
    PyObject *states = import_from("wsproto.connection", "ConnectionState");
    state->enter_task = import_from("asyncio.tasks", "_enter_task");
    state->leave_task = import_from("asyncio.tasks", "_leave_task");
    if (state->CancelledError == NULL || states == NULL || state->enter_task == NULL
        || state->leave_task == NULL) {
        Py_XDECREF(states);
        return -1;
    }
    state->open = PyObject_GetAttrString(states, "OPEN");
    Py_DECREF(states);
    state->Waiter = add_type(module, &waiter_spec);
    state->Stepped = add_type(module, &stepped_spec);
    state->CancellationLook = add_type(module, &look_spec);
    state->Account = add_type(module, &account_spec);
    state->Pipe = add_type(module, &pipe_spec);
    state->Lane = add_type(module, &lane_spec);
    state->Turn = add_type(module, &turn_spec);
    state->Front = add_type(module, &front_spec);
    state->buffer = PyMem_Malloc(READ_SIZE);
    state->joined = PyMem_Malloc(MAX_JOINED);
    if (state->buffer == NULL || state->joined == NULL)
        PyErr_NoMemory();
    return state->open != NULL && state->Waiter != NULL && state->Stepped != NULL
                   && state->CancellationLook != NULL
                   && state->Account != NULL && state->Pipe != NULL && state->Lane != NULL
                   && state->Turn != NULL && state->Front != NULL && state->buffer != NULL
                   && state->joined != NULL
               ? 0
               : -1;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->Waiter);
    Py_VISIT(state->Stepped);
    Py_VISIT(state->enter_task);
    Py_VISIT(state->leave_task);
    Py_VISIT(state->CancellationLook);
    Py_VISIT(state->Account);
    Py_VISIT(state->Pipe);
    Py_VISIT(state->Lane);
    Py_VISIT(state->Turn);
    Py_VISIT(state->Front);
    Py_VISIT(state->seen_Account);
    Py_VISIT(state->seen_Pipe);
    Py_VISIT(state->seen_Lane);
    Py_VISIT(state->native);
    Py_VISIT(state->CancelledError);
    Py_VISIT(state->open);
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if (state->spare_turn != NULL) {
        PyTypeObject *type = Py_TYPE(state->spare_turn);
        PyObject_GC_Del(state->spare_turn);
        state->spare_turn = NULL;
        Py_DECREF(type);
    }
    Py_CLEAR(state->Waiter);
    Py_CLEAR(state->Stepped);
    Py_CLEAR(state->enter_task);
    Py_CLEAR(state->leave_task);
    Py_CLEAR(state->CancellationLook);
    Py_CLEAR(state->Account);
    Py_CLEAR(state->Pipe);
    Py_CLEAR(state->Lane);
    Py_CLEAR(state->Turn);
    Py_CLEAR(state->Front);
    Py_CLEAR(state->seen_Account);
    Py_CLEAR(state->seen_Pipe);
    Py_CLEAR(state->seen_Lane);
    Py_CLEAR(state->native);
    Py_CLEAR(state->CancelledError);
    Py_CLEAR(state->open);
    Py_CLEAR(state->context_alone);
#define CLEAR(name) Py_CLEAR(state->name);
    NAMES(CLEAR)
#undef CLEAR
    return 0;
}

static void
module_free(void *module)
{
    module_clear(module);
    PyMem_Free(((State *)PyModule_GetState(module))->buffer);
    PyMem_Free(((State *)PyModule_GetState(module))->joined);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "asyncwebsockets._nativeloop",
    .m_doc = PyDoc_STR("What runs for every message beside the codec, in C."),
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__nativeloop(void)
{
    return PyModuleDef_Init(&module_def);
}
