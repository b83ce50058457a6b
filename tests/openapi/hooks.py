"""What schemathesis is told beyond the document."""

import schemathesis

BEYOND_OPENAPI = (
    "wait goes with order=stored only",
    "so nothing can lie between",
    "page is none of this list",
    "a document has no columns for CSV",
    "around= goes with the document of one request",
)
"""Why a query can be refused of which each parameter is valid."""


@schemathesis.check
def refused_for_what_openapi_cannot_say(ctx, response, case):
    if response.status_code == 400 and case.meta and case.meta.generation.mode.is_positive:
        text = " ".join(response.text.split())
        assert any(reason in text for reason in BEYOND_OPENAPI), text
