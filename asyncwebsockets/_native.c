/* The codec in C: bytes to events and back, for one open connection (RFC 6455 section 5).

   It does what PureCodec in codec.py does, event for event, cost for cost and error for error,
   and in the same steps, so that the two can be read side by side. Policy, and zlib, stay in
   Python: compressed data goes through the Inflater and the PerMessageDeflate of deflate.py.

   Two rules keep it safe. Nothing is allocated by a size that a header announces, only by what
   is there. And the codec's state is complete before any Python code may run (zlib lets other
   threads run), so that no pointer into the input outlives such a call. */

#include "_native.h"

#include <stdbool.h>
#include <string.h>

#ifndef _WIN32
#include <pthread.h>
#endif

/* As in codec.py. */
#define EVENT_COST 128
#define MAX_EVENTS 64
#define SLICE (64 * 1024)

/* The opcodes (RFC 6455 section 5.2). */
enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };

#define IS_CONTROL(opcode) (((opcode) & 8) != 0)

/* The bits of a frame's first two bytes, beside opcode and length. */
enum { FIN = 0x80, RSV1 = 0x40, RSV2 = 0x20, RSV3 = 0x10, MASKED = 0x80 };

/* The longest header: 2 bytes, 8 of an extended length, 4 of a mask. */
#define MAX_HEADER 14

#define MAX_CONTROL_PAYLOAD 125


/* ---- What the module keeps, for each interpreter ---- */

/* Objects from other modules, and the mask pool. */
#define OBJECTS(X) \
    X(Message) X(TextMessage) X(BytesMessage) X(Ping) X(Pong) X(CloseConnection) \
    X(zlib_error) X(urandom) X(no_arguments) X(pool)

/* Attributes and methods, by their interned names. */
#define NAMES(X) \
    X(data) X(frame_finished) X(message_finished) X(payload) X(code) X(reason) \
    X(feed) X(read) X(pending) X(compress)

typedef struct {
#define DECLARE(name) PyObject *name;
    OBJECTS(DECLARE)
    NAMES(DECLARE)
#undef DECLARE
    /* What other modules in C call. */
    CodecInterface interface;
    /* How much of the pool was used, and in which process it was filled. */
    Py_ssize_t pool_used;
    unsigned pool_forks;
} State;

typedef struct {
    PyObject_HEAD
    State *state;
    bool client;
    /* The connection's permessage-deflate and what inflates it, or NULL. */
    PyObject *deflate, *inflater;

    /* What came and is not decoded yet: the bytes [at, end) of `input`, NULL if there are none.
       `own` says that nobody else has that object, so that more can be written behind `end`. */
    PyObject *input;
    Py_ssize_t at, end;
    bool own;

    /* The data frame under way: how much of it is still to come, its mask from there on, and
       whether an event has been made of it. */
    bool in_frame, fin, rsv1, begun;
    uint8_t frame_opcode;
    uint8_t mask[4];
    uint64_t remaining;

    /* What has come of that frame's payload, still masked, if it is received straight into the
       object that the application gets; else NULL. It has space for more behind `collected`. */
    PyObject *payload;
    Py_ssize_t collected;

    /* The message under way: TEXT, BINARY, or 0 if there is none. */
    uint8_t opcode;
    bool compressed;
    /* The beginning of a character whose end has not come. */
    uint8_t partial[4];
    Py_ssize_t partial_size;
    /* Whether the inflater has more to give, and what its input ends then. */
    bool inflating, ends_frame, ends_message;

    /* What comes next, and its size or ALONE: a control frame's event or a CodecError that was
       found behind a run of messages, or the first piece of a message that was to be whole. */
    PyObject *next;
    Py_ssize_t next_size;

    /* The kind of the message that is being sent in fragments, 0 if there is none. */
    uint8_t sending;

    /* What `counts` returns. */
    uint64_t bytes_received, bytes_sent, messages_received, messages_sent, pings_received,
        pings_sent;
} Codec;


/* ---- Masks (RFC 6455 section 5.3) ---- */

/* GCC makes two versions of the loop below and lets the machine choose. Elsewhere, and where
   the choice is not made by glibc, the loop is as wide as the compiler was told. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define WIDEST __attribute__((target_clones("avx2", "default"), optimize("O3")))
#else
#define WIDEST
#endif

/* Copy bytes and apply a mask on the way, all zeros for none. Return an OR of what was written:
   if no byte of that has its highest bit set, it was all ASCII. */
WIDEST static uint64_t
copy_masked(uint8_t *restrict to, const uint8_t *restrict from, size_t size,
            const uint8_t mask[4])
{
    uint64_t key, seen = 0;
    memcpy(&key, mask, 4);
    memcpy((uint8_t *)&key + 4, mask, 4);
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t word;
        memcpy(&word, from + i, 8);
        word ^= key;
        memcpy(to + i, &word, 8);
        seen |= word;
    }
    for (; i < size; i++) {
        to[i] = from[i] ^ mask[i & 3];
        seen |= to[i];
    }
    return seen;
}

/* Apply a mask where the bytes are. */
WIDEST static void
unmask(uint8_t *data, size_t size, const uint8_t mask[4])
{
    uint64_t key;
    memcpy(&key, mask, 4);
    memcpy((uint8_t *)&key + 4, mask, 4);
    size_t i = 0;
    for (; i + 8 <= size; i += 8) {
        uint64_t word;
        memcpy(&word, data + i, 8);
        word ^= key;
        memcpy(data + i, &word, 8);
    }
    for (; i < size; i++)
        data[i] ^= mask[i & 3];
}

static bool
is_ascii(uint64_t seen)
{
    return (seen & 0x8080808080808080u) == 0;
}

/* Masks come from a pool of the system's random bytes: a system call for every frame costs more
   than the frame, and no generator is as safe as the kernel's. Bytes are used once, whichever
   connection is served, and a child process starts with a pool of its own: without that, it would
   send the same masks as its parent. */
#define POOL_SIZE 4096

static unsigned forks;

#ifndef _WIN32
static void
after_fork_in_child(void)
{
    forks++;
}
#endif

static int
next_mask(State *state, uint8_t mask[4])
{
    if (state->pool == NULL || state->pool_used == POOL_SIZE || state->pool_forks != forks) {
        PyObject *pool = PyObject_CallFunction(state->urandom, "i", POOL_SIZE);
        if (pool == NULL)
            return -1;
        if (!PyBytes_CheckExact(pool) || PyBytes_GET_SIZE(pool) != POOL_SIZE) {
            Py_DECREF(pool);
            PyErr_SetString(PyExc_TypeError, "os.urandom did not return what was asked for");
            return -1;
        }
        Py_XSETREF(state->pool, pool);
        state->pool_used = 0;
        state->pool_forks = forks;
    }
    memcpy(mask, PyBytes_AS_STRING(state->pool) + state->pool_used, 4);
    state->pool_used += 4;
    return 0;
}


/* ---- Input ---- */

static const uint8_t *
input_at(const Codec *self)
{
    return (const uint8_t *)PyBytes_AS_STRING(self->input) + self->at;
}

/* Let go of the input. */
static void
drop_input(Codec *self)
{
    Py_CLEAR(self->input);
    self->at = self->end = 0;
    self->own = false;
}

