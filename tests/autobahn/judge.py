"""Chooses the cases of the Autobahn|Testsuite, and judges its reports strictly. See README.md.

judge.py list CASES                          the cases that CASES names, one a line
judge.py spec CASES URL REPORTS              the fuzzing client's specification
judge.py judge CASES REPORTS NAME SECONDS    says what passed, writes REPORTS/verdict.json; status 0 if all did
judge.py summary REPORTS...                  the verdicts of these runs as a page

CASES: cases and sections (`1,2.10,9.7,12.*`), or one of the names in `GROUPS`.
"""

import datetime
import json
import pathlib
import sys

# How many cases each section has. A run that leaves one out has not passed, and a suite that has others
# is one that nobody has looked at.
CASES = {
    "1.1": 8, "1.2": 8, "2": 11, "3": 7, "4.1": 5, "4.2": 5, "5": 20,
    "6.1": 3, "6.2": 4, "6.3": 2, "6.4": 4, "6.5": 5, "6.6": 11, "6.7": 4, "6.8": 2, "6.9": 4, "6.10": 3,
    "6.11": 5, "6.12": 8, "6.13": 5, "6.14": 10, "6.15": 1, "6.16": 3, "6.17": 5, "6.18": 5, "6.19": 5,
    "6.20": 7, "6.21": 8, "6.22": 34, "6.23": 7,
    "7.1": 6, "7.3": 6, "7.5": 1, "7.7": 13, "7.9": 9, "7.13": 2,
    "9.1": 6, "9.2": 6, "9.3": 9, "9.4": 9, "9.5": 6, "9.6": 6, "9.7": 6, "9.8": 6, "10.1": 1,
    **{f"12.{n}": 18 for n in range(1, 6)}, **{f"13.{n}": 18 for n in range(1, 8)},
}
SECTIONS = {
    "1": "framing", "2": "pings and pongs", "3": "reserved bits", "4": "opcodes", "5": "fragmentation",
    "6": "UTF-8", "7": "closing", "9": "limits and performance", "10": "automatic fragmentation",
    "12": "compression: payloads", "13": "compression: parameters",
}
GROUPS = {
    "all": " ".join(SECTIONS),
    "core": "1 2 3 4 5 6 7 10",
    "limits": "9",
    "compression": "12 13",
    # Of each section messages of 16 bytes to 4 KiB, and of 8 and 16 KiB in fragments.
    "compression-quick": " ".join(
        f"{section}.{n}" for section in CASES if section[:3] in ("12.", "13.") for n in (1, 2, 3, 4, 5, 11, 12)
    ),
}
# What these cases send, a server may answer in several ways; the suite reports the answer and never
# judges it.
INFORMATIONAL = ("7.1.6", "7.13.1", "7.13.2")


def chosen(words):
    """The cases that the words name, in the order of the suite."""
    known = [f"{section}.{n}" for section, count in CASES.items() for n in range(1, count + 1)]
    cases = set()
    for word in GROUPS.get(words, words).replace(",", " ").split():
        stem = word.removesuffix("*").removesuffix(".")
        hits = {case for case in known if f"{case}.".startswith(f"{stem}.")}
        if not hits:
            sys.exit(f"no such case: {word}")
        cases |= hits
    if not cases:
        sys.exit("no case is named")
    return [case for case in known if case in cases]


def spec(cases, url, reports):
    specification = {
        "outdir": reports, "servers": [{"agent": "echo", "url": url}],
        "cases": cases, "exclude-cases": [], "exclude-agent-cases": {},
    }
    return json.dumps(specification, indent=1)


def fault(case, result):
    """Whether the case did anything else than pass, as strictly as it can be asked."""
    allowed = ("OK", "INFORMATIONAL") if case in INFORMATIONAL else ("OK",)
    return result["behavior"] not in allowed or result["behaviorClose"] not in allowed


