// revstep._C: raw pointers as integers, 0 for null. The Python ops layer has checked every tensor.
//
// What a kernel is told is one struct of kernels/step.hpp, made by a call with keywords of the same
// names. The launchers take the struct. A field is written down twice: there, and in the constructor below.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <map>

#include "../core/fixed.hpp"
#include "../kernels/step.hpp"
#include "address.hpp"
#include "calls.hpp"
#include "look.hpp"
#include "ode.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace revstep;

namespace {

DType dtype(int code) { return static_cast<DType>(code); }

// One row's numbers, and which rows take the second ones.
struct Rows {
    Address choice;
    int64_t length;
};

void bind_arguments(nb::module_& m) {
    nb::class_<Rows>(m, "Rows", "choice: uint8, one for each row; length: elements of a row.")
        .def(
            "__init__", [](Rows* self, Address choice, int64_t length) { new (self) Rows{choice, length}; },
            nb::kw_only(), "choice"_a, "length"_a);

    nb::class_<StepArgs>(m, "StepArgs")
        .def(
            "__init__",
            [](StepArgs* self, int64_t n, Address source, Address cur, Address value, Address out,
               Address view, Address carry, Address stats, int state, int value_type, int view_type,
               double alpha, double beta, double gamma, int frac_bits, int carry_bits) {
                new (self) StepArgs{n,
                                    at<void>(source),
                                    at<void>(cur),
                                    at<void>(value),
                                    at<void>(out),
                                    at<void>(view),
                                    at<uint32_t>(carry),
                                    at<int64_t>(stats),
                                    dtype(state),
                                    dtype(value_type),
                                    dtype(view_type),
                                    alpha,
                                    beta,
                                    gamma,
                                    frac_bits,
                                    carry_bits};
            },
            nb::kw_only(), "n"_a, "source"_a, "cur"_a, "value"_a, "out"_a, "view"_a, "carry"_a, "stats"_a,
            "state"_a, "value_type"_a, "view_type"_a, "alpha"_a, "beta"_a, "gamma"_a, "frac_bits"_a,
            "carry_bits"_a)
        .def(
            "by_row",
            [](StepArgs& self, const Rows& rows, double alpha, double beta, double gamma) {
                self.choice = at<uint8_t>(rows.choice);
                self.row_length = rows.length;
                self.alpha1 = alpha;
                self.beta1 = beta;
                self.gamma1 = gamma;
            },
            nb::kw_only(), "rows"_a, "alpha"_a, "beta"_a, "gamma"_a,
            "The numbers of the rows whose choice is not 0.");

    nb::class_<EncodeArgs>(m, "EncodeArgs")
        .def(
            "__init__",
            [](EncodeArgs* self, int64_t n, Address x, Address out, Address view, Address stats,
               int value_type, int state, int view_type, int frac_bits) {
                new (self) EncodeArgs{n,
                                      at<void>(x),
                                      at<void>(out),
                                      at<void>(view),
                                      at<int64_t>(stats),
                                      dtype(value_type),
                                      dtype(state),
                                      dtype(view_type),
                                      frac_bits};
            },
            nb::kw_only(), "n"_a, "x"_a, "out"_a, "view"_a, "stats"_a, "value_type"_a, "state"_a,
            "view_type"_a, "frac_bits"_a);

    nb::class_<DecodeArgs>(m, "DecodeArgs")
        .def(
            "__init__",
            [](DecodeArgs* self, int64_t n, Address state_data, Address view, int state, int view_type,
               int frac_bits) {
                new (self) DecodeArgs{
                    n, at<void>(state_data), at<void>(view), dtype(state), dtype(view_type), frac_bits};
            },
            nb::kw_only(), "n"_a, "state_data"_a, "view"_a, "state"_a, "view_type"_a, "frac_bits"_a);

    nb::class_<ChecksumArgs>(m, "ChecksumArgs")
        .def(
            "__init__",
            [](ChecksumArgs* self, int64_t n, Address data, Address stats, int state) {
                new (self) ChecksumArgs{n, at<void>(data), at<int64_t>(stats), dtype(state)};
            },
            nb::kw_only(), "n"_a, "data"_a, "stats"_a, "state"_a);

    nb::class_<ScaleArgs>(m, "ScaleArgs")
        .def(
            "__init__",
            [](ScaleArgs* self, int64_t n, Address g, const std::vector<Address>& out,
               const std::vector<double>& factors, int value_type, int last_type) {
                if (out.size() != factors.size() || out.size() > kMaxScaled)
                    throw std::runtime_error(
                        "revstep kernel: as many outputs as factors are expected, at most " +
                        std::to_string(kMaxScaled));
                new (self) ScaleArgs{
                    n, at<void>(g), {}, static_cast<int>(out.size()), dtype(value_type), dtype(last_type),
                    {}};
                for (size_t k = 0; k < out.size(); ++k) {
                    self->out[k] = at<void>(out[k]);
                    self->factor[k] = factors[k];
                }
            },
            nb::kw_only(), "n"_a, "g"_a, "out"_a, "factors"_a, "value_type"_a, "last_type"_a)
        .def(
            "by_row",
            [](ScaleArgs& self, const Rows& rows, const std::vector<double>& factors) {
                if (factors.size() != static_cast<size_t>(self.count))
                    throw std::runtime_error("revstep kernel: as many factors as before are expected");
                self.choice = at<uint8_t>(rows.choice);
                self.row_length = rows.length;
                for (size_t k = 0; k < factors.size(); ++k) self.factor1[k] = factors[k];
            },
            nb::kw_only(), "rows"_a, "factors"_a, "The factors of the rows whose choice is not 0.");
}

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

// A kernel under two names: on the CPU with threads and instruction set level, on the current device with a
// stream.
template <class Args>
void bind_kernel(nb::module_& m, const char* name, void (*on_cpu)(const Args&, int, Isa),
                 void (*on_device)(const Args&, void*)) {
    m.def(
        name,
        [on_cpu](const Args& args, int threads, int isa) {
            guarded([&] { on_cpu(args, threads, static_cast<Isa>(isa)); });
        },
        "args"_a, "threads"_a, "isa"_a);
    m.def((std::string(name) + "_cuda").c_str(),
          [on_device](const Args& args, Address stream) {
              guarded([&] { on_device(args, at<void>(stream)); });
          },
          "args"_a, "stream"_a);
}

}  // namespace

