// Fixed-point states: element X stands for X * 2^-F. One step is
//     total = r(A * prev) + r(B * cur) + D          r(m) = (m + 2^23) >> 24,  alpha = A / 2^24,  beta = B / 2^24
// and next its low bits. Where a `near` predicate holds or the result is beyond the limit, the `exact_` functions,
// which are the definition in 128-bit integers, replace the result; everywhere else the fast functions are exact. S is int32_t or int64_t.
#pragma once

#include "portable.hpp"

namespace revstep {

constexpr int kCoefBits = 24;
constexpr int64_t kCoefOne = int64_t{1} << kCoefBits;
constexpr int64_t kCoefHalf = kCoefOne / 2;
constexpr int kMaxCarryBits = 8;
// Largest |alpha| and |beta| for which the integer products cannot overflow.
constexpr double kMaxAlpha = 2.0, kMaxBeta = 4.0;

template <class S>
struct FixedTraits;

template <>
struct FixedTraits<int32_t> {
    typedef uint32_t Bits;
    static constexpr int64_t limit = (int64_t{1} << 31) - 1;
    static constexpr int max_frac_bits = 30;  // one bit for values up to 1, one for the sign
    static constexpr double value_limit = 0x1p31;
    // Range checks in floats, in units of 1 (int32) or 2^32 (int64). With |alpha| <= 2, |beta| <= 4 the sum of
    // three rounded terms is off by less than 4096 of these units; dividing by alpha >= 2^-8 makes that 2^20.
    static constexpr float near_next = 0x1p31f - 8192.0f;
    static constexpr float near_prev = 0x1p31f - 0x1p21f;
};

template <>
struct FixedTraits<int64_t> {
    typedef uint64_t Bits;
    static constexpr int64_t limit = (int64_t{1} << 62) - 1;
    static constexpr int max_frac_bits = 61;  // and one for sums
    static constexpr double value_limit = 0x1p62;
    static constexpr float near_next = 0x1p30f - 8192.0f;
    static constexpr float near_prev = 0x1p30f - 0x1p21f;
};

enum class AlphaKind : int { unit, shift, general };        // |A| = 2^24; |A| = 2^(24-b), b > 0; the rest
enum class BetaKind : int { none, whole, shift, general };  // B = 0; B a multiple of 2^24; a multiple +- 2^(24-b), b > 0; the rest

// r(+-x 2^-bits), bits > 0.
struct Shift {
    int32_t bits, bias;  // bias: added before the shift: 2^(bits-1), one less where negative
    uint32_t flip;       // all ones where negative: (x ^ flip) - flip is the sign times x
};

struct FixedCoef {
    int32_t a, abs_a;   // A, |A|
    int32_t b, whole;   // B, the multiple of 2^24 in it
    uint32_t flip;      // of alpha
    int32_t carry_bits; // what an exact inverse needs
    Shift alpha_shift, beta_shift;
    float alpha32, beta32, per_alpha32, per_a32;
    double up, per_a;   // 2^24 / |A|, 1 / |A|
    AlphaKind alpha_kind;
    BetaKind beta_kind;
};

RS_FN bool is_power_of_two(int32_t x) { return x > 0 && (x & (x - 1)) == 0; }

// Of m = +-2^(24-bits), and of others the bits alone: the smallest number with |m| 2^bits >= 2^24.
RS_FN Shift make_shift(int32_t m) {
    Shift s{0, 0, m < 0 ? ~0u : 0u};
    const int32_t size = m < 0 ? -m : m;
    while ((int64_t{size} << s.bits) < kCoefOne) ++s.bits;
    s.bias = s.bits == 0 ? 0 : (1 << (s.bits - 1)) - (m < 0 ? 1 : 0);
    return s;
}

// A and B must have been checked: |A| in [2^16, 2^25], |B| <= 2^26.
RS_FN FixedCoef make_fixed_coef(int32_t a, int32_t b) {
    FixedCoef k{};
    k.a = a;
    k.abs_a = a < 0 ? -a : a;
    k.b = b;
    const int32_t one = static_cast<int32_t>(kCoefOne), rest = b & (one - 1);
    const bool below = !is_power_of_two(rest) && rest != 0 && is_power_of_two(one - rest);  // a power of two below a multiple
    k.whole = (b - rest) / one + (below ? 1 : 0);
    if (rest != 0) k.beta_shift = make_shift(below ? rest - one : rest);
    k.flip = a < 0 ? ~0u : 0u;
    k.alpha_shift = make_shift(a);
    k.carry_bits = k.alpha_shift.bits;
    k.alpha_kind = k.abs_a == kCoefOne                              ? AlphaKind::unit
                   : is_power_of_two(k.abs_a) && k.abs_a < kCoefOne ? AlphaKind::shift
                                                                    : AlphaKind::general;
    k.beta_kind = b == 0                            ? BetaKind::none
                  : rest == 0                       ? BetaKind::whole
                  : is_power_of_two(rest) || below ? BetaKind::shift
                                                    : BetaKind::general;
    k.alpha32 = static_cast<float>(a) * 0x1p-24f;
    k.beta32 = static_cast<float>(b) * 0x1p-24f;
    k.per_alpha32 = 1.0f / k.alpha32;
    k.per_a32 = 1.0f / static_cast<float>(k.abs_a);
    k.up = 0x1p24 / k.abs_a;
    k.per_a = 1.0 / k.abs_a;
    return k;
}

// ---- increments ----------------------------------------------------------------------------------------------

// v = f * gamma * 2^F, each product rounded in C. Contraction must be off.
template <class C>
RS_FN C scaled_value(C f, C gamma, C unit) {
    const C g = f * gamma;
    return g * unit;
}

RS_FN bool value_in_range(float v, int32_t) { return abs_of(v) < 0x1p31f; }
RS_FN bool value_in_range(double v, int32_t) { return abs_of(v) < 0x1p31; }
RS_FN bool value_in_range(float v, int64_t) { return abs_of(v) < 0x1p62f; }
RS_FN bool value_in_range(double v, int64_t) { return abs_of(v) < 0x1p62; }

// Close to the limit, beyond it, or NaN. A double just below 2^31 rounds to 2^31, which int32 cannot hold.
template <class S, class C>
RS_FN bool value_near(C v) {
    return !(abs_of(v) < static_cast<C>(FixedTraits<S>::value_limit * (1.0 - 0x1p-16)));
}

RS_FN int32_t rint_value(float v, int32_t) { return rint_i32(v); }
RS_FN int32_t rint_value(double v, int32_t) {
    return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint64_t>(rint_i64_small(v))));
}
RS_FN int64_t rint_value(float v, int64_t) { return rint_i64(static_cast<double>(v)); }
RS_FN int64_t rint_value(double v, int64_t) { return rint_i64(v); }