/* Keep bytes that are left over in an object of our own, with space for more. */
static int
keep_input(Codec *self, Py_ssize_t space)
{
    Py_ssize_t left = self->end - self->at;
    PyObject *kept = PyBytes_FromStringAndSize(NULL, left + space);
    if (kept == NULL)
        return -1;
    memcpy(PyBytes_AS_STRING(kept), input_at(self), left);
    Py_SETREF(self->input, kept);
    self->at = 0;
    self->end = left;
    self->own = true;
    return 0;
}

/* How much larger an object may become at a time: as much as is there, so many times. What nothing
   was written to hardly costs memory. Were it a power of two, many a message would be larger by just
   its header. */
#define GROWTH 20

/* Return what is collected in an object that has space for so many more bytes, and for so many times
   as many as are there, as far as they remain. */
static PyObject *
enlarge_payload(Codec *self, Py_ssize_t needed, int times)
{
    uint64_t space = (uint64_t)self->collected * (uint64_t)times;
    if (space < (uint64_t)needed)
        space = (uint64_t)needed;
    if (space > self->remaining)
        space = self->remaining;
    PyObject *larger = PyBytes_FromStringAndSize(NULL, self->collected + (Py_ssize_t)space);
    if (larger != NULL)
        memcpy(PyBytes_AS_STRING(larger), PyBytes_AS_STRING(self->payload), self->collected);
    return larger;
}

/* Make space for so many more bytes of the payload that is collected, of those that remain. Return
   how much there is, or -1: then nothing has changed. */
static Py_ssize_t
reserve_payload(Codec *self, Py_ssize_t needed)
{
    Py_ssize_t space = PyBytes_GET_SIZE(self->payload) - self->collected;
    if (space >= needed)
        return space;
    PyObject *larger = enlarge_payload(self, needed, GROWTH - 1);
    if (larger == NULL) {
        /* Where so much cannot be had, less may be. */
        PyErr_Clear();
        larger = enlarge_payload(self, needed, 1);
    }
    if (larger == NULL)
        return -1;
    Py_SETREF(self->payload, larger);
    return PyBytes_GET_SIZE(larger) - self->collected;
}

static void
add_collected(Codec *self, Py_ssize_t size)
{
    self->collected += size;
    self->remaining -= (uint64_t)size;
}

/* Copy to the payload that is collected, if one is, what belongs there. Return how much, or -1. */
static Py_ssize_t
collect(Codec *self, const char *data, Py_ssize_t size)
{
    if (self->payload == NULL || self->remaining == 0)
        return 0;
    if ((uint64_t)size > self->remaining)
        size = (Py_ssize_t)self->remaining;
    if (reserve_payload(self, size) < 0)
        return -1;
    memcpy(PyBytes_AS_STRING(self->payload) + self->collected, data, size);
    add_collected(self, size);
    return size;
}

static int
add_input(Codec *self, PyObject *data)
{
    Py_ssize_t size = PyBytes_GET_SIZE(data);
    if (size == 0)
        return 0;
    Py_ssize_t at = collect(self, PyBytes_AS_STRING(data), size);
    if (at < 0)
        return -1;
    self->bytes_received += (uint64_t)size;
    if (at == size)
        return 0;
    if (self->input == NULL) {
        self->input = Py_NewRef(data);
        self->at = at;
        self->end = size;
        self->own = false;
        return 0;
    }
    if (!self->own || PyBytes_GET_SIZE(self->input) - self->end < size) {
        /* The second time around with space to grow: many small pieces must not cost the square
           of their number. */
        Py_ssize_t left = self->end - self->at;
        if (size > (PY_SSIZE_T_MAX / 4) - left) {
            PyErr_NoMemory();
            return -1;
        }
        if (keep_input(self, self->own ? size + (left + size) : size) < 0)
            return -1;
    }
    memcpy(PyBytes_AS_STRING(self->input) + self->end, PyBytes_AS_STRING(data), size);
    self->end += size;
    return 0;
}

/* Let go of what was decoded. If more bytes are needed, a small part of a header or of a control
   frame is all that is left, and need not hold what came before it. */
static int
release_input(Codec *self, bool more_needed)
{
    if (self->at == self->end) {
        drop_input(self);
        return 0;
    }
    return more_needed && self->at > 0 ? keep_input(self, 0) : 0;
}

/* Go on with the frame behind bytes of its payload. */
static void
move_on(Codec *self, Py_ssize_t size)
{
    self->in_frame = self->remaining > 0;
    if (size & 3) {
        uint8_t mask[4];
        memcpy(mask, self->mask, 4);
        for (int i = 0; i < 4; i++)
            self->mask[i] = mask[(i + size) & 3];
    }
}

/* Move on in the input behind bytes of the frame's payload. */
static void
consume(Codec *self, Py_ssize_t size)
{
    self->at += size;
    self->remaining -= (uint64_t)size;
    move_on(self, size);
}

/* Take what was collected of the frame's payload, still masked. */
static PyObject *
take_collected(Codec *self)
{
    Py_ssize_t size = self->collected;
    PyObject *data = self->payload;
    self->payload = NULL;
    self->collected = 0;
    if (size < PyBytes_GET_SIZE(data))
        _PyBytes_Resize(&data, size);
    move_on(self, size);
    return data;
}

/* Take bytes of the frame's payload. */
static PyObject *
take_bytes(Codec *self, Py_ssize_t size)
{
    PyObject *data;
    if (self->payload != NULL) {
        uint8_t mask[4];
        memcpy(mask, self->mask, 4);
        data = take_collected(self);
        if (data != NULL && !self->client)
            unmask((uint8_t *)PyBytes_AS_STRING(data), size, mask);
        return data;
    }
    if (self->client && !self->own && size > 0 && size == PyBytes_GET_SIZE(self->input)) {
        /* What was read is payload from end to end, and has no mask: no copy. */
        data = Py_NewRef(self->input);
    }
    else {
        data = PyBytes_FromStringAndSize(NULL, size);
        if (data == NULL)
            return NULL;
        if (self->client)
            memcpy(PyBytes_AS_STRING(data), input_at(self), size);
        else
            copy_masked((uint8_t *)PyBytes_AS_STRING(data), input_at(self), size, self->mask);
    }
    consume(self, size);
    return data;
}


/* ---- What is found in the input ---- */

/* An event or a CodecError, NULL if more bytes are needed; of a message's event, the size of its
   payload, else ALONE. The functions that fill it in return -1 with a Python exception for what
   is no error of the peer's, and 0 otherwise. */
typedef struct {
    PyObject *event;
    Py_ssize_t size;
} Found;

#define ALONE (-1)

static int
found_alone(Found *found, PyObject *event)
{
    found->event = event;
    found->size = ALONE;
    return event == NULL ? -1 : 0;
}

/* The peer broke the protocol. */
static int
broken(Found *found, int code, const char *format, ...)
{
    PyObject *error = NULL;
    va_list arguments;
    va_start(arguments, format);
    PyObject *reason = PyUnicode_FromFormatV(format, arguments);
    va_end(arguments);
    if (reason == NULL)
        return -1;
    /* Not imported with this module, which that one imports. */
    PyObject *codec = PyImport_ImportModule("asyncwebsockets.codec");
    if (codec != NULL) {
        error = PyObject_CallMethod(codec, "CodecError", "iO", code, reason);
        Py_DECREF(codec);
    }
    Py_DECREF(reason);
    return found_alone(found, error);
}

