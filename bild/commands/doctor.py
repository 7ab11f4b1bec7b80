"""Look at this machine: what works, what is slower than it need be, and what to do about it.

    bild doctor
    bild doctor --json > machine.json
    bild doctor --large my/large --small my/small      # the self-test with your own pair
    bild doctor --device cuda                          # the self-test on the GPU

Compiler and engine, instruction set, threads (with the process' cores and its container's share),
memory, disk, GPU, versions, and ten seconds of decoding: the engine's tokens against those of
transformers. Exit code 1 where something does not work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bild.checkpoints.names import REPOSITORY_ROOT
from bild.cli import quiet_loading
from bild.errors import BildError
from bild.files import as_json
from bild.flags import device_name
from bild.parser import Parser, add_allow_pickle

if TYPE_CHECKING:
    from bild.doctor.findings import Finding


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--large", metavar="MODEL", help="of the self-test (default: the shipped one, if here)")
    add("--small", metavar="MODEL", help="of the self-test")
    add("--device", type=device_name, default="cpu", help="of the self-test: cpu, cuda or cuda:N")
    add("--no-self-test", action="store_true", help="decode nothing")
    add("--json", action="store_true", help="print facts and findings as one JSON object")
    add_allow_pickle(parser)
    return parser


def main() -> None:
    a = make_parser().parse_args()
    if (a.large is None) != (a.small is None):
        raise BildError("the self-test needs both --large and --small, or neither")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

    from bild.doctor.facts import gather
    from bild.doctor.findings import Finding, judge

    facts = gather()
    findings = judge(facts)
    if not facts.imports and not a.no_self_test:
        quiet_loading()
        findings.append(tested(a.large, a.small, a.device))
    elif not a.no_self_test:
        findings.append(Finding("self-test", "error", "not possible: see versions"))
    if a.json:
        print(as_json({"facts": asdict(facts), "findings": [asdict(f) for f in findings]}))
    else:
        print(report(findings))
    sys.stdout.flush()
    if any(finding.level == "error" for finding in findings):
        sys.exit(1)


def tested(large: str | None, small: str | None, device: str) -> Finding:
    """The self-test with a pair, or with the shipped one where it is."""
    from bild.doctor.findings import Finding
    from bild.doctor.selftest import self_test

    if large is not None and small is not None:
        return self_test(large, small, device=device)
    if not (REPOSITORY_ROOT / "demo/large").is_dir() and not Path("demo/large").is_dir():
        said = "left out: the shipped pair comes with a checkout"
        return Finding("self-test", "note", said, "name a pair with --large and --small")
    return self_test("demo/large", "demo/small", device=device)


def report(findings: Sequence[Finding]) -> str:
    """The findings for people, a line each, the advice below."""
    width = max(len(finding.subject) for finding in findings)
    lines = []
    for f in findings:
        lines.append(f"{f.level:5}  {f.subject:{width}}  {f.says}")
        if f.advice:
            lines.append(f"{'':5}  {'':{width}}  -> {f.advice}")
    return "\n".join(lines)
