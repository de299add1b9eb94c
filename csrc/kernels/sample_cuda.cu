// The fingerprint of look.hpp on the device: a thread an element that is looked at.
#include "cuda_parts.cuh"
#include "look.hpp"

namespace revstep {
namespace {

__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleArgs s) {
    const int64_t group = sample_group(s), looked = sample_chosen(s) * group;
    unsigned long long sum = 0;
    for (int64_t c = first_index(); c < looked; c += stride()) {
        const int64_t i = sample_unit(s, c / group) * group + c % group;
        if (i >= s.n) continue;
        const uint32_t inner = checksum_inner(static_cast<uint32_t>(i % kChecksumPeriod));
        sum += sample_term(s, sample_offset(s, i), inner) * checksum_outer(i);
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_down_sync(kAll, sum, offset);
    if (threadIdx.x % kWarp == 0) atomicAdd(reinterpret_cast<unsigned long long*>(s.out), sum);
}

}  // namespace

void sample_cuda(const SampleArgs& args, void* stream) {
    const cudaStream_t s = static_cast<cudaStream_t>(stream);
    require(cudaMemsetAsync(args.out, 0, sizeof(int64_t), s), "clearing the fingerprint");
    if (args.n > 0) launch<SampleArgs>(sample_kernel, args, sample_chosen(args) * sample_group(args), s);
}

}  // namespace revstep
