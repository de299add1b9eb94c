// Which coefficients the elements of a tile take. Included by cpu_body.cpp only, as cpu_tiles.hpp is.
#pragma once

#include "cpu_tiles.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

// f(first, count, second) for the runs of elements [at + first, at + first + count) of the tile that share a set, in order; second:
// it is the second one. Neighbouring rows of one choice are one run. Without rows: one run, the tile; told at compile time, because with the
// loop around it a tile of 32-bit states in the first-level cache took up to 7 % longer (v3, n = 2^16, one thread).
template <bool Rows, class Args, class F>
RS_FN void for_runs(const Args& s, int64_t at, int m, F f) {
    if constexpr (!Rows) return f(0, m, false);
    int64_t row = at / s.row_length;
    for (int first = 0, end = m; first < m; first = end, end = m) {
        const bool second = s.choice[row] != 0;
        int64_t stop = (++row) * s.row_length - at;
        for (; stop < m && (s.choice[row] != 0) == second; ++row) stop += s.row_length;
        if (stop < m) end = static_cast<int>(stop);
        f(first, end - first, second);
    }
}

template <bool Rows, class F>
RS_FN void for_segments(const StepPlan& plan, int64_t at, int m, F f) {
    for_runs<Rows>(plan.args, at, m, [&](int first, int count, bool second) { f(first, count, plan.set[second ? 1 : 0]); });
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
