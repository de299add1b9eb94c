// The device kernels behind C functions: what Python calls in place of the extension's. An answer of 0 is success, 1 an
// error that `why` (of `room` bytes) says.
#include <cstring>
#include <stdexcept>

#include "kernels/look.hpp"
#include "kernels/step.hpp"

using namespace revstep;

namespace {

template <class F>
int told(char* why, int room, F f) {
    try {
        f();
        return 0;
    } catch (const std::exception& e) {
        std::strncpy(why, e.what(), static_cast<size_t>(room) - 1);
        why[room - 1] = '\0';
        return 1;
    }
}

}  // namespace

#define REVSTEP_ABI extern "C" __attribute__((visibility("default")))

REVSTEP_ABI int64_t revstep_shim_size(int which) {
    const int64_t sizes[] = {sizeof(StepArgs), sizeof(EncodeArgs), sizeof(DecodeArgs), sizeof(ChecksumArgs), sizeof(ScaleArgs)};
    return sizes[which];
}

REVSTEP_ABI int revstep_shim_step(const StepArgs* a, char* why, int room) {
    return told(why, room, [&] { step_cuda(*a, nullptr); });
}
REVSTEP_ABI int revstep_shim_inverse(const StepArgs* a, char* why, int room) {
    return told(why, room, [&] { inverse_cuda(*a, nullptr); });
}
REVSTEP_ABI int revstep_shim_encode(const EncodeArgs* a, char* why, int room) {
    return told(why, room, [&] { encode_cuda(*a, nullptr); });
}
REVSTEP_ABI int revstep_shim_decode(const DecodeArgs* a, char* why, int room) {
    return told(why, room, [&] { decode_cuda(*a, nullptr); });
}
REVSTEP_ABI int revstep_shim_checksum(const ChecksumArgs* a, char* why, int room) {
    return told(why, room, [&] { checksum_cuda(*a, nullptr); });
}
REVSTEP_ABI int revstep_shim_scale(const ScaleArgs* a, char* why, int room) {
    return told(why, room, [&] { scale_cuda(*a, nullptr); });
}
REVSTEP_ABI int revstep_shim_sample(const void* data, int width, int dims, const int64_t* size, const int64_t* stride, int64_t every, uint32_t seed,
                                    int64_t* out, char* why, int room) {
    return told(why, room, [&] { sample_cuda(sample_args(data, width, {size, size + dims}, {stride, stride + dims}, every, seed, out), nullptr); });
}
