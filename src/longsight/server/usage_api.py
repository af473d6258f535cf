"""GET /v1/usage and /v1/usage.csv: what has been used, and what it came to."""

from __future__ import annotations

import logging

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from longsight.server.errors import ApiError, invalid
from longsight.server.identity import caller_of, require_scope
from longsight.server.metering.errors import LedgerError
from longsight.server.metering.meter import LedgerMeter
from longsight.server.metering.report import Query, QueryError, Report
from longsight.server.service import Service

log = logging.getLogger("longsight")


async def usage(request: Request) -> Response:
    """What has been used, and what it came to: as JSON, or as CSV for those who accept text/csv."""
    report = await _report(request)
    if request.headers.get("accept", "").split(";")[0].strip() == "text/csv":
        return _csv(report)
    return JSONResponse(report.as_json(), headers={"vary": "accept"})


async def usage_csv(request: Request) -> Response:
    """What has been used, and what it came to, as CSV."""
    return _csv(await _report(request))


routes = [Route("/v1/usage", usage), Route("/v1/usage.csv", usage_csv)]


async def _report(request: Request) -> Report:
    """A caller sees his own organisation; an administrator all, or the one he names."""
    caller = caller_of(request)
    require_scope(caller, "usage")
    organisation = request.query_params.get("organisation")
    if "admin" not in caller.scopes:
        if organisation not in (None, caller.organisation):
            message = f"organisation is {organisation!r}; this API key sees the usage of {caller.organisation!r}"
            raise ApiError(403, message, type="permission_error", code="missing_scope", param="organisation")
        organisation = caller.organisation
    service: Service = request.app.state.service
    meter = service.meter
    if not isinstance(meter, LedgerMeter):
        message = "this server keeps no ledger; it does when started with --ledger"
        raise ApiError(404, message, type="invalid_request_error", code="no_ledger")
    try:
        return await to_thread.run_sync(_read, meter, dict(request.query_params), organisation)
    except QueryError as error:
        raise invalid(str(error), error.param) from error
    except LedgerError as error:
        # The database's words may name hosts and files, which are the operator's business.
        log.error("%s", error)
        raise ApiError(503, "the ledger cannot be read now", type="server_error", code="unavailable") from error


def _read(meter: LedgerMeter, given: dict[str, str], organisation: str | None) -> Report:
    known = sorted({*meter.prices.known_currencies, *meter.ledger.currencies()})
    query = Query.parse(given, currencies=known, currency=meter.currency, organisation=organisation)
    return Report.of(meter.ledger, query)


def _csv(report: Report) -> Response:
    headers = {"content-disposition": 'attachment; filename="usage.csv"', "vary": "accept"}
    return Response(report.as_csv(), media_type="text/csv", headers=headers)