/* Take the exception that was raised, if it is of a type, or return NULL and leave it. */
static PyObject *
caught(PyObject *type)
{
    if (!PyErr_ExceptionMatches(type))
        return NULL;
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *class, *error, *traceback;
    PyErr_Fetch(&class, &error, &traceback);
    PyErr_NormalizeException(&class, &error, &traceback);
    Py_XDECREF(class);
    Py_XDECREF(traceback);
    return error;
#endif
}

static int
broken_utf8(Found *found, const char *where)
{
    PyObject *error = caught(PyExc_UnicodeDecodeError);
    if (error == NULL)
        return -1;
    PyObject *reason = PyUnicodeDecodeError_GetReason(error);
    Py_DECREF(error);
    if (reason == NULL)
        return -1;
    int result = broken(found, 1007, "invalid UTF-8 in %s: %U", where, reason);
    Py_DECREF(reason);
    return result;
}

/* Return an event without its __init__, which costs more than all else here: that of a frozen
   dataclass sets each field through object.__setattr__. The first field's value is stolen. */
static PyObject *
make_event(State *state, PyObject *type, PyObject *field, PyObject *value)
{
    PyObject *event = NULL;
    if (value != NULL)
        event = PyBaseObject_Type.tp_new((PyTypeObject *)type, state->no_arguments, NULL);
    if (event != NULL && PyObject_GenericSetAttr(event, field, value) < 0)
        Py_CLEAR(event);
    Py_XDECREF(value);
    return event;
}

/* A message's event, or that of a piece. The flags' defaults are the class's: True. */
static int
found_message(Codec *self, Found *found, uint8_t opcode, PyObject *data, Py_ssize_t size,
              bool frame_finished, bool message_finished)
{
    State *state = self->state;
    PyObject *type = opcode == TEXT ? state->TextMessage : state->BytesMessage;
    PyObject *event = make_event(state, type, state->data, data);
    if (event == NULL)
        return -1;
    if ((!frame_finished && PyObject_GenericSetAttr(event, state->frame_finished, Py_False) < 0)
        || (!message_finished
            && PyObject_GenericSetAttr(event, state->message_finished, Py_False) < 0)) {
        Py_DECREF(event);
        return -1;
    }
    self->messages_received += message_finished;
    found->event = event;
    found->size = size;
    return 0;
}


/* ---- Text (RFC 6455 section 8.1) ---- */

/* Decode with Python's own decoder, as the codecs module does it incrementally: a character that
   is cut off at the end waits for the rest. Return the text and how many bytes it is. */
static PyObject *
decode_utf8(Codec *self, const uint8_t *data, Py_ssize_t size, bool final, Py_ssize_t *decoded)
{
    *decoded = size;
    PyObject *text =
        PyUnicode_DecodeUTF8Stateful((const char *)data, size, NULL, final ? NULL : decoded);
    if (text != NULL) {
        self->partial_size = size - *decoded;
        assert(self->partial_size < 4);
        memcpy(self->partial, data + *decoded, self->partial_size);
    }
    return text;
}

/* Decode what follows the partial character: bytes of the input, masked, or others, unmasked. */
static PyObject *
decode_text(Codec *self, const uint8_t *data, Py_ssize_t size, const uint8_t mask[4], bool final,
            Py_ssize_t *decoded)
{
    Py_ssize_t before = self->partial_size;
    if (mask == NULL && before == 0)
        return decode_utf8(self, data, size, final, decoded);
    *decoded = size;
    static const uint8_t no_mask[4];
    /* Unmasked into a new string, in the hope that all is ASCII and the string is the result. */
    PyObject *text = PyUnicode_New(before + size, 127);
    if (text == NULL || before + size == 0)
        return text;
    uint8_t *to = PyUnicode_1BYTE_DATA(text);
    memcpy(to, self->partial, before);
    uint64_t seen = copy_masked(to + before, data, size, mask != NULL ? mask : no_mask);
    if (before == 0 && is_ascii(seen))
        return text;
    PyObject *result = decode_utf8(self, to, before + size, final, decoded);
    Py_DECREF(text);
    return result;
}

/* ---- Decoding ---- */

typedef struct {
    uint8_t opcode;
    bool fin, rsv1;
    uint64_t length;
    uint8_t mask[4];
    Py_ssize_t size;
} Header;

/* Read a frame's header (RFC 6455 section 5.2). Its size is 0 if it is broken, or not all there.
   Its rules are checked in wsproto's order and answered in its words. */
static int
read_header(Codec *self, Header *header, Found *found)
{
    const uint8_t *data = input_at(self);
    Py_ssize_t there = self->end - self->at;
    Py_ssize_t size = 2;
    header->size = 0;
    if (there < size)
        return 0;
    uint8_t first = data[0], second = data[1];
    uint8_t opcode = first & 0x0F;
    if (opcode > PONG || (opcode > BINARY && opcode < CLOSE))
        return broken(found, 1002, "Invalid opcode 0x%x", opcode);
    if (IS_CONTROL(opcode) && !(first & FIN))
        return broken(found, 1002, "Invalid attempt to fragment control frame");
    uint64_t length = second & 0x7F;
    if (IS_CONTROL(opcode) && length > MAX_CONTROL_PAYLOAD)
        return broken(found, 1002, "Control frame with payload len > 125");
    if (length >= 126) {
        int extended = length == 126 ? 2 : 8;
        size += extended;
        if (there < size)
            return 0;
        length = 0;
        for (int i = 2; i < size; i++)
            length = length << 8 | data[i];
        if (extended == 2 && length <= 125)
            return broken(found, 1002, "Payload length used 2 bytes when 1 would have sufficed");
        if (extended == 8 && length <= 0xFFFF)
            return broken(found, 1002, "Payload length used 8 bytes when 2 would have sufficed");
        if (length >> 63)
            return broken(found, 1002, "8-byte payload length with non-zero MSB");
    }
    /* RSV1 belongs to the first frame of a compressed message (RFC 7692 section 6.1). */
    if (self->deflate != NULL && (first & RSV1) && opcode != TEXT && opcode != BINARY)
        return broken(found, 1002, "error in extension");
    if (first & (self->deflate != NULL ? RSV2 | RSV3 : RSV1 | RSV2 | RSV3))
        return broken(found, 1002, "Reserved bit set unexpectedly");
    if (self->client && (second & MASKED))
        return broken(found, 1002, "client received unexpected masked frame");
    if (!self->client && !(second & MASKED))
        return broken(found, 1002, "server received unexpected unmasked frame");
    if (second & MASKED) {
        if (there < size + 4)
            return 0;
        memcpy(header->mask, data + size, 4);
        size += 4;
    }
    else {
        memset(header->mask, 0, 4);
    }
    header->opcode = opcode;
    header->fin = (first & FIN) != 0;
    header->rsv1 = (first & RSV1) != 0;
    header->length = length;
    header->size = size;
    return 0;
}

/* The codes a Close may carry (RFC 6455 section 7.4, IANA's registry for 1012 to 1014). */
static bool
is_close_code(unsigned code)
{
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014)
           || (code >= 3000 && code <= 4999);
}