// D, and 0 where value_near.
template <class S, class C>
RS_FN S quantise(C v) {
    return rint_value(value_near<S>(v) ? C{0} : v, S{});
}

// ---- terms: low bits of r(A * x), r(B * x) ---------------------------------------------------------------------

RS_FN uint64_t shift_right_24(uint64_t m) {  // arithmetic, |m| < 2^62: m + 2^62 is not negative; no vector int64 shift of that kind before AVX-512
    return ((m + (1ull << 62)) >> 24) - (1ull << 38);
}

RS_FN uint64_t rounded_product(int32_t x, int32_t c) {  // r(c * x) as a 64-bit integer, exact
    return shift_right_24(static_cast<uint64_t>(static_cast<int64_t>(x) * c + kCoefHalf));
}

// Low 64 bits of r(c * x). The upper half's product times 2^32 is a multiple of 2^24, so only the lower half is rounded.
// That half is unsigned: a negative c read as unsigned is 2^32 too large, which `negative` takes off.
RS_FN uint64_t rounded_product(int64_t x, int32_t c) {
    const uint64_t u = static_cast<uint64_t>(x);
    const int32_t high = static_cast<int32_t>(static_cast<uint32_t>(u >> 32));
    const uint32_t low = static_cast<uint32_t>(u);
    const uint64_t negative = c < 0 ? ~0ull : 0ull;
    const uint64_t upper = static_cast<uint64_t>(static_cast<int64_t>(high) * c);
    const uint64_t lower = static_cast<uint64_t>(low) * static_cast<uint32_t>(c) - ((static_cast<uint64_t>(low) << 32) & negative);
    return (upper << 8) + shift_right_24(lower + static_cast<uint64_t>(kCoefHalf));
}

RS_FN uint32_t with_sign(uint32_t x, uint32_t flip) { return (x ^ flip) - flip; }
RS_FN uint64_t with_sign(uint64_t x, uint32_t flip) {
    const uint64_t wide = 0ull - (flip & 1u);
    return (x ^ wide) - wide;
}

RS_FN uint32_t shift_right(uint32_t x, int s) { return static_cast<uint32_t>(static_cast<int32_t>(x) >> s); }
RS_FN uint64_t shift_right(uint64_t x, int s) { return ((x ^ (1ull << 63)) >> s) - ((1ull << 63) >> s); }

