// The checksum against its definition, and what it has to notice.
#include <numeric>
#include <set>
#include <vector>

#include "check.hpp"
#include "core/checksum.hpp"
#include "kernels/step.hpp"

using namespace revstep;

namespace {

uint64_t mixed(uint64_t k) {
    uint32_t a = static_cast<uint32_t>(2 * k + 1) * 0x9E3779B1u;
    a ^= a >> 15 & 0xfffffffeu;
    a *= 0x2C1B3C6Du;
    return a ^ (a >> 12 & 0xfffffffeu);
}

uint64_t by_definition(uint64_t w, uint64_t i, bool wide) {
    const uint64_t inner = mixed(i % 128), low = static_cast<uint32_t>(w), high = w >> 32;
    return (low * inner + (wide ? high * (inner ^ 0x5BD1E994u) : 0)) * mixed(128 + i / 128);
}

// Elements exchanged within a tile, and tiles, are always found where these are all different.
void weights() {
    std::set<uint64_t> inner, outer;
    for (uint32_t j = 0; j < kChecksumPeriod; ++j) inner.insert(checksum_inner(j));
    for (int64_t t = 0; t < 1 << 15; ++t) outer.insert(checksum_outer(t * kChecksumPeriod + t % kChecksumPeriod));
    check::expect(inner.size() == kChecksumPeriod, "inner weights differ");
    check::expect(outer.size() == 1 << 15, "outer weights of the first 4 million elements differ");
    for (const uint64_t w : inner) check::expect(w % 2 == 1 && outer.count(w) == 0, "weights are odd, and no inner one is an outer one");
}

template <class S>
uint64_t by_kernel(const std::vector<S>& x, int threads, int level, DType type) {
    int64_t stats[4] = {};
    checksum_cpu({static_cast<int64_t>(x.size()), x.data(), stats, type}, threads, static_cast<Isa>(level));
    check::expect(stats[1] == 0 && stats[2] == 0 && stats[3] == -1, "checksum leaves the other statistics clear");
    return static_cast<uint64_t>(stats[0]);
}

template <class S>
void suite(DType type) {
    check::Random r{17};
    std::vector<S> x(50001);
    for (S& e : x) e = static_cast<S>(r.next());
    uint64_t expected = 0;
    for (size_t i = 0; i < x.size(); ++i) expected += by_definition(sizeof(S) == 4 ? static_cast<uint32_t>(x[i]) : static_cast<uint64_t>(x[i]), i, sizeof(S) == 8);
    for (int level = 0; level < static_cast<int>(isa_levels().size()); ++level)
        for (int threads : {1, 2, 7}) check::expect(by_kernel(x, threads, level, type) == expected, "level %d, %d threads", level, threads);
    for (int trial = 0; trial < 200; ++trial) {  // one bit, or two elements exchanged
        std::vector<S> y = x;
        const size_t i = r.next() % y.size(), j = r.next() % y.size();
        y[i] = static_cast<S>(static_cast<uint64_t>(y[i]) ^ (uint64_t{1} << (r.next() % (8 * sizeof(S)))));
        check::expect(by_kernel(y, 1, -1, type) != expected, "a flipped bit was not noticed");
        y = x;
        std::swap(y[i], y[j]);
        check::expect(y[i] == y[j] || by_kernel(y, 1, -1, type) != expected, "an exchange was not noticed");
    }
}

}  // namespace

int main() {
    for (uint64_t i : {uint64_t{0}, uint64_t{1}, uint64_t{0xffffffff}, uint64_t{1} << 32, (uint64_t{5} << 32) + 77}) {
        const uint32_t inner = checksum_inner(i % kChecksumPeriod);
        const uint64_t outer = checksum_outer(static_cast<int64_t>(i));
        check::expect(checksum_term(0x89abcdefu, inner) * outer == by_definition(0x89abcdefu, i, false), "32-bit term");
        check::expect(checksum_term(uint64_t{0x123456789abcdef0}, inner) * outer == by_definition(0x123456789abcdef0, i, true), "64-bit term");
    }
    weights();
    suite<int32_t>(DType::i32);
    suite<int64_t>(DType::i64);
    return check::finish("checksum");
}
