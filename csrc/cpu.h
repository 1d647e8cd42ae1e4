/* Which instruction sets this CPU and its operating system run. Called by dispatch.c. */
#ifndef SA_CPU_H
#define SA_CPU_H

int sa_cpu_has_portable(void); /* always */
int sa_cpu_has_avx2_fma(void);
int sa_cpu_has_avx512(void); /* F, DQ, BW and VL */

#endif
