/* Every operation of one header of csrc/simd against scalar code, bit for bit. A port to another
 * instruction set is debugged with this program, before any kernel is compiled for it.
 *
 * test_simd.py compiles it once for each set and dtype, with three macros: HEADER, SA_REAL_BITS,
 * and IS_SUPPORTED, which tells whether this processor runs the set; where not, the status is 77.
 * It prints each operation's name and how many lanes were compared; differences go to stderr, and
 * with one the status is 1. Only the results of arithmetic may be another NaN than the scalar
 * code's. Memory that is read and written lies between two pages that nothing may touch. */

#include HEADER
#include "cpu.h"
#include "simd_check.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* `result`, an expression in the operands' vectors x, y and z, is `want`, whose lane i the
 * statement `scalar` computes of theirs. */
#define CHECK(name, count, same, result, scalar)           \
    begin(name);                                           \
    for (int round = 0; operands(round, count); ++round) { \
        vec x = vec_of(a), y = vec_of(b), z = vec_of(c);   \
        lanes want;                                        \
        EACH_LANE(i) scalar;                               \
        same(result, want);                                \
        (void)x, (void)y, (void)z;                         \
    }                                                      \
    end();

static void test_arithmetic(void) {
    CHECK("v_add", 2, same_values, v_add(x, y), want.x[i] = a.x[i] + b.x[i])
    CHECK("v_sub", 2, same_values, v_sub(x, y), want.x[i] = a.x[i] - b.x[i])
    CHECK("v_mul", 2, same_values, v_mul(x, y), want.x[i] = a.x[i] * b.x[i])
    CHECK("v_div", 2, same_values, v_div(x, y), want.x[i] = a.x[i] / b.x[i])
    CHECK("v_fma", 3, same_values, v_fma(x, y, z), want.x[i] = SCALAR(fma)(a.x[i], b.x[i], c.x[i]))
    CHECK("v_fms", 3, same_values, v_fms(x, y, z), want.x[i] = SCALAR(fma)(a.x[i], b.x[i], -c.x[i]))
}

static void test_choices(void) {
    CHECK("v_max", 2, same_bits, v_max(x, y), want.w[i] = a.x[i] > b.x[i] ? a.w[i] : b.w[i])
    CHECK("v_min", 2, same_bits, v_min(x, y), want.w[i] = a.x[i] < b.x[i] ? a.w[i] : b.w[i])
    CHECK("v_lt", 2, same_truths, v_lt(x, y), want.w[i] = a.x[i] < b.x[i])
    CHECK("v_le", 2, same_truths, v_le(x, y), want.w[i] = a.x[i] <= b.x[i])
    CHECK("v_eq", 2, same_truths, v_eq(x, y), want.w[i] = a.x[i] == b.x[i])
    CHECK("v_negative", 1, same_truths, v_negative(x), want.w[i] = a.w[i] >= SIGN)
    CHECK("v_both", 3, same_truths, v_both(v_lt(x, y), v_negative(z)),
          want.w[i] = a.x[i] < b.x[i] && c.w[i] >= SIGN)
    CHECK("v_select", 3, same_bits, v_select(v_le(x, y), y, z),
          want.w[i] = a.x[i] <= b.x[i] ? b.w[i] : c.w[i])
    CHECK("v_select", 3, same_bits, v_select(v_negative(x), y, z),
          want.w[i] = a.w[i] >= SIGN ? b.w[i] : c.w[i])
}

/* ---- exponents ---- */

enum { MAX_LDEXP = REAL_BIAS / 3 * 4 };

/* Lane i of v_ldexp's operands, x in a and n in b, and of its result. */
static void draw_ldexp(int i, real n, lanes *want) {
    a.w[i] = ONE - MIN_NORMAL + 1 + (word)random_bits() % (2 * MIN_NORMAL - 1); /* in (1/2, 2) */
    if (random_below(8) == 0) a.w[i] = ONE;
    if (n < LEAST_EXPONENT && random_below(2)) a.w[i] = special(random_below(NUM_SPECIAL));
    if (isnan(n)) a.x[i] = n;
    b.x[i] = n;
    want->x[i] = n < LEAST_EXPONENT ? 0 : isnan(n) ? n : SCALAR(ldexp)(a.x[i], (int)n);
}

/* Every n in all lanes at once, and lanes that differ: all far from overflow and underflow, where
 * a header may have a shorter way, or some of them beyond. */
static void test_ldexp(void) {
    const real odd[] = {-(real)INFINITY, -REAL_MAX, (real)NAN, LEAST_EXPONENT - 1000, -(real)0.0};
    const int first = LEAST_EXPONENT - 3;
    lanes want;
    begin("v_ldexp");
    for (int n = first; n <= MAX_LDEXP; ++n)
        for (int again = 0; again < 8; ++again) {
            EACH_LANE(i) draw_ldexp(i, (real)n, &want);
            same_values(v_ldexp(vec_of(a), vec_of(b)), want);
        }
    for (int round = 0; round < 20 * RANDOM_ROUNDS; ++round) {
        EACH_LANE(i) {
            int n = round % 2 ? random_below(2 * REAL_BIAS - 1) - (REAL_BIAS - 1)
                              : random_below(MAX_LDEXP - first + 1) + first;
            int is_odd = round % 4 == 0 && random_below(4) == 0;
            draw_ldexp(i, is_odd ? odd[random_below(5)] : (real)n, &want);
        }
        same_values(v_ldexp(vec_of(a), vec_of(b)), want);
    }
    end();
}

