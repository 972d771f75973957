"""What LangGraph is told when it resumes a run in which a step of older state runs again."""

from __future__ import annotations

from langchain_core.runnables import RunnableConfig

from forkpoint import langgraph_rules
from forkpoint.errors import InvalidInput
from forkpoint.inputs import Address
from forkpoint.untrusted import shown


def apply_input(address: Address, config: RunnableConfig) -> None:
    """Make LangGraph apply the input of a subgraph, although the run of its graph is resumed.

    Otherwise it would take the state of the subgraph, from before the step, for the outcome of
    the step, and run nothing. LangGraph's own time travel takes the same flag out of the same
    config (`SyncPregelLoop.__enter__`), for the same reason.

    Args:
        address: The namespace of the subgraph, of which the newest checkpoint is read.
        config: The config that LangGraph asks with. It goes on with it.

    Raises:
        InvalidInput: The run was given a thread id that is no string. Then LangGraph asks with a
            copy of the config, and goes on with the flag.
    """
    configurable = config.get("configurable") if type(config) is dict else None
    if type(configurable) is not dict or not langgraph_rules.is_resuming(configurable):
        return  # whoever asks is not LangGraph, which resumes a run
    metadata = config.get("metadata")
    given = metadata.get("thread_id", "") if type(metadata) is dict else ""
    if not isinstance(given, str):
        raise InvalidInput(
            f"thread_id must be the string {address.thread_id!r} here, not {shown(given)}: the "
            f"thread was forked or rolled back, and its subgraph {address.checkpoint_ns!r} goes "
            "on from the state of that moment"
        )
    langgraph_rules.stop_resuming(configurable)
