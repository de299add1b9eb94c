// Addresses as integers, as in module.cpp. revstep.ops._look has checked every tensor.
// No call is long enough to let go of the GIL for.
#include "look.hpp"

#include <nanobind/stl/vector.h>

#include "../kernels/look.hpp"
#include "address.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace revstep;

namespace {

int64_t sample(Address data, int width, std::vector<int64_t> size, std::vector<int64_t> stride, int64_t every,
               uint32_t seed) {
    const void* x = reinterpret_cast<const void*>(data);
    int64_t sum = 0;
    sample_cpu(sample_args(x, width, std::move(size), std::move(stride), every, seed, &sum));
    return sum;
}

void sample_on_device(Address data, int width, std::vector<int64_t> size, std::vector<int64_t> stride,
                      int64_t every, uint32_t seed, Address out, Address stream) {
    const void* x = reinterpret_cast<const void*>(data);
    int64_t* sum = reinterpret_cast<int64_t*>(out);
    sample_cuda(sample_args(x, width, std::move(size), std::move(stride), every, seed, sum),
                reinterpret_cast<void*>(stream));
}

int64_t differs(const DecodeArgs& args, int threads, int isa) {
    return differs_cpu(args, threads, static_cast<Isa>(isa));
}

}  // namespace

void bind_look(nb::module_& m) {
    m.def("sample", &sample, "data"_a, "width"_a, "size"_a, "stride"_a, "every"_a, "seed"_a);
    m.def("sample_cuda", &sample_on_device, "data"_a, "width"_a, "size"_a, "stride"_a, "every"_a, "seed"_a,
          "out"_a, "stream"_a);
    m.def("differs", &differs, "args"_a, "threads"_a, "isa"_a);
}
