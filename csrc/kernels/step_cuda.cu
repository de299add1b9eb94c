// The device launchers, and the kernels of what is done once a pass: encoding, decoding, checksums.
#include "cuda_elements.cuh"
#include "cuda_steps.hpp"

namespace revstep {
namespace {

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
        tally.checksum += checksum_at(x, i);
        if (s.view != nullptr) store_fixed_view(s.view, s.view_type, i, x, exp2_of(-s.frac_bits));
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
    for (int64_t i = first_index(); i < s.n; i += stride()) tally.checksum += checksum_at(static_cast<const S*>(s.data)[i], i);
    publish(tally, s.stats);
}

// ---- launching -------------------------------------------------------------------------------------------------

void run_step(const StepArgs& args, bool inverse, void* stream) {
    const StepPlan plan = make_plan(args, inverse);
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    clear(args.stats, args.n, s);
    if (args.n == 0) return;
    if (is_fixed(args.state)) step_fixed(plan, stream);
    else step_float(plan, stream);
}

}  // namespace

void step_cuda(const StepArgs& args, void* stream) { run_step(args, false, stream); }
void inverse_cuda(const StepArgs& args, void* stream) { run_step(args, true, stream); }

void encode_cuda(const EncodeArgs& args, void* stream) {
    check(args);
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    clear(args.stats, args.n, s);
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
    clear(args.stats, args.n, s);
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
