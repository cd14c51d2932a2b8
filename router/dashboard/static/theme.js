// Before anything is painted: the theme that was chosen here last, if any was.
(() => {
  const chosen = localStorage.getItem("m3-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