NB_MODULE(_C, m) {
    // An exception that ends a process keeps what its traceback holds. That is no leak of ours to report, below
    // the last word of that exception.
    nb::set_leak_warnings(false);
    m.doc() = "Compiled step kernels on raw pointers. Use revstep.ops, which checks its tensors.";
    bind_arguments(m);
    bind_kernel(m, "step", &step_cpu, &step_cuda);
    bind_kernel(m, "inverse", &inverse_cpu, &inverse_cuda);
    bind_kernel(m, "encode", &encode_cpu, &encode_cuda);
    bind_kernel(m, "decode", &decode_cpu, &decode_cuda);
    bind_kernel(m, "checksum", &checksum_cpu, &checksum_cuda);
    bind_kernel(m, "scale", &scale_cpu, &scale_cuda);
    bind_calls(m);
    bind_look(m);
    bind_ode(m);
    m.def("isa_levels", &isa_levels, "Names of the instruction set levels usable on this CPU, best last.");
    m.def("built_with_cuda", &built_with_cuda);
    m.def("cuda_status", &cuda_status, "Empty when kernels can run on the current CUDA device, else a sentence that says why not. Starts CUDA.");
    m.def(
        "dtypes",
        [] {
            return std::map<std::string, int>{
                {"float32", static_cast<int>(DType::f32)},   {"float64", static_cast<int>(DType::f64)},
                {"bfloat16", static_cast<int>(DType::bf16)}, {"float16", static_cast<int>(DType::f16)},
                {"int32", static_cast<int>(DType::i32)},     {"int64", static_cast<int>(DType::i64)}};
        },
        "The number by which a dtype is named in a struct of arguments.");
    m.attr("__version__") = REVSTEP_VERSION;
    m.attr("COEFFICIENT_BITS") = kCoefBits;
    m.attr("MAX_ALPHA") = kMaxAlpha;
    m.attr("MAX_BETA") = kMaxBeta;
    m.attr("MAX_FRAC_BITS_32") = FixedTraits<int32_t>::max_frac_bits;
    m.attr("MAX_FRAC_BITS_64") = FixedTraits<int64_t>::max_frac_bits;
    m.attr("MAX_CARRY_BITS") = kMaxCarryBits;
    m.attr("MAX_SCALED") = kMaxScaled;
}
