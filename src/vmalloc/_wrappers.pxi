# SPDX-License-Identifier: MIT
# Part of _core.pyx: what every message goes through while install() is in force, whatever is in it.
#
# Between two large arrays a thread sleeps, and its caches hold the arrays. What it runs then it runs cold, and a line of
# Python touches many times the memory of one of C (docs/decisions/0067). message.py and channel.py tell what they are
# for, wrap them around multiprocessing's methods, and do what is rare.

cdef extern from *:
    """
    static _Thread_local PyObject *message_here;  /* owned; the Message that this thread pickles; NULL: none */
    static _Thread_local PyObject *sent_here;     /* owned; references of what Connection.send is about to write; NULL: no list */
    static _Thread_local PyObject *received_here; /* owned; what was read and nobody else has seen; NULL: bytes are handed out */
    """
    PyObject *message_here
    PyObject *sent_here
    PyObject *received_here


cdef inline object _seen(PyObject *what):
    return <object>what if what != NULL else None


cdef inline object _exchange(PyObject **place, object now):
    """Returns what was there; None stands for NULL."""
    cdef PyObject *former = place[0]
    place[0] = NULL
    if now is not None:
        Py_INCREF(now)
        place[0] = <PyObject *>now
    if former == NULL:
        return None
    before = <object>former
    Py_DECREF(before)
    return before


@cython.final
cdef class UnderWay:
    """What the thread that asks pickles and receives just now."""

    @property
    def message(self):
        """A Message, or None."""
        return _seen(message_here)

    @message.setter
    def message(self, Message message):
        _exchange(&message_here, message)

    @property
    def sent(self):
        """References of a message that Connection.send is about to write, or None."""
        return _seen(sent_here)

    @sent.setter
    def sent(self, list references):
        _exchange(&sent_here, references)

    @property
    def received(self):
        """Messages that this thread has read and nobody else has seen, if they may hold references; None: bytes go out."""
        return _seen(received_here)

    @property
    def references(self):
        """Of the message, those with leases of their own."""
        return None if message_here == NULL else (<Message>message_here).references


under_way = UnderWay()


cdef int _note_sent(list references) except -1:
    """They are complete. A message within another one is not what is sent."""
    if references and message_here == NULL and sent_here != NULL:
        (<list>sent_here).extend(references)
    return 0


# ---- what was there before, and what is rare ----

#: What the wrapped methods were before, by class and name; None: the class had none of its own.
cdef dict _wrapped = {}
wrapped = _wrapped

cdef uint64_t _nr_changes = 1  # of the adapters, and of the modules that they wait for
cdef uint64_t _nr_taught = 0  # how many of them ForkingPickler knows of; 0: it knows none of our types
cdef object _array_type = None  # np.ndarray, once it was taught
cdef tuple _awaited = ()  # modules whose types have an adapter once they are imported
cdef bint _is_new_child = False  # forked, and before its first message
cdef list _kept_ids = None  # attach.kept_ids()

cdef object _ForkingPickler = None, _BaseProcess = None, _Pickler = pickle.Pickler
cdef object _pickler_dump = pickle.Pickler.dump, _pickle_dumps = pickle.dumps, _pickle_loads = pickle.loads
cdef bint _is_stock_class = False  # derived from that Pickler, and from nothing else
cdef dict _modules = modules
cdef object _teach_again = None, _give_addresses_back = None, _keep_unattached = None, _number_of = None
cdef object _key_init = None, _key_dump = None, _key_dumps = None, _key_send_bytes = None, _key_recv_bytes = None
cdef object _key_send = None, _can_attach = None
cdef object _dump_process = None, _stock_init = None, _stock_dumps = None

cdef str _number_name = "_vmalloc_channel", _protocol_name = "_vmalloc_protocol"
cdef str _near_name = "_vmalloc_can_attach"
NUMBER, CAN_ATTACH = _number_name, _near_name  # attributes of a Connection


