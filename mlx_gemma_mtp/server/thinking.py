"""How long a model may think, as clients of all protocols ask for it."""

from __future__ import annotations

from typing import Any, Literal

from mlx_gemma_mtp.server.service import Service

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
# The most tokens of a thought. Others have as many as the server allows.
EFFORTS = {"none": 0, "minimal": 0, "low": 1024, "medium": 4096}


def thinking_of(service: Service, effort: Effort | None, *, asked: bool, budget: int | None) -> Any:
    """Return the settings of the thought. asked, budget: what the client says next to an effort."""
    thinks = asked if effort is None else EFFORTS.get(effort) != 0
    if thinks and budget is None:
        budget = EFFORTS.get(effort or "") or service.settings.thinking_budget
    return {"thinking": thinks, "thinking_budget": budget}
