// Of the gallery of examples: which of its buttons was pressed.
element.addEventListener("click", ({ target }) => {
  const button = target.closest("button");
  if (button) trigger("click", { index: Number(button.value) });
});
