"""`format` of JSON Schema as regular expressions: each lets through only what the format allows.

Where a format allows more than is of use (an email address with comments), less is let through. Leap seconds and the
year 0 are left out because most libraries refuse them. The sources are named beside each.
"""

from __future__ import annotations

_NOT_CENTURY = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26]))"  # years that 4 divides and 100 does not
_CENTURY = "(?:(?:0[48]|[2468][048]|[13579][26])00)"  # years that 400 divides
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|(?:{_NOT_CENTURY}|{_CENTURY})-02-29)"
)
_TIME = r"(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9]))"
_LABEL = "(?:[a-zA-Z0-9](?:[a-zA-Z0-9]|-[a-zA-Z0-9]){0,30})"  # at most 61 of 63 characters, no two hyphens in a row
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL}){{0,3}})"  # at most 247 of 253
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HEX = "[0-9a-fA-F]{1,4}"
_IPV6 = "|".join(
    [f"(?:{_HEX}:){{7}}{_HEX}", "::"]
    + [f"(?:{_HEX}:){{{n}}}(?::{_HEX}){{1,{7 - n}}}" for n in range(1, 7)]
    + [f":(?::{_HEX}){{1,7}}", f"(?:{_HEX}:){{1,7}}:"]
)
_DAYS = "(?:[0-9]{1,6}D|[0-9]{1,6}M(?:[0-9]{1,6}D)?|[0-9]{1,6}Y(?:[0-9]{1,6}M(?:[0-9]{1,6}D)?)?)"
_HOURS = "(?:T(?:[0-9]{1,6}S|[0-9]{1,6}M(?:[0-9]{1,6}S)?|[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?))"
_ATOM = r"[a-zA-Z0-9_+\-]{1,15}"
_PATH = "(?:[a-zA-Z0-9._~!$&'()*+,;=:@\\-]|%[0-9a-fA-F]{2})"

FORMATS = {
    "date": _DATE,  # RFC 3339, full-date
    "time": _TIME,  # RFC 3339, full-time
    "date-time": f"{_DATE}T{_TIME}",  # RFC 3339
    "duration": f"P(?:{_DAYS}{_HOURS}?|{_HOURS}|[0-9]{{1,6}}W)",  # RFC 3339, appendix A
    "email": rf"{_ATOM}(?:\.{_ATOM}){{0,3}}@{_LABEL}(?:\.{_LABEL}){{1,2}}",  # RFC 5321, 4.1.2: Dot-string and Domain
    "hostname": _HOST,  # RFC 1123, 2.1
    "ipv4": rf"(?:{_BYTE}\.){{3}}{_BYTE}",  # RFC 2673, 3.2
    "ipv6": f"(?:{_IPV6})",  # RFC 4291, 2.2, without IPv4 endings
    "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",  # RFC 4122
    "uri": (  # RFC 3986, 3: with an authority that is a name
        rf"[a-zA-Z][a-zA-Z0-9+.\-]{{0,15}}:\/\/{_HOST}(?::[1-9][0-9]{{0,3}})?(?:\/{_PATH}*)*"
        rf"(?:\?(?:{_PATH}|[\/?])*)?(?:#(?:{_PATH}|[\/?])*)?"
    ),
    "json-pointer": "(?:/(?:[^~/]|~[01])*)*",  # RFC 6901, 3
}
