// Runs a target without a fuzzer: on files, or on random bytes.
//     fuzz_X FILE...
//     fuzz_X [--runs N] [--seconds S] [--seed K]
// An input that ends the process is left in the file fuzz-input, for the first form.
#include <chrono>
#include <csignal>
#include <fstream>
#include <iterator>
#include <string>

#include "../check.hpp"
#include "input.hpp"

namespace {

std::vector<uint8_t> current;
long long number = 0;

void save(int) {
    std::ofstream("fuzz-input", std::ios::binary).write(reinterpret_cast<const char*>(current.data()), static_cast<std::streamsize>(current.size()));
    std::fprintf(stderr, "FUZZ: run %lld ended the process; its input is in the file fuzz-input\n", number);
}

}  // namespace

// Sanitizers abort, so that save() is called.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() { return "abort_on_error=1:handle_abort=0:detect_leaks=1"; }
extern "C" __attribute__((visibility("default"))) const char* __ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

int main(int argc, char** argv) {
    std::signal(SIGABRT, save);
    long long runs = 20000, seconds = 3600, seed = 1;
    bool files = false;
    for (int i = 1; i < argc; ++i) {
        const std::string name = argv[i];
        long long* const option = name == "--runs" ? &runs : name == "--seconds" ? &seconds : name == "--seed" ? &seed : nullptr;
        if (option != nullptr && i + 1 < argc) {
            *option = std::stoll(argv[++i]);
            continue;
        }
        std::ifstream file(name, std::ios::binary);
        if (!file) return std::fprintf(stderr, "%s: no such file, and no option of this program\n", name.c_str()), 2;
        current.assign(std::istreambuf_iterator<char>(file), {});
        files = true;
        LLVMFuzzerTestOneInput(current.data(), current.size());
    }
    if (files) return 0;
    check::Random random{static_cast<uint64_t>(seed)};
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    for (; number < runs && std::chrono::steady_clock::now() < end; ++number) {
        current.resize(static_cast<size_t>(random.between(0, 400)));
        for (uint8_t& byte : current) byte = static_cast<uint8_t>(random.next());
        LLVMFuzzerTestOneInput(current.data(), current.size());
    }
    std::printf("%lld inputs of seed %lld: ok\n", number, seed);
}
