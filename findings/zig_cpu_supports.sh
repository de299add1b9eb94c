#!/usr/bin/env bash
# Programs built by zig's C compiler are told that the processor has no extension at all: __builtin_cpu_supports
# is 0 for every name, also for what every x86-64 processor has.
#
# One would guess the processor's own answer, as with GCC and Clang, or an error. zig 0.15 gave an error: the
# linker missed __cpu_model, the table that the question reads. With zig 0.17 the program links, the table stays
# empty, and nothing is said. So a wheel built by the package ziglang, as is done for an old glibc, loses every
# code path that it chooses at run time, and only becomes slow.
#
# What helps: ask the processor (__get_cpuid of <cpuid.h>, and xgetbv for the registers that the system keeps),
# which gives the same answer with each compiler.
#
# Seen with ziglang 0.17.1 and 0.15.2, GCC 12.2, x86-64 Linux, 2026-11-30:
#   GCC: sse2 1, the processor itself: sse2 1
#   zig 0.17.1: sse2 0, the processor itself: sse2 1
#   zig 0.15.2: undefined symbol: __cpu_model
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
[ "$(uname -m)" = x86_64 ] || { echo "this is about x86-64, and here is $(uname -m)"; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ZIG_GLOBAL_CACHE_DIR=$work/cache
cat >"$work/asks.c" <<'C'
#include <cpuid.h>
#include <stdio.h>

int main(void) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    __builtin_cpu_init();
    __get_cpuid(1, &a, &b, &c, &d);
    printf("sse2 %d, the processor itself: sse2 %u\n", __builtin_cpu_supports("sse2") != 0, d >> 26 & 1);
    return 0;
}
C
cc -O1 "$work/asks.c" -o "$work/by_gcc"
gcc=$("$work/by_gcc")
echo "GCC: $gcc"
for version in 0.17.1 0.15.2; do
    "${PYTHON:-python3}" -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet ziglang==$version
done
"$work/0.17.1/bin/python" -m ziglang cc -O1 "$work/asks.c" -o "$work/by_new"
new=$("$work/by_new")
echo "zig 0.17.1: $new"
old=$("$work/0.15.2/bin/python" -m ziglang cc -O1 "$work/asks.c" -o "$work/by_old" 2>&1) || true
old=$(grep -o 'undefined symbol: __cpu_model' <<<"$old" | head -n 1) || true
echo "zig 0.15.2: ${old:-links}"
[ "$gcc" = "sse2 1, the processor itself: sse2 1" ] && [ "$new" = "sse2 0, the processor itself: sse2 1" ] &&
    [ "$old" = "undefined symbol: __cpu_model" ]
