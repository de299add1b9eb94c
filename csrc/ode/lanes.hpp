// Vectors of doubles with their operators: a register of the instruction set that is compiled for, and a few of those side by
// side. Every operation is done for all of a pack before the next one, which is the order in which a processor can overlap
// them: it looks ahead by fewer instructions than one sine has. A number alone goes through the same templates (math.hpp), so
// that its bits are those of a lane. Included by code that is compiled once per instruction set.
//
// REVSTEP_PLAIN_LANES chooses arrays instead of the vectors of GCC and clang (plain_lanes.hpp), as for any other compiler.
#pragma once

#include "../core/portable.hpp"

#if defined(__AVX512F__)
#define RS_VECTOR 64
#elif defined(__AVX2__)
#define RS_VECTOR 32
#else
#define RS_VECTOR 16
#endif

namespace revstep {

constexpr int kWide = RS_VECTOR / 8;
constexpr int kSide = kWide == 8 ? 2 : 4;
constexpr int kPack = kWide * kSide;

}  // namespace revstep

#if defined(REVSTEP_PLAIN_LANES) || !(defined(__GNUC__) || defined(__clang__))
#include "plain_lanes.hpp"
namespace revstep {
#else
namespace revstep {

typedef double Reals __attribute__((vector_size(RS_VECTOR)));
typedef uint64_t Words __attribute__((vector_size(RS_VECTOR)));
typedef int64_t Signs __attribute__((vector_size(RS_VECTOR)));  // of a comparison: all ones where it holds
typedef double RealsInMemory __attribute__((vector_size(RS_VECTOR), aligned(8), may_alias));

template <class To, class From>
RS_FN To as(const From& x) {
    return reinterpret_cast<To>(x);
}
RS_FN Reals pick(const Signs& where, const Reals& a, const Reals& b) { return where ? a : b; }
[[maybe_unused]] RS_FN Reals values_of(const Signs& x) { return __builtin_convertvector(x, Reals); }
RS_FN Reals load(const double* from) { return *reinterpret_cast<const RealsInMemory*>(from); }
RS_FN void store(double* to, const Reals& x) { *reinterpret_cast<RealsInMemory*>(to) = x; }
#endif

template <class V>
struct Pack {
    V v[kSide];
};
typedef Pack<Reals> RealPack;
typedef Pack<Words> WordPack;
typedef Pack<Signs> SignPack;

// `f(k)` of every register k.
template <class V, class F>
RS_FN Pack<V> each(F f) {
    Pack<V> r;
#pragma GCC unroll 4
    for (int k = 0; k < kSide; ++k) r.v[k] = f(k);
    return r;
}

RS_FN RealPack operator+(const RealPack& a, const RealPack& b) { return each<Reals>([&](int k) { return a.v[k] + b.v[k]; }); }
RS_FN RealPack operator-(const RealPack& a, const RealPack& b) { return each<Reals>([&](int k) { return a.v[k] - b.v[k]; }); }
RS_FN RealPack operator*(const RealPack& a, const RealPack& b) { return each<Reals>([&](int k) { return a.v[k] * b.v[k]; }); }
RS_FN RealPack operator+(const RealPack& a, double b) { return each<Reals>([&](int k) { return a.v[k] + b; }); }
RS_FN RealPack operator-(const RealPack& a, double b) { return each<Reals>([&](int k) { return a.v[k] - b; }); }
RS_FN RealPack operator-(double a, const RealPack& b) { return each<Reals>([&](int k) { return a - b.v[k]; }); }
RS_FN RealPack operator*(const RealPack& a, double b) { return each<Reals>([&](int k) { return a.v[k] * b; }); }
RS_FN RealPack operator*(double a, const RealPack& b) { return each<Reals>([&](int k) { return a * b.v[k]; }); }
RS_FN WordPack operator^(const WordPack& a, const WordPack& b) { return each<Words>([&](int k) { return a.v[k] ^ b.v[k]; }); }
RS_FN WordPack operator+(const WordPack& a, const WordPack& b) { return each<Words>([&](int k) { return a.v[k] + b.v[k]; }); }
RS_FN WordPack operator-(const WordPack& a, const WordPack& b) { return each<Words>([&](int k) { return a.v[k] - b.v[k]; }); }
RS_FN WordPack operator-(const WordPack& a, uint64_t b) { return each<Words>([&](int k) { return a.v[k] - b; }); }
RS_FN WordPack operator-(uint64_t a, const WordPack& b) { return each<Words>([&](int k) { return a - b.v[k]; }); }
RS_FN WordPack operator|(const WordPack& a, const WordPack& b) { return each<Words>([&](int k) { return a.v[k] | b.v[k]; }); }
RS_FN WordPack operator&(const WordPack& a, uint64_t b) { return each<Words>([&](int k) { return a.v[k] & b; }); }
RS_FN WordPack operator+(const WordPack& a, uint64_t b) { return each<Words>([&](int k) { return a.v[k] + b; }); }
RS_FN WordPack operator<<(const WordPack& a, int b) { return each<Words>([&](int k) { return a.v[k] << b; }); }

RS_FN WordPack bits_of(const RealPack& x) { return each<Words>([&](int k) { return as<Words>(x.v[k]); }); }
RS_FN RealPack double_of(const WordPack& x) { return each<Reals>([&](int k) { return as<Reals>(x.v[k]); }); }
RS_FN RealPack abs_of(const RealPack& x) { return double_of(bits_of(x) & 0x7fffffffffffffffull); }

// ---- choices, of a number and of a pack ----

RS_FN bool is_odd(uint64_t n) { return (n & 1u) != 0; }
RS_FN SignPack is_odd(const WordPack& n) { return each<Signs>([&](int k) { return as<Signs>(n.v[k] << 63) < 0; }); }

RS_FN double choose(bool where, double a, double b) { return where ? a : b; }
RS_FN RealPack choose(const SignPack& where, const RealPack& a, const RealPack& b) { return each<Reals>([&](int k) { return pick(where.v[k], a.v[k], b.v[k]); }); }
RS_FN RealPack choose(const SignPack& where, double a, double b) { return each<Reals>([&](int k) { return pick(where.v[k], a - Reals{}, b - Reals{}); }); }

// `a`, and 0 elsewhere.
RS_FN double only(bool where, double a) { return where ? a : 0.0; }
RS_FN RealPack only(const SignPack& where, const RealPack& a) { return each<Reals>([&](int k) { return as<Reals>(as<Signs>(a.v[k]) & where.v[k]); }); }

RS_FN RealPack larger(const RealPack& a, const RealPack& b) { return each<Reals>([&](int k) { return pick(a.v[k] > b.v[k], a.v[k], b.v[k]); }); }

// All bits that are set in any lane.
RS_FN uint64_t any_of(const WordPack& x) {
    Words both = x.v[0];
    for (int k = 1; k < kSide; ++k) both = both | x.v[k];
    uint64_t any = both[0];
    for (int l = 1; l < kWide; ++l) any |= both[l];
    return any;
}

// ---- integers: as those of core/portable.hpp ----

RS_FN WordPack rint_i64_small(const RealPack& x) {
    const double magic = 6755399441055744.0;
    return bits_of(x + magic) - bits_of(magic);
}

RS_FN WordPack rint_i64(const RealPack& x) {
    const double magic = 6755399441055744.0;
    const RealPack high = (x * 0x1p-32 + magic) - magic;
    return (rint_i64_small(high) << 32) + rint_i64_small(x - high * 0x1p32);
}

RS_FN RealPack to_double(const WordPack& x) {
    return each<Reals>([&](int k) {
#if defined(__x86_64__) && !defined(__AVX512DQ__)
        const Reals high = as<Reals>((x.v[k] >> 32) ^ 0x4530000080000000ull);
        const Reals low = as<Reals>((x.v[k] & 0xffffffffull) | 0x4330000000000000ull);
        return (high - (0x1p84 + 0x1p63 + 0x1p52)) + low;
#else
        return values_of(as<Signs>(x.v[k]));
#endif
    });
}

// ---- memory ----

RS_FN RealPack pack_at(const double* from) { return each<Reals>([&](int k) { return load(from + k * kWide); }); }
RS_FN void put(double* to, const RealPack& x) {
    for (int k = 0; k < kSide; ++k) store(to + k * kWide, x.v[k]);
}

RS_FN WordPack pack_at(const int64_t* from) { return bits_of(pack_at(reinterpret_cast<const double*>(from))); }
RS_FN void put(int64_t* to, const WordPack& x) { put(reinterpret_cast<double*>(to), double_of(x)); }

}  // namespace revstep
