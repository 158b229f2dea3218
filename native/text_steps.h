/* text_steps.h: what the last text of this thread cost, in steps of the inner loops (el_text_steps). */
#ifndef EDGELLM_TEXT_STEPS_H
#define EDGELLM_TEXT_STEPS_H

#include <stdint.h>

extern _Thread_local int64_t text_steps;

#endif
