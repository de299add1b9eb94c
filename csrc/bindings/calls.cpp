// step and inverse on the CPU for callers who make many short calls: what is the same in all of them is one
// object, made once, and the rest comes by position. A struct with names (module.cpp) takes longer to fill than
// a kernel takes on 64 elements.
#include "calls.hpp"

#include "../kernels/step.hpp"
#include "address.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace revstep;

namespace {

// Dtypes and scale of a step.
struct StepKind {
    DType state, value_type, view_type;
    int frac_bits;
};

void bind_call(nb::module_& m, const char* name, void (*kernel)(const StepArgs&, int, Isa)) {
    m.def(
        name,
        [kernel](const StepKind& kind, int64_t n, Address source, Address cur, Address value, Address out,
                 Address view, Address carry, Address stats, double alpha, double beta, double gamma,
                 int carry_bits, int threads) {
            const StepArgs args{n,
                                at<void>(source),
                                at<void>(cur),
                                at<void>(value),
                                at<void>(out),
                                at<void>(view),
                                at<uint32_t>(carry),
                                at<int64_t>(stats),
                                kind.state,
                                kind.value_type,
                                kind.view_type,
                                alpha,
                                beta,
                                gamma,
                                kind.frac_bits,
                                carry_bits};
            nb::gil_scoped_release release;
            try {
                kernel(args, threads, static_cast<Isa>(-1));
            } catch (const std::exception& e) {  // std::invalid_argument would become ValueError
                throw std::runtime_error(e.what());
            }
        },
        "kind"_a, "n"_a, "source"_a, "cur"_a, "value"_a, "out"_a, "view"_a, "carry"_a, "stats"_a, "alpha"_a,
        "beta"_a, "gamma"_a, "carry_bits"_a, "threads"_a);
}

}  // namespace

void bind_calls(nb::module_& m) {
    nb::class_<StepKind>(m, "StepKind", "Dtypes and scale of the calls of step_of and inverse_of.")
        .def(
            "__init__",
            [](StepKind* self, int state, int value_type, int view_type, int frac_bits) {
                new (self) StepKind{static_cast<DType>(state), static_cast<DType>(value_type),
                                    static_cast<DType>(view_type), frac_bits};
            },
            nb::kw_only(), "state"_a, "value_type"_a, "view_type"_a, "frac_bits"_a);
    bind_call(m, "step_of", &step_cpu);
    bind_call(m, "inverse_of", &inverse_cpu);
}
