"""REST routes of analytics: live figures and the report."""

from typing import Annotated

from fastapi import APIRouter

from app.core.caller import Caller
from app.core.ids import room_of
from app.core.registry import Domain
from app.domains.analytics import service
from app.domains.analytics.rules import Figures, Report
from app.rest.access import EnginesDep, check_right, require

router = APIRouter(prefix="/api/v1", tags=["analytics"])

Reader = Annotated[Caller, require("report.view")]


@router.get("/sessions/{session_id}/figures", summary="Live figures of a show")
async def get_figures(session_id: str, engines: EnginesDep, caller: Reader) -> Figures:
    """The same as `figures.updated` on the team's channel, which comes every two seconds while the show is live."""
    check_right(caller, "report.view", room_of(session_id))
    return await service.figures(engines, session_id)


@router.get("/sessions/{session_id}/report", summary="The review of a show")
async def get_report(session_id: str, engines: EnginesDep, caller: Reader) -> Report:
    """Complete when the show has ended; computed again while late payments and refunds come in, until the session is archived."""
    check_right(caller, "report.view", room_of(session_id))
    return Report.model_validate(await service.report(engines, session_id))


DOMAIN = Domain(
    name="analytics",
    rights={"report.view": "see live figures and reports"},
    routers=(router,),
    reactions={
        "session.went_live": service.on_went_live,
        "session.ended": service.on_ended,
        "session.archived": service.on_archived,
        "order.placed": service.on_orders,
        "order.paid": service.on_orders,
        "order.changed": service.on_orders,
    },
)