/* Read a Close frame's payload (RFC 6455 section 5.5.1). */
static int
close_event(Codec *self, const uint8_t *payload, Py_ssize_t size, Found *found)
{
    State *state = self->state;
    unsigned code = 1005;
    if (size == 1)
        return broken(found, 1002, "a Close frame with a payload of one byte");
    if (size >= 2) {
        code = (unsigned)payload[0] << 8 | payload[1];
        payload += 2;
        size -= 2;
        if (!is_close_code(code))
            return broken(found, 1002, "a Close frame with the code %u", code);
    }
    PyObject *reason = PyUnicode_DecodeUTF8((const char *)payload, size, NULL);
    if (reason == NULL)
        return broken_utf8(found, "a close reason");
    PyObject *event =
        make_event(state, state->CloseConnection, state->code, PyLong_FromLong((long)code));
    if (event != NULL && PyObject_GenericSetAttr(event, state->reason, reason) < 0)
        Py_CLEAR(event);
    Py_DECREF(reason);
    return found_alone(found, event);
}

/* Control frames are small, and taken as a whole (RFC 6455 section 5.5). */
static int
control_frame(Codec *self, const Header *header, Found *found)
{
    State *state = self->state;
    Py_ssize_t length = (Py_ssize_t)header->length;
    if (self->end - self->at - header->size < length)
        return 0;
    uint8_t payload[MAX_CONTROL_PAYLOAD];
    copy_masked(payload, input_at(self) + header->size, length, header->mask);
    self->at += header->size + length;
    if (header->opcode == CLOSE)
        return close_event(self, payload, length, found);
    self->pings_received += header->opcode == PING;
    PyObject *type = header->opcode == PING ? state->Ping : state->Pong;
    PyObject *data = PyBytes_FromStringAndSize((const char *)payload, length);
    return found_alone(found, make_event(state, type, state->payload, data));
}

/* Whether the inflater has more to give, or -1. */
static int
ask_inflater(Codec *self)
{
    PyObject *pending = PyObject_GetAttr(self->inflater, self->state->pending);
    if (pending == NULL)
        return -1;
    int result = PyObject_IsTrue(pending);
    Py_DECREF(pending);
    self->inflating = result > 0;
    return result;
}

/* Return the end of a piece's frame or message to the state; what message it is of. */
static uint8_t
end_piece(Codec *self, bool message_finished)
{
    uint8_t opcode = self->opcode;
    if (message_finished) {
        self->opcode = 0;
        self->compressed = false;
    }
    return opcode;
}

/* The next slice of a compressed message. */
static int
inflate(Codec *self, Found *found)
{
    State *state = self->state;
    PyObject *data;
    if (self->inflating) {
        PyObject *size = PyLong_FromLong(SLICE);
        if (size == NULL)
            return -1;
        data = PyObject_CallMethodObjArgs(self->inflater, state->read, size, NULL);
        Py_DECREF(size);
        if (data == NULL) {
            PyObject *error = caught(state->zlib_error);
            if (error == NULL)
                return -1;
            int result = broken(found, 1007, "invalid DEFLATE data: %S", error);
            Py_DECREF(error);
            return result;
        }
        if (!PyBytes_CheckExact(data)) {
            Py_DECREF(data);
            PyErr_SetString(PyExc_TypeError, "the inflater did not return bytes");
            return -1;
        }
        if (ask_inflater(self) < 0) {
            Py_DECREF(data);
            return -1;
        }
    }
    else {
        data = PyBytes_FromStringAndSize(NULL, 0);
        if (data == NULL)
            return -1;
    }
    bool frame_finished = !self->inflating && self->ends_frame;
    bool message_finished = !self->inflating && self->ends_message;
    uint8_t opcode = end_piece(self, message_finished);
    Py_ssize_t size = PyBytes_GET_SIZE(data);
    if (opcode == TEXT) {
        PyObject *text = decode_text(self, (const uint8_t *)PyBytes_AS_STRING(data), size, NULL,
                                     message_finished, &size);
        Py_SETREF(data, text);
        if (data == NULL)
            return broken_utf8(found, "a text message");
    }
    return found_message(self, found, opcode, data, size, frame_finished, message_finished);
}

/* Give the inflater what came of a compressed frame. */
static int
feed_inflater(Codec *self, PyObject *payload)
{
    PyObject *last = self->ends_message ? Py_True : Py_False;
    PyObject *none = PyObject_CallMethodObjArgs(self->inflater, self->state->feed, payload, last, NULL);
    if (none == NULL)
        return -1;
    Py_DECREF(none);
    return ask_inflater(self);
}

/* Check a data frame's opcode against the message under way (RFC 6455 section 5.4). Return what
   is wrong, or NULL. */
static const char *
begin_frame(Codec *self)
{
    self->begun = true;
    if (self->frame_opcode == CONTINUATION)
        return self->opcode ? NULL : "a continuation frame without a message to continue";
    if (self->opcode)
        return "a new message before the last one was finished";
    self->opcode = self->frame_opcode;
    self->compressed = self->rsv1;
    return NULL;
}

/* Move on behind a data frame's header. */
static void
begin_payload(Codec *self, const Header *header)
{
    self->at += header->size;
    self->in_frame = true;
    self->begun = false;
    self->frame_opcode = header->opcode;
    self->fin = header->fin;
    self->rsv1 = header->rsv1;
    self->remaining = header->length;
    memcpy(self->mask, header->mask, 4);
}

/* What has come of a data frame's payload, all of it or a piece. */
static int
data_frame(Codec *self, Found *found)
{
    Py_ssize_t size;
    bool frame_finished;
    if (self->payload != NULL) {
        size = self->collected;
        frame_finished = self->remaining == 0;
    }
    else {
        uint64_t there = (uint64_t)(self->end - self->at);
        size = (Py_ssize_t)(there < self->remaining ? there : self->remaining);
        frame_finished = (uint64_t)size == self->remaining;
    }
    bool header_alone = size == 0 && !frame_finished;
    bool message_finished = frame_finished && self->fin;
    if (header_alone && self->begun)
        return 0;
    const char *wrong = self->begun ? NULL : begin_frame(self);
    if (wrong != NULL) {
        consume(self, size);
        return broken(found, 1002, "%s", wrong);
    }
    PyObject *data;
    if (header_alone) {
        /* An event too: the length may be more than is allowed. */
        data = self->opcode == TEXT ? PyUnicode_New(0, 0) : PyBytes_FromStringAndSize(NULL, 0);
        return found_message(self, found, self->opcode, data, 0, false, false);
    }
    if (self->compressed) {
        data = take_bytes(self, size);
        if (data == NULL)
            return -1;
        self->ends_frame = frame_finished;
        self->ends_message = message_finished;
        int fed = feed_inflater(self, data);
        Py_DECREF(data);
        return fed < 0 ? -1 : inflate(self, found);
    }
    if (self->opcode == BINARY) {
        data = take_bytes(self, size);
    }
    else {
        PyObject *owner;
        const uint8_t *payload;
        uint8_t mask[4];
        memcpy(mask, self->mask, 4);
        if (self->payload != NULL) {
            owner = take_collected(self);
            if (owner == NULL)
                return -1;
            payload = (const uint8_t *)PyBytes_AS_STRING(owner);
        }
        else {
            owner = Py_NewRef(self->input);
            payload = input_at(self);
            consume(self, size);
        }
        data = decode_text(self, payload, size, self->client ? NULL : mask, message_finished, &size);
        Py_DECREF(owner);
        if (data == NULL)
            return broken_utf8(found, "a text message");
    }
    uint8_t opcode = end_piece(self, message_finished);
    return found_message(self, found, opcode, data, size, frame_finished, message_finished);
}

