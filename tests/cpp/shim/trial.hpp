// What the trials share: memory between pages that cannot be touched, states and values of every kind, equal bits.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../check.hpp"
#include "kernels/step.hpp"

namespace trial {

using revstep::DType;
typedef std::vector<unsigned char> Bytes;

constexpr DType kValues[] = {DType::f32, DType::f64, DType::bf16, DType::f16};
constexpr DType kStates[] = {DType::i32, DType::i64, DType::f32, DType::f64};

inline size_t width(DType t) { return t == DType::bf16 || t == DType::f16 ? 2 : t == DType::f64 || t == DType::i64 ? 8 : 4; }
inline bool fixed(DType t) { return t == DType::i32 || t == DType::i64; }

constexpr unsigned char kCanary = 0xab;
constexpr size_t kMargin = 64;

// A place for one array. `end`: it ends where a page begins that cannot be touched; else it begins where one ends, or
// `off` bytes later. What lies beside it is looked at afterwards.
class Room {
public:
    explicit Room(size_t bytes) : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))), size_((bytes + page_ - 1) / page_ * page_) {
        void* p = mmap(nullptr, size_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED || mprotect(static_cast<unsigned char*>(p) + page_, size_, PROT_READ | PROT_WRITE) != 0)
            throw std::runtime_error("no memory for a trial");
        base_ = static_cast<unsigned char*>(p) + page_;
    }
    Room(const Room&) = delete;
    Room& operator=(const Room&) = delete;
    ~Room() { munmap(base_ - page_, size_ + 2 * page_); }

    unsigned char* take(size_t bytes, bool end, size_t off) {
        if (bytes + off > size_) throw std::runtime_error("a trial larger than its room");
        at_ = end ? base_ + size_ - bytes : base_ + off;
        used_ = bytes;
        std::memset(before(), kCanary, static_cast<size_t>(at_ - before()));
        std::memset(at_, kCanary, bytes + after());
        return at_;
    }
    unsigned char* take(const Bytes& filled, bool end, size_t off) {
        take(filled.size(), end, off);
        if (!filled.empty()) std::memcpy(at_, filled.data(), filled.size());
        return at_;
    }
    bool intact() const {
        const auto canary = [](unsigned char c) { return c == kCanary; };
        return std::all_of(before(), at_, canary) && std::all_of(at_ + used_, at_ + used_ + after(), canary);
    }
    Bytes bytes() const { return Bytes(at_, at_ + used_); }

private:
    unsigned char* before() const { return at_ - std::min(kMargin, static_cast<size_t>(at_ - base_)); }
    size_t after() const { return std::min(kMargin, static_cast<size_t>(base_ + size_ - at_) - used_); }

    size_t page_, size_;
    unsigned char *base_, *at_ = nullptr;
    size_t used_ = 0;
};

inline void put(unsigned char* at, DType t, double x) {
    const float single = static_cast<float>(x);
    if (t == DType::f64) std::memcpy(at, &x, 8);
    if (t == DType::f32) std::memcpy(at, &single, 4);
}

// Increments. Wild ones are infinite, not a number, subnormal, or at the limit 2^limit of the state in units of 2^-frac.
inline Bytes make_values(check::Random& r, DType t, int64_t n, bool wild, double limit) {
    Bytes b(static_cast<size_t>(n) * width(t));
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        double x = (r.unit() - 0.5) * 4;
        const uint64_t kind = wild ? r.next() % 64 : 64;
        if (kind < 2) x = kind == 0 ? std::numeric_limits<double>::infinity() : -std::nan("");
        if (kind >= 2 && kind < 8) x = (kind % 2 == 0 ? 1 : -1) * limit * (1.0 + static_cast<double>(r.between(-3, 3)) * 0x1p-17);
        if (kind == 8) x = std::ldexp(r.unit(), -140);
        if (kind == 9) x = static_cast<double>(r.between(-9, 9)) + 0.5;
        put(&b[width(t) * i], t, x);
        const uint64_t tame = r.next() % (t == DType::bf16 ? 0x4080u : 0x4400u) | (r.next() & 0x8000u);
        const uint16_t code = static_cast<uint16_t>(wild && r.next() % 16 == 0 ? r.next() : tame);
        if (width(t) == 2) std::memcpy(&b[2 * i], &code, 2);
    }
    return b;
}

inline Bytes make_states(check::Random& r, DType t, int64_t n, bool wild) {
    if (!fixed(t)) return make_values(r, t, n, wild, 1e30);
    Bytes b(static_cast<size_t>(n) * width(t));
    const int64_t limit = t == DType::i32 ? (int64_t{1} << 31) - 1 : (int64_t{1} << 62) - 1;
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        int64_t x = r.between(-(1 << 26), 1 << 26);
        const uint64_t kind = wild ? r.next() % 32 : 32;
        if (kind < 4) x = (kind % 2 == 0 ? 1 : -1) * (limit - r.between(0, 2));
        if (kind == 4) x = r.between(-limit, limit);
        if (t == DType::i64 && r.next() % 2 == 0) x = r.between(-(limit >> 3), limit >> 3);
        std::memcpy(&b[width(t) * i], &x, width(t));  // little-endian low bits
    }
    return b;
}

template <class Bits>
bool nan_bits(Bits x, Bits infinity) {
    return (x & ~(Bits{1} << (8 * sizeof(Bits) - 1))) > infinity;
}

// Every number that is none becomes the same one: which of two a sum of both keeps, compilers choose. Says whether there was any.
inline bool one_nan(Bytes& b, DType t) {
    bool any = false;
    const auto each = [&](auto infinity) {
        typedef decltype(infinity) Bits;
        for (size_t i = 0; i + sizeof(Bits) <= b.size(); i += sizeof(Bits)) {
            Bits x;
            std::memcpy(&x, &b[i], sizeof x);
            if (!nan_bits<Bits>(x, infinity)) continue;
            any = true;
            x = static_cast<Bits>(infinity | 1u);
            std::memcpy(&b[i], &x, sizeof x);
        }
    };
    if (t == DType::f32) each(uint32_t{0x7f800000u});
    if (t == DType::f64) each(uint64_t{0x7ff0000000000000ull});
    if (t == DType::bf16) each(uint16_t{0x7f80u});
    if (t == DType::f16) each(uint16_t{0x7c00u});
    return any;
}

template <class T, size_t N>
T one_of(check::Random& r, const T (&all)[N]) {
    return all[r.next() % N];
}

struct Count {
    long launches = 0, arrays = 0, bad = 0;
};
inline Count& count() {
    static Count all;
    return all;
}

// The same elements of two arrays of n elements; `what` and `trial` name them.
inline bool same(Bytes ours, Bytes cpu, DType t, const char* what, long trial) {
    const bool a = one_nan(ours, t), b = one_nan(cpu, t);
    ++count().arrays;
    size_t at = 0;
    while (at < ours.size() && at < cpu.size() && ours[at] == cpu[at]) ++at;
    const bool equal = ours == cpu;
    if (!equal) ++count().bad;
    check::expect(equal, "trial %ld: %s differs in element %zu of %zu", trial, what, at / width(t), ours.size() / width(t));
    return !a && !b;
}

}  // namespace trial
