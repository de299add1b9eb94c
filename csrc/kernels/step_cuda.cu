// The device launchers: the functors of csrc/core, one element a thread and turn. Dtypes and coefficient kinds are
// switched on at run time; every thread of a launch takes the same way.
#include <cuda_runtime.h>

#include "../core/floating.hpp"
#include "cuda_parts.cuh"
#include "plan.hpp"

namespace revstep {
namespace {

// Rows is a template parameter so that without rows the set is known and every thread takes the same way.
template <bool Rows>
__device__ __forceinline__ const StepSet& set_of(const StepPlan& plan, int64_t i) {
    if constexpr (Rows) return plan.set[plan.args.choice[i / plan.args.row_length] != 0 ? 1 : 0];
    else return plan.set[0];
}

// ---- fixed point -----------------------------------------------------------------------------------------------

template <class S>
struct Combined {
    S x;
    bool near;
};

template <AlphaKind KA, BetaKind KB, bool Inverse, class S>
__device__ __forceinline__ Combined<S> combine(S source, S cur, S d, uint32_t carry, const FixedCoef& k) {
    if constexpr (Inverse) return {fixed_prev<KA, KB>(source, cur, d, carry, k), prev_near<KA, KB>(source, cur, d, k)};
    else return {fixed_next<KA, KB>(source, cur, d, k), next_near<KA, KB>(source, cur, d, k)};
}

template <AlphaKind KA, bool Inverse, class S>
__device__ __forceinline__ Combined<S> combine_beta(S source, S cur, S d, uint32_t carry, const FixedCoef& k) {
    if (k.beta_kind == BetaKind::none) return combine<KA, BetaKind::none, Inverse>(source, cur, d, carry, k);
    if (k.beta_kind == BetaKind::whole) return combine<KA, BetaKind::whole, Inverse>(source, cur, d, carry, k);
    if (k.beta_kind == BetaKind::shift) return combine<KA, BetaKind::shift, Inverse>(source, cur, d, carry, k);
    return combine<KA, BetaKind::general, Inverse>(source, cur, d, carry, k);
}

template <bool Inverse, class S>
__device__ __forceinline__ Combined<S> combine_any(S source, S cur, S d, uint32_t carry, const FixedCoef& k) {
    if (k.alpha_kind == AlphaKind::unit) return combine_beta<AlphaKind::unit, Inverse>(source, cur, d, carry, k);
    if (k.alpha_kind == AlphaKind::shift) return combine_beta<AlphaKind::shift, Inverse>(source, cur, d, carry, k);
    return combine_beta<AlphaKind::general, Inverse>(source, cur, d, carry, k);
}

template <class S>
__device__ __forceinline__ uint32_t carry_any(S prev, const FixedCoef& k) {
    if (k.carry_bits == 0) return 0;  // beside a set that needs some
    if (k.alpha_kind == AlphaKind::shift) return carry_of<AlphaKind::shift, false>(prev, k);
    return k.carry_bits == 1 ? carry_of<AlphaKind::general, true>(prev, k) : carry_of<AlphaKind::general, false>(prev, k);
}

template <bool Inverse, class S, class C>
__device__ __forceinline__ S fixed_element(const StepArgs& s, const StepSet& set, int64_t i, S source, uint32_t carry, Tally& tally) {
    const FixedCoef& k = set.fixed;
    const S cur = k.beta_kind == BetaKind::none ? S{0} : static_cast<const S*>(s.cur)[i];
    const C v = scaled_value(load_value<C>(s.value, s.value_type, i), static_cast<C>(set.gamma), static_cast<C>(exp2_of(s.frac_bits)));
    const Combined<S> fast = combine_any<Inverse>(source, cur, quantise<S>(v), carry, k);
    const int64_t x = fast.x;
    const uint64_t magnitude = x < 0 ? 0u - static_cast<uint64_t>(x) : static_cast<uint64_t>(x);
    if (!value_near<S>(v) && !fast.near && magnitude <= static_cast<uint64_t>(FixedTraits<S>::limit)) {
        tally.note(to_double(static_cast<int64_t>(magnitude)) * exp2_of(-s.frac_bits), false, i);
        return fast.x;
    }
    const Exact e = Inverse ? exact_prev<S>(source, cur, v, carry, k, s.frac_bits) : exact_next<S>(source, cur, v, k, s.frac_bits);
    tally.note(e.magnitude, e.bad, i);
    return static_cast<S>(static_cast<typename FixedTraits<S>::Bits>(e.wide));
}

// A warp is one group of 32 carries. The loop bound is rounded up to whole warps, and the stride is a multiple of 32:
// all lanes of a warp run every turn together, as the ballot needs.
template <class S, bool Inverse, bool Rows>
__global__ void __launch_bounds__(kThreads) step_fixed(const __grid_constant__ StepPlan plan) {
    const StepArgs& s = plan.args;
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int64_t whole_warps = (s.n + kWarp - 1) / kWarp * kWarp;
    const double unit = exp2_of(-s.frac_bits);
    Tally tally;
    for (int64_t i = first_index(); i < whole_warps; i += stride()) {
        const bool inside = i < s.n;
        const S source = inside ? static_cast<const S*>(s.source)[i] : S{0};
        uint32_t carry = 0;
        uint32_t* words = s.carry_bits != 0 ? s.carry + i / kWarp * s.carry_bits : nullptr;
        if constexpr (Inverse) {
            for (int p = 0; p < s.carry_bits; ++p) carry |= ((words[p] >> lane) & 1u) << p;
        } else if (s.carry_bits != 0) {
            carry = inside ? carry_any(source, set_of<Rows>(plan, i).fixed) : 0u;
            for (int p = 0; p < s.carry_bits; ++p) {
                const unsigned word = __ballot_sync(kAll, ((carry >> p) & 1u) != 0);
                if (lane == p) words[p] = word;
            }
        }
        if (!inside) continue;
        const StepSet& set = set_of<Rows>(plan, i);
        const S x = s.value_type == DType::f64 ? fixed_element<Inverse, S, double>(s, set, i, source, carry, tally)
                                               : fixed_element<Inverse, S, float>(s, set, i, source, carry, tally);
        static_cast<S*>(s.out)[i] = x;
        tally.checksum += checksum_of(x, i);
        if (s.view != nullptr) store_fixed_view(s.view, s.view_type, i, x, unit);
    }
    publish(tally, s.stats);
}

template <class S, class C>
__device__ __forceinline__ S encode_element(const EncodeArgs& s, int64_t i, Tally& tally) {
    const C v = load_value<C>(s.x, s.value_type, i) * static_cast<C>(exp2_of(s.frac_bits));
    if (!value_near<S>(v)) {
        const S x = quantise<S>(v);
        tally.note(abs_of(to_double(x)) * exp2_of(-s.frac_bits), false, i);
        return x;
    }
    const Exact e = exact_encoded<S>(v, s.frac_bits);
    tally.note(e.magnitude, e.bad, i);
    return static_cast<S>(e.wide);
}

template <class S>
__global__ void __launch_bounds__(kThreads) encode_fixed(const __grid_constant__ EncodeArgs s) {
    Tally tally;
    for (int64_t i = first_index(); i < s.n; i += stride()) {
        const S x = s.value_type == DType::f64 ? encode_element<S, double>(s, i, tally) : encode_element<S, float>(s, i, tally);
        static_cast<S*>(s.out)[i] = x;
        tally.checksum += checksum_of(x, i);
        if (s.view != nullptr) store_fixed_view(s.view, s.view_type, i, x, exp2_of(-s.frac_bits));
    }
    publish(tally, s.stats);
}

// ---- float states ----------------------------------------------------------------------------------------------

template <bool Inverse, bool HasBeta, class C>
__device__ __forceinline__ C combine_floats(C source, C cur, C f, const FloatCoef<C>& k) {
    if constexpr (Inverse) {
        if (k.alpha == C{1}) return float_inverse<FloatAlpha::one, HasBeta>(source, cur, f, k);
        if (k.alpha == C{-1}) return float_inverse<FloatAlpha::minus_one, HasBeta>(source, cur, f, k);
        return float_inverse<FloatAlpha::general, HasBeta>(source, cur, f, k);
    } else {
        return float_forward<FloatAlpha::general, HasBeta>(source, cur, f, k);  // times 1 is exact
    }
}

template <class S>
__device__ __forceinline__ void finish_float(S x, void* out, void* view, DType view_type, int64_t i, Tally& tally) {
    const double a = abs_of(static_cast<double>(x));
    const double infinite = double_of(0x7ff0000000000000ull);
    const bool good = a < infinite;
    tally.note(good ? a : infinite, !good, i);
    tally.checksum += checksum_of(x, i);
    static_cast<S*>(out)[i] = x;
    if (view != nullptr) store_float_view(view, view_type, i, x);
}

template <class S, class C, bool Inverse, bool Rows>
__global__ void __launch_bounds__(kThreads) step_float(const __grid_constant__ StepPlan plan) {
    const StepArgs& s = plan.args;
    Tally tally;
    for (int64_t i = first_index(); i < s.n; i += stride()) {
        const StepSet& set = set_of<Rows>(plan, i);
        const FloatCoef<C> k{static_cast<C>(set.alpha), static_cast<C>(set.beta), static_cast<C>(set.gamma)};
        const C source = static_cast<C>(static_cast<const S*>(s.source)[i]), f = load_value<C>(s.value, s.value_type, i);
        const C t = set.beta != 0.0 ? combine_floats<Inverse, true>(source, static_cast<C>(static_cast<const S*>(s.cur)[i]), f, k)
                                    : combine_floats<Inverse, false>(source, C{0}, f, k);
        finish_float(static_cast<S>(t), s.out, s.view, s.view_type, i, tally);
    }
    publish(tally, s.stats);
}

template <class S>
__global__ void __launch_bounds__(kThreads) encode_float(const __grid_constant__ EncodeArgs s) {
    Tally tally;
    for (int64_t i = first_index(); i < s.n; i += stride())
        finish_float(s.value_type == DType::f64 ? static_cast<S>(static_cast<const double*>(s.x)[i]) : static_cast<S>(load_value<float>(s.x, s.value_type, i)),
                     s.out, s.view, s.view_type, i, tally);
    publish(tally, s.stats);
}

// ---- decode, checksum ------------------------------------------------------------------------------------------

template <class S>
__global__ void __launch_bounds__(kThreads) decode_fixed(const __grid_constant__ DecodeArgs s) {
    for (int64_t i = first_index(); i < s.n; i += stride())
        store_fixed_view(s.view, s.view_type, i, static_cast<const S*>(s.state_data)[i], exp2_of(-s.frac_bits));
}

template <class S>
__global__ void __launch_bounds__(kThreads) decode_float(const __grid_constant__ DecodeArgs s) {
    for (int64_t i = first_index(); i < s.n; i += stride())
        store_float_view(s.view, s.view_type, i, static_cast<const S*>(s.state_data)[i]);
}

template <class S>
__global__ void __launch_bounds__(kThreads) checksum_kernel(const __grid_constant__ ChecksumArgs s) {
    Tally tally;
    for (int64_t i = first_index(); i < s.n; i += stride()) tally.checksum += checksum_of(static_cast<const S*>(s.data)[i], i);
    publish(tally, s.stats);
}

// ---- launching -------------------------------------------------------------------------------------------------

void clear(int64_t* stats, cudaStream_t stream) {
    require(cudaMemsetAsync(stats, 0, 3 * sizeof(int64_t), stream), "clearing the statistics");
    require(cudaMemsetAsync(stats + 3, 0xff, sizeof(int64_t), stream), "clearing the statistics");
}

typedef void (*StepKernel)(const StepPlan);

template <bool Inverse, bool Rows>
StepKernel choose(const StepPlan& plan) {
    switch (plan.args.state) {
        case DType::i32: return step_fixed<int32_t, Inverse, Rows>;
        case DType::i64: return step_fixed<int64_t, Inverse, Rows>;
        case DType::f64: return step_float<double, double, Inverse, Rows>;
        default: return plan.wide ? step_float<float, double, Inverse, Rows> : step_float<float, float, Inverse, Rows>;
    }
}

template <bool Inverse>
StepKernel choose(const StepPlan& plan) {
    return plan.args.row_length != 0 ? choose<Inverse, true>(plan) : choose<Inverse, false>(plan);
}

void run_step(const StepArgs& args, bool inverse, void* stream) {
    const StepPlan plan = make_plan(args, inverse);
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    clear(args.stats, s);
    launch<StepPlan>(inverse ? choose<true>(plan) : choose<false>(plan), plan, args.n, s);
}

}  // namespace

void step_cuda(const StepArgs& args, void* stream) { run_step(args, false, stream); }
void inverse_cuda(const StepArgs& args, void* stream) { run_step(args, true, stream); }

void encode_cuda(const EncodeArgs& args, void* stream) {
    check(args);
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    clear(args.stats, s);
    switch (args.state) {
        case DType::i32: return launch<EncodeArgs>(encode_fixed<int32_t>, args, args.n, s);
        case DType::i64: return launch<EncodeArgs>(encode_fixed<int64_t>, args, args.n, s);
        case DType::f64: return launch<EncodeArgs>(encode_float<double>, args, args.n, s);
        default: return launch<EncodeArgs>(encode_float<float>, args, args.n, s);
    }
}

void decode_cuda(const DecodeArgs& args, void* stream) {
    check(args);
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    switch (args.state) {
        case DType::i32: return launch<DecodeArgs>(decode_fixed<int32_t>, args, args.n, s);
        case DType::i64: return launch<DecodeArgs>(decode_fixed<int64_t>, args, args.n, s);
        case DType::f64: return launch<DecodeArgs>(decode_float<double>, args, args.n, s);
        default: return launch<DecodeArgs>(decode_float<float>, args, args.n, s);
    }
}

void checksum_cuda(const ChecksumArgs& args, void* stream) {
    check(args);
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    clear(args.stats, s);
    switch (args.state) {
        case DType::i32: return launch<ChecksumArgs>(checksum_kernel<int32_t>, args, args.n, s);
        case DType::i64: return launch<ChecksumArgs>(checksum_kernel<int64_t>, args, args.n, s);
        case DType::f64: return launch<ChecksumArgs>(checksum_kernel<double>, args, args.n, s);
        default: return launch<ChecksumArgs>(checksum_kernel<float>, args, args.n, s);
    }
}

bool built_with_cuda() { return true; }

int cuda_device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();  // the error is an answer, not a state to leave behind
    return 0;
}

std::string cuda_status() {
    int driver = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        cudaGetLastError();
        return "no CUDA driver is installed";
    }
    const int major = CUDART_VERSION / 1000;
    if (driver / 1000 < major)
        return "the installed driver supports CUDA " + std::to_string(driver / 1000) + "." + std::to_string(driver % 1000 / 10) +
               ", these kernels need CUDA " + std::to_string(major) + " or newer" + (major == 13 ? ": update the driver to version 580 or later" : "");
    if (cuda_device_count() == 0) return "no CUDA device is visible";
    cudaFuncAttributes found;
    const cudaError_t e = cudaFuncGetAttributes(&found, decode_fixed<int32_t>);
    if (e == cudaSuccess) return "";
    cudaGetLastError();
    return std::string("these kernels were not compiled for the current device (") + cudaGetErrorString(e) + "): build revstep for its architecture";
}

}  // namespace revstep