/* Every exponent of a normal number, in all lanes or each with its own, and mantissas on both sides
 * of where the result's exponent changes. */
static void test_frexp(void) {
    const word middle = MIN_NORMAL / 2;
    const word edges[] = {0, 1, middle - 1, middle, middle + 1, MIN_NORMAL - 1};
    begin("v_frexp");
    for (int biased = 1; biased <= 2 * REAL_BIAS; ++biased)
        for (int again = 0; again < 16; ++again) {
            lanes want_m, want_e;
            EACH_LANE(i) {
                int own = again % 2 ? biased : 1 + random_below(2 * REAL_BIAS), e;
                word any = (word)random_bits() % MIN_NORMAL;
                a.w[i] = (word)own << REAL_MANTISSA | (again % 4 ? edges[random_below(6)] : any);
                real half = SCALAR(frexp)(a.x[i], &e); /* in [1/2, 1) */
                int is_low = half < (real)0.75;
                want_m.x[i] = is_low ? 2 * half : half;
                want_e.x[i] = (real)(e - is_low);
            }
            vec e, m = v_frexp(vec_of(a), &e);
            same_bits(m, want_m);
            same_bits(e, want_e);
        }
    end();
}

/* ---- whole vectors ---- */

#define CHECK_SWAP(half)                                                     \
    for (int round = 0; half < LANES && round < 100; ++round) {              \
        draw(&a);                                                            \
        EACH_LANE(i) want.w[i] = a.w[(i ^ half) % LANES];                    \
        same_bits(v_swap(vec_of(a), half < LANES ? half : LANES / 2), want); \
    }

static void test_moves(void) {
    lanes want = {{0}};
    begin("v_zero"), same_bits(v_zero(), want), end();
    EACH_LANE(i) want.x[i] = (real)i;
    begin("v_iota"), same_bits(v_iota(), want), end();
    CHECK("v_set", 1, same_bits, v_set(a.x[0]), want.w[i] = a.w[0])
    CHECK("v_first", 1, same_bits, v_set(v_first(x)), want.w[i] = a.w[0])
    begin("v_swap");
    CHECK_SWAP(1)
    CHECK_SWAP(2)
    CHECK_SWAP(4)
    CHECK_SWAP(8)
    end();
    begin("v_transpose");
    for (int round = 0; round < 100; ++round) {
        lanes rows[LANES];
        vec r[LANES];
        EACH_LANE(i) draw(&rows[i]);
        EACH_LANE(i) r[i] = vec_of(rows[i]);
        v_transpose(r);
        EACH_LANE(i) {
            EACH_LANE(j) want.w[j] = rows[j].w[i];
            same_bits(r[i], want);
        }
    }
    end();
}

#define CHECK_WORDS(name, result, scalar)                 \
    begin(name);                                          \
    for (int round = 0; round < RANDOM_ROUNDS; ++round) { \
        words p = random_words(), q = random_words();     \
        uvec x = uvec_of(p), y = uvec_of(q);              \
        words want;                                       \
        EACH_LANE(i) want.x[i] = scalar;                  \
        same_words(result, want);                         \
        (void)x, (void)y;                                 \
    }                                                     \
    end();

#define CHECK_SHIFT(n) CHECK_WORDS("u_shift_right", u_shift_right(x, n), p.x[i] >> n)

static void test_words(void) {
    CHECK_WORDS("u_set", u_set(p.x[0]), p.x[0])
    CHECK_WORDS("u_add", u_add(x, y), p.x[i] + q.x[i])
    CHECK_WORDS("u_mul", u_mul(x, y), (uint32_t)((uint64_t)p.x[i] * q.x[i]))
    CHECK_WORDS("u_xor", u_xor(x, y), p.x[i] ^ q.x[i])
    CHECK_SHIFT(1)
    CHECK_SHIFT(8)
    CHECK_SHIFT(13)
    CHECK_SHIFT(16)
    CHECK_SHIFT(31)
    begin("u_at_least");
    for (int round = 0; round < RANDOM_ROUNDS; ++round) {
        words p = random_words(), q = random_words();
        lanes want;
        EACH_LANE(i) if (random_below(4) == 0) q.x[i] = p.x[i];
        EACH_LANE(i) want.w[i] = p.x[i] >= q.x[i];
        same_truths(u_at_least(uvec_of(p), uvec_of(q)), want);
    }
    end();
}

/* ---- memory ---- */

static char *page, *page_end; /* around which nothing may be touched */
static char *expected;        /* what the page should hold */

