// What scrolls sideways can be reached by the keyboard: material wraps wide tables, but gives them no focus.
document$.subscribe(() => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset__table")) box.tabIndex = 0;
});
