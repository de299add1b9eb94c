// What differs between the host compiler and nvcc, and nothing else.
#pragma once

#include <cstdint>

// Internal linkage and forced inlining: the kernel source is compiled once per instruction set, and the linker
// must never be able to fold an AVX-512 copy of a helper into the baseline path.
#if defined(__CUDACC__)
#define RS_FN static __host__ __device__ __forceinline__
#define RS_SLOW static __host__ __device__ __noinline__
#else
#define RS_FN static inline __attribute__((always_inline))
#define RS_SLOW [[maybe_unused]] static __attribute__((noinline))
#endif

namespace revstep {

__extension__ typedef __int128 int128;
__extension__ typedef unsigned __int128 uint128;

RS_FN uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(x);
#else
    uint32_t u;
    __builtin_memcpy(&u, &x, sizeof u);
    return u;
#endif
}

RS_FN uint64_t bits_of(double x) {
#if defined(__CUDA_ARCH__)
    return static_cast<uint64_t>(__double_as_longlong(x));
#else
    uint64_t u;
    __builtin_memcpy(&u, &x, sizeof u);
    return u;
#endif
}

RS_FN uint32_t bits_of(int32_t x) { return static_cast<uint32_t>(x); }
RS_FN uint64_t bits_of(int64_t x) { return static_cast<uint64_t>(x); }

RS_FN float float_of(uint32_t u) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(u);
#else
    float x;
    __builtin_memcpy(&x, &u, sizeof x);
    return x;
#endif
}

RS_FN double double_of(uint64_t u) {
#if defined(__CUDA_ARCH__)
    return __longlong_as_double(static_cast<long long>(u));
#else
    double x;
    __builtin_memcpy(&x, &u, sizeof x);
    return x;
#endif
}

RS_FN float abs_of(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
RS_FN double abs_of(double x) { return double_of(bits_of(x) & 0x7fffffffffffffffull); }

// 2^e as a double, -1022 <= e <= 1023.
RS_FN double exp2_of(int e) { return double_of(static_cast<uint64_t>(e + 1023) << 52); }

// Half to even; the caller guarantees |x| < 2^31.
RS_FN int32_t rint_i32(float x) {
#if defined(__CUDA_ARCH__)
    return __float2int_rn(x);
#elif defined(__GNUC__) && !defined(__clang__)
    return __builtin_irintf(x);  // one vector instruction, also at the SSE2 baseline
#else
    return static_cast<int32_t>(__builtin_rintf(x));
#endif
}

// The same; any number where |x| >= 2^31 or x is NaN.
RS_FN int32_t rint_i32_or_any(float x) {
#if defined(__CUDA_ARCH__) || (defined(__GNUC__) && !defined(__clang__))
    return rint_i32(x);
#else
    return rint_i32(abs_of(x) < 0x1p31f ? x : 0.0f);
#endif
}

// Half to even by the magic number; the caller guarantees |x| < 2^51. No instruction set below AVX-512 converts
// double to int64 in vectors, and this form vectorises everywhere.
RS_FN int64_t rint_i64_small(double x) {
    const double magic = 6755399441055744.0;  // 1.5 * 2^52
    return static_cast<int64_t>(bits_of(x + magic) - bits_of(magic));
}

// Half to even; the caller guarantees |x| < 2^63. The high part is a multiple of 2^32, so the remainder is exact
// and the tie is decided by the low part alone.
RS_FN int64_t rint_i64(double x) {
#if defined(__CUDA_ARCH__)
    return __double2ll_rn(x);
#else
    const double magic = 6755399441055744.0;
    const double high = (x * 0x1p-32 + magic) - magic;
    const uint64_t low = static_cast<uint64_t>(rint_i64_small(x - high * 0x1p32));
    return static_cast<int64_t>((static_cast<uint64_t>(rint_i64_small(high)) << 32) + low);
#endif
}

// int64 to double, rounded once, half to even.
RS_FN double to_double(int64_t x) {
#if defined(__CUDA_ARCH__)
    return __ll2double_rn(x);
#elif defined(__x86_64__) && !defined(__AVX512DQ__)
    // 2^84 + 2^63 + high * 2^32 and 2^52 + low; the last addition is the only one that rounds.
    const uint64_t u = static_cast<uint64_t>(x);
    const double high = double_of((u >> 32) ^ 0x4530000080000000ull);
    const double low = double_of((u & 0xffffffffull) | 0x4330000000000000ull);
    return (high - (0x1p84 + 0x1p63 + 0x1p52)) + low;
#else
    return static_cast<double>(x);
#endif
}

// int64 to float, rounded once, half to even.
RS_FN float to_float(int64_t x) {
#if defined(__CUDA_ARCH__)
    return __ll2float_rn(x);
#elif defined(__x86_64__) && !defined(__AVX512DQ__)
    // Through double. Beyond 2^48 the low 12 bits are first folded into a sticky bit: the double is then exact,
    // and far below half a unit of the float, so that only the last step rounds.
    const uint64_t u = static_cast<uint64_t>(x);
    const uint64_t far = (u + (1ull << 48)) >> 49;
    const uint64_t folded = (u & ~0xfffull) | (((u & 0xfffull) + 0xfffull) & 0x1000ull) >> 1 | (u & 0x800ull);
    return static_cast<float>(to_double(static_cast<int64_t>(far != 0 ? folded : u)));
#else
    return static_cast<float>(x);
#endif
}

RS_FN float to_float(int32_t x) { return static_cast<float>(x); }
RS_FN double to_double(int32_t x) { return static_cast<double>(x); }

}  // namespace revstep
