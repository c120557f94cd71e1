#!/bin/sh
# keep_report.sh OBJECT COMMAND...: runs the command that compiles CUDA code to OBJECT, and keeps in OBJECT.report what
# ptxas reports of registers, for spills.cmake. All else is printed as ever.
report="$1.report"
shift
status=0
"$@" 2>"$report" || status=$?
grep -v -e '^ptxas info' -e ' bytes stack frame, ' "$report" >&2
exit "$status"
