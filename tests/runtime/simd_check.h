/* What simd.c compares and the operands it draws, for the header of csrc/simd that was included
 * before.
 *
 * a, b and c hold the operands in use. Random ones are of any bits or near 1; special ones are
 * zeros, subnormals, numbers around 1 and around the largest, infinities and NaNs of both signs. */
#ifndef SIMD_CHECK_H
#define SIMD_CHECK_H

#include <math.h>
#include <stdio.h>

#if SA_REAL_BITS == 32
typedef uint32_t word;
#define SCALAR(name) name##f
#else
typedef uint64_t word;
#define SCALAR(name) name
#endif

typedef union {
    real x[LANES];
    word w[LANES];
} lanes;
typedef struct {
    uint32_t x[LANES];
} words;

_Static_assert(sizeof(vec) == sizeof(lanes), "vec is LANES reals");
_Static_assert(sizeof(uvec) == sizeof(words), "uvec is LANES words of 32 bits");

#define EACH_LANE(i) for (int i = 0; i < LANES; ++i)

static lanes a, b, c;

/* ---- comparing ---- */

static const char *operation;
static long num_compared;
static int num_differences;

/* Before an operation's first call: a fault then leaves its name as the last that was printed. */
static void begin(const char *name) {
    operation = name, num_compared = 0;
    printf("%s ", operation);
    fflush(stdout);
}

static void end(void) { printf("%ld\n", num_compared); }

static void differs(int at, unsigned long long got, unsigned long long want) {
    if (++num_differences > 20) return;
    const lanes *x[] = {&a, &b, &c};
    fprintf(stderr, "%s: %llx at %d, not %llx; operands' lanes:", operation, got, at, want);
    for (int k = 0; k < 3; ++k) fprintf(stderr, " %llx", (unsigned long long)x[k]->w[at % LANES]);
    fprintf(stderr, "\n");
}

static void same_bits(vec result, lanes want) {
    lanes got;
    memcpy(&got, &result, sizeof got);
    EACH_LANE(i) if (got.w[i] != want.w[i]) differs(i, got.w[i], want.w[i]);
    num_compared += LANES;
}

/* The same bits, or any NaN where `want` has one. */
static void same_values(vec result, lanes want) {
    lanes got;
    memcpy(&got, &result, sizeof got);
    EACH_LANE(i) if (isnan(got.x[i]) && isnan(want.x[i])) want.w[i] = got.w[i];
    same_bits(result, want);
}

/* True in the lanes where `want` has 1, and false where it has 0. */
static void same_truths(vmask result, lanes want) {
    unsigned got = v_lane_bits(result), bits_wanted = 0;
    EACH_LANE(i) bits_wanted |= (unsigned)want.w[i] << i;
    EACH_LANE(i) if ((got ^ bits_wanted) >> i & 1) differs(i, got >> i & 1, want.w[i]);
    if (got >> (LANES - 1) > 1) differs(0, got, bits_wanted);
    num_compared += LANES;
}

static void same_words(uvec result, words want) {
    words got;
    memcpy(&got, &result, sizeof got);
    EACH_LANE(i) if (got.x[i] != want.x[i]) differs(i, got.x[i], want.x[i]);
    num_compared += LANES;
}

/* ---- operands ---- */

enum { RANDOM_ROUNDS = 3000 };

static uint64_t random_bits(void) { /* xorshift64* */
    static uint64_t state = 88172645463325252;
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 0x2545f4914f6cdd1d;
}

static int random_below(int n) { return (int)((random_bits() >> 33) % (uint64_t)n); }

#define SIGN ((word)1 << (SA_REAL_BITS - 1))
#define ONE ((word)REAL_BIAS << REAL_MANTISSA)
#define INF ((word)(2 * REAL_BIAS + 1) << REAL_MANTISSA)
#define MIN_NORMAL ((word)1 << REAL_MANTISSA)
#define SIGNALLING_NAN (INF + 1)
#define QUIET_NAN (INF + MIN_NORMAL / 2 + 5)

static const word magnitudes[] = {0,       1,         MIN_NORMAL - 1, MIN_NORMAL,
                                  ONE - 1, ONE,       ONE + 1,        INF - 1,
                                  INF,     QUIET_NAN, SIGNALLING_NAN};
enum { NUM_SPECIAL = 2 * sizeof magnitudes / sizeof *magnitudes };

static word special(int i) { return magnitudes[i / 2] | (i % 2 ? SIGN : 0); }

static word random_real(void) {
    word any = (word)random_bits();
    word exponent = (word)(REAL_BIAS - 10 + random_below(21)) << REAL_MANTISSA;
    return random_below(2) ? any : (any & (SIGN | (MIN_NORMAL - 1))) | exponent;
}

static void draw(lanes *x) {
    EACH_LANE(i) x->w[i] = random_below(4) ? random_real() : special(random_below(NUM_SPECIAL));
}

/* The operands of a round: each tuple of `count` special values in a lane of some round, after
 * those RANDOM_ROUNDS of drawn ones. 0 where there are no more rounds. */
static int operands(int round, int count) {
    lanes *const x[] = {&a, &b, &c};
    int tuples = 1;
    for (int k = 0; k < count; ++k) tuples *= NUM_SPECIAL;
    int special_rounds = (tuples + LANES - 1) / LANES;
    for (int k = 0; k < 3; ++k) draw(x[k]);
    EACH_LANE(i) {
        int tuple = round * LANES + i;
        for (int k = 0; round < special_rounds && k < count; ++k, tuple /= NUM_SPECIAL)
            x[k]->w[i] = special(tuple % NUM_SPECIAL);
    }
    return round < special_rounds + RANDOM_ROUNDS;
}

static const uint32_t special_words[] = {0, 1, 2, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff};

static words random_words(void) {
    words r;
    EACH_LANE(i)
    r.x[i] = random_below(2) ? (uint32_t)random_bits() : special_words[random_below(7)];
    return r;
}

/* Not by the header's loads, which are tested too. */
static vec vec_of(lanes x) {
    vec v;
    memcpy(&v, &x, sizeof v);
    return v;
}

static uvec uvec_of(words x) {
    uvec v;
    memcpy(&v, &x, sizeof v);
    return v;
}

#endif
