/* The factors of the softmax: see scoring.h, and sa_scoring in kernels.h. */

#include "scoring.h"

#include <math.h>

static const double LOG2_E = 1.4426950408889634;

int sa_in_natural_units(const sa_problem *p) {
    return p->softcap > 0 || p->alibi_slopes.data || p->mask_kind == SA_MASK_ELEM ||
           p->mask_kind == SA_MASK_F32 || p->bias_kind != SA_MASK_NONE ||
           (p->state.data && p->state_is_natural);
}

sa_scoring sa_scoring_of(const sa_problem *p, int as_scores) {
    double scale = p->scale;
    if (isnan(scale)) scale = p->head_dim ? 1.0 / sqrt((double)p->head_dim) : 1.0;
    sa_scoring s = {.q_factor = 0, .scale = 1, .softcap = p->softcap};
    s.in_natural_units = as_scores || sa_in_natural_units(p);
    if (scale != 0) {
        /* A power of two at most 1 goes into q, so q never overflows; s.scale is 1 at least. */
        int exponent;
        frexp(scale, &exponent);
        if (exponent > 1) exponent = 1;
        s.q_factor = ldexp(scale < 0 ? -1 : 1, exponent - 1);
        s.scale = ldexp(fabs(scale), 1 - exponent);
    }
    s.has_dropout = p->dropout_p > 0;
    double threshold = floor(ldexp(p->dropout_p, 32) + 0.5);
    s.dropout_threshold = threshold < UINT32_MAX ? (uint32_t)threshold : UINT32_MAX;
    s.dropout_scale = p->dropout_p < 1 ? 1 / (1 - p->dropout_p) : 0;
    s.state_scale = s.in_natural_units && !p->state_is_natural ? s.scale : 1;
    s.scale_ln = s.in_natural_units ? 1 : s.scale;
    s.scale_log2 = s.scale_ln * LOG2_E;
    return s;
}