// floor((+-x + 2^(bits-1)) / 2^bits), without a sum that could overflow. Positive: known to be +x, and then the upper half of floor(x / 2^(bits-1)).
template <bool Positive, class Bits>
RS_FN Bits shifted(Bits u, const Shift& s) {
    if constexpr (Positive) {
        const Bits twice = shift_right(u, s.bits - 1);
        return twice - shift_right(twice, 1);
    } else {
        const Bits mask = (Bits{1} << s.bits) - 1;
        const Bits rounded = ((u & mask) + static_cast<Bits>(s.bias)) >> s.bits;
        return with_sign(shift_right(u, s.bits) + rounded, s.flip);
    }
}

// Positive: alpha > 0, and the fraction of beta beside a whole number too.
template <AlphaKind K, bool Positive = false, class S>
RS_FN auto alpha_term(S x, const FixedCoef& k) -> typename FixedTraits<S>::Bits {
    typedef typename FixedTraits<S>::Bits Bits;
    const Bits u = static_cast<Bits>(x);
    if constexpr (K == AlphaKind::unit) return Positive ? u : with_sign(u, k.flip);
    if constexpr (K == AlphaKind::general) return static_cast<Bits>(rounded_product(x, k.a));
    return shifted<Positive>(u, k.alpha_shift);
}

template <BetaKind K, bool Positive = false, class S>
RS_FN auto beta_term(S x, const FixedCoef& k) -> typename FixedTraits<S>::Bits {
    typedef typename FixedTraits<S>::Bits Bits;
    if constexpr (K == BetaKind::none) return 0;
    const Bits u = static_cast<Bits>(x), whole = static_cast<Bits>(static_cast<S>(k.whole));
    if constexpr (K == BetaKind::whole) return u * whole;
    if constexpr (K == BetaKind::shift) return u * whole + shifted<Positive>(u, k.beta_shift);
    return static_cast<Bits>(rounded_product(x, k.b));
}

// ---- range checks in floats ------------------------------------------------------------------------------------

RS_FN float roughly(int32_t x) { return static_cast<float>(x); }
RS_FN float roughly(int64_t x) {
    return static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32)));
}

// The sign bit is set where the sum of two integers wrapped.
template <class Bits>
RS_FN Bits wraps(Bits a, Bits b, Bits sum) {
    return (a ^ sum) & (b ^ sum);
}

template <class Bits>
RS_FN bool negative(Bits x) {
    return x >> (8 * sizeof(Bits) - 1) != 0;
}

// d: of the increment, rounded or not.
template <BetaKind KB, class S>
RS_FN float next_roughly(S prev, S cur, float d, const FixedCoef& k) {
    const float t = roughly(prev) * k.alpha32 + d;
    if constexpr (KB == BetaKind::none) return t;
    return t + roughly(cur) * k.beta32;
}

template <BetaKind KB, class S>
RS_FN float prev_roughly(S next, S cur, float d, const FixedCoef& k) {
    float t = roughly(next) - d;
    if constexpr (KB != BetaKind::none) t = t - roughly(cur) * k.beta32;
    return t * k.per_alpha32;
}

// alpha = +-1, beta = 0: with d flipped by the sign, next = +-(prev + d) and prev = +-(next - d). The sign bit is set where that wrapped.
template <bool Positive = false, class S>
RS_FN auto next_wraps(S prev, S d, const FixedCoef& k) -> typename FixedTraits<S>::Bits {
    typedef typename FixedTraits<S>::Bits Bits;
    const Bits p = static_cast<Bits>(prev), e = Positive ? static_cast<Bits>(d) : with_sign(static_cast<Bits>(d), k.flip);
    return wraps<Bits>(p, e, p + e);
}

template <class S>
RS_FN auto prev_wraps(S next, S d) -> typename FixedTraits<S>::Bits {
    typedef typename FixedTraits<S>::Bits Bits;
    const Bits y = static_cast<Bits>(next) - static_cast<Bits>(d);
    return wraps<Bits>(y, static_cast<Bits>(d), static_cast<Bits>(next));
}

// `near` false and |result| within the limit: the fast result is exact and good.
template <AlphaKind KA, BetaKind KB, class S>
RS_FN bool next_near(S prev, S cur, S d, const FixedCoef& k) {
    if constexpr (KA == AlphaKind::unit && KB == BetaKind::none) return negative(next_wraps(prev, d, k));
    return !(abs_of(next_roughly<KB>(prev, cur, roughly(d), k)) < FixedTraits<S>::near_next);
}

