// Addresses as integers, 0 for null; the program as lists. revstep.ode._compiled has checked every array.
#include "ode.hpp"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../ode/loop.hpp"

namespace nb = nanobind;
using namespace revstep;

namespace {

typedef uintptr_t Address;
// slot, function, rk_sign, alpha, beta, gamma, tau
typedef std::tuple<int, int, int, double, double, double, double> Micro;
// evaluations, bad step, bad system, largest, carry position; fault, component and time of it
typedef std::tuple<int64_t, int64_t, int64_t, double, int64_t, int, int64_t, double> Result;
// lo, hi; the address of `stop`
typedef std::tuple<double, double, Address> Callbacks;
// zero and high of both slots, apart and the steps of it; bad and its magnitudes
typedef std::tuple<Address, Address, Address, Address, Address, Address, Address, Address> Records;

template <class T>
T* at(Address a) {
    return reinterpret_cast<T*>(a);
}

std::vector<OdeMicro> micros_of(const std::vector<Micro>& rows) {
    std::vector<OdeMicro> micros;
    for (const auto& [slot, function, rk_sign, alpha, beta, gamma, tau] : rows) micros.push_back({slot, function, rk_sign, alpha, beta, gamma, tau});
    return micros;
}

OdeFunction function_at(Address a) { return reinterpret_cast<OdeFunction>(a); }

Result run(Address slot0, Address slot1, int64_t batch, int64_t dim, bool fixed, Address bits0, Address bits1, bool each,       //
           const std::vector<Micro>& rows, const std::vector<int>& counts, double t0, double h, int64_t position, int64_t steps, bool undo,  //
           int field, const std::vector<double>& params, std::tuple<Address, Address> user, std::tuple<Address, Address> user_data,          //
           const std::vector<double>& a, const std::vector<double>& b, const std::vector<double>& c,                             //
           Address save0, Address save1, int64_t save_every, int64_t until_save, Address carry, int64_t carry_stride, int64_t carry_at, int threads, int lanes, int isa,  //
           const Callbacks& callbacks, const Records& records) {
    nb::gil_scoped_release release;
    try {
        const std::vector<OdeMicro> micros = micros_of(rows);
        const std::vector<int32_t> per_program(counts.begin(), counts.end());
        int64_t total = 0;
        for (const int32_t n : per_program) total += std::max(n, 0);
        if (total != static_cast<int64_t>(micros.size()) || b.size() != c.size() || a.size() != b.size() * b.size())
            throw std::invalid_argument("revstep ode loop: counts or a tableau of another size");
        const OdeArgs args{batch, dim, {at<void>(slot0), at<void>(slot1)}, fixed, {at<const int32_t>(bits0), at<const int32_t>(bits1)}, each,
                           steps, position, undo, t0, h, std::get<0>(callbacks), std::get<1>(callbacks), micros.data(), per_program.data(), static_cast<int>(per_program.size()),
                           {static_cast<int>(b.size()), a.data(), b.data(), c.data()}, static_cast<OdeField>(field), params.data(),
                           static_cast<int64_t>(params.size()), {function_at(std::get<0>(user)), function_at(std::get<1>(user))},
                           {at<void>(std::get<0>(user_data)), at<void>(std::get<1>(user_data))}, at<const int64_t>(std::get<2>(callbacks)), save_every, until_save, {at<void>(save0), at<void>(save1)},
                           at<uint8_t>(carry), carry_stride, carry_at, threads, lanes,
                           {{at<int64_t>(std::get<0>(records)), at<int64_t>(std::get<1>(records))}, {at<int64_t>(std::get<2>(records)), at<int64_t>(std::get<3>(records))},
                            at<double>(std::get<4>(records)), at<int64_t>(std::get<5>(records))},
                           at<int64_t>(std::get<6>(records)), at<double>(std::get<7>(records))};
        const OdeResult r = ode_run(args, static_cast<Isa>(isa));
        return {r.evaluations, r.bad_step, r.bad_system, r.largest, r.carry_at, static_cast<int>(r.fault), r.fault_component, r.fault_t};
    } catch (const std::exception& e) {
        throw std::runtime_error(e.what());
    }
}

int64_t carry_bits(const std::vector<Micro>& rows, int64_t dim) {
    const std::vector<OdeMicro> micros = micros_of(rows);
    return ode_carry_bits(micros.data(), static_cast<int>(micros.size()), dim);
}

}  // namespace

void bind_ode(nb::module_& m) {
    m.def("ode_run", &run);
    m.def("ode_carry_bits", &carry_bits);
    m.def("ode_lanes", &ode_lanes, "Systems a batch advances side by side.");
    m.def("ode_inside", [] {
        const auto [stop, thread] = ode_inside();
        return std::make_tuple(reinterpret_cast<Address>(stop), thread);
    }, "The `stop` of the call this thread works for, 0 for none, and a number of the thread.");
    m.def("ode_math", [](int function, Address x, Address out, int64_t n, int isa) { ode_math(static_cast<OdeMath>(function), at<const double>(x), at<double>(out), n, static_cast<Isa>(isa)); });
}
