// What the kernels share that have 8 consecutive elements a thread and turn, in words of 16 bytes.
#pragma once

#include "cuda_elements.cuh"

namespace revstep {
namespace {

template <class T>
struct alignas(16) Pack {
    T at[kEach];
};

struct Bf16 {
    uint16_t bits;
};
struct F16 {
    uint16_t bits;
};

__device__ __forceinline__ float real(float x) { return x; }
__device__ __forceinline__ double real(double x) { return x; }
__device__ __forceinline__ float real(Bf16 x) { return bf16_to_float(x.bits); }
__device__ __forceinline__ float real(F16 x) { return half_to_float(x.bits); }

template <bool Finite>
__device__ __forceinline__ void narrow(float& to, float x) {
    to = x;
}
template <bool Finite>
__device__ __forceinline__ void narrow(double& to, double x) {
    to = x;
}
template <bool Finite>
__device__ __forceinline__ void narrow(Bf16& to, float x) {
    to.bits = Finite ? finite_to_bf16(x) : float_to_bf16(x);
}
template <bool Finite>
__device__ __forceinline__ void narrow(F16& to, float x) {
    to.bits = float_to_half(x);
}

// Weights of the 8 places of a thread in the period of the checksum: the same in every turn.
struct Weights {
    Pack<uint32_t> of[kChecksumPeriod / kEach];
};

constexpr Weights make_weights() {
    Weights w{};
    for (uint32_t i = 0; i < kChecksumPeriod; ++i) w.of[i / kEach].at[i % kEach] = checksum_mix(i);
    return w;
}

__device__ const Weights kWeights = make_weights();

__device__ __forceinline__ Pack<uint32_t> weights() {
    static_assert(kThreads * kEach % kChecksumPeriod == 0, "an index is congruent to its thread's");
    return kWeights.of[threadIdx.x % (kChecksumPeriod / kEach)];
}

// The row of an element without a division: an estimate in doubles, off by one at most below 2^52 elements.
__device__ __forceinline__ int64_t row_of(int64_t i, int64_t length, double per_length) {
    int64_t row = static_cast<int64_t>(to_double(i) * per_length);
    const int64_t rest = i - row * length;
    row += (rest >= length ? 1 : 0) - (rest < 0 ? 1 : 0);
    return row;
}

// What the kernels are given: a division less for each thread.
struct EightPlan : StepPlan {
    double per_row;  // 1 / args.row_length
};

// ---- launching -------------------------------------------------------------------------------------------------

inline EightPlan eight_plan(const StepPlan& plan) {
    EightPlan p{};
    static_cast<StepPlan&>(p) = plan;
    p.per_row = plan.args.row_length != 0 ? 1.0 / static_cast<double>(plan.args.row_length) : 0.0;
    return p;
}

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(Pack<uint16_t>) == 0; }

// Words of 16 bytes everywhere, and rows that end between two of them.
inline bool fits_eight(const StepArgs& s) {
    return aligned(s.source) && aligned(s.cur) && aligned(s.value) && aligned(s.out) && aligned(s.view) && s.row_length % kEach == 0;
}

}  // namespace
}  // namespace revstep
