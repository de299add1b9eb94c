// Blocks of CUDA threads on one thread of the CPU: a fiber a thread, resumed in random order. Fibers change only where a
// kernel synchronises, which is where CUDA promises an order; what a kernel wrongly relies on in between, some seed shows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace shim {

constexpr unsigned kWarp = 32;

enum class Call : int { none, ballot, shuffle_down, sync_warp, sync_block };

struct Settings {
    uint64_t seed = 1;                      // of the order of blocks and threads
    int processors = 1;                     // that the device says it has
    int blocks_each = 8;                    // that fit on one of them
    std::vector<unsigned> only;             // blocks to run; empty: all of them
    const char* failing = "";               // the runtime function whose next call fails
    int failing_after = 0;                  // not the next call but one after so many good ones
    bool no_device = false, no_image = false;  // what asking for devices, and for a kernel's attributes, finds
};

Settings& settings();

// Runs body(what) in every thread of every block. Throws std::logic_error, saying where, for threads that wait for each
// other for ever, for lanes of a warp that meet in different calls, and for a lane that its own mask leaves out.
void run(unsigned blocks, unsigned threads, void (*body)(const void*), const void* what);

// What a lane gets from meeting the others of `mask` that have not returned, as on Volta and later. A value from a lane
// that does not take part is undefined there: here it is noise. A warp meets once at a time: parts of it that meet
// apart, each by its own mask, are legal on the device and refused here.
uint64_t meet(Call call, unsigned mask, uint64_t value, int argument);

std::string place();  // "block 3, thread 17", of the fiber that runs now

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

}  // namespace shim

extern shim::Index threadIdx, blockIdx, blockDim, gridDim;