def judge(cases, reports, name, seconds):
    """The verdict on the reports of one run."""
    index = reports / "index.json"
    agents = list(json.loads(index.read_text()).values()) if index.exists() else []
    results = agents[0] if len(agents) == 1 else {}
    verdict = {
        "name": name, "date": datetime.date.today().isoformat(), "seconds": seconds, "suite": None,
        "sections": {}, "odd": [], "missing": [], "unexpected": sorted(set(results) - set(cases)),
    }
    for case in cases:
        number = case.split(".")[0]
        none = {"cases": 0, "ok": 0, "informational": 0, "failed": 0, "ms": 0}
        section = verdict["sections"].setdefault(number, none)
        section["cases"] += 1
        if case not in results:
            verdict["missing"].append(case)
            section["failed"] += 1
            continue
        result = results[case]
        behavior = result["behavior"], result["behaviorClose"]
        section["ms"] += result["duration"]
        failed = fault(case, result)
        section["failed" if failed else "ok" if behavior == ("OK", "OK") else "informational"] += 1
        if verdict["suite"] is None or behavior != ("OK", "OK"):
            details = json.loads((reports / result["reportfile"]).read_text())
            # The only place where the reports say by which suite they are.
            verdict["suite"] = details["httpRequest"].partition("User-Agent: ")[2].partition("\r\n")[0]
        if behavior != ("OK", "OK"):
            verdict["odd"].append({
                "case": case, "failed": failed, "behavior": behavior[0], "closing": behavior[1],
                "why": f"{details['result']} / {details['resultClose']}", "code": result["remoteCloseCode"],
            })
    failed = sum(section["failed"] for section in verdict["sections"].values())
    verdict["passed"] = not failed and not verdict["unexpected"]
    return verdict


def first_line(verdict):
    cases = sum(section["cases"] for section in verdict["sections"].values())
    failed = sum(section["failed"] for section in verdict["sections"].values())
    said = "all pass" if verdict["passed"] else f"{failed} failed"
    return f"{verdict['name']}: {cases} cases, {said}, {verdict['seconds']} s"


def lines_of(odd):
    """What is to be said of each case that is not plainly OK."""
    for each in odd:
        sign = "FAILED" if each["failed"] else "passed"
        yield (f"{each['case']} {sign}: {each['behavior']}, closing {each['closing']} "
               f"(code {each['code']}): {each['why']}")


def show(verdict):
    print(first_line(verdict))
    for number, s in verdict["sections"].items():
        kinds = "  ".join(f"{s[kind]} {kind}" for kind in ("ok", "informational", "failed") if s[kind])
        print(f"  {number + '.*':>5}  {kinds}  ({s['ms'] / 1000:.1f} s)")
    for line in lines_of(verdict["odd"]):
        print(f"  {line}")
    for kind in ("missing", "unexpected"):
        if verdict[kind]:
            print(f"  {kind}: {' '.join(verdict[kind])}")


def summary(verdicts):
    print("# The last run of everything\n")
    print("Written by `tests/autobahn/run.sh all`. What the columns mean: [README.md](README.md).\n")
    for verdict in verdicts:
        print(f"## {first_line(verdict)}\n")
        print(f"{verdict['date']}, {verdict['suite']}.\n")
        print("| section | cases | OK | informational | failed | seconds |")
        print("|---|---:|---:|---:|---:|---:|")
        for number, s in verdict["sections"].items():
            print(f"| {number}: {SECTIONS[number]} | {s['cases']} | {s['ok']} | {s['informational']} "
                  f"| {s['failed']} | {s['ms'] / 1000:.1f} |")
        print("\nNot plainly OK:\n")
        lines = list(lines_of(verdict["odd"]))
        lines += [f"{kind}: {' '.join(verdict[kind])}" for kind in ("missing", "unexpected") if verdict[kind]]
        for line in lines or ["nothing"]:
            print(f"* {line}")
        print()


def main(words):
    match words:
        case ["list", cases]:
            print(*chosen(cases), sep="\n")
        case ["spec", cases, url, reports]:
            print(spec(chosen(cases), url, reports))
        case ["judge", cases, reports, name, seconds]:
            reports = pathlib.Path(reports)
            verdict = judge(chosen(cases), reports, name, seconds)
            (reports / "verdict.json").write_text(json.dumps(verdict, indent=1) + "\n")
            show(verdict)
            return 0 if verdict["passed"] else 1
        case ["summary", *runs] if runs:
            summary([json.loads((pathlib.Path(run) / "verdict.json").read_text()) for run in runs])
        case _:
            sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
