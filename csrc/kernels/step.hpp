// The kernel library: pointers, sizes, dtypes, a stream. Knows neither Python nor torch.
// Outputs must not overlap inputs, except that `out` may be exactly `source` or `cur`.
// Bad arguments throw std::invalid_argument, a failing device std::runtime_error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace revstep {

enum class DType : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3, i32 = 4, i64 = 5 };

struct StepArgs {
    int64_t n;
    const void* source;  // forward: prev. inverse: next                   `state`
    const void* cur;     // null when beta == 0                            `state`
    const void* value;   // the increment f                                `value_type`
    void* out;           // forward: next. inverse: prev                   `state`
    void* view;          // out as floats, null: not wanted                `view_type`
    uint32_t* carry;     // bit planes: forward writes, inverse reads; null when carry_bits == 0
    int64_t* stats;      // checksum, bad elements, bits of the largest magnitude, first bad index or -1
    DType state, value_type, view_type;
    double alpha, beta, gamma;  // fixed point: alpha, beta are multiples of 2^-24
    int frac_bits;
    int carry_bits;  // exactly what |alpha| (with rows: the smaller of the two) needs; forward may pass 0 when nothing will be inverted
    // Coefficients by row: element i takes the second set where choice[i / row_length] is not 0. row_length 0: one set for all.
    const uint8_t* choice = nullptr;
    int64_t row_length = 0;
    double alpha1 = 0.0, beta1 = 0.0, gamma1 = 0.0;
};

struct EncodeArgs {
    int64_t n;
    const void* x;  // `value_type`
    void* out;      // `state`
    void* view;     // `view_type`, null: not wanted
    int64_t* stats;
    DType value_type, state, view_type;
    int frac_bits;
};

struct DecodeArgs {
    int64_t n;
    const void* state_data;  // `state`
    void* view;              // `view_type`
    DType state, view_type;
    int frac_bits;
};

struct ChecksumArgs {
    int64_t n;
    const void* data;  // f32 f64 i32 i64
    int64_t* stats;    // checksum, 0, 0, -1
    DType state;
};

constexpr int kMaxScaled = 3;

// out[k] = factor[k] * g, the product rounded to `value_type`, in the last output then to `last_type`. A factor 0 gives 0, whatever g is.
struct ScaleArgs {
    int64_t n;
    const void* g;           // `value_type`
    void* out[kMaxScaled];   // count of them
    int count;               // 1 to kMaxScaled
    DType value_type, last_type;
    double factor[kMaxScaled];
    // By row, as in StepArgs: factor1 where choice is not 0.
    const uint8_t* choice = nullptr;
    int64_t row_length = 0;
    double factor1[kMaxScaled] = {};
};

// Index into isa_levels(); `best` is its last entry.
enum class Isa : int { best = -1, generic = 0, v3 = 1, v4 = 2 };

std::vector<std::string> isa_levels();

void step_cpu(const StepArgs& args, int threads, Isa isa);
void inverse_cpu(const StepArgs& args, int threads, Isa isa);
void encode_cpu(const EncodeArgs& args, int threads, Isa isa);
void decode_cpu(const DecodeArgs& args, int threads, Isa isa);
void checksum_cpu(const ChecksumArgs& args, int threads, Isa isa);
void scale_cpu(const ScaleArgs& args, int threads, Isa isa);

// Asynchronous on `stream` (a cudaStream_t) of the current device; every pointer is device memory.
void step_cuda(const StepArgs& args, void* stream);
void inverse_cuda(const StepArgs& args, void* stream);
void encode_cuda(const EncodeArgs& args, void* stream);
void decode_cuda(const DecodeArgs& args, void* stream);
void checksum_cuda(const ChecksumArgs& args, void* stream);
void scale_cuda(const ScaleArgs& args, void* stream);

bool built_with_cuda();
int cuda_device_count();
std::string cuda_status();  // "" when kernels can run on the current device, else why not; asking starts CUDA

}  // namespace revstep