static void map_page(void) {
    size_t size = (size_t)sysconf(_SC_PAGESIZE);
    char *three = mmap(NULL, 3 * size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    expected = malloc(size);
    if (three == MAP_FAILED || !expected) exit(2);
    page = three + size, page_end = page + size;
    if (mprotect(page, size, PROT_READ | PROT_WRITE)) exit(2);
    for (char *p = page; p < page_end; ++p) *p = expected[p - page] = (char)random_bits();
}

/* The page's ends, and then addresses with any remainder modulo 8. */
enum { PLACES = 12 };
static char *place(int k, size_t size) {
    return k == 0 ? page : k == 1 ? page_end - size : page + 62 + k;
}

static void same_page(void) {
    for (char *p = page; p < page_end; ++p)
        if (*p != expected[p - page])
            differs((int)(p - page), (unsigned char)*p, (unsigned char)expected[p - page]);
    num_compared += LANES;
}

/* For p, each place of n reals. */
#define EACH_PLACE(n)                \
    for (int k = 0; k < PLACES; ++k) \
        for (char *p = place(k, (size_t)(n) * sizeof(real)), *once = p; once; once = NULL)

static lanes lanes_at(const char *p, int n) {
    lanes r = {{0}};
    memcpy(&r, p, (size_t)n * sizeof(real));
    return r;
}

static void test_loads(void) {
    begin("v_load");
    EACH_PLACE(LANES) same_bits(v_load(p), lanes_at(p, LANES));
    end(), begin("v_load_n");
    for (int n = 1; n <= LANES; ++n) EACH_PLACE(n) same_bits(v_load_n(p, n), lanes_at(p, n));
    end(), begin("v_broadcast");
    EACH_PLACE(1) {
        lanes want, one = lanes_at(p, 1);
        EACH_LANE(i) want.w[i] = one.w[0];
        same_bits(v_broadcast(p), want);
        same_bits(v_set(read_real(p)), want);
    }
    end(), begin("u_load");
    for (int round = 0; round < 100; ++round) {
        words want;
        char *p = round ? page + 4 * (round - 1) : page_end - sizeof want;
        memcpy(&want, p, sizeof want);
        same_words(u_load((const void *)p), want);
    }
    end();
    /* Neither faults, wherever it points. */
    SA_PREFETCH((uintptr_t)page_end), SA_PREFETCH_NEAREST((uintptr_t)0);
}

/* What is expected after a store of x's first n lanes to p. */
static void expect(char *p, lanes x, int n) {
    memcpy(expected + (p - page), &x, (size_t)n * sizeof(real));
}

static void test_stores(void) {
    begin("v_store");
    EACH_PLACE(LANES) draw(&a), v_store(p, vec_of(a)), expect(p, a, LANES), same_page();
    EACH_PLACE(1) draw(&a), write_real(p, a.x[0]), expect(p, a, 1), same_page();
    end(), begin("v_store_n");
    for (int n = 1; n <= LANES; ++n)
        EACH_PLACE(n) draw(&a), v_store_n(p, vec_of(a), n), expect(p, a, n), same_page();
    end(), begin("v_stream");
    for (char *p = page; p < page_end; p += sizeof(vec))
        draw(&a), v_stream(p, vec_of(a)), expect(p, a, LANES);
    same_page();
    end(), begin("v_stream_end");
    v_stream_end(), same_page();
    end();
}

/* Every byte in every lane beside random ones, and every set of lanes. */
static void test_bytes(void) {
    lanes want;
    begin("v_nonzero_bytes");
    for (int round = 0; round < 256 * LANES; ++round) {
        char *p = round % 2 ? page : page_end - LANES;
        EACH_LANE(i) {
            int is_own = i == round % LANES;
            p[i] = (char)(is_own ? round / LANES : random_below(2) ? 0 : random_below(256));
            want.w[i] = p[i] != 0;
        }
        same_truths(v_nonzero_bytes(p), want);
    }
    end(), begin("v_lane_bits");
    for (unsigned set = 0; set < 1u << LANES; ++set) {
        EACH_LANE(i) page[i] = (char)(set >> i & 1), want.w[i] = set >> i & 1;
        same_truths(v_nonzero_bytes(page), want);
    }
    end();
}

#if SA_REAL_BITS == 32
#include "simd_half.h"
#endif

/* With an argument, every float through the stores of half types, and nothing else. */
int main(int count, char **arguments) {
    (void)arguments;
    if (!IS_SUPPORTED) return 77;
    if (count > 1) {
        map_page();
#if SA_REAL_BITS == 32
        store_every_float();
#endif
        return num_differences != 0;
    }
    test_arithmetic();
    test_choices();
    test_ldexp();
    test_frexp();
    test_moves();
    test_words();
    map_page();
    test_loads();
    test_stores();
    test_bytes();
#if SA_REAL_BITS == 32
    test_half_types();
#endif
    v_zeroupper();
    return num_differences != 0;
}
