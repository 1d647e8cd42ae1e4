/* How a product q k becomes a score, and a score a weight: the factors of the softmax. */
#ifndef SA_SCORING_H
#define SA_SCORING_H

#include "kernels.h"

/* as_scores: the scores themselves are asked for, so they must be in natural units. */
sa_scoring sa_scoring_of(const sa_problem *p, int as_scores);

#endif
