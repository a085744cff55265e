#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The README's support matrix, from what the interop suite printed.

    support_matrix.py show LOG            the table
    support_matrix.py readme LOG README   rewrites the block between the README's markers
    support_matrix.py check LOG README    says where README differs from what LOG shows, and exits with
                                          1 then; with 77, "skipped", where LOG is not of a whole run

LOG holds the suite's lines "ok NAME", "FAIL NAME: why" and "skip NAME: why". Which names stand for
which feature and peer is in support_matrix.tsv: feature, peer and a regular expression that must
match names, one in each line. A cell is "yes" where all lines that match are "ok", "no" where one is
"FAIL", and "-" where nothing matched.
"""
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
BEGIN = "<!-- interop: written by ./tests/run interop --readme -->"
END = "<!-- end of interop -->"


def rules():
    with open(os.path.join(HERE, "support_matrix.tsv"), encoding="utf-8") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                feature, peer, pattern = line.rstrip("\n").split("\t")
                yield feature, peer, re.compile(pattern)


def results(log):
    """What each check said: name and whether it passed; those left out are not here."""
    with open(log, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(("ok ", "FAIL ")):
                said, name = line.rstrip("\n").split(None, 1)
                yield name, said == "ok"


def left_out(log):
    """Why the first check that was not made was not."""
    with open(log, encoding="utf-8", errors="replace") as file:
        return next((line.strip() for line in file if line.startswith("skip ")), None)


def table(log):
    features, peers, cells = [], [], {}
    checks = list(results(log))
    for feature, peer, pattern in rules():
        if feature not in features:
            features.append(feature)
        if peer not in peers:
            peers.append(peer)
        found = [passed for name, passed in checks if pattern.search(name)]
        if found:
            cells[feature, peer] = cells.get((feature, peer), True) and all(found)
    lines = ["| Feature | " + " | ".join(peers) + " |", "|---" * (len(peers) + 1) + "|"]
    for feature in features:
        row = [{True: "yes", False: "no", None: "-"}[cells.get((feature, peer))] for peer in peers]
        lines.append("| " + " | ".join([feature] + row) + " |")
    return "\n".join(lines)


def parts(readme):
    with open(readme, encoding="utf-8") as file:
        text = file.read()
    before, begin, rest = text.partition(BEGIN + "\n")
    block, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{readme} has no block for the support matrix")
    return before + begin, block, end + after


def main():
    arguments = sys.argv[1:]
    if len(arguments) == 2 and arguments[0] == "show":
        print(table(arguments[1]))
    elif len(arguments) == 3 and arguments[0] == "readme":
        before, _, after = parts(arguments[2])
        with open(arguments[2], "w", encoding="utf-8") as file:
            file.write(f"{before}\n{table(arguments[1])}\n\n{after}")
    elif len(arguments) == 3 and arguments[0] == "check":
        if left_out(arguments[1]):
            print("not all of the suite has run: " + left_out(arguments[1]))
            sys.exit(77)
        _, block, _ = parts(arguments[2])
        shown, seen = block.strip().splitlines(), table(arguments[1]).splitlines()
        for line in shown:
            if line not in seen:
                print(f"README says {line}")
        for line in seen:
            if line not in shown:
                print(f"the suite  {line}")
        sys.exit(shown != seen)
    else:
        print(__doc__)
        sys.exit(2)


main()
