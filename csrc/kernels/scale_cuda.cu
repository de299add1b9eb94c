// Multiples of one array on the device: each thread reads an element once and writes all of them.
#include "cuda_parts.cuh"
#include "plan.hpp"

namespace revstep {
namespace {

// A 16-bit product is rounded before a wider output sees it.
__device__ __forceinline__ float rounded(float x, DType t) {
    if (t == DType::bf16) return bf16_to_float(float_to_bf16(x));
    return t == DType::f16 ? half_to_float(float_to_half(x)) : x;
}
__device__ __forceinline__ double rounded(double x, DType) { return x; }

// C is what products are computed in: double for f64, else float.
template <class C, bool Rows>
__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ ScaleArgs s) {
    for (int64_t i = first_index(); i < s.n; i += stride()) {
        const C g = load_value<C>(s.g, s.value_type, i);
        bool second = false;
        if constexpr (Rows) second = s.choice[i / s.row_length] != 0;
#pragma unroll
        for (int k = 0; k < kMaxScaled; ++k) {
            if (k >= s.count) break;
            const double factor = second ? s.factor1[k] : s.factor[k];
            const C x = factor == 0.0 ? C{0} : rounded(g * static_cast<C>(factor), s.value_type);
            store_value(s.out[k], k + 1 < s.count ? s.value_type : s.last_type, i, static_cast<float>(x), static_cast<double>(x));
        }
    }
}

template <class C>
void launch_scale(const ScaleArgs& args, cudaStream_t stream) {
    launch<ScaleArgs>(args.row_length != 0 ? scale_kernel<C, true> : scale_kernel<C, false>, args, args.n, stream);
}

}  // namespace

void scale_cuda(const ScaleArgs& args, void* stream) {
    check(args);
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    if (args.value_type == DType::f64) launch_scale<double>(args, s);
    else launch_scale<float>(args, s);
}

}  // namespace revstep
