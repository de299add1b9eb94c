// 16-bit floats, exhaustively where that is possible, and the conversions of portable.hpp.
#include <cmath>

#include "check.hpp"
#include "core/half.hpp"
#include "oracle.hpp"

using namespace revstep;

namespace {

// A 16-bit format by its value, not its bits: the nearest of the neighbours, ties to the even code.
struct Format {
    int mantissa, bias;
    double value(int code) const {
        const int e = (code & 0x7fff) >> mantissa, m = code & ((1 << mantissa) - 1);
        const double magnitude = e == 0 ? std::ldexp(m, 1 - bias - mantissa) : std::ldexp(m + (1 << mantissa), e - bias - mantissa);
        return code & 0x8000 ? -magnitude : magnitude;
    }
    int infinity() const { return 0x7fff >> mantissa << mantissa; }
};
const Format kHalf{10, 15}, kBfloat{7, 127};

int nearest(const Format& f, float x) {
    const int sign = std::signbit(x) ? 0x8000 : 0;
    const double a = std::fabs(static_cast<double>(x));
    int low = 0, high = f.infinity();  // value(infinity()) is the next power of two, as rounding to infinity wants
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (f.value(middle) <= a ? low : high) = middle;
    }
    const double down = a - f.value(low), up = f.value(high) - a;
    return sign | (up < down || (up == down && low % 2 != 0) ? high : low);
}

struct RealHalf {
    static uint16_t half(float x) { return float_to_half(x); }
    static uint16_t bfloat(float x) { return float_to_bf16(x); }
};
struct Cuts : RealHalf {
    static uint16_t bfloat(float x) { return static_cast<uint16_t>(bits_of(x) >> 16); }
};
struct TiesUp : RealHalf {
    static uint16_t bfloat(float x) { return static_cast<uint16_t>((bits_of(x) + 0x8000u) >> 16); }
};
struct FlushesHalf : RealHalf {
    static uint16_t half(float x) { return std::fabs(x) < 0x1p-14f ? static_cast<uint16_t>(bits_of(x) >> 16 & 0x8000u) : float_to_half(x); }
};

template <class Ops>
long violations() {
    long bad = 0;
    const auto try_one = [&](float x) {
        if (std::isnan(x)) {
            bad += !std::isnan(half_to_float(Ops::half(x))) + !std::isnan(bf16_to_float(Ops::bfloat(x)));
            return;
        }
        bad += Ops::half(x) != nearest(kHalf, x);
        bad += Ops::bfloat(x) != nearest(kBfloat, x);
        bad += std::isfinite(x) && finite_to_bf16(x) != float_to_bf16(x);
    };
    for (int code = 0; code < 0x10000; ++code) {
        const uint16_t c = static_cast<uint16_t>(code);
        const bool half_nan = (code & 0x7fff) > 0x7c00, bf_nan = (code & 0x7fff) > 0x7f80;
        if ((code & 0x7fff) < 0x7c00) bad += static_cast<double>(half_to_float(c)) != kHalf.value(code);
        if (!half_nan) bad += Ops::half(half_to_float(c)) != c;
        if (!bf_nan) bad += Ops::bfloat(bf16_to_float(c)) != c;
        bad += std::isnan(half_to_float(c)) != half_nan;
        for (const uint32_t near : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) try_one(float_of(static_cast<uint32_t>(code) << 16 | near));  // around bf16 ties
        const uint32_t u = bits_of(half_to_float(c));
        for (const uint32_t near : {0x0fffu, 0x1000u, 0x1001u}) try_one(float_of(u | near));  // around half ties
    }
    check::Random r{3};
    for (int i = 0; i < 300000; ++i) try_one(float_of(static_cast<uint32_t>(r.next())));
    for (const float x : {65504.0f, 65519.996f, 65520.0f, 65536.0f, 0x1p-24f, 0x1p-25f, 0x1.000002p-25f, 0x1p-149f, INFINITY, -INFINITY, NAN}) try_one(x);
    return bad;
}

// Ties, powers of two and their neighbours, and random widths.
int64_t some_integer(check::Random& r) {
    const int64_t base = static_cast<int64_t>(uint64_t{1} << (r.next() % 63));
    switch (r.next() % 4) {
        case 0: return base + r.between(-2, 2);
        case 1: return -base + r.between(-2, 2);
        case 2: return (base >> 1) + (base >> 25) + r.between(-1, 1);  // half a float unit
        default: return static_cast<int64_t>(r.next()) >> (r.next() % 63);
    }
}

struct RealFloat {
    static float apply(int64_t x) { return to_float(x); }
};
struct RoundsTwice {
    static float apply(int64_t x) { return static_cast<float>(static_cast<double>(x)); }
};

template <class F>
long float_violations() {
    check::Random r{8};
    long bad = 0;
    for (int i = 0; i < 300000; ++i) {
        const int64_t x = i % 2 ? some_integer(r) : static_cast<int64_t>((uint64_t{1} << 61) + (uint64_t{1} << 37) + static_cast<uint64_t>(r.between(-1, 1)));
        bad += F::apply(x) != static_cast<float>(x);
    }
    return bad;
}

}  // namespace

int main() {
    check::real(violations<RealHalf>(), "16-bit floats");
    check::mutant(violations<Cuts>(), "bfloat16 cut off");
    check::mutant(violations<TiesUp>(), "bfloat16 ties up");
    check::mutant(violations<FlushesHalf>(), "half without subnormals");
    check::real(float_violations<RealFloat>(), "int64 to float");
    check::mutant(float_violations<RoundsTwice>(), "int64 to float through double");
    check::Random r{21};
    for (int i = 0; i < 300000; ++i) {
        const int64_t x = some_integer(r);
        check::expect(to_double(x) == static_cast<double>(x), "to_double(%lld)", static_cast<long long>(x));
        const double v = std::ldexp(r.unit() - 0.5, static_cast<int>(r.next() % 63)), tie = std::floor(v * 0x1p-20) + 0.5;
        check::expect(rint_i64(v) == oracle::to_even(v), "rint_i64(%a)", v);
        check::expect(rint_i64(tie) == oracle::to_even(tie), "rint_i64(%a)", tie);
        check::expect(rint_i64_small(tie) == oracle::to_even(tie), "rint_i64_small(%a)", tie);
        const float single = static_cast<float>(std::ldexp(r.unit() - 0.5, static_cast<int>(r.next() % 32)));
        check::expect(rint_i32(single) == oracle::to_even(static_cast<long double>(single)), "rint_i32(%a)", static_cast<double>(single));
    }
    return check::finish("conversions");
}
