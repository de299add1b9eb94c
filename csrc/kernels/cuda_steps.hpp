// Between the device launchers: a step whose arguments have been checked and whose statistics have been cleared.
#pragma once

#include "plan.hpp"

namespace revstep {

void step_fixed(const StepPlan& plan, void* stream);
void step_float(const StepPlan& plan, void* stream);

}  // namespace revstep
