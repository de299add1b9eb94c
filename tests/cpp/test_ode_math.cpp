// sin, cos and exp: below one ulp of the long double value, odd and even, the same bits on every level and in every lane.
#include <cmath>
#include <limits>
#include <vector>

#include "check.hpp"
#include "ode/loop.hpp"

using namespace revstep;

namespace {

std::vector<double> arguments(double limit, int count, uint64_t seed) {
    check::Random random{seed};
    std::vector<double> x;
    for (int k = 0; k < count; ++k) x.push_back((2.0 * random.unit() - 1.0) * limit);
    return x;
}

// Near multiples of pi/2, where the reduction cancels, and of every magnitude.
std::vector<double> hard_arguments() {
    std::vector<double> x{0.0, 5e-324, 1e-300, 0.5, 1.0, 1.6e6, 1599999.5, 6381956970095103.0 * 0x1p797, 0x1.fffffffffffffp1023, 0x1p-27, 1e22};
    check::Random random{9};
    for (int k = 1; k < 4000; ++k) {
        const double n = k < 2000 ? k : static_cast<double>(random.next() % 1000000), at = static_cast<double>(n * 1.57079632679489661923132169163975144L);
        for (double y : {at, std::nextafter(at, 0.0), std::nextafter(at, 1e30)}) x.push_back(y);
    }
    for (int e = -300; e < 300; ++e) x.push_back(std::ldexp(1.0 + random.unit(), e));
    for (int e = 20; e < 1023; ++e) x.push_back(-std::ldexp(1.0 + random.unit(), e));
    return x;
}

// Results further than `ulps` from the truth.
long inaccurate(const std::vector<double>& x, OdeMath function, Isa isa, double ulps, double (*spoil)(double)) {
    std::vector<double> y(x.size());
    ode_math(function, x.data(), y.data(), static_cast<int64_t>(x.size()), isa);
    long count = 0;
    for (size_t k = 0; k < x.size(); ++k) {
        const long double wide = static_cast<long double>(x[k]), truth = function == OdeMath::sin ? std::sin(wide) : function == OdeMath::cos ? std::cos(wide) : std::exp(wide);
        const double nearest = static_cast<double>(truth), ulp = std::max(std::abs(nearest) - std::nextafter(std::abs(nearest), 0.0), std::numeric_limits<double>::denorm_min());
        count += !(std::abs(static_cast<long double>(spoil(y[k])) - truth) <= static_cast<long double>(ulps * ulp));
    }
    return count;
}

double same(double y) { return y; }
double next_double(double y) { return std::nextafter(y, 2.0); }
double as_float(double y) { return static_cast<double>(static_cast<float>(y)); }

void test_accuracy() {
    const std::vector<std::vector<double>> sets{arguments(0.8, 200000, 1), arguments(100.0, 200000, 2), arguments(1.6e6, 100000, 3), hard_arguments()};
    for (const OdeMath f : {OdeMath::sin, OdeMath::cos}) {
        for (const auto& x : sets) check::real(inaccurate(x, f, Isa::best, 1.0, same), "sin and cos within 1 ulp");
        check::mutant(inaccurate(sets[1], f, Isa::best, 1.0, next_double), "one double further");
        check::mutant(inaccurate(sets[1], f, Isa::best, 1.0, as_float), "rounded to float");
    }
    for (const double limit : {0.34, 5.0, 708.0}) check::real(inaccurate(arguments(limit, 200000, 5), OdeMath::exp, Isa::best, 1.0, same), "exp within 1 ulp");
    check::mutant(inaccurate(sets[1], OdeMath::exp, Isa::best, 1.0, next_double), "exp, one double further");
    const double ends[6] = {710.0, 1e300, -746.0, -1e300, 0.0, -745.0};
    double at_ends[6];
    ode_math(OdeMath::exp, ends, at_ends, 6, Isa::best);
    const double infinity = std::numeric_limits<double>::infinity();
    check::expect(at_ends[0] == infinity && at_ends[1] == infinity && at_ends[2] == 0.0 && at_ends[3] == 0.0 && at_ends[4] == 1.0 && at_ends[5] > 0.0, "exp at the ends");
}

long differing_bits(const std::vector<double>& a, const std::vector<double>& b) {
    long count = 0;
    for (size_t k = 0; k < a.size(); ++k) count += bits_of(a[k]) != bits_of(b[k]);
    return count;
}

void test_same_bits() {
    std::vector<double> x = hard_arguments();
    const std::vector<double> more = arguments(1e4, 100000, 4);
    x.insert(x.end(), more.begin(), more.end());
    const int64_t n = static_cast<int64_t>(x.size());
    for (const OdeMath f : {OdeMath::sin, OdeMath::cos, OdeMath::exp}) {
        std::vector<double> reference(x.size()), y(x.size()), mirrored(x.size()), negative(x);
        ode_math(f, x.data(), reference.data(), n, Isa::generic);
        for (size_t level = 0; level < isa_levels().size(); ++level) {
            ode_math(f, x.data(), y.data(), n, static_cast<Isa>(level));
            check::real(differing_bits(reference, y), "levels agree");
        }
        for (size_t k = 0; k < x.size(); ++k) ode_math(f, x.data() + k, y.data() + k, 1, Isa::best);
        check::real(differing_bits(reference, y), "one value and many agree");
        for (double& v : y) v = static_cast<float>(v);
        check::mutant(differing_bits(reference, y), "as floats");
        if (f == OdeMath::exp) continue;
        for (double& v : negative) v = -v;
        ode_math(f, negative.data(), mirrored.data(), n, Isa::best);
        for (double& v : mirrored) v = f == OdeMath::cos ? v : -v;
        check::real(differing_bits(reference, mirrored), "sin is odd, cos even");
    }
    const double odd[3] = {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
    double out[3];
    ode_math(OdeMath::sin, odd, out, 3, Isa::best);
    for (const double v : out) check::expect(v != v, "sin of NaN or infinity is %g", v);
    ode_math(OdeMath::exp, odd, out, 1, Isa::best);
    check::expect(out[0] != out[0], "exp of NaN is %g", out[0]);
}

}  // namespace

int main() {
    test_accuracy();
    test_same_bits();
    return check::finish("test_ode_math");
}
