// The kernels on the CPU for callers who make many short calls: what is the same in all of them is one object,
// made once, and the rest comes by position. A struct with names (module.cpp) takes longer to fill than a kernel
// takes on 64 elements.
#include "calls.hpp"

#include <nanobind/stl/vector.h>

#include <algorithm>

#include "../kernels/step.hpp"
#include "address.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace revstep;

namespace {

const Isa kBest = static_cast<Isa>(-1);

// Dtypes and scale of a call.
struct Kind {
    DType state, value_type, view_type;
    int frac_bits;
};

template <class Args>
void run(void (*kernel)(const Args&, int, Isa), const Args& args, int threads) {
    nb::gil_scoped_release release;
    try {
        kernel(args, threads, kBest);
    } catch (const std::exception& e) {  // std::invalid_argument would become ValueError
        throw std::runtime_error(e.what());
    }
}

StepArgs step_args(const Kind& kind, int64_t n, Address source, Address cur, Address value, Address out,
                   Address view, Address carry, Address stats, double alpha, double beta, double gamma,
                   int carry_bits) {
    return StepArgs{n,
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
}

// Elements of a row; a row without elements counts as one of length 1.
int64_t row_length(int64_t n, int64_t rows) {
    if (rows > 0 && n % rows)
        throw std::runtime_error("revstep kernel: " + std::to_string(n) + " elements are no " +
                                 std::to_string(rows) + " rows of one length");
    return std::max<int64_t>(1, n / std::max<int64_t>(1, rows));
}

bool zeros_and_ones(const uint8_t* choice, int64_t rows) {
    if (rows < 0 || (rows > 0 && choice == nullptr))
        throw std::runtime_error("revstep kernel: a choice for each row is expected, got " +
                                 std::to_string(rows) + " rows" + (choice ? "" : " and no choices"));
    return std::all_of(choice, choice + rows, [](uint8_t c) { return c <= 1; });
}

void bind_step(nb::module_& m, const char* name, void (*kernel)(const StepArgs&, int, Isa)) {
    m.def(
        (std::string(name) + "_of").c_str(),
        [kernel](const Kind& kind, int64_t n, Address source, Address cur, Address value, Address out,
                 Address view, Address carry, Address stats, double alpha, double beta, double gamma,
                 int carry_bits, int threads) {
            run(kernel,
                step_args(kind, n, source, cur, value, out, view, carry, stats, alpha, beta, gamma,
                          carry_bits),
                threads);
        },
        "kind"_a, "n"_a, "source"_a, "cur"_a, "value"_a, "out"_a, "view"_a, "carry"_a, "stats"_a, "alpha"_a,
        "beta"_a, "gamma"_a, "carry_bits"_a, "threads"_a);
    m.def(
        (std::string(name) + "_by_row").c_str(),
        [kernel](const Kind& kind, int64_t n, Address source, Address cur, Address value, Address out,
                 Address view, Address carry, Address stats, double alpha, double beta, double gamma,
                 int carry_bits, int threads, Address choice, int64_t rows, double alpha1, double beta1,
                 double gamma1) {
            if (!zeros_and_ones(at<uint8_t>(choice), rows)) return false;
            StepArgs args = step_args(kind, n, source, cur, value, out, view, carry, stats, alpha, beta,
                                      gamma, carry_bits);
            args.choice = at<uint8_t>(choice);
            args.row_length = row_length(n, rows);
            args.alpha1 = alpha1;
            args.beta1 = beta1;
            args.gamma1 = gamma1;
            run(kernel, args, threads);
            return true;
        },
        "kind"_a, "n"_a, "source"_a, "cur"_a, "value"_a, "out"_a, "view"_a, "carry"_a, "stats"_a, "alpha"_a,
        "beta"_a, "gamma"_a, "carry_bits"_a, "threads"_a, "choice"_a, "rows"_a, "alpha1"_a, "beta1"_a,
        "gamma1"_a, "False, and nothing done, where a choice is neither 0 nor 1.");
}

bool scale(const Kind& kind, int64_t n, Address g, const std::vector<Address>& out,
           const std::vector<double>& factors, int threads, Address choice, int64_t rows,
           const std::vector<double>& second) {
    const size_t count = factors.size();
    if (out.size() != count || count > kMaxScaled || (choice && second.size() != count) ||
        (choice && !zeros_and_ones(at<uint8_t>(choice), rows)))
        return false;
    ScaleArgs args{n, at<void>(g), {}, static_cast<int>(count), kind.value_type, kind.view_type, {}};
    for (size_t k = 0; k < count; ++k) {
        args.out[k] = at<void>(out[k]);
        args.factor[k] = factors[k];
        if (choice) args.factor1[k] = second[k];
    }
    if (choice) {
        args.choice = at<uint8_t>(choice);
        args.row_length = row_length(n, rows);
    }
    run(&scale_cpu, args, threads);
    return true;
}

}  // namespace

void bind_calls(nb::module_& m) {
    nb::class_<Kind>(m, "Kind", "Dtypes and scale of calls by position.")
        .def(
            "__init__",
            [](Kind* self, int state, int value_type, int view_type, int frac_bits) {
                new (self) Kind{static_cast<DType>(state), static_cast<DType>(value_type),
                                static_cast<DType>(view_type), frac_bits};
            },
            nb::kw_only(), "state"_a, "value_type"_a, "view_type"_a, "frac_bits"_a);
    bind_step(m, "step", &step_cpu);
    bind_step(m, "inverse", &inverse_cpu);
    m.def(
        "encode_of",
        [](const Kind& kind, int64_t n, Address x, Address out, Address view, Address stats, int threads) {
            const EncodeArgs args{n,
                                  at<void>(x),
                                  at<void>(out),
                                  at<void>(view),
                                  at<int64_t>(stats),
                                  kind.value_type,
                                  kind.state,
                                  kind.view_type,
                                  kind.frac_bits};
            run(&encode_cpu, args, threads);
        },
        "kind"_a, "n"_a, "x"_a, "out"_a, "view"_a, "stats"_a, "threads"_a);
    m.def(
        "decode_of",
        [](const Kind& kind, int64_t n, Address state, Address view, int threads) {
            const DecodeArgs args{n, at<void>(state), at<void>(view), kind.state, kind.view_type, kind.frac_bits};
            run(&decode_cpu, args, threads);
        },
        "kind"_a, "n"_a, "state"_a, "view"_a, "threads"_a);
    m.def("scale_of", &scale, "kind"_a, "n"_a, "g"_a, "out"_a, "factors"_a, "threads"_a, "choice"_a, "rows"_a,
          "second"_a,
          "The last product has the view's dtype. False, and nothing done, where numbers do not fit or a "
          "choice is neither 0 nor 1.");
}