def await_modules(tuple names not None):
    """The adapters have changed, or wait for other modules: ForkingPickler has to learn them anew."""
    global _awaited, _nr_changes
    _awaited, _nr_changes = names, _nr_changes + 1


def nr_changes():
    """How often they have changed. Asked for before they are looked at: what changes meanwhile is learned, too."""
    return _nr_changes


def note_taught(uint64_t nr_changes, array_type=None):
    """ForkingPickler knows all of them after so many changes; 0: none. Said last: who is broken off has not taught.

    `array_type`: np.ndarray, or None while numpy is not imported.
    """
    global _nr_taught, _array_type
    _nr_taught, _array_type = nr_changes, array_type


def note_forked():
    """This is a forked child, before its first message."""
    global _is_new_child
    _is_new_child = True


def is_first_message():
    """Once after a fork."""
    global _is_new_child
    is_first, _is_new_child = _is_new_child, False
    return is_first


def wrapping_is_for(forking_pickler, connection, base_process, list kept_ids not None, *, teach_again, dump_process,
                    give_addresses_back, keep_unattached, number_of, can_attach):
    """What the wrappers need of message.py and channel.py, once."""
    global _ForkingPickler, _BaseProcess, _kept_ids, _teach_again, _dump_process, _give_addresses_back, _keep_unattached
    global _number_of, _can_attach, _key_send, _key_init, _key_dump, _key_dumps, _key_send_bytes, _key_recv_bytes
    global _is_stock_class, _stock_init, _stock_dumps
    _ForkingPickler, _BaseProcess, _kept_ids = forking_pickler, base_process, kept_ids
    _teach_again, _dump_process, _give_addresses_back = teach_again, dump_process, give_addresses_back
    _keep_unattached, _number_of, _can_attach = keep_unattached, number_of, can_attach
    _key_init, _key_dump, _key_dumps = [(forking_pickler, name) for name in ("__init__", "dump", "dumps")]
    _key_send_bytes, _key_recv_bytes = [(connection, name) for name in ("_send_bytes", "_recv_bytes")]
    _key_send = (connection.__mro__[1], "send")  # of the class that all connections have
    _is_stock_class = forking_pickler.__bases__ == (_Pickler,)
    _stock_init, _stock_dumps = _own_method(forking_pickler, "__init__"), _own_method(forking_pickler, "dumps")


cdef object _own_method(object cls, str name):
    """None if another library has put its own there."""
    method = cls.__dict__.get(name)
    function = getattr(method, "__func__", method)
    is_own = getattr(function, "__globals__", None) is modules[cls.__module__].__dict__
    return method if is_own else None


cdef bint _is_teaching_due() except -1:
    if _nr_taught != _nr_changes:
        return True
    for name in _awaited:
        if name in _modules:
            return True
    return False


# ---- pickled ----

def drop_references(list references not None):
    """End the leases of a message that will not be sent."""
    for reference in references:
        drop_reference(reference)


cdef int _dump_noted(object pickler, object before, object obj, int protocol) except -1:
    """before(pickler, obj); if it fails, the message's leases end."""
    global pickles_at
    cdef int outer_protocol = pickles_at
    if _is_teaching_due():
        _teach_again(pickler)
    message = Message()
    outer = _exchange(&message_here, message)
    try:
        try:
            pickles_at = protocol
            if _is_process(obj):
                _dump_process(pickler, obj, message)
            else:
                before(pickler, obj)
        finally:
            _exchange(&message_here, outer)
            pickles_at = outer_protocol
        _note_sent(message.references)
    except BaseException:
        drop_references(message.references)
        raise
    return 0


cdef inline bint _is_process(object obj) except -1:
    return issubclass(type(obj), _BaseProcess)  # isinstance() would use a stand-in


cdef int _protocol_of(object told) except? -2:
    if told is None:
        return pickle.DEFAULT_PROTOCOL
    return pickle.HIGHEST_PROTOCOL if told < 0 else told