static int
next_event(Codec *self, Found *found)
{
    if (self->inflating)
        return inflate(self, found);
    if (self->in_frame)
        return data_frame(self, found);
    if (self->input == NULL)
        return 0;
    Header header;
    if (read_header(self, &header, found) < 0)
        return -1;
    if (header.size == 0)
        return 0;
    if (IS_CONTROL(header.opcode))
        return control_frame(self, &header, found);
    begin_payload(self, &header);
    return data_frame(self, found);
}

/* Append (event, cost) to a run of events. The event is stolen. */
static int
append_event(PyObject *run, PyObject *event, Py_ssize_t cost)
{
    PyObject *number = PyLong_FromSsize_t(cost);
    PyObject *pair = number == NULL ? NULL : PyTuple_New(2);
    if (pair == NULL) {
        Py_DECREF(event);
        Py_XDECREF(number);
        return -1;
    }
    PyTuple_SET_ITEM(pair, 0, event);
    PyTuple_SET_ITEM(pair, 1, number);
    int result = PyList_Append(run, pair);
    Py_DECREF(pair);
    return result;
}

/* Fill a run of events. Return the sum of their costs, or -1. */
static Py_ssize_t
fill_run(Codec *self, PyObject *run, Py_ssize_t room)
{
    Py_ssize_t total = 0;
    bool more_needed = false;
    while (total < room && PyList_GET_SIZE(run) < MAX_EVENTS) {
        Found found = {self->next, self->next_size};
        self->next = NULL;
        if (found.event == NULL && next_event(self, &found) < 0)
            return -1;
        if (found.event == NULL) {
            more_needed = true;
            break;
        }
        if (found.size != ALONE) {
            Py_ssize_t cost = found.size > EVENT_COST ? found.size : EVENT_COST;
            if (append_event(run, found.event, cost) < 0)
                return -1;
            total += cost;
            continue;
        }
        if (PyList_GET_SIZE(run) > 0) {
            Py_XSETREF(self->next, found.event);
            self->next_size = ALONE;
        }
        else if (PyExceptionInstance_Check(found.event)) {
            PyErr_SetObject((PyObject *)Py_TYPE(found.event), found.event);
            Py_DECREF(found.event);
            return -1;
        }
        else if (append_event(run, found.event, 0) < 0) {
            return -1;
        }
        break;
    }
    return release_input(self, more_needed) < 0 ? -1 : total;
}

/* Read the header of a frame with which a message might come whole. Its size is 0 if there is
   none. Return -1 with a Python exception for what is no error of the peer's. */
static int
read_first_header(Codec *self, Header *header)
{
    header->size = 0;
    if (self->input == NULL || self->next != NULL || self->inflating || self->in_frame
        || self->opcode != 0)
        return 0;
    Found found = {NULL, ALONE};
    if (read_header(self, header, &found) < 0)
        return -1;
    Py_XDECREF(found.event);
    if (header->size > 0 && (!header->fin || (header->opcode != TEXT && header->opcode != BINARY)))
        header->size = 0;
    return 0;
}

/* A payload is received like anything else until so much of it is there. */
#define MIN_COLLECTED (16 * 1024)

/* From here on, put the payload of a frame where the application gets it, if it is a large one. */
static int
begin_collecting(Codec *self, const Header *header)
{
    Py_ssize_t there = self->end - self->at - header->size;
    if (there < MIN_COLLECTED)
        return 0;
    uint64_t most = (uint64_t)there * GROWTH;
    uint64_t size = header->length < most ? header->length : most;
    PyObject *payload = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (payload == NULL)
        return -1;
    begin_payload(self, header);
    memcpy(PyBytes_AS_STRING(payload), input_at(self), there);
    self->payload = payload;
    add_collected(self, there);
    drop_input(self);
    return 0;
}

/* The next event if it is a message that comes whole, NULL if it is anything else, which is left
   for `fill_run`, or if not all of it has come. Return -1 with a Python exception for what is no
   error of the peer's. */
static int
whole_message(Codec *self, uint64_t limit, PyObject **event)
{
    *event = NULL;
    if (self->payload != NULL) {
        if (self->remaining > 0 || (uint64_t)self->collected > limit)
            return 0;
    }
    else {
        Header header;
        if (read_first_header(self, &header) < 0)
            return -1;
        if (header.size == 0 || header.length > limit)
            return 0;
        if ((uint64_t)(self->end - self->at - header.size) < header.length)
            return header.rsv1 ? 0 : begin_collecting(self, &header);
        begin_payload(self, &header);
    }
    Found found = {NULL, ALONE};
    if (data_frame(self, &found) < 0)
        return -1;
    /* More may come of a compressed message. */
    if (found.size == ALONE || self->opcode != 0 || (uint64_t)found.size > limit) {
        self->next = found.event;
        self->next_size = found.size;
    }
    else
        *event = found.event;
    if (release_input(self, false) < 0) {
        Py_CLEAR(*event);
        return -1;
    }
    return 0;
}

/* Whether a message in one frame is under way that `whole_message` will return once all of it has
   come, or -1. */
static int
is_collecting(Codec *self, uint64_t limit)
{
    if (self->payload != NULL)
        return self->remaining > 0 && (uint64_t)self->collected + self->remaining <= limit;
    Header header;
    if (read_first_header(self, &header) < 0)
        return -1;
    return header.size > 0 && !header.rsv1 && header.length <= limit
           && (uint64_t)(self->end - self->at - header.size) < header.length;
}

/* Whether there is more to decode, or -1. A message of which not all has come is better taken
   whole, if it may be. */
static int
is_pending(Codec *self, uint64_t limit)
{
    if (self->next != NULL || self->inflating)
        return 1;
    if (self->payload != NULL)
        return !is_collecting(self, limit);
    if (self->input == NULL)
        return 0;
    if (self->in_frame || self->opcode != 0)
        return 1;
    Header header;
    Found found = {NULL, ALONE};
    if (read_header(self, &header, &found) < 0)
        return -1;
    if (found.event != NULL) {
        Py_DECREF(found.event);
        return 1;
    }
    if (header.size == 0)
        return 0;
    if ((uint64_t)(self->end - self->at - header.size) >= header.length)
        return 1;
    bool begins = header.opcode == TEXT || header.opcode == BINARY;
    return !IS_CONTROL(header.opcode)
           && !(begins && header.fin && !header.rsv1 && header.length <= limit);
}


/* ---- Encoding ---- */

