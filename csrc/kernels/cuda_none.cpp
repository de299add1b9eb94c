// Stands in for the device launchers in a build without CUDA.
#include <stdexcept>

#include "look.hpp"
#include "step.hpp"

namespace revstep {
namespace {

const char* const kReason = "revstep was built without CUDA";

}  // namespace

void step_cuda(const StepArgs&, void*) { throw std::runtime_error(kReason); }
void inverse_cuda(const StepArgs&, void*) { throw std::runtime_error(kReason); }
void encode_cuda(const EncodeArgs&, void*) { throw std::runtime_error(kReason); }
void decode_cuda(const DecodeArgs&, void*) { throw std::runtime_error(kReason); }
void checksum_cuda(const ChecksumArgs&, void*) { throw std::runtime_error(kReason); }
void scale_cuda(const ScaleArgs&, void*) { throw std::runtime_error(kReason); }
void sample_cuda(const SampleArgs&, void*) { throw std::runtime_error(kReason); }

bool built_with_cuda() { return false; }
int cuda_device_count() { return 0; }
std::string cuda_status() { return kReason; }

}  // namespace revstep