@cython.binding(True)
def init_forking_pickler(self, *args):
    """ForkingPickler(file, protocol, ...). It tells nobody its protocol later."""
    _wrapped[_key_init](self, *args)
    if len(args) > 1 and args[1] is not None:
        self.__dict__[_protocol_name] = _protocol_of(args[1])


@cython.binding(True)
def dump(self, obj):
    """Pickler.dump; if it fails, the message's leases end."""
    before = _wrapped.get(_key_dump)
    if before is None and _is_stock_class and type(self) is _ForkingPickler:
        before = _pickler_dump
    elif before is None:  # a derived class may have others between ForkingPickler and Pickler
        before = super(_ForkingPickler, type(self)).dump
    _dump_noted(self, before, obj, self.__dict__.get(_protocol_name, pickle.DEFAULT_PROTOCOL))


cdef dict _stock_reducers():
    """What a ForkingPickler looks up; None if that is not what the standard library makes of it, but for us."""
    cdef dict reducers
    methods = _ForkingPickler.__dict__
    if (not _is_stock_class or _stock_init is None or _stock_dumps is None or _wrapped.get(_key_init) is not _stock_init
            or _wrapped.get(_key_dumps) is not _stock_dumps or _wrapped.get(_key_dump) is not None
            or methods.get("__init__") is not init_forking_pickler or methods.get("dump") is not dump
            or "reducer_override" in methods or "persistent_id" in methods):
        return None
    extra, general = methods.get("_extra_reducers"), methods.get("_copyreg_dispatch_table")
    if type(extra) is not dict or type(general) is not dict:
        return None
    reducers = (<dict>general).copy()
    reducers.update(<dict>extra)
    return reducers


def dump_as_stock(obj, protocol):
    """What a ForkingPickler makes of it, byte for byte, without one. None: another library has changed it."""
    reducers = None if _is_process(obj) else _stock_reducers()
    if reducers is None:
        return None
    file = BytesIO()
    pickler = _Pickler(file, protocol)
    pickler.dispatch_table = reducers
    _dump_noted(pickler, _pickler_dump, obj, _protocol_of(protocol))
    return file.getbuffer()


@cython.binding(True)
def dumps(cls, obj, protocol=None):
    """ForkingPickler.dumps, without a ForkingPickler where nobody has changed what that is."""
    cdef MessageSettings settings = _settings
    made = None
    if cls is _ForkingPickler:
        if settings is not None and protocol is None and _array_type is not None and type(obj) is _array_type:
            made = _dump_array(settings, obj)
        if made is None:
            made = dump_as_stock(obj, protocol)
    return _wrapped[_key_dumps].__get__(None, cls)(obj, protocol) if made is None else made


cdef object _dump_array(MessageSettings settings, object a):
    """A message that is one plain array. None: it is not that plain."""
    if (<object>_ForkingPickler._extra_reducers).get(_array_type) is not reduce_array:  # registered by others since
        return None
    if not by_value_here and not settings.private:
        packed = _pack_if_plain(settings, a, None)
        if packed is not None:
            return _one_reference(packed)
    if (a.base is None and a.nbytes <= settings.threshold and a.dtype.kind in "biufc"
            and not is_inside(a)):  # numbers: nothing in it that another reducer is for
        _sent[2] += 1  # AS_BEFORE
        return BytesIO(_pickle_dumps(a)).getbuffer()
    return None


cdef object _one_reference(bytes packed):
    """A message that is nothing else; if it cannot be made, its lease ends."""
    try:
        _note_sent([packed])
        return pickled_reference(packed)
    except BaseException:
        drop_reference(packed)
        raise


# ---- written and read ----

cdef inline uint64_t _number_here(object connection) except? 0:
    """Of its channel; what the connection noted, or asked for."""
    told = getattr(connection, _number_name, 0)
    return told if told > 0 else _number_of(connection)


cdef inline bint _can_attach_here(object connection) except -1:
    """What receiver.can_attach() says, and noted."""
    return True if getattr(connection, _near_name, None) is True else _can_attach(connection)


