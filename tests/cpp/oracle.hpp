// The definition in plain 128-bit integers, with divisions instead of shifts: shares no code with csrc/core.
#pragma once

#include <cmath>
#include <limits>

#include "core/portable.hpp"

namespace oracle {

using revstep::int128;

inline int128 floor_div(int128 n, int128 d) { return n / d - (n % d != 0 && (n % d < 0) != (d < 0) ? 1 : 0); }
inline int128 ceil_div(int128 n, int128 d) { return -floor_div(-n, d); }
inline int128 rounded(int128 m) { return floor_div(m + (1 << 23), 1 << 24); }
inline int128 magnitude(int128 x) { return x < 0 ? -x : x; }

template <class S>
constexpr int128 limit = sizeof(S) == 4 ? (int128{1} << 31) - 1 : (int128{1} << 62) - 1;

inline int128 next(int64_t prev, int64_t cur, int64_t d, int a, int b) { return rounded(static_cast<int128>(a) * prev) + rounded(static_cast<int128>(b) * cur) + d; }

inline int128 lowest(int128 y, int a) { return ceil_div(y * (1 << 24) - (1 << 23), std::abs(a)); }

inline int128 carry(int64_t prev, int a) {
    const int128 u = a < 0 ? -static_cast<int128>(prev) : static_cast<int128>(prev);
    return u - lowest(rounded(static_cast<int128>(a) * prev), a);
}

inline int128 prev(int64_t next, int64_t cur, int64_t d, int64_t carry, int a, int b) {
    const int128 y = static_cast<int128>(next) - rounded(static_cast<int128>(b) * cur) - d;
    const int128 u = std::abs(a) == 1 << 24 ? y : lowest(y, a) + carry;
    return a < 0 ? -u : u;
}

// rint without trusting rint: half to even on a long double, exact for both widths.
inline int64_t to_even(long double v) {
    const long double f = std::floor(v), rest = v - f;
    const int64_t low = static_cast<int64_t>(f);
    return rest > 0.5L || (rest == 0.5L && low % 2 != 0) ? low + 1 : low;
}

template <class S>
S low_bits(int128 x) {
    return static_cast<S>(static_cast<uint64_t>(x));
}

}  // namespace oracle