/* Write a frame's header, without a mask. Return its length. */
static int
write_header(uint8_t header[MAX_HEADER], uint8_t first, Py_ssize_t size)
{
    int length = 2;
    header[0] = first;
    if (size <= 125) {
        header[1] = (uint8_t)size;
        return length;
    }
    int extended = size <= 0xFFFF ? 2 : 8;
    header[1] = extended == 2 ? 126 : 127;
    for (int i = 0; i < extended; i++)
        header[length++] = (uint8_t)((uint64_t)size >> 8 * (extended - 1 - i));
    return length;
}

/* The same, with a mask if this is the client. Return its length, or -1. */
static int
write_whole_header(Codec *self, uint8_t header[MAX_HEADER], uint8_t first, Py_ssize_t size)
{
    int length = write_header(header, first, size);
    if (!self->client)
        return length;
    if (next_mask(self->state, header + length) < 0)
        return -1;
    header[1] |= MASKED;
    return length + 4;
}

/* Write a frame with the header that was begun. */
static void
write_frame(Codec *self, uint8_t *to, const uint8_t *header, int length, const void *payload,
            Py_ssize_t size)
{
    memcpy(to, header, length);
    if (self->client)
        copy_masked(to + length, payload, size, header + length - 4);
    else
        memcpy(to + length, payload, size);
}

/* Build a frame: opcode, FIN and RSV1 are in its first byte. */
static PyObject *
build_frame(Codec *self, uint8_t first, const void *payload, Py_ssize_t size)
{
    uint8_t header[MAX_HEADER];
    if (size > MAX_CONTROL_PAYLOAD && IS_CONTROL(first)) {
        PyErr_SetString(PyExc_ValueError, "payload too long for control frame");
        return NULL;
    }
    if (size > PY_SSIZE_T_MAX - 2 * MAX_HEADER)
        return PyErr_NoMemory();
    int length = write_whole_header(self, header, first, size);
    PyObject *frame = length < 0 ? NULL : PyBytes_FromStringAndSize(NULL, length + size);
    if (frame == NULL)
        return NULL;
    write_frame(self, (uint8_t *)PyBytes_AS_STRING(frame), header, length, payload, size);
    self->bytes_sent += (uint64_t)(length + size);
    return frame;
}

/* Encode a message or a piece of one. */
static PyObject *
encode_data(Codec *self, PyObject *data, bool final)
{
    uint8_t kind;
    PyObject *owner, *frame = NULL;
    const void *payload;
    Py_ssize_t size;
    if (PyUnicode_Check(data)) {
        kind = TEXT;
        /* ASCII is its own UTF-8. Of other text, Python would keep the UTF-8 if it were asked for
           a pointer, and double what the text costs in memory. */
        bool direct = PyUnicode_IS_COMPACT_ASCII(data) && self->deflate == NULL;
        owner = direct ? Py_NewRef(data) : PyUnicode_AsUTF8String(data);
    }
    else if (PyBytes_Check(data) || PyByteArray_Check(data) || PyMemoryView_Check(data)) {
        kind = BINARY;
        owner = PyBytes_FromObject(data);
    }
    else {
        PyErr_SetString(PyExc_TypeError, "Must provide bytes or text");
        return NULL;
    }
    if (owner == NULL)
        return NULL;

    /* Fragments behind the first are continuations (RFC 6455 section 5.4). */
    bool first = self->sending == 0;
    if (!first && self->sending != kind) {
        PyErr_SetString(PyExc_TypeError, "Data type mismatch inside message");
        goto done;
    }
    self->sending = final ? 0 : kind;
    uint8_t head = (first ? kind : CONTINUATION) | (final ? FIN : 0);
    if (self->deflate != NULL) {
        PyObject *compressed = PyObject_CallMethodObjArgs(
            self->deflate, self->state->compress, owner, first ? Py_True : Py_False,
            final ? Py_True : Py_False, self->client ? Py_True : Py_False, NULL);
        if (compressed == NULL)
            goto done;
        if (PyBytes_CheckExact(compressed)) {
            head |= first ? RSV1 : 0;
            Py_SETREF(owner, Py_NewRef(compressed));
        }
        Py_DECREF(compressed);
    }
    if (PyBytes_Check(owner)) {
        payload = PyBytes_AS_STRING(owner);
        size = PyBytes_GET_SIZE(owner);
    }
    else {
        payload = PyUnicode_DATA(owner);
        size = PyUnicode_GET_LENGTH(owner);
    }
    frame = build_frame(self, head, payload, size);
    self->messages_sent += final && frame != NULL;
done:
    Py_DECREF(owner);
    return frame;
}

/* Encode a Ping or a Pong. */
static PyObject *
encode_ping(Codec *self, PyObject *event, uint8_t opcode)
{
    PyObject *payload = PyObject_GetAttr(event, self->state->payload);
    if (payload == NULL)
        return NULL;
    Py_SETREF(payload, PyBytes_FromObject(payload));
    if (payload == NULL)
        return NULL;
    PyObject *frame = build_frame(self, FIN | opcode, PyBytes_AS_STRING(payload),
                                  PyBytes_GET_SIZE(payload));
    self->pings_sent += opcode == PING && frame != NULL;
    Py_DECREF(payload);
    return frame;
}

/* Encode a Close (RFC 6455 section 5.5.1). As wsproto does, a code that must not be sent becomes
   1000, and a reason that is too long is cut between two characters. */
static PyObject *
encode_close(Codec *self, PyObject *event)
{
    uint8_t payload[MAX_CONTROL_PAYLOAD];
    PyObject *number = PyObject_GetAttr(event, self->state->code);
    if (number == NULL)
        return NULL;
    long code = PyLong_AsLong(number);
    Py_DECREF(number);
    if (code == -1 && PyErr_Occurred())
        return NULL;
    if (code < 0 || code > 0xFFFF)
        return PyErr_Format(PyExc_ValueError, "expected a close code, got %ld", code);
    if (code == 1005)
        return build_frame(self, FIN | CLOSE, payload, 0);
    if (code == 1006 || code == 1015)
        code = 1000;
    payload[0] = (uint8_t)(code >> 8);
    payload[1] = (uint8_t)code;
    Py_ssize_t size = 0;
    PyObject *reason = PyObject_GetAttr(event, self->state->reason);
    if (reason == NULL)
        return NULL;
    if (reason != Py_None) {
        Py_SETREF(reason, PyUnicode_AsUTF8String(reason));
        if (reason == NULL)
            return NULL;
        const char *text = PyBytes_AS_STRING(reason);
        size = PyBytes_GET_SIZE(reason);
        if (size > MAX_CONTROL_PAYLOAD - 2) {
            size = MAX_CONTROL_PAYLOAD - 2;
            while ((text[size] & 0xC0) == 0x80)
                size--;
        }
        memcpy(payload + 2, text, size);
    }
    Py_DECREF(reason);
    return build_frame(self, FIN | CLOSE, payload, 2 + size);
}


/* ---- The type ---- */

