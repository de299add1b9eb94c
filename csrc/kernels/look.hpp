// Kernels that only look: fingerprints of any tensor, and whether a float view is still that of its state.
#pragma once

#include <vector>

#include "../core/sample.hpp"
#include "step.hpp"

namespace revstep {

// Sizes and strides of a tensor in any order: those of one element and those that repeat (stride 0) are left
// out, the others sorted as they lie in memory, and neighbours that are one run joined. Elements of 16 bytes
// become two of 8.
SampleArgs sample_args(const void* data, int width, std::vector<int64_t> size, std::vector<int64_t> stride,
                       int64_t every, uint32_t seed, int64_t* out);

void sample_cpu(const SampleArgs& args, Isa isa = Isa::best);
void sample_cuda(const SampleArgs& args, void* stream);  // asynchronous, as in step.hpp

// How many elements of args.view differ in their bits from what decode would write there.
int64_t differs_cpu(const DecodeArgs& args, int threads, Isa isa);

}  // namespace revstep
