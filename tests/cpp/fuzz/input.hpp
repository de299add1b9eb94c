// What a fuzzer's bytes say, and memory that ends where it should.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "kernels/step.hpp"

// One target: any bytes. It returns 0, or ends the process where something that must hold does not.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace fuzz {

using namespace revstep;

inline void must(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "FUZZ: %s\n", what);
    std::abort();
}

// Reads numbers off the front; zeros after the end, so that every prefix is an input too.
class Input {
public:
    Input(const uint8_t* data, size_t size) : at_(data), left_(size) {}

    template <class T>
    T raw() {
        T value{};
        const size_t take = left_ < sizeof(T) ? left_ : sizeof(T);
        if (take != 0) std::memcpy(&value, at_, take);
        at_ += take, left_ -= take;
        return value;
    }
    uint8_t byte() { return raw<uint8_t>(); }
    bool flag(unsigned in = 2) { return byte() % in == 0; }
    int64_t up_to(int64_t most) { return static_cast<int64_t>(raw<uint16_t>()) % (most + 1); }

    // Mostly a number that may be meant, sometimes any there is.
    double coefficient() {
        static const double usual[] = {1.0, -1.0, 0.5, -0.25, 0x1p-8, -0x1p-8, 2.0, 1.5, 1.0 - 0x1p-24}, rare[] = {0.0, 3.0, -4.0, 0x1p-9};
        const uint8_t kind = byte();
        if (kind < 180) return usual[kind % 9];
        if (kind < 200) return rare[kind % 4];
        if (kind < 250) return static_cast<double>(raw<int32_t>() % (1 << 25)) * 0x1p-24;
        return raw<double>();
    }
    DType dtype() {
        const uint8_t kind = byte();
        return static_cast<DType>(kind < 252 ? kind % 6 : static_cast<int>(kind) - 253);
    }
    int small(int low, int high) {
        const uint8_t kind = byte();
        return kind < 250 ? low + kind % (high - low + 1) : raw<int32_t>();
    }

private:
    const uint8_t* at_;
    size_t left_;
};

inline size_t width(DType t) {
    switch (t) {
        case DType::bf16:
        case DType::f16: return 2;
        case DType::f32:
        case DType::i32: return 4;
        default: return 8;  // also what is no dtype: the call must refuse it
    }
}

// Exactly so many bytes of the heap: the address sanitizer sees the first one behind them. Numbers that a fuzzer would need long
// to find are written in by a generator that the input seeds.
class Block {
public:
    Block(size_t bytes, uint32_t seed = 0) : size_(bytes), data_(new unsigned char[bytes]) {
        for (size_t i = 0; i < bytes; ++i) {
            seed = seed * 1664525u + 1013904223u;
            data_[i] = static_cast<unsigned char>(seed >> 24);
        }
    }
    unsigned char* data() const { return data_.get(); }
    size_t size() const { return size_; }
    bool operator==(const Block& o) const { return size_ == o.size_ && (size_ == 0 || std::memcmp(data_.get(), o.data_.get(), size_) == 0); }
    void copy(const Block& o) {
        if (size_ != 0) std::memcpy(data_.get(), o.data_.get(), size_);
    }

private:
    size_t size_;
    std::unique_ptr<unsigned char[]> data_;
};

// `n` values of a dtype: moderate ones, now and then any bits.
inline Block values(Input& in, DType t, int64_t n) {
    const uint32_t seed = in.raw<uint32_t>();
    const bool wild = in.flag(12);
    Block b(static_cast<size_t>(n) * width(t), seed);
    if (wild) return b;
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        unsigned char* const at = b.data() + i * width(t);
        uint32_t bits;
        std::memcpy(&bits, at, sizeof(uint16_t));
        const double x = static_cast<double>(bits & 0xffffu) * 0x1p-14 - 2.0;
        const float single = static_cast<float>(x);
        const int64_t whole = static_cast<int64_t>(x * 0x1p20);
        const uint16_t code = static_cast<uint16_t>(bits & 0xbfffu);
        if (t == DType::f64) std::memcpy(at, &x, 8);
        else if (t == DType::f32) std::memcpy(at, &single, 4);
        else if (width(t) == 2) std::memcpy(at, &code, 2);
        else std::memcpy(at, &whole, width(t));
    }
    return b;
}

template <class F>
bool accepted(F call) {
    try {
        call();
        return true;
    } catch (const std::invalid_argument&) {
        return false;  // what bad arguments have to get
    }
}

}  // namespace fuzz