template <AlphaKind KA, BetaKind KB, class S>
RS_FN bool prev_near(S next, S cur, S d, const FixedCoef& k) {
    if constexpr (KA == AlphaKind::unit && KB == BetaKind::none) return negative(prev_wraps(next, d));
    return !(abs_of(prev_roughly<KB>(next, cur, roughly(d), k)) < FixedTraits<S>::near_prev);
}

// ---- the step and its inverse ----------------------------------------------------------------------------------

template <AlphaKind KA, BetaKind KB, bool Positive = false, class S>
RS_FN S fixed_next(S prev, S cur, S d, const FixedCoef& k) {
    typedef typename FixedTraits<S>::Bits Bits;
    return static_cast<S>(alpha_term<KA, Positive>(prev, k) + beta_term<KB, Positive>(cur, k) + static_cast<Bits>(d));
}

// U - ceil((Y 2^24 - 2^23) / |A|) with U = sign(A) prev and Y = r(A prev): since |A| U + 2^23 = Y 2^24 + rest, this is
// floor(rest / |A|), and rest has 24 bits whatever the width of the state.
template <AlphaKind K, bool OneBit, class S>
RS_FN uint32_t carry_of(S prev, const FixedCoef& k) {
    const uint32_t u = static_cast<uint32_t>(prev);
    if constexpr (K == AlphaKind::shift) {
        const uint32_t half = 1u << (k.carry_bits - 1);
        return (with_sign(u, k.flip) + half) & ((1u << k.carry_bits) - 1u);
    }
    const int32_t rest = static_cast<int32_t>((u * static_cast<uint32_t>(k.a) + static_cast<uint32_t>(kCoefHalf)) & 0xffffffu);
    if constexpr (OneBit) return rest >= k.abs_a ? 1u : 0u;
    const int32_t q = static_cast<int32_t>(static_cast<float>(rest) * k.per_a32);  // off by one at most
    const int32_t left = rest - q * k.abs_a;
    return static_cast<uint32_t>(q + (left >= k.abs_a ? 1 : 0) - (left < 0 ? 1 : 0));
}

// ceil((y 2^24 - 2^23) / |A|): a double quotient, then one correction by the exact remainder. |A| <= 2^25 bounds the
// remainder, so 32 bits of it are enough (and wrapping arithmetic gives them).
RS_FN uint64_t lowest_preimage_32(uint64_t y, const FixedCoef& k) {
    const double magic = 6755399441055744.0;
    const double yd = double_of(y + bits_of(magic)) - magic;  // |y| < 2^36
    const uint64_t q = static_cast<uint64_t>(rint_i64_small((yd - 0.5) * k.up));
    const uint32_t n = (static_cast<uint32_t>(y) << 24) - static_cast<uint32_t>(kCoefHalf);
    const int32_t left = static_cast<int32_t>(n - static_cast<uint32_t>(q) * static_cast<uint32_t>(k.abs_a));
    return q + (left > 0 ? 1u : 0u);
}

// The same for 64-bit y, |y 2^24 / A| < 2^62: the first quotient may be off by 2^11, a second one repairs it.
RS_FN uint64_t lowest_preimage_64(uint64_t y, const FixedCoef& k) {
    const uint64_t a = static_cast<uint64_t>(k.abs_a);
    const uint64_t q0 = static_cast<uint64_t>(rint_i64(to_double(static_cast<int64_t>(y)) * k.up));
    const uint64_t left0 = (y << 24) - static_cast<uint64_t>(kCoefHalf) - q0 * a;
    const uint64_t q1 = static_cast<uint64_t>(rint_i64_small(to_double(static_cast<int64_t>(left0)) * k.per_a));
    const int32_t left1 = static_cast<int32_t>(static_cast<uint32_t>(left0) - static_cast<uint32_t>(q1) * static_cast<uint32_t>(a));
    return q0 + q1 + (left1 > 0 ? 1u : 0u);
}

