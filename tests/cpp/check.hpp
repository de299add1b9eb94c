// A harness in a few lines: `expect` counts and prints, `finish` is the exit status.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <initializer_list>

#include "core/portable.hpp"

namespace check {

inline int& failures() {
    static int count = 0;
    return count;
}

__attribute__((format(printf, 2, 3))) inline void expect(bool ok, const char* format, ...) {
    if (ok || ++failures() > 20) return;
    va_list args;
    va_start(args, format);
    std::fputs("FAILED: ", stderr);
    std::vfprintf(stderr, format, args);
    std::fputc('\n', stderr);
    va_end(args);
}

// A property as a number of violations: the real functions must have none, a broken one must have some.
inline void real(long violations, const char* property) { expect(violations == 0, "%s: %ld violations", property, violations); }
inline void mutant(long violations, const char* which) { expect(violations > 0, "the broken variant '%s' was not noticed", which); }

inline int finish(const char* name) {
    std::printf("%s: %s\n", name, failures() == 0 ? "ok" : "FAILED");
    return failures() == 0 ? 0 : 1;
}

struct Random {
    uint64_t state;
    uint64_t next() {  // splitmix64
        uint64_t z = (state += 0x9E3779B97F4A7C15ull);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        return z ^ (z >> 31);
    }
    int64_t between(int64_t low, int64_t high) {
        const uint64_t span = static_cast<uint64_t>(high) - static_cast<uint64_t>(low) + 1;
        return static_cast<int64_t>(static_cast<uint64_t>(low) + (span == 0 ? next() : next() % span));
    }
    double unit() { return static_cast<double>(next() >> 11) * 0x1p-53; }
};

}  // namespace check
