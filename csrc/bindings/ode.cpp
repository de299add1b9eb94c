// The integration loops: a run is an object whose attributes have the names of ode/loop.hpp's structs. What
// stays the same over a run is set once, what changes before each call. revstep.ode._compiled checked every
// array.
#include "ode.hpp"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../ode/loop.hpp"
#include "address.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace revstep;

namespace {

typedef std::tuple<Address, Address> Addresses;  // of the two slots, or of the field's two functions

struct Run {
    OdeArgs args{};
    std::vector<OdeMicro> micros;
    std::vector<int32_t> counts;
    std::vector<double> params, a, b, c;
    int isa = -1;
};

typedef nb::class_<Run> RunClass;

template <class T>
void number(RunClass& cls, const char* name, T OdeArgs::* member) {
    cls.def_prop_rw(
        name, [member](const Run& run) { return run.args.*member; },
        [member](Run& run, T value) { run.args.*member = value; });
}

template <class Struct, class T>
void address(RunClass& cls, const char* name, Struct&& of,
             T* std::decay_t<decltype(of(std::declval<Run&>()))>::* member) {
    cls.def_prop_rw(
        name, [of, member](Run& run) { return address_of(of(run).*member); },
        [of, member](Run& run, Address value) { of(run).*member = at<T>(value); });
}

template <class Struct, class T>
void two(RunClass& cls, const char* name, Struct&& of,
         T* (std::decay_t<decltype(of(std::declval<Run&>()))>::*member)[2]) {
    cls.def_prop_rw(
        name,
        [of, member](Run& run) {
            return Addresses(address_of((of(run).*member)[0]), address_of((of(run).*member)[1]));
        },
        [of, member](Run& run, const Addresses& value) {
            (of(run).*member)[0] = at<T>(std::get<0>(value));
            (of(run).*member)[1] = at<T>(std::get<1>(value));
        });
}

OdeResult take(Run& run) {
    nb::gil_scoped_release release;
    int64_t total = 0;
    for (const int32_t n : run.counts) total += std::max(n, 0);
    if (total != static_cast<int64_t>(run.micros.size()))
        throw std::runtime_error("revstep ode loop: counts are of another size than the micro-steps");
    if (run.b.size() != run.c.size() || run.a.size() != run.b.size() * run.b.size())
        throw std::runtime_error("revstep ode loop: a tableau of another size");
    run.args.micros = run.micros.data();
    run.args.counts = run.counts.data();
    run.args.period = static_cast<int>(run.counts.size());
    run.args.tableau = {static_cast<int>(run.b.size()), run.a.data(), run.b.data(), run.c.data()};
    run.args.params = run.params.data();
    run.args.n_params = static_cast<int64_t>(run.params.size());
    try {
        return ode_run(run.args, static_cast<Isa>(run.isa));
    } catch (const std::exception& e) {  // std::invalid_argument would become ValueError
        throw std::runtime_error(e.what());
    }
}

void bind_run(nb::module_& m) {
    RunClass cls(m, "OdeRun");
    cls.def(nb::init<>());
    const auto args = [](Run& run) -> OdeArgs& { return run.args; };
    const auto watch = [](Run& run) -> OdeWatch& { return run.args.watch; };

    number(cls, "batch", &OdeArgs::batch);
    number(cls, "dim", &OdeArgs::dim);
    two(cls, "slots", args, &OdeArgs::slot);
    number(cls, "fixed", &OdeArgs::fixed);
    two(cls, "frac_bits", args, &OdeArgs::frac_bits);
    number(cls, "each", &OdeArgs::each);

    number(cls, "steps", &OdeArgs::steps);
    number(cls, "position", &OdeArgs::position);
    number(cls, "undo", &OdeArgs::undo);
    number(cls, "t0", &OdeArgs::t0);
    number(cls, "h", &OdeArgs::h);
    number(cls, "lo", &OdeArgs::lo);
    number(cls, "hi", &OdeArgs::hi);
    cls.def(
        "program",
        [](Run& run, std::vector<OdeMicro> micros, std::vector<int32_t> counts) {
            run.micros = std::move(micros);
            run.counts = std::move(counts);
        },
        "micros"_a, "counts"_a,
        "The programs of consecutive steps, one after the other, and how many micro-steps each has.");
    cls.def(
        "tableau",
        [](Run& run, std::vector<double> a, std::vector<double> b, std::vector<double> c) {
            run.a = std::move(a);
            run.b = std::move(b);
            run.c = std::move(c);
        },
        "a"_a, "b"_a, "c"_a);

    cls.def(
        "field",
        [](Run& run, int which, std::vector<double> params) {
            run.args.field = static_cast<OdeField>(which);
            run.params = std::move(params);
        },
        "number"_a, "params"_a);
    cls.def_prop_rw(  // a function is no object, so `two` cannot cast it
        "user",
        [](const Run& run) {
            return Addresses(reinterpret_cast<Address>(run.args.user[0]),
                             reinterpret_cast<Address>(run.args.user[1]));
        },
        [](Run& run, const Addresses& value) {
            run.args.user[0] = reinterpret_cast<OdeFunction>(std::get<0>(value));
            run.args.user[1] = reinterpret_cast<OdeFunction>(std::get<1>(value));
        });
    two(cls, "user_data", args, &OdeArgs::user_data);
    address(cls, "stop", args, &OdeArgs::stop);

    number(cls, "save_every", &OdeArgs::save_every);
    number(cls, "until_save", &OdeArgs::until_save);
    two(cls, "save", args, &OdeArgs::save);
    address(cls, "carry", args, &OdeArgs::carry);
    number(cls, "carry_stride", &OdeArgs::carry_stride);
    number(cls, "carry_at", &OdeArgs::carry_at);

    number(cls, "threads", &OdeArgs::threads);
    number(cls, "lanes", &OdeArgs::lanes);
    cls.def_rw("isa", &Run::isa);

    two(cls, "zero", watch, &OdeWatch::zero);
    two(cls, "high", watch, &OdeWatch::high);
    address(cls, "apart", watch, &OdeWatch::apart);
    address(cls, "apart_at", watch, &OdeWatch::apart_at);
    address(cls, "bad", args, &OdeArgs::bad);
    address(cls, "bad_value", args, &OdeArgs::bad_value);

    cls.def("__call__", &take);
}

}  // namespace

