"""`gradio.HTML` with templates and a script, as of gradio 6, for gradio 5.50; to be removed with it."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gradio as gr
from gradio.context import Context

# Waits until the page has the HTML, and runs the script as gradio 6 does.
START = """(value) => {
  const start = () => {
    const root = document.getElementById(%(id)s), element = root && root.querySelector(".prose");
    if (!element || !element.firstElementChild) return requestAnimationFrame(start);
    const props = { value, ...%(props)s }, watchers = [];
    const watch = (name, changed) => watchers.push(changed);
    const trigger = (name, data) => {
      root.data = data;
      document.getElementById(%(id)s + "-event").click();
    };
    root.update = (value) => {
      props.value = value;
      watchers.forEach((changed) => changed());
    };
    new Function("element", "props", "watch", "trigger", %(script)s)(element, props, watch, trigger);
  };
  start();
}"""
UPDATE = "(value) => document.getElementById(%(id)s).update(value)"
EVENT = "() => [document.getElementById(%(id)s).data]"
# What is not `visible` would not be in the page at all.
UNSEEN = {"elem_classes": "unseen"}
STYLE = "<style>.unseen { display: none !important; } #%s { %s }</style>"


class HTML(gr.JSON):
    """Holds the value, unseen; what is seen is a `gradio.HTML` before it."""

    is_template = True  # looks like its parent

    def __init__(
        self,
        value: Any,
        *,
        elem_id: str,
        js_on_load: str,
        html_template: str = "",
        css_template: str = "",
        **props: Any,
    ):
        del props["apply_default_css"]
        self.names = {"id": json.dumps(elem_id), "props": json.dumps(props), "script": json.dumps(js_on_load)}
        gr.HTML((html_template or value) + STYLE % (elem_id, css_template), elem_id=elem_id, padding=False)
        super().__init__(value if html_template else None, **UNSEEN)
        self.event, self.data = gr.Button(elem_id=f"{elem_id}-event", **UNSEEN), gr.JSON(**UNSEEN)
        self.change(None, self, None, js=UPDATE % self.names)
        Context.root_block.load(None, self, None, js=START % self.names)

    def click(self, function: Callable, inputs: None, outputs: list, **options: Any):
        """`function` takes the event, of which it reads what the script said."""

        def take(data):
            return function(SimpleNamespace(**data))

        return self.event.click(take, self.data, outputs, js=EVENT % self.names, **options)
