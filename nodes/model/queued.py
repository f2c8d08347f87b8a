"""What a queued workflow sets on a node, as it was sent.

ComfyUI leaves out what a node has no input for before it asks the node whether its inputs are valid, and
repeats the answer for every input that the node asks about. With the inputs as they were sent, a node can
find misspelled ones, and ask about a single input: the one that the answer is most likely about.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from inspect import signature
from typing import Any

from ...merge_ops.errors import MergeError
from ..values.keywords import check_sent
from .core import running_server

# the request that queues a workflow also validates it, in the same task
_workflow: ContextVar[Mapping[str, Any] | None] = ContextVar("workflow", default=None)


def watch_queue() -> None:
    """Look at each workflow when it is queued, if there is a server."""
    server = running_server()
    if server is not None:
        server.add_on_prompt_handler(_look)


def known_inputs(node: type[Any]) -> tuple[str, ...]:
    """Return the names of the inputs that a node takes; those of a method come below ``method``."""
    parameters = signature(node.execute).parameters.values()
    return tuple(each.name for each in parameters if each.kind is not each.VAR_KEYWORD)


def sent_inputs(node: type[Any]) -> dict[str, Any]:
    """Return the inputs of the node that is validated, as they were sent, but no links; ``{}`` if unknown."""
    workflow = _workflow.get() or {}
    sent = workflow.get(str(getattr(node.hidden, "unique_id", None)))
    inputs = sent.get("inputs") if isinstance(sent, Mapping) else None
    if not isinstance(inputs, Mapping):
        return {}
    return {name: value for name, value in inputs.items() if not isinstance(value, list)}


def check_method(node: type[Any], method: Any) -> bool | str:
    """Return True, or what is wrong with the method and the inputs of a node that is queued.

    ``method`` is what ComfyUI hands to the validation, for where the inputs as they were sent are unknown.
    """
    name = method.get("method") if isinstance(method, Mapping) else method
    try:
        check_sent(sent_inputs(node) or {"method": name}, known_inputs(node))
    except MergeError as error:
        return str(error)
    return True


def _look(request: Any) -> Any:
    workflow = request.get("prompt") if isinstance(request, Mapping) else None
    _workflow.set(workflow if isinstance(workflow, Mapping) else None)
    return request