cdef bint _is_unsent(object error) except -1:
    """Whether a send failed of itself: of half a message nothing can be loaded.

    What a signal's handler raises, KeyboardInterrupt or a TimeoutError of its own, may come after the last byte was
    written. Then the message is its reader's. The system's own errors have a number.
    """
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


@cython.binding(True)
def send(self, obj):
    """Connection.send; its leases know the channel, and it goes by value to a receiver that cannot attach.

    If it fails, the message's leases end.
    """
    global by_value_here, pickles_for
    cdef bint outer_by_value = by_value_here
    cdef uint64_t outer_channel = pickles_for
    cdef list references = []
    outer_message, outer_sent = _exchange(&message_here, None), _exchange(&sent_here, references)
    try:
        pickles_for = _number_here(self)
        by_value_here = not _can_attach_here(self)
        _wrapped[_key_send](self, obj)
    except BaseException as e:
        if _is_unsent(e):
            drop_references(references)
        raise
    finally:
        by_value_here, pickles_for = outer_by_value, outer_channel
        _exchange(&message_here, outer_message)
        _exchange(&sent_here, outer_sent)


@cython.binding(True)
def send_bytes(self, buf):
    """Connection._send_bytes, which all messages go through: also bytes within bytes, received before."""
    send_noted(_wrapped[_key_send_bytes], self, buf, _number_here(self))


@cython.binding(True)
def recv_bytes(self, maxsize=None):
    """Connection._recv_bytes. What holds references is this process's from now on."""
    if _is_new_child:
        _give_addresses_back()
    buf = _wrapped[_key_recv_bytes](self, maxsize)
    if buf is not None:
        if _kept_ids:
            _keep_unattached(buf.getbuffer())
        _keep_received(buf)
    return buf


cdef int _keep_received(object message) except -1:
    """It is this process's from now on."""
    if not _has_leases():
        return 0
    if received_here == NULL:
        note_received(message)
        return 0
    messages = <list>received_here
    messages.append(message)  # first: what is broken off after it was noted has to end it
    if not note_received(message):
        messages.remove(message)  # a look at it later would copy it, where its bytes were handed out
    return 0


def receiving(owner, str name):
    """For a method that reads a message and loads it: if that fails, or is interrupted, it is lost."""
    key = (owner, name)

    @cython.binding(True)
    def received(self, *args, **options):
        messages = []
        outer = _exchange(&received_here, messages)
        try:
            if not args and not options:  # a third of what the other form costs
                return _wrapped[key](self)
            return _wrapped[key](self, *args, **options)
        except BaseException:
            for message in messages:
                note_lost(message)
            raise
        finally:
            _exchange(&received_here, outer)

    received.__name__ = name  # by which a bound method is pickled
    return received


def putting(owner):
    """For the put() of a simple queue, which pickles and writes."""
    key = (owner, "put")

    @cython.binding(True)
    def put(self, obj):
        global pickles_for
        cdef uint64_t outer = pickles_for
        try:
            pickles_for = _number_here(self._writer)
            _wrapped[key](self, obj)
        finally:
            pickles_for = outer

    return put


def load_noted(data, dict options not None):
    """pickle.loads(). What fails because of a stand-in within it is loaded again, with more of them."""
    if _is_new_child:
        _give_addresses_back()
    cdef list loaded = []  # kept until the end: the first load has claimed its leases
    outer = note_loads(loaded)
    try:
        try:
            return _pickle_loads(data, **options) if options else _pickle_loads(data)
        except Exception as e:
            from vmalloc.stand_in import has_stand_in
            if not has_stand_in(loaded):
                raise
            e.__traceback__ = None  # the error of a stand-in lives on, and must hold nothing that was loaded
        from vmalloc.stand_in import load_tolerantly
        return load_tolerantly(data, loaded)
    finally:
        note_loads(outer)
        if outer is not None:  # a message within another one, which may have to be loaded again, too
            (<list>outer).extend(loaded)
