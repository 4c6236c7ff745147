"""Asks a name server by itself. Usage: ask.py SERVER udp|tcp NAME TYPE [PAYLOAD], printing the reply as JSON.

PAYLOAD is the EDNS size that is offered; without it there is no EDNS.
"""

import json
import sys

import dns.flags
import dns.message
import dns.query
import dns.rcode

server, transport, name, kind = sys.argv[1:5]
payload = int(sys.argv[5]) if len(sys.argv) > 5 else 0
question = dns.message.make_query(name, kind, use_edns=0 if payload else -1, payload=payload or 1232)
ask = dns.query.udp if transport == "udp" else dns.query.tcp
reply = ask(question, server, timeout=10)
print(json.dumps({
    "rcode": dns.rcode.to_text(reply.rcode()),
    "truncated": bool(reply.flags & dns.flags.TC),
    "answers": [item.to_text() for rrset in reply.answer for item in rrset],
}))  # fmt: skip
