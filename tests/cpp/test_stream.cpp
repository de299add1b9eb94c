// Large outputs, written past the cache: the bits of the generic level's plain stores, with a tail, with elements at limits, by rows, and beside
// an output off the line, which is stored plainly.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "check.hpp"
#include "kernels/step.hpp"

using namespace revstep;

namespace {

struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
};

// `off` bytes past a line of the cache, filled with a pattern that no result has.
class Buffer {
public:
    Buffer(int64_t bytes, int off) : size_(static_cast<size_t>(bytes)), base_(static_cast<unsigned char*>(std::aligned_alloc(64, (size_ + 191) / 64 * 64))), off_(off) {
        std::memset(base_.get(), 0xab, (size_ + 191) / 64 * 64);
    }
    unsigned char* data() const { return base_.get() + off_; }
    bool operator==(const Buffer& o) const { return std::memcmp(data(), o.data(), size_) == 0; }
    bool intact() const { return data()[size_] == 0xab; }  // the byte beyond

private:
    size_t size_;
    std::unique_ptr<unsigned char, Free> base_;
    int off_;
};

constexpr int64_t kRow = 77;            // boundaries within tiles and vectors
constexpr int64_t kRows = 44001;        // 26 MiB of outputs in float32, 3 388 077 elements: no whole number of tiles or of lines
constexpr int64_t kCount = kRow * kRows;

struct Output {
    Buffer out, view;
    std::vector<uint32_t> carry;
    int64_t stats[4];
    Output(DType v, int off) : out(4 * kCount, off), view((v == DType::f32 ? 4 : 2) * kCount, off), carry((kCount + 31) / 32) {}
    bool operator==(const Output& o) const { return out == o.out && view == o.view && carry == o.carry && std::memcmp(stats, o.stats, sizeof stats) == 0; }
};

struct Inputs {
    std::vector<int32_t> source, cur;
    std::vector<float> f;
    std::vector<uint8_t> choice;
    explicit Inputs(bool wild) {
        check::Random r{7};
        for (int64_t i = 0; i < kCount; ++i) {
            const bool odd = wild && i % 9973 == 5;
            source.push_back(odd ? 2147483647 : static_cast<int32_t>(r.between(-(1 << 26), 1 << 26)));
            cur.push_back(odd ? 2147483647 : static_cast<int32_t>(r.between(-(1 << 26), 1 << 26)));
            const int64_t place = wild ? i % 9973 : 0;  // the value at 9 is near its limit, in range: only the exact loop finds it
            const float beyond = i % 2 == 0 ? std::nanf("") : -1e30f, tamed = static_cast<float>(r.unit() - 0.5);
            f.push_back(place == 5 ? 3e3f : place == 7 ? beyond : place == 9 ? 5535.1f : tamed);
        }
        for (int64_t i = 0; i < kRows; ++i) choice.push_back(r.next() % 2);
    }
};

void call(const Inputs& in, Output& o, const void* source, DType view, bool rows, bool inverse, int threads, int level) {
    StepArgs s{kCount, source, in.cur.data(), in.f.data(), o.out.data(), o.view.data(), o.carry.data(), o.stats, DType::i32, DType::f32, view, 0.5, 0.5, 0.37, 20, 1};
    if (rows) {
        s.choice = in.choice.data();
        s.row_length = kRow;
        s.alpha1 = -0.5;
        s.beta1 = 1.5;
        s.gamma1 = 0.5;
    }
    (inverse ? inverse_cpu : step_cpu)(s, threads, static_cast<Isa>(level));
}

void same(const Inputs& in, DType view, bool rows) {
    Output plain(view, 4), undone(view, 4);
    call(in, plain, in.source.data(), view, rows, false, 1, 0);
    undone.carry = plain.carry;
    call(in, undone, plain.out.data(), view, rows, true, 1, 0);
    const int best = static_cast<int>(isa_levels().size()) - 1;
    for (const int off : {0, 4}) {
        Output o(view, off), u(view, off);
        call(in, o, in.source.data(), view, rows, false, 2, best);
        check::expect(o == plain && o.out.intact() && o.view.intact(), "step past the cache: rows %d, %d bytes off", rows, off);
        u.carry = o.carry;
        call(in, u, o.out.data(), view, rows, true, 2, best);
        check::expect(u == undone && u.out.intact() && u.view.intact(), "inverse past the cache: rows %d, %d bytes off", rows, off);
        o.view.data()[4096] ^= 1;
        check::mutant(o == plain ? 0 : 1, "one bit of a view");
    }
}

struct Products {
    Buffer out[3];
    explicit Products(int off) : out{{4 * kCount, off}, {4 * kCount, off}, {2 * kCount, off}} {}
    bool operator==(const Products& o) const { return out[0] == o.out[0] && out[1] == o.out[1] && out[2] == o.out[2]; }
    bool intact() const { return out[0].intact() && out[1].intact() && out[2].intact(); }
};

void multiply(const Inputs& in, Products& o, bool rows, int threads, int level) {
    ScaleArgs s{kCount, in.f.data(), {o.out[0].data(), o.out[1].data(), o.out[2].data()}, 3, DType::f32, DType::bf16, {0.3, 0.0, -1.7}};
    if (rows) {
        s.choice = in.choice.data();
        s.row_length = kRow;
        const double second[] = {0.0, 2.5, 0.7};
        std::memcpy(s.factor1, second, sizeof second);
    }
    scale_cpu(s, threads, static_cast<Isa>(level));
}

void same_products(const Inputs& in, bool rows) {
    Products plain(4);
    multiply(in, plain, rows, 1, 0);
    for (const int off : {0, 4}) {
        Products o(off);
        multiply(in, o, rows, 2, static_cast<int>(isa_levels().size()) - 1);
        check::expect(o == plain && o.intact(), "products past the cache: rows %d, %d bytes off", rows, off);
        o.out[1].data()[4 * kCount - 1] ^= 1;
        check::mutant(o == plain ? 0 : 1, "one bit of a product");
    }
}

}  // namespace

int main() {
    const Inputs tame(false), wild(true);
    same(tame, DType::f32, false);
    same(wild, DType::f32, true);
    same_products(tame, false);
    same_products(tame, true);
    return check::finish("stream");
}
