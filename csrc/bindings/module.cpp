// revstep._C: raw pointers as integers, 0 for null. The Python ops layer has checked every tensor.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "../kernels/step.hpp"
#include "look.hpp"
#include "ode.hpp"

namespace nb = nanobind;
using namespace revstep;

namespace {

typedef uintptr_t Address;

template <class T>
T* at(Address a) {
    return reinterpret_cast<T*>(a);
}

StepArgs step_args(int64_t n, Address other, Address cur, Address value, Address out, Address view, Address carry, Address stats, int state,
                   int value_type, int view_type, double alpha, double beta, double gamma, int frac_bits, int carry_bits, Address choice, int64_t row_length,
                   double alpha1, double beta1, double gamma1) {
    return {n, at<void>(other), at<void>(cur), at<void>(value), at<void>(out), at<void>(view), at<uint32_t>(carry), at<int64_t>(stats),
            static_cast<DType>(state), static_cast<DType>(value_type), static_cast<DType>(view_type), alpha, beta, gamma, frac_bits, carry_bits,
            at<uint8_t>(choice), row_length, alpha1, beta1, gamma1};
}

EncodeArgs encode_args(int64_t n, Address x, Address out, Address view, Address stats, int value_type, int state, int view_type, int frac_bits) {
    return {n, at<void>(x), at<void>(out), at<void>(view), at<int64_t>(stats), static_cast<DType>(value_type), static_cast<DType>(state), static_cast<DType>(view_type), frac_bits};
}

DecodeArgs decode_args(int64_t n, Address state_data, Address view, int state, int view_type, int frac_bits) {
    return {n, at<void>(state_data), at<void>(view), static_cast<DType>(state), static_cast<DType>(view_type), frac_bits};
}

ChecksumArgs checksum_args(int64_t n, Address data, Address stats, int state) { return {n, at<void>(data), at<int64_t>(stats), static_cast<DType>(state)}; }

// std::invalid_argument would become ValueError; every failure here is a RuntimeError.
template <class F>
void guarded(F f) {
    nb::gil_scoped_release release;
    try {
        f();
    } catch (const std::exception& e) {
        throw std::runtime_error(e.what());
    }
}

void step(int64_t n, Address other, Address cur, Address value, Address out, Address view, Address carry, Address stats, int state, int value_type,
          int view_type, double alpha, double beta, double gamma, int frac_bits, int carry_bits, Address choice, int64_t row_length, double alpha1,
          double beta1, double gamma1, bool inverse, int threads, int isa) {
    const StepArgs args = step_args(n, other, cur, value, out, view, carry, stats, state, value_type, view_type, alpha, beta, gamma, frac_bits, carry_bits,
                                    choice, row_length, alpha1, beta1, gamma1);
    guarded([&] { (inverse ? inverse_cpu : step_cpu)(args, threads, static_cast<Isa>(isa)); });
}

void step_on_device(int64_t n, Address other, Address cur, Address value, Address out, Address view, Address carry, Address stats, int state,
                    int value_type, int view_type, double alpha, double beta, double gamma, int frac_bits, int carry_bits, Address choice,
                    int64_t row_length, double alpha1, double beta1, double gamma1, bool inverse, Address stream) {
    const StepArgs args = step_args(n, other, cur, value, out, view, carry, stats, state, value_type, view_type, alpha, beta, gamma, frac_bits, carry_bits,
                                    choice, row_length, alpha1, beta1, gamma1);
    guarded([&] { (inverse ? inverse_cuda : step_cuda)(args, at<void>(stream)); });
}

void encode(int64_t n, Address x, Address out, Address view, Address stats, int value_type, int state, int view_type, int frac_bits, int threads, int isa) {
    guarded([&] { encode_cpu(encode_args(n, x, out, view, stats, value_type, state, view_type, frac_bits), threads, static_cast<Isa>(isa)); });
}

void encode_on_device(int64_t n, Address x, Address out, Address view, Address stats, int value_type, int state, int view_type, int frac_bits, Address stream) {
    guarded([&] { encode_cuda(encode_args(n, x, out, view, stats, value_type, state, view_type, frac_bits), at<void>(stream)); });
}

void decode(int64_t n, Address state_data, Address view, int state, int view_type, int frac_bits, int threads, int isa) {
    guarded([&] { decode_cpu(decode_args(n, state_data, view, state, view_type, frac_bits), threads, static_cast<Isa>(isa)); });
}

void decode_on_device(int64_t n, Address state_data, Address view, int state, int view_type, int frac_bits, Address stream) {
    guarded([&] { decode_cuda(decode_args(n, state_data, view, state, view_type, frac_bits), at<void>(stream)); });
}

void checksum(int64_t n, Address data, Address stats, int state, int threads, int isa) {
    guarded([&] { checksum_cpu(checksum_args(n, data, stats, state), threads, static_cast<Isa>(isa)); });
}

void checksum_on_device(int64_t n, Address data, Address stats, int state, Address stream) {
    guarded([&] { checksum_cuda(checksum_args(n, data, stats, state), at<void>(stream)); });
}

ScaleArgs scale_args(int64_t n, Address g, Address out0, Address out1, Address out2, int count, int value_type, int last_type, double factor0,
                     double factor1, double factor2, Address choice, int64_t row_length, double second0, double second1, double second2) {
    return {n, at<void>(g), {at<void>(out0), at<void>(out1), at<void>(out2)}, count, static_cast<DType>(value_type), static_cast<DType>(last_type),
            {factor0, factor1, factor2}, at<uint8_t>(choice), row_length, {second0, second1, second2}};
}

void scale(int64_t n, Address g, Address out0, Address out1, Address out2, int count, int value_type, int last_type, double factor0, double factor1,
           double factor2, Address choice, int64_t row_length, double second0, double second1, double second2, int threads, int isa) {
    const ScaleArgs args = scale_args(n, g, out0, out1, out2, count, value_type, last_type, factor0, factor1, factor2, choice, row_length, second0, second1, second2);
    guarded([&] { scale_cpu(args, threads, static_cast<Isa>(isa)); });
}

void scale_on_device(int64_t n, Address g, Address out0, Address out1, Address out2, int count, int value_type, int last_type, double factor0,
                     double factor1, double factor2, Address choice, int64_t row_length, double second0, double second1, double second2, Address stream) {
    const ScaleArgs args = scale_args(n, g, out0, out1, out2, count, value_type, last_type, factor0, factor1, factor2, choice, row_length, second0, second1, second2);
    guarded([&] { scale_cuda(args, at<void>(stream)); });
}

}  // namespace

NB_MODULE(_C, m) {
    m.doc() = "Compiled step kernels on raw pointers. Use revstep.ops, which checks its tensors.";
    m.def("step", &step);
    m.def("step_cuda", &step_on_device);
    m.def("encode", &encode);
    m.def("encode_cuda", &encode_on_device);
    m.def("decode", &decode);
    m.def("decode_cuda", &decode_on_device);
    m.def("checksum", &checksum);
    m.def("checksum_cuda", &checksum_on_device);
    m.def("scale", &scale);
    m.def("scale_cuda", &scale_on_device);
    bind_look(m);
    bind_ode(m);
    m.def("isa_levels", &isa_levels, "Names of the instruction set levels usable on this CPU, best last.");
    m.def("built_with_cuda", &built_with_cuda);
    m.def("cuda_device_count", &cuda_device_count);
    m.def("cuda_status", &cuda_status, "Empty when CUDA kernels can run, else a sentence that says why not.");
}
