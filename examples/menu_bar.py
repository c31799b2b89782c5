"""A menu-bar app for macOS that answers one question at a time. Needs rumps.

Not yet run on a Mac: the tests check its types, and run it without a screen. Nothing waits on the
main thread: the model loads and answers on others, and a timer looks at how far they are.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import rumps

from mlx_gemma_mtp import Engine, Generation, MgmError, SamplingParams, load


class MenuBar(rumps.App):
    def __init__(self, model: str) -> None:
        self.asking = rumps.MenuItem("Ask…")  # grey until it has a callback
        self.stopping = rumps.MenuItem("Stop")
        leaving = rumps.MenuItem("Quit", callback=self.leave)
        menu = [self.asking, self.stopping, leaving]
        super().__init__("Gemma", title="Loading…", menu=menu, quit_button=None)
        self.leaving = threading.Event()
        self.loading = ThreadPoolExecutor(1).submit(
            load, model, max_batch=1, idle_unload=600, cancel=self.leaving
        )
        self.engine: Engine | None = None
        self.generation: Generation | None = None
        self.timer = rumps.Timer(self.look, 0.2)
        self.timer.start()

    def look(self, _: rumps.Timer) -> None:
        """Show what is new. rumps calls this on the main thread."""
        if self.engine is None and self.loading.done():
            try:
                self.engine = self.loading.result()
            except MgmError as error:
                self.timer.stop()
                rumps.alert("The model cannot be loaded", str(error))
                rumps.quit_application()
                return
            self.be_ready()
        elif self.generation is not None:
            self.title = self.generation.text[-30:] or "Thinking…"
            if self.generation.done():
                generation, self.generation = self.generation, None
                self.be_ready()
                rumps.alert("Gemma", str(generation.exception() or generation.text))

    def be_ready(self) -> None:
        self.title = "Gemma"
        self.asking.set_callback(self.ask)
        self.stopping.set_callback(None)

    def ask(self, _: rumps.MenuItem) -> None:
        response = rumps.Window("", "Ask Gemma", cancel=True, dimensions=(320, 60)).run()
        if self.engine is None or not response.clicked or not response.text.strip():
            return
        try:
            self.generation = self.engine.submit(response.text, SamplingParams(max_tokens=500))
        except MgmError as error:
            rumps.alert("Gemma", str(error))
            return
        self.asking.set_callback(None)
        self.stopping.set_callback(self.stop)

    def stop(self, _: rumps.MenuItem) -> None:
        if self.generation is not None:
            self.generation.cancel()  # within a round; `look` shows the answer so far

    def leave(self, _: rumps.MenuItem) -> None:
        self.leaving.set()
        if self.engine is not None:
            self.engine.close()
        rumps.quit_application()


if __name__ == "__main__":
    MenuBar(sys.argv[1] if sys.argv[1:] else "demo").run()