template <AlphaKind KA, BetaKind KB, bool Positive = false>
RS_FN int32_t fixed_prev(int32_t next, int32_t cur, int32_t d, uint32_t carry, const FixedCoef& k) {
    if constexpr (KA == AlphaKind::general) {
        uint64_t y = static_cast<uint64_t>(static_cast<int64_t>(next)) - static_cast<uint64_t>(static_cast<int64_t>(d));
        if constexpr (KB == BetaKind::whole) y -= static_cast<uint64_t>(static_cast<int64_t>(cur) * k.whole);
        if constexpr (KB == BetaKind::shift || KB == BetaKind::general) y -= rounded_product(cur, k.b);
        return static_cast<int32_t>(with_sign(static_cast<uint32_t>(lowest_preimage_32(y, k)) + carry, k.flip));
    }
    uint32_t y = static_cast<uint32_t>(next) - static_cast<uint32_t>(d) - beta_term<KB, Positive>(cur, k);
    if constexpr (KA == AlphaKind::shift) y = (y << k.carry_bits) - (1u << (k.carry_bits - 1)) + carry;
    return static_cast<int32_t>(Positive ? y : with_sign(y, k.flip));
}

template <AlphaKind KA, BetaKind KB>
RS_FN int64_t fixed_prev(int64_t next, int64_t cur, int64_t d, uint32_t carry, const FixedCoef& k) {
    uint64_t y = static_cast<uint64_t>(next) - static_cast<uint64_t>(d) - beta_term<KB>(cur, k);
    if constexpr (KA == AlphaKind::shift) y = (y << k.carry_bits) - (1ull << (k.carry_bits - 1)) + carry;
    if constexpr (KA == AlphaKind::general) y = lowest_preimage_64(y, k) + carry;
    return static_cast<int64_t>(with_sign(y, k.flip));
}

// ---- the definition, in 128-bit integers: decides near the limits, and what the statistics say there -------------

struct Exact {
    int128 wide;       // the unwrapped result
    double magnitude;  // in real units; of the value itself when that is out of range, +inf for NaN
    bool bad;
};

// Rounded once, half to even; m < 2^100. The lowest bit stays set where a set bit was shifted out: no tie where there was none.
RS_FN double magnitude_of(uint128 m) {
    double scale = 1.0;
    while (m >> 63 != 0) {
        m = (m >> 8) | ((m & 255u) != 0 ? 1u : 0u);
        scale *= 256.0;
    }
    return static_cast<double>(static_cast<int64_t>(m)) * scale;
}

RS_FN int128 rounded_product_wide(int128 x, int32_t c) { return (x * c + kCoefHalf) >> kCoefBits; }

template <class S, class C>
RS_FN Exact judge(int128 wide, C v, int frac_bits) {
    const double unit = exp2_of(-frac_bits);
    Exact e;
    e.wide = wide;
    const uint128 m = wide < 0 ? uint128{0} - static_cast<uint128>(wide) : static_cast<uint128>(wide);
    e.bad = m > static_cast<uint128>(FixedTraits<S>::limit);
    e.magnitude = magnitude_of(m) * unit;
    if (!value_in_range(v, S{})) {
        const double a = static_cast<double>(abs_of(v));
        e.bad = true;
        e.magnitude = v == v ? a * unit : double_of(0x7ff0000000000000ull);
    }
    return e;
}

// D itself: 2^31 is possible for int32 states with double values.
template <class S, class C>
RS_FN int64_t quantise_wide(C v) {
    return value_in_range(v, S{}) ? rint_i64(static_cast<double>(v)) : 0;
}

template <class S, class C>
RS_SLOW Exact exact_next(S prev, S cur, C v, const FixedCoef& k, int frac_bits) {
    return judge<S>(rounded_product_wide(prev, k.a) + rounded_product_wide(cur, k.b) + quantise_wide<S>(v), v, frac_bits);
}

template <class S, class C>
RS_SLOW Exact exact_prev(S next, S cur, C v, uint32_t carry, const FixedCoef& k, int frac_bits) {
    int128 y = static_cast<int128>(next) - rounded_product_wide(cur, k.b) - quantise_wide<S>(v);
    if (k.abs_a != kCoefOne) {
        const int128 n = y * kCoefOne - kCoefHalf;
        const int128 q = n / k.abs_a;  // towards 0, which is the ceiling already where n < 0
        y = q + (n > q * k.abs_a ? 1 : 0) + static_cast<int128>(carry);
    }
    return judge<S>(k.a < 0 ? -y : y, v, frac_bits);
}

// X = rint(v); 0 where it does not fit.
template <class S, class C>
RS_SLOW Exact exact_encoded(C v, int frac_bits) {
    Exact e = judge<S>(quantise_wide<S>(v), v, frac_bits);
    if (e.bad) e.magnitude = v == v ? static_cast<double>(abs_of(v)) * exp2_of(-frac_bits) : e.magnitude;
    if (e.bad) e.wide = 0;
    return e;
}

}  // namespace revstep