static PyObject *
codec_receive_data(Codec *self, PyObject *data)
{
    PyObject *bytes = PyBytes_FromObject(data);
    if (bytes == NULL)
        return NULL;
    int result = add_input(self, bytes);
    Py_DECREF(bytes);
    if (result < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *
codec_next_events(Codec *self, PyObject *const *args, Py_ssize_t count)
{
    Py_ssize_t room = PY_SSIZE_T_MAX;
    if (count > 1)
        return PyErr_Format(PyExc_TypeError, "expected at most 1 argument, got %zd", count);
    if (count == 1) {
        room = PyNumber_AsSsize_t(args[0], NULL);
        if (room == -1 && PyErr_Occurred())
            return NULL;
    }
    PyObject *run = PyList_New(0);
    if (run == NULL)
        return NULL;
    Py_ssize_t total = fill_run(self, run, room);
    PyObject *sum = total < 0 ? NULL : PyLong_FromSsize_t(total);
    PyObject *result = sum == NULL ? NULL : PyTuple_Pack(2, run, sum);
    Py_XDECREF(sum);
    Py_DECREF(run);
    return result;
}

static PyObject *
codec_next_message(Codec *self, PyObject *number)
{
    Py_ssize_t limit = PyNumber_AsSsize_t(number, NULL);
    if (limit == -1 && PyErr_Occurred())
        return NULL;
    PyObject *event;
    if (whole_message(self, limit < 0 ? 0 : (uint64_t)limit, &event) < 0)
        return NULL;
    return event != NULL ? event : Py_NewRef(Py_None);
}

static PyObject *
codec_pending(Codec *self, PyObject *number)
{
    Py_ssize_t limit = PyNumber_AsSsize_t(number, NULL);
    if (limit == -1 && PyErr_Occurred())
        return NULL;
    int result = is_pending(self, limit < 0 ? 0 : (uint64_t)limit);
    return result < 0 ? NULL : PyBool_FromLong(result);
}

static PyObject *
codec_collecting(Codec *self, PyObject *number)
{
    Py_ssize_t limit = PyNumber_AsSsize_t(number, NULL);
    if (limit == -1 && PyErr_Occurred())
        return NULL;
    int result = is_collecting(self, limit < 0 ? 0 : (uint64_t)limit);
    return result < 0 ? NULL : PyBool_FromLong(result);
}

static PyObject *
codec_announced(Codec *self, void *Py_UNUSED(closure))
{
    bool known = self->in_frame && self->payload == NULL && !self->compressed;
    return PyLong_FromUnsignedLongLong(known ? self->remaining : 0);
}

static PyObject *
codec_encode(Codec *self, PyObject *event)
{
    State *state = self->state;
    if (PyObject_TypeCheck(event, (PyTypeObject *)state->Message)) {
        PyObject *finished = PyObject_GetAttr(event, state->message_finished);
        int final = finished == NULL ? -1 : PyObject_IsTrue(finished);
        Py_XDECREF(finished);
        PyObject *data = final < 0 ? NULL : PyObject_GetAttr(event, state->data);
        if (data == NULL)
            return NULL;
        PyObject *frame = encode_data(self, data, final);
        Py_DECREF(data);
        return frame;
    }
    if (PyObject_TypeCheck(event, (PyTypeObject *)state->Ping))
        return encode_ping(self, event, PING);
    if (PyObject_TypeCheck(event, (PyTypeObject *)state->Pong))
        return encode_ping(self, event, PONG);
    if (PyObject_TypeCheck(event, (PyTypeObject *)state->CloseConnection))
        return encode_close(self, event);
    return PyErr_Format(PyExc_TypeError, "expected a message, ping, pong or close, got %R", event);
}

static PyObject *
codec_encode_message(Codec *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "expected 2 arguments, got %zd", count);
    int final = PyObject_IsTrue(args[1]);
    return final < 0 ? NULL : encode_data(self, args[0], final);
}

static PyObject *
codec_repeat(Codec *self, PyObject *frame)
{
    if (!PyBytes_Check(frame))
        return PyErr_Format(PyExc_TypeError, "expected bytes, got %R", Py_TYPE(frame));
    self->bytes_sent += (uint64_t)PyBytes_GET_SIZE(frame);
    self->messages_sent++;
    return Py_NewRef(frame);
}

static PyObject *
codec_counts(Codec *self, void *Py_UNUSED(closure))
{
    return Py_BuildValue("(KKKKKK)", self->bytes_received, self->bytes_sent,
                         self->messages_received, self->messages_sent, self->pings_received,
                         self->pings_sent);
}

static PyObject *
codec_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"client", "deflate", "inflater", NULL};
    int client;
    PyObject *deflate, *inflater;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "pOO:Codec", names, &client, &deflate,
                                     &inflater))
        return NULL;
    if ((deflate == Py_None) != (inflater == Py_None)) {
        PyErr_SetString(PyExc_TypeError, "expected both a deflate and an inflater, or neither");
        return NULL;
    }
    State *state = PyType_GetModuleState(type);
    Codec *self = state == NULL ? NULL : (Codec *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->state = state;
    self->client = client;
    if (deflate != Py_None) {
        self->deflate = Py_NewRef(deflate);
        self->inflater = Py_NewRef(inflater);
    }
    return (PyObject *)self;
}

static int
codec_traverse(Codec *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->deflate);
    Py_VISIT(self->inflater);
    Py_VISIT(self->next);
    return 0;
}

/* What can be part of a cycle, and is still needed afterwards: the codec does without it. */
static int
codec_clear(Codec *self)
{
    Py_CLEAR(self->deflate);
    Py_CLEAR(self->inflater);
    Py_CLEAR(self->next);
    return 0;
}

