# What examples/menu_bar.py uses of rumps 0.4.0, which has no types and installs on macOS only.
from collections.abc import Callable, Sequence

class MenuItem:
    title: str
    def __init__(
        self, title: str, callback: Callable[[MenuItem], object] | None = None
    ) -> None: ...
    def set_callback(self, callback: Callable[[MenuItem], object] | None) -> None: ...

class Timer:
    def __init__(self, callback: Callable[[Timer], object], interval: float) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...

class Response:
    clicked: int
    text: str

class Window:
    def __init__(
        self,
        message: str = "",
        title: str = "",
        default_text: str = "",
        ok: str | None = None,
        cancel: str | bool | None = None,
        dimensions: tuple[int, int] = (320, 160),
    ) -> None: ...
    def run(self) -> Response: ...

class App:
    title: str | None
    def __init__(
        self,
        name: str,
        title: str | None = None,
        *,
        menu: Sequence[MenuItem] | None = None,
        quit_button: str | None = "Quit",
    ) -> None: ...
    def run(self) -> None: ...

def alert(title: str | None = None, message: str = "") -> int: ...
def quit_application() -> None: ...
