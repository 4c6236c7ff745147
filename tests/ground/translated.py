"""Hosts where loopback is translated, as the attribution's truth has them (truth/test_rows_nat.py, row 2)."""

from __future__ import annotations

import subprocess

from truth.scene import keep_capabilities


def translate_loopback(rule: str) -> None:
    """Add ``rule`` (nft's, of table ip or ip6) after routing, in the network namespace that we are in."""
    family = "ip6" if rule.startswith("ip6") else "ip"
    text = f"table {family} t {{ chain c {{ type nat hook postrouting priority 100;\n{rule}\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, preexec_fn=keep_capabilities)
