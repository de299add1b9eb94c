// Between the launcher of look.cpp and the loops that are compiled once per instruction set.
#pragma once

#include "../core/sample.hpp"

namespace revstep {

struct LookBody {
    uint64_t (*sample)(const SampleArgs&);
};

namespace isa_generic {
extern const LookBody look_body;
}
namespace isa_v3 {
extern const LookBody look_body;
}
namespace isa_v4 {
extern const LookBody look_body;
}

}  // namespace revstep