static void
codec_dealloc(Codec *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    codec_clear(self);
    Py_XDECREF(self->input);
    Py_XDECREF(self->payload);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef codec_methods[] = {
    {"receive_data", (PyCFunction)codec_receive_data, METH_O,
     PyDoc_STR("receive_data($self, data, /)\n--\n\nTake bytes from the peer.")},
    {"next_events", (PyCFunction)(void (*)(void))codec_next_events, METH_FASTCALL,
     PyDoc_STR("next_events($self, room=sys.maxsize, /)\n--\n\n"
               "Return the next events, each with its cost, and the sum of the costs.")},
    {"next_message", (PyCFunction)codec_next_message, METH_O,
     PyDoc_STR("next_message($self, limit, /)\n--\n\n"
               "Return the next event if that is a whole message, of `limit` bytes at most.")},
    {"pending", (PyCFunction)codec_pending, METH_O,
     PyDoc_STR("pending($self, limit, /)\n--\n\n"
               "Whether there is more to decode behind what `next_message` has returned.")},
    {"collecting", (PyCFunction)codec_collecting, METH_O,
     PyDoc_STR("collecting($self, limit, /)\n--\n\n"
               "Whether a message is under way that `next_message` will return.")},
    {"encode", (PyCFunction)codec_encode, METH_O,
     PyDoc_STR("encode($self, event, /)\n--\n\n"
               "Return the bytes of an event that is to be sent.")},
    {"encode_message", (PyCFunction)(void (*)(void))codec_encode_message, METH_FASTCALL,
     PyDoc_STR("encode_message($self, data, final, /)\n--\n\n"
               "Return the bytes of a message, or of a piece of one.")},
    {"repeat", (PyCFunction)codec_repeat, METH_O,
     PyDoc_STR("repeat($self, frame, /)\n--\n\n"
               "Return the frame of a whole message that another codec has encoded.")},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef codec_getset[] = {
    {"announced", (getter)codec_announced, NULL,
     PyDoc_STR("The bytes that the data frame under way is still to bring."), NULL},
    {"counts", (getter)codec_counts, NULL,
     PyDoc_STR("The bytes, messages and pings so far, each received and sent."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot codec_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("The codec in C: codec.PureCodec, but fast.")},
    {Py_tp_new, codec_new},
    {Py_tp_dealloc, codec_dealloc},
    {Py_tp_traverse, codec_traverse},
    {Py_tp_clear, codec_clear},
    {Py_tp_methods, codec_methods},
    {Py_tp_getset, codec_getset},
    {0, NULL},
};

static PyType_Spec codec_spec = {
    .name = "asyncwebsockets._native.Codec",
    .basicsize = sizeof(Codec),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = codec_slots,
};


/* ---- What other modules in C call ---- */

static int
receive(PyObject *codec, PyObject *data)
{
    return add_input((Codec *)codec, data);
}

static int
next_message(PyObject *codec, uint64_t limit, PyObject **event)
{
    return whole_message((Codec *)codec, limit, event);
}

static int
pending(PyObject *codec, uint64_t limit)
{
    return is_pending((Codec *)codec, limit);
}

static PyObject *
encode_message(PyObject *codec, PyObject *data)
{
    return encode_data((Codec *)codec, data, true);
}

static Py_ssize_t
encode_into(PyObject *codec, PyObject *data, char *buffer, Py_ssize_t space)
{
    Codec *self = (Codec *)codec;
    uint8_t header[MAX_HEADER], kind;
    const void *payload;
    Py_ssize_t size;
    if (self->deflate != NULL || self->sending != 0)
        return 0;
    if (PyBytes_CheckExact(data)) {
        kind = BINARY;
        payload = PyBytes_AS_STRING(data);
        size = PyBytes_GET_SIZE(data);
    }
    else if (PyUnicode_CheckExact(data) && PyUnicode_IS_COMPACT_ASCII(data)) {
        kind = TEXT;
        payload = PyUnicode_DATA(data);
        size = PyUnicode_GET_LENGTH(data);
    }
    else
        return 0;
    if (space < MAX_HEADER || size > space - MAX_HEADER)
        return 0;
    int length = write_whole_header(self, header, FIN | kind, size);
    if (length < 0)
        return -1;
    write_frame(self, (uint8_t *)buffer, header, length, payload, size);
    self->bytes_sent += (uint64_t)(length + size);
    self->messages_sent++;
    return length + size;
}

/* What is compressed or masked is not the data as it is. */
static PyObject *
encode_header(PyObject *codec, PyObject *data)
{
    Codec *self = (Codec *)codec;
    if (!PyBytes_CheckExact(data) || self->client || self->deflate != NULL || self->sending != 0)
        return NULL;
    uint8_t header[MAX_HEADER];
    int length = write_header(header, FIN | BINARY, PyBytes_GET_SIZE(data));
    PyObject *begin = PyBytes_FromStringAndSize((const char *)header, length);
    if (begin == NULL)
        return NULL;
    self->bytes_sent += (uint64_t)length + (uint64_t)PyBytes_GET_SIZE(data);
    self->messages_sent++;
    return begin;
}

static int
collecting(PyObject *codec, uint64_t limit)
{
    return is_collecting((Codec *)codec, limit);
}

/* The most that is received at a time. */
#define MAX_RECEIVED (256 * 1024)

static Py_ssize_t
reserve(PyObject *codec, uint64_t limit, char **buffer)
{
    Codec *self = (Codec *)codec;
    if (self->payload == NULL || !is_collecting(self, limit))
        return 0;
    Py_ssize_t space = reserve_payload(self, 1);
    if (space < 0)
        return -1;
    *buffer = PyBytes_AS_STRING(self->payload) + self->collected;
    return space < MAX_RECEIVED ? space : MAX_RECEIVED;
}

static void
received(PyObject *codec, Py_ssize_t size)
{
    Codec *self = (Codec *)codec;
    add_collected(self, size);
    self->bytes_received += (uint64_t)size;
}

static int
add_interface(PyObject *module, State *state, PyTypeObject *type)
{
    state->interface = (CodecInterface){
        type, receive, next_message, pending, encode_message, encode_into, encode_header, collecting,
        reserve, received};
    PyObject *capsule = PyCapsule_New(&state->interface, CODEC_INTERFACE, NULL);
    int result = capsule == NULL ? -1 : PyModule_AddObjectRef(module, "interface", capsule);
    Py_XDECREF(capsule);
    return result;
}


/* ---- The module ---- */

/* Import some names from a module, the last of them NULL: name, where to put it, and so on. */
static int
import_from(const char *module_name, ...)
{
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL)
        return -1;
    int result = 0;
    va_list names;
    va_start(names, module_name);
    for (const char *name; result == 0 && (name = va_arg(names, const char *)) != NULL;) {
        PyObject **place = va_arg(names, PyObject **);
        *place = PyObject_GetAttrString(module, name);
        result = *place == NULL ? -1 : 0;
    }
    va_end(names);
    Py_DECREF(module);
    return result;
}

/* glibc gives what was freed at the end of the heap back to the kernel once it is twice as much as
   the largest block that it ever mapped and unmapped. Two messages of a MiB are, and to have their
   pages anew costs more than all else about them. It never gives back less than twice this size,
   once a block of it came and went. */
#define USUAL_BLOCK (4 * 1024 * 1024)

static void
accustom_allocator(void)
{
#ifdef __GLIBC__
    PyMem_RawFree(PyMem_RawMalloc(USUAL_BLOCK));
#endif
}

static int
module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    accustom_allocator();
#define IMPORT(name) #name, &state->name
    if (import_from("asyncwebsockets.events", IMPORT(Message), IMPORT(TextMessage),
                    IMPORT(BytesMessage), IMPORT(Ping), IMPORT(Pong), IMPORT(CloseConnection),
                    NULL) < 0
        || import_from("zlib", "error", &state->zlib_error, NULL) < 0
        || import_from("os", IMPORT(urandom), NULL) < 0)
        return -1;
#undef IMPORT
    state->no_arguments = PyTuple_New(0);
    if (state->no_arguments == NULL)
        return -1;
#define INTERN(name) \
    state->name = PyUnicode_InternFromString(#name); \
    if (state->name == NULL) \
        return -1;
    NAMES(INTERN)
#undef INTERN
#ifndef _WIN32
    if (pthread_atfork(NULL, NULL, after_fork_in_child) != 0) {
        PyErr_NoMemory();
        return -1;
    }
#endif
    PyObject *type = PyType_FromModuleAndSpec(module, &codec_spec, NULL);
    if (type == NULL)
        return -1;
    int result = PyModule_AddType(module, (PyTypeObject *)type);
    if (result == 0)
        result = add_interface(module, state, (PyTypeObject *)type);
    Py_DECREF(type);
    return result;
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
#define VISIT(name) Py_VISIT(state->name);
    OBJECTS(VISIT)
#undef VISIT
    return 0;
}

static int
module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
#define CLEAR(name) Py_CLEAR(state->name);
    OBJECTS(CLEAR)
    NAMES(CLEAR)
#undef CLEAR
    return 0;
}

static void
module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "asyncwebsockets._native",
    .m_doc = PyDoc_STR("The codec in C."),
    .m_size = sizeof(State),
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&module_def);
}
