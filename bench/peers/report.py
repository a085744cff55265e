#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""What ./bench/run peers makes of its samples.

report.py summarise KEY=TEXT... < SAMPLES   lines of JSON -> medians and quartiles, as JSON;
                                            each KEY=TEXT says something of the machine
report.py plot FILE                         that JSON -> a gnuplot script that prints an SVG
report.py seal FILE < SVG                   marks the SVG as made from that JSON
report.py table FILE                        that JSON -> a table for a terminal
report.py block FILE                        that JSON -> what README.md shows of it
report.py readme FILE README                writes it between README's markers
report.py check FILE SVG README             prints what was not made from that JSON
"""

import hashlib
import json
import statistics
import sys

# In the order of the table: name, what it is called, its kind.
RINGS = [
    ("ballast_split", "Ballast, split", "ours"),
    ("ballast_split_in_order", "Ballast, split, IN_ORDER", "ours"),
    ("ballast_packed", "Ballast, packed", "ours"),
    ("ballast_packed_in_order", "Ballast, packed, IN_ORDER", "ours"),
    ("linux_split", "Linux virtio_ring.c + vringh.c, split", "peer"),
    ("linux_packed", "Linux virtio_ring.c + Ballast's device, packed", "peer"),
    ("ringtest_ring", "ringtest ring", "peer"),
    ("ringtest_0_9", "ringtest virtio_ring_0_9", "peer"),
    ("ringtest_inorder", "ringtest virtio_ring_inorder", "peer"),
    ("ringtest_poll", "ringtest virtio_ring_poll", "peer"),
    ("two_queues", "bound: two queues of our own", "bound"),
    ("atomic_queue", "bound: two queues of atomic_queue", "bound"),
]
FIGURES = ["one_1", "one_32", "two_32", "unit", "two_32_units"]
BEGIN, END = "<!-- peers: written by ./bench/run peers --readme -->", "<!-- end of peers -->"
COLOURS = {"ours": "#1f6fb4", "peer": "#8c8c8c", "bound": "#2a9d6f"}


def summarise(lines, facts):
    samples = {}
    for line in lines:
        sample = json.loads(line)
        sample["two_32_units"] = sample["two_32"] / sample["unit"]
        samples.setdefault(sample["ring"], []).append(sample)
    rings = {}
    for name, of in samples.items():
        rings[name] = {}
        for figure in FIGURES:
            values = [sample[figure] for sample in of]
            low, median, high = (
                statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
            )
            digits = 3 if figure == "two_32_units" else 2
            rings[name][figure] = {
                "median": round(median, digits),
                "low": round(low, digits),
                "high": round(high, digits),
            }
    passes = {len(of) for of in samples.values()}
    if len(passes) != 1 or set(rings) != {name for name, _, _ in RINGS}:
        sys.exit("not every ring has as many samples as the others")
    return {**dict(fact.split("=", 1) for fact in facts), "passes": passes.pop(), "rings": rings}


def digest(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def plot(results):
    panels = [
        ("one_32", "one thread, batch 32: ns per buffer", "%.1f"),
        ("two_32_units", "two CPUs, batch 32: in round trips", "%.3f"),
    ]
    out = [
        'set terminal svg noenhanced size 960,380 font "DejaVu Sans,11" background "#ffffff"',
        'set border 3 linecolor rgb "#404040"',
        'set xtics nomirror textcolor rgb "#202020"',
        'set ytics nomirror scale 0 textcolor rgb "#202020"',
        'set grid xtics linecolor rgb "#dddddd"',
        "unset key",
        "set style fill solid",
        f"set yrange [{len(RINGS) - 0.4}:-0.6]",
        "set multiplot",
    ]
    for number, (figure, title, form) in enumerate(panels):
        of = [results["rings"][name][figure] for name, _, _ in RINGS]
        out.append("$figures << END")
        for row, ((_, label, kind), value) in enumerate(zip(RINGS, of)):
            colour = int(COLOURS[kind][1:], 16)
            text = form % value["median"]
            out.append(f'{row} {value["median"]} {value["low"]} {value["high"]} {colour} "{text}"')
        out.append("END")
        if number == 0:
            labels = ", ".join(f'"{label}" {row}' for row, (_, label, _) in enumerate(RINGS))
            out += [f"set ytics ({labels})", "set lmargin at screen 0.36", "set rmargin at screen 0.66"]
        else:
            out += ['set ytics ("" 0)', "set lmargin at screen 0.69", "set rmargin at screen 0.98"]
        most = max(value["high"] for value in of)
        out += [
            "set tmargin at screen 0.9",
            "set bmargin at screen 0.08",
            f"set xrange [0:{most * 1.2:.4f}]",
            f'set title "{title}" font ",11" textcolor rgb "#202020"',
            "plot $figures using (0):1:(0):2:($1-0.36):($1+0.36):5 with boxxyerror linecolor rgb variable, \\",
            '  $figures using 2:1:3:4 with xerrorbars pointtype 0 linecolor rgb "#202020", \\',
            f'  $figures using ($4+{most * 0.015:.4f}):1:6 with labels left font ",10" textcolor rgb "#202020"',
        ]
    out.append("unset multiplot")
    return "\n".join(out) + "\n"


def seal(path, svg):
    marks = (
        "<!-- SPDX-License-Identifier: BSD-3-Clause -->\n"
        f"<!-- made by ./bench/run peers from the JSON beside it, sha256 {digest(path)} -->\n"
    )
    head, newline, rest = svg.partition("\n")
    return head + newline + marks + rest


def cell(value, form):
    return f'{form % value["median"]} ({form % value["low"]}-{form % value["high"]})'


def block(results):
    out = [
        BEGIN,
        "## Speed, beside others",
        "",
        "What a buffer of 64 bytes costs from the driver to the device and back, in a ring of 256",
        "entries. In one thread each side asks once per batch whether to notify; across two CPUs both",
        "poll. The unit there is a round trip of one cache line by compare-and-swap, measured around",
        "each sample. Linux's engines and ringtest publish each buffer by itself; ringtest and the two",
        "bare queues check nothing of what the other side wrote. `./bench/run peers` measures again.",
        "",
        "![nanoseconds per buffer, and round trips of a cache line per buffer](bench/results/peers.svg)",
        "",
        "| Ring, both sides | one thread, batch 1 | one thread, batch 32 | two CPUs, batch 32 "
        "| the same, in round trips | a round trip |",
        "|---|---|---|---|---|---|",
    ]
    for name, label, _ in RINGS:
        of = results["rings"][name]
        out.append(
            f"| {label} | {cell(of['one_1'], '%.1f')} | {cell(of['one_32'], '%.1f')} "
            f"| {cell(of['two_32'], '%.1f')} | {cell(of['two_32_units'], '%.3f')} "
            f"| {cell(of['unit'], '%.0f')} |"
        )
    out += [
        "",
        f"Nanoseconds per buffer, median (quartiles) of {results['passes']} interleaved samples on "
        f"{results['cpu']}, {results['compiler']} -O2; {results['linux']}, {results['atomic_queue']}.",
        END,
    ]
    return "\n".join(out)


def table(results):
    columns = [
        ("one_1", "one thread, 1", "%.1f"),
        ("one_32", "one thread, 32", "%.1f"),
        ("two_32", "two CPUs, 32", "%.1f"),
        ("two_32_units", "in units", "%.3f"),
        ("unit", "the unit", "%.0f"),
    ]
    out = [f"{results['cpu']}; {results['compiler']} -O2; {results['linux']}; {results['atomic_queue']}"]
    out.append("ns per buffer, median (quartiles); the unit: a cache line to the other CPU and back")
    out.append(f"{'':47}" + "".join(f"{title:>22}" for _, title, _ in columns))
    for name, label, _ in RINGS:
        of = results["rings"][name]
        out.append(f"{label:47}" + "".join(f"{cell(of[key], form):>22}" for key, _, form in columns))
    return "\n".join(out)


def cut(readme):
    """What is before the block, the block, and what is behind it."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        sys.exit("README has no place for the comparison, or several")
    first, last = readme.index(BEGIN), readme.index(END) + len(END)
    return readme[:first], readme[first:last], readme[last:]


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def main(arguments):
    match arguments:
        case ["summarise", *facts]:
            print(json.dumps(summarise(sys.stdin, facts), indent=1))
        case ["plot", path]:
            print(plot(load(path)), end="")
        case ["seal", path]:
            print(seal(path, sys.stdin.read()), end="")
        case ["table", path]:
            print(table(load(path)))
        case ["block", path]:
            print(block(load(path)))
        case ["readme", path, readme]:
            before, _, behind = cut(read(readme))
            with open(readme, "w", encoding="utf-8") as file:
                file.write(before + block(load(path)) + behind)
        case ["check", path, svg, readme]:
            if cut(read(readme))[1] != block(load(path)):
                print(f"{readme} shows other figures than {path}: ./bench/run peers --readme")
            if f"sha256 {digest(path)} " not in read(svg):
                print(f"{svg} is not drawn from {path}: ./bench/run peers --readme")
        case _:
            sys.exit(__doc__)


main(sys.argv[1:])
