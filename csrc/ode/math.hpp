// sin, cos and exp in IEEE additions, multiplications and integer operations only: the same bits on every instruction set,
// compiler and C library. Below 1 ulp (exp: where the result is not subnormal). sin and cos of |x| < 1.6e6 are branch-free and vectorise; beyond, the argument is reduced with
// 192 bits of 2/pi, exactly enough for every double. NaN and infinities give NaN.
#pragma once

#include "lanes.hpp"

// The loops are one inlined piece, so that a system stays in registers; instrumented, that piece would take minutes to compile.
#if defined(__SANITIZE_ADDRESS__)
#define RS_MEMBER inline
#else
#define RS_MEMBER inline __attribute__((always_inline))
#endif

namespace revstep {

constexpr double kReduceLimit = 1.6e6;  // below 2^20 pi/2: n times a 33-bit part of pi/2 is exact

// D is double, or RealPack: one source for a number and for lanes of them.
template <class D>
using BitsOf = decltype(bits_of(D{}));

// x = n pi/2 + high + low with |high| <= pi/4 (1 + 2^-30); only n mod 4 is kept.
template <class D>
struct Reduced {
    D high, low;
    BitsOf<D> quadrant;
};

// s + e = a - b exactly, where a is a multiple of the last place of b: then a - s is exact, whichever is larger (the condition
// of Rump, Ogita and Oishi, Accurate floating-point summation I, SIAM J. Sci. Comput. 31 (2008), lemma 2.6).
template <class D>
RS_FN D difference(const D& a, const D& b, D& e) {
    const D s = a - b;
    e = (a - s) - b;
    return s;
}

// pi/2 in three parts of 33 bits and a rest: n times a part is exact, so is the first difference. r1 is a multiple of 2^-53 (n = 0
// apart, where both differences are x) and r2 of 2^-66; the last places of what is taken off are below 2^-66 and 2^-101.
template <class D>
RS_FN Reduced<D> reduce(const D& x) {
    const double magic = 6755399441055744.0;
    const D t = x * 0x1.45f306dc9c883p-1 + magic, n = t - magic;
    D e2, e3;
    const D r1 = x - n * 0x1.921fb544p+0;
    const D r2 = difference<D>(r1, n * 0x1.0b4611a6p-34, e2);
    const D r3 = difference<D>(r2, n * 0x1.3198a2ep-69, e3);
    const D rest = (e2 + e3) - n * 0x1.b839a252049c1p-104;
    const D high = r3 + rest;
    return {high, (r3 - high) + rest, bits_of(t)};
}

// sin of the reduced argument; the cosine is the sine a quadrant further. With z = r^2 and w = 1 - z / 2 these are
//     sin(r + low) = r + ((low - z/2 low) + r z p(z)),    cos(r + low) = w + (((1 - w) - z/2) + (z z q(z) - r low)),
// p and q minimax polynomials on |r| <= pi/4: relative errors 2^-57.9 and 2^-63.9. They have six coefficients each, so a lane
// chooses its coefficients first and one polynomial is evaluated.
template <class D>
RS_FN D sin_reduced(const Reduced<D>& given, uint64_t shift) {
    const BitsOf<D> q = given.quadrant + shift;
    const auto odd = is_odd(q);
    const D r = given.high, low = given.low, z = r * r, half = 0.5 * z, w = 1.0 - half;
    const auto either = [&](double cosine, double sine) { return choose(odd, cosine, sine); };
    D p = z * either(-0x1.8fa4657a583b9p-37, 0x1.5d8fa2c90d81p-33);
    p = (p + either(0x1.1ee9d751c64f1p-29, -0x1.ae5e59f4b169bp-26)) * z;
    p = (p + either(-0x1.27e4f7ea36996p-22, 0x1.71de356711c24p-19)) * z;
    p = (p + either(0x1.a01a019c838ffp-16, -0x1.a01a019bfd187p-13)) * z;
    p = (p + either(-0x1.6c16c16c14f8ap-10, 0x1.111111110f7cap-7)) * z;
    p = p + either(0x1.555555555554bp-5, -0x1.5555555555548p-3);
    const D rest = z * choose(odd, z, r) * p - only(odd, r * low);
    const D value = choose(odd, w, r) + (choose(odd, (1.0 - w) - half, low - half * low) + rest);
    return double_of(bits_of(value) ^ ((q & 2ull) << 62));
}

template <class D>
RS_FN D sin_small(const D& x) {  // |x| < kReduceLimit
    return double_of(bits_of(sin_reduced<D>(reduce<D>(abs_of(x)), 0)) ^ (bits_of(x) & (1ull << 63)));
}
template <class D>
RS_FN D cos_small(const D& x) {
    return sin_reduced<D>(reduce<D>(abs_of(x)), 1);
}

// The bits of 2/pi after the binary point.
static const uint64_t kTwoOverPi[20] = {
    0xa2f9836e4e441529ull, 0xfc2757d1f534ddc0ull, 0xdb6295993c439041ull, 0xfe5163abdebbc561ull, 0xb7246e3a424dd2e0ull, 0x06492eea09d1921cull, 0xfe1deb1cb129a73eull,
    0xe88235f52ebb4484ull, 0xe99c7026b45f7e41ull, 0x3991d639835339f4ull, 0x9c845f8bbdf9283bull, 0x1ff897ffde05980full, 0xef2f118b5a0a6d1full, 0x6d367ecf27cb09b7ull,
    0x4f463f669e5fea2dull, 0x7527bac7ebe5f17bull, 0x3d0739f78a5292eaull, 0x6bfb5fb11f8d5d08ull, 0x56033046fc7b6babull, 0xf0cfbc209af4361dull};

RS_FN uint64_t two_over_pi_bits(int first) {  // 64 bits from bit `first` on, the first after the point being 0
    const int word = first >> 6, shift = first & 63;
    const uint64_t a = word >= 0 ? kTwoOverPi[word] : 0, b = word + 1 >= 0 ? kTwoOverPi[word + 1] : 0;
    return shift == 0 ? a : (a << shift) | (b >> (64 - shift));
}

// x > 1 finite. x 2/pi modulo 4 in units of 2^-190, from the bits of 2/pi that matter.
RS_SLOW Reduced<double> reduce_exactly(double x) {
    const int e = static_cast<int>(bits_of(x) >> 52) - 1075;
    const uint64_t m = (bits_of(x) & 0xfffffffffffffull) | (1ull << 52);
    const uint128 p0 = static_cast<uint128>(m) * two_over_pi_bits(e - 2 + 128);
    const uint128 p1 = static_cast<uint128>(m) * two_over_pi_bits(e - 2 + 64) + (p0 >> 64);
    uint64_t top = m * two_over_pi_bits(e - 2) + static_cast<uint64_t>(p1 >> 64), middle = static_cast<uint64_t>(p1), bottom = static_cast<uint64_t>(p0);
    uint64_t quadrant = top >> 62;
    top &= (1ull << 62) - 1;
    const bool negative = (top >> 61) != 0;  // nearer to the next quadrant
    if (negative) {
        ++quadrant;
        bottom = ~bottom;
        middle = ~middle;
        top = ~top & ((1ull << 62) - 1);
    }
    top = (top << 2) | (middle >> 62);
    middle = (middle << 2) | (bottom >> 62);
    int shift = 0;
    for (; (top >> 63) == 0 && shift < 127; ++shift) {
        top = (top << 1) | (middle >> 63);
        middle = (middle << 1) | (bottom >> 63);
        bottom <<= 1;
    }
    const uint128 r = static_cast<uint128>(top) * 0xc90fdaa22168c235ull;  // pi/2 in 2^-63
    const double unit = exp2_of(-shift) * 0x1p-52, sign = negative ? -1.0 : 1.0;
    const double high = static_cast<double>(static_cast<int64_t>(r >> 75)), low = static_cast<double>(static_cast<int64_t>((r >> 22) & ((1ull << 53) - 1)));
    return {sign * high * unit, sign * low * unit * 0x1p-53, quadrant};
}

RS_FN bool beyond(double x) { return !(abs_of(x) < kReduceLimit); }

RS_SLOW double sin_large(double x, uint64_t shift) {
    if (!(abs_of(x) <= 0x1.fffffffffffffp1023)) return x - x;
    const uint64_t sign = shift == 0 ? bits_of(x) & (1ull << 63) : 0;
    return double_of(bits_of(sin_reduced<double>(reduce_exactly(abs_of(x)), shift)) ^ sign);
}

// Over M values, one or a multiple of kPack; shift 0: sin, 1: cos. `out` may be `x`.
template <int M, uint64_t Shift>
RS_FN void sin_lanes(const double* x, double* out) {
    if constexpr (M == 1) {
        const double given = x[0];
        if (__builtin_expect(beyond(given), 0)) out[0] = sin_large(given, Shift);
        else out[0] = Shift == 0 ? sin_small<double>(given) : cos_small<double>(given);
        return;
    }
    static_assert(M == 1 || M % kPack == 0, "whole packs");
    RealPack given[M / kPack + 1];
    Signs near = as<Signs>(Words{} + ~0ull);
    for (int i = 0; i < M / kPack; ++i) {
        given[i] = pack_at(x + i * kPack);
        const RealPack size = abs_of(given[i]);
        for (int k = 0; k < kSide; ++k) near = near & (size.v[k] < kReduceLimit);
        put(out + i * kPack, Shift == 0 ? sin_small<RealPack>(given[i]) : cos_small<RealPack>(given[i]));
    }
    int64_t all = -1;
    for (int l = 0; l < kWide; ++l) all &= near[l];
    if (__builtin_expect(all == 0, 0))
        for (int l = 0; l < M; ++l) {
            const double one = given[l / kPack].v[l % kPack / kWide][l % kWide];
            if (beyond(one)) out[l] = sin_large(one, Shift);
        }
}

// 2^k e^r with |r| <= ln(2) / 2; the polynomial's relative error is 2^-57.9. Branch-free, inf and 0 beyond the range, NaN for NaN.
RS_FN double exp_of(double x) {
    const double magic = 6755399441055744.0;
    const double low = x < -746.0 ? -746.0 : x, y = low > 710.0 ? 710.0 : low;
    const double t = y * 0x1.71547652b82fep+0 + magic, n = t - magic, half = n * 0.5 + magic;
    const double high = y - n * 0x1.62e42feep-1, tail = n * 0x1.a39ef35793c76p-33;  // n times the first part is exact
    const double r = high - tail, rest = (high - r) - tail;
    double p = 0x1.ad7f7630e8e6bp-26;
    p = p * r + 0x1.28ad732122451p-22;
    p = p * r + 0x1.71df254a3c16ep-19;
    p = p * r + 0x1.a0199a0bf79f1p-16;
    p = p * r + 0x1.a01a012a5d278p-13;
    p = p * r + 0x1.6c16c1842a45bp-10;
    p = p * r + 0x1.1111111127bcep-7;
    p = p * r + 0x1.555555555087bp-5;
    p = p * r + 0x1.55555555554fap-3;
    p = p * r + 0x1.000000000000ap-1;
    const uint64_t k = bits_of(t) - bits_of(magic), k1 = bits_of(half) - bits_of(magic), k2 = k - k1;  // 2^k may be out of range, its halves are not
    return (1.0 + (r + (r * r * p + rest))) * double_of((k1 + 1023) << 52) * double_of((k2 + 1023) << 52);
}

}  // namespace revstep