void bind_ode(nb::module_& m) {
    nb::class_<OdeMicro>(m, "OdeMicro")
        .def(
            "__init__",
            [](OdeMicro* self, int slot, int function, int rk_sign, double alpha, double beta, double gamma,
               double tau) { new (self) OdeMicro{slot, function, rk_sign, alpha, beta, gamma, tau}; },
            nb::kw_only(), "slot"_a, "function"_a, "rk_sign"_a, "alpha"_a, "beta"_a, "gamma"_a, "tau"_a)
        .def_ro("slot", &OdeMicro::slot)
        .def_ro("function", &OdeMicro::function)
        .def_ro("rk_sign", &OdeMicro::rk_sign)
        .def_ro("tau", &OdeMicro::tau);
    nb::class_<OdeResult>(m, "OdeResult")
        .def_ro("evaluations", &OdeResult::evaluations)
        .def_ro("bad_step", &OdeResult::bad_step)
        .def_ro("bad_system", &OdeResult::bad_system)
        .def_ro("largest", &OdeResult::largest)
        .def_ro("carry_at", &OdeResult::carry_at)
        .def_prop_ro("fault", [](const OdeResult& r) { return static_cast<int>(r.fault); })
        .def_ro("fault_component", &OdeResult::fault_component)
        .def_ro("fault_t", &OdeResult::fault_t);
    bind_run(m);
    m.def(
        "ode_inside",
        [] {
            const auto [stop, thread] = ode_inside();
            return std::make_tuple(reinterpret_cast<Address>(stop), thread);
        },
        "The `stop` of the call this thread works for, 0 for none, and a number of the thread.");
    m.def("ode_math", [](int function, Address x, Address out, int64_t n, int isa) {
        ode_math(static_cast<OdeMath>(function), at<const double>(x), at<double>(out), n,
                 static_cast<Isa>(isa));
    });
}
