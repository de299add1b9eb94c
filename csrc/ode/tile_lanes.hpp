// What a tile does to all of its lanes at once: micro-steps with alpha = 1 and beta = 0, and the look at the state after a
// step. A pack is read before it is written, so arrays may be the same. Included by tile.hpp only.
#pragma once

#include "fields.hpp"

namespace revstep {
namespace REVSTEP_ISA {
namespace {

// 2^F or 2^-F: one an element where Each, otherwise one a component.
template <bool Each>
struct LaneUnits {
    const double* units;
    RS_MEMBER RealPack at(int i, int j) const {
        if constexpr (Each) return pack_at(units + j);
        else return RealPack{} + units[i];
    }
};

// The packs of some blocks of kLanes systems: `f(i, j)` with the component and the place of the first lane.
struct LanePacks {
    int blocks, size;
    template <class F>
    RS_MEMBER void each(F f) const {
        for (int b = 0, j = 0; b < blocks; ++b)
            for (int i = 0; i < size; ++i)
                for (const int end = j + kLanes; j < end; j += kPack) f(i, j);
    }
};

template <bool Undo>
RS_MEMBER void lanes_float(const LanePacks& packs, double gamma, const double* phi, double* state) {
    packs.each([&](int, int j) {
        const RealPack x = pack_at(state + j), d = gamma * pack_at(phi + j);
        put(state + j, Undo ? x - d : x + d);
    });
}

// next <- the slot after the micro-step; false where a value is near the limits. With phi (gamma 2^F) instead of (phi gamma) 2^F,
// which is the same number for the gammas that a plan calls plain. Small: where all increments are below 2^51 and all results
// below 2^61, a number is rounded and looked at with fewer instructions; false beyond.
template <bool Undo, bool Small, bool Each>
RS_MEMBER bool lanes_next(const LanePacks& packs, double gamma, LaneUnits<Each> up, const double* phi, const int64_t* state, int64_t* next) {
    const uint64_t limit = static_cast<uint64_t>(FixedTraits<int64_t>::limit), value_limit = bits_of(0x1p61);
    WordPack near{}, far{};
    packs.each([&](int i, int j) {
        const RealPack v = pack_at(phi + j) * (gamma * up.at(i, j));
        const WordPack d = Small ? rint_i64_small(v) : rint_i64(v), x = pack_at(state + j), y = Undo ? x - d : x + d;
        if constexpr (Small) {
            near = near | (d + (1ull << 51));  // beyond, v + 1.5 2^52 has another exponent: d is not in -2^51 .. 2^51 - 1
            far = far | (y + (1ull << 61));
        } else {
            // A sign bit is set where |v| > 2^61 (or is NaN, whose bits are above all numbers'), y < -limit or y > limit.
            near = near | (value_limit - bits_of(abs_of(v))) | (y + limit) | (limit - y);
        }
        put(next + j, y);
    });
    if constexpr (Small) return ((any_of(near) >> 52) | (any_of(far) >> 62)) == 0;
    else return (any_of(near) >> 63) == 0;
}

// state <- next, view <- its value.
template <bool Each>
RS_MEMBER void lanes_take(const LanePacks& packs, LaneUnits<Each> down, const int64_t* next, int64_t* state, double* view) {
    packs.each([&](int i, int j) {
        const WordPack y = pack_at(next + j);
        put(state + j, y);
        put(view + j, to_double(y) * down.at(i, j));
    });
}

// The sign bit is set for Inf and NaN, whose exponent overflows. Of a magnitude.
template <class D>
RS_FN BitsOf<D> not_finite(const D& u) {
    return bits_of(u) + (1ull << 52);
}

// most <- the larger ones of it and of the magnitudes in both slots, in units of X. False where a sum of two magnitudes of floats
// is not finite: one of them, or it overflowed.
template <bool Fixed, bool Each>
RS_MEMBER bool lanes_inspect(const LanePacks& packs, const double* view0, const double* view1, LaneUnits<Each> up0, LaneUnits<Each> up1, double* most) {
    WordPack odd{};
    RealPack largest = pack_at(most);
    packs.each([&](int i, int j) {
        RealPack u = abs_of(pack_at(view0 + j)), v = abs_of(pack_at(view1 + j));
        if constexpr (Fixed) u = u * up0.at(i, j), v = v * up1.at(i, j);
        else odd = odd | not_finite(u + v);
        largest = larger(larger(u, v), largest);
    });
    put(most, largest);
    return Fixed || (any_of(odd) >> 63) == 0;
}

}  // namespace
}  // namespace REVSTEP_ISA
}  // namespace revstep
