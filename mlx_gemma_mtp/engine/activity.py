"""Keeping a Mac awake while an engine works: without App Nap, which slows apps in the background,
and without idle sleep. Knows nothing of engines; does nothing on other systems.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Sequence
from typing import Any

FOUNDATION = "/System/Library/Frameworks/Foundation.framework/Foundation"
USER_INITIATED = 0x00FFFFFF  # NSActivityUserInitiated: no App Nap, no idle sleep of the system


def hold_awake() -> Callable[[], None]:
    """Keep this Mac awake until the result is called, on any thread."""
    if platform.system() != "Darwin":
        return lambda: None
    return _begin_activity()


def _begin_activity() -> Callable[[], None]:
    """Call NSProcessInfo's beginActivityWithOptions:reason:, and return how to end it."""
    ctypes.CDLL(FOUNDATION)
    objc = ctypes.CDLL("/usr/lib/libobjc.dylib")
    for name in ("objc_getClass", "sel_registerName", "objc_autoreleasePoolPush"):
        getattr(objc, name).restype = ctypes.c_void_p
    objc.objc_autoreleasePoolPop.argtypes = [ctypes.c_void_p]

    def send(receiver: Any, message: bytes, *values: Any, types: Sequence[Any] = ()) -> Any:
        # Every call has its own prototype: on Apple silicon variadic ones pass values elsewhere.
        prototype = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, *types)
        selector = objc.sel_registerName(message)
        return prototype(("objc_msgSend", objc))(receiver, selector, *values)

    pool = objc.objc_autoreleasePoolPush()
    text = objc.objc_getClass(b"NSString")
    reason = send(text, b"stringWithUTF8String:", b"generating", types=[ctypes.c_char_p])
    process = send(objc.objc_getClass(b"NSProcessInfo"), b"processInfo")
    begin, types = b"beginActivityWithOptions:reason:", [ctypes.c_uint64, ctypes.c_void_p]
    activity = send(process, begin, USER_INITIATED, reason, types=types)
    send(activity, b"retain")
    objc.objc_autoreleasePoolPop(pool)

    def end() -> None:
        send(process, b"endActivity:", activity, types=[ctypes.c_void_p])
        send(activity, b"release")

    return end
