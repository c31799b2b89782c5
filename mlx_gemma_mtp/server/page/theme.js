// Light or dark: as the system, unless the reader chose. Not a module: it runs before the page is
// painted, so that nothing flashes.

(() => {
  const NAME = "mgm.theme";
  const chosen = () => {
    try {
      return localStorage.getItem(NAME);
    } catch {
      return null; // storage is denied: the choice lasts while the page does
    }
  };
  const apply = (/** @type {string | null} */ theme) => {
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  };
  apply(chosen());

  document.addEventListener("DOMContentLoaded", () => {
    const button = /** @type {HTMLElement} */ (document.getElementById("theme"));
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const current = () =>
      document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
    const other = () => (current() === "dark" ? "light" : "dark");
    const label = () => {
      button.title = `Use ${other()} colors`;
      button.setAttribute("aria-label", button.title);
    };
    button.addEventListener("click", () => {
      const theme = other();
      const system = dark.matches ? "dark" : "light";
      // The system's own theme is followed again.
      delete document.documentElement.dataset.theme;
      if (theme !== system) apply(theme);
      try {
        if (theme === system) localStorage.removeItem(NAME);
        else localStorage.setItem(NAME, theme);
      } catch {
        // storage is denied
      }
      label();
    });
    dark.addEventListener("change", label);
    label();
  });
})();
