// A step that is looked at: the same micro-steps, and what they did to the numbers. Out of line and on arrays, so that all other
// steps are as they would be without it. Included by loop_body.cpp only.
#pragma once

#include "tile.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

template <bool Fixed, int W, bool Each>
struct Watched : Tile<Fixed, Erased, W, Each> {
    typedef Tile<Fixed, Erased, W, Each> Base;
    using Base::a;
    using Base::begin;
    using Base::count;
    using Base::plan;
    using Base::size;

    RS_MEMBER Watched(const OdePlan& p, OdeShare& result, int64_t first, int64_t end, double* room, const Kept& kept)
        : Base(erased<W>(*p.args, result), p, first, end, room, result) {
        this->remember(kept);
    }

    // Of one micro-step that was right: f is what it was made of.
    template <int I>
    void increments(const PlannedMicro& m, const double* f) {
        const OdeWatch& watch = a.watch;
        if (!Fixed || watch.zero[I] == nullptr || watch.high[I] == nullptr || m.gamma == 0.0) return;
        for (int l = 0; l < count; ++l)
            for (int i = 0; i < size(); ++i) {
                const double phi = f[i * W + l];
                const int64_t d = quantise<int64_t>(scaled_value(phi, m.gamma, this->up[I][Base::unit(i, l)]));
                const int64_t magnitude = d < 0 ? -d : d, at = (begin + l) * a.dim + i;
                if (phi != 0.0 && d == 0) ++watch.zero[I][at];
                if (magnitude > watch.high[I][at]) watch.high[I][at] = magnitude;
            }
    }

    template <int I>
    bool take(const PlannedMicro& m, int64_t n) {
        if (!this->template micro<I, false>(m, n)) return false;
        increments<I>(m, m.function < 0 ? this->template view<1 - I>() : this->template phi<1 - I>());
        return true;
    }

    void distance(int64_t n) {
        if (a.watch.apart == nullptr || a.watch.apart_at == nullptr) return;
        for (int l = 0; l < count; ++l)
            for (int i = 0; i < size(); ++i) {
                const double apart = abs_of(this->template view<0>()[i * W + l] - this->template view<1>()[i * W + l]);
                if (apart > a.watch.apart[begin + l]) a.watch.apart[begin + l] = apart, a.watch.apart_at[begin + l] = n;
            }
    }

    bool whole(int64_t n, int phase) {
        for (int k = plan.first[phase]; k < plan.first[phase + 1]; ++k) {
            const PlannedMicro& m = plan.micros[k];
            if (!(m.slot == 0 ? take<0>(m, n) : take<1>(m, n))) return false;
        }
        distance(n);
        return true;
    }
};

template <bool Fixed, int W, bool Each>
__attribute__((noinline)) bool watched_step(const OdePlan& plan, OdeShare& share, int64_t begin, int64_t end, double* scratch, Kept& kept, int64_t n, int phase) {
    Watched<Fixed, W, Each> tile(plan, share, begin, end, scratch, kept);
    const bool good = tile.whole(n, phase);
    kept = tile.memory();
    return good;
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
