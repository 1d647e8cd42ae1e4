/* The functions that immintrin.h emulates lane by lane, for one type: included once for each. */

typedef struct {
    EMULATED_REAL x[EMULATED_LANES];
} EMULATED(lanes);

static inline EMULATED(lanes) EMULATED(split)(EMULATED_VEC v) {
    EMULATED(lanes) r;
    EMULATED_STORE(r.x, v);
    return r;
}

#define EACH_LANE for (int i = 0; i < EMULATED_LANES; ++i)

/* Lanes whose bit is not set are neither read nor written. */
static inline EMULATED_VEC EMULATED(maskz_loadu)(unsigned mask, const void *p) {
    EMULATED(lanes) r = {{0}};
    EACH_LANE if (mask >> i & 1) memcpy(&r.x[i], (const char *)p + i * sizeof *r.x, sizeof *r.x);
    return EMULATED_LOAD(r.x);
}

static inline void EMULATED(mask_storeu)(void *p, unsigned mask, EMULATED_VEC v) {
    EMULATED(lanes) r = EMULATED(split)(v);
    EACH_LANE if (mask >> i & 1) memcpy((char *)p + i * sizeof *r.x, &r.x[i], sizeof *r.x);
}

/* x 2^floor(n), rounded once: ldexp of a double is exact, and then, for floats, the cast rounds. 0
 * where the mask's bit is not set. */
static inline EMULATED_VEC EMULATED(maskz_scalef)(unsigned mask, EMULATED_VEC v,
                                                  EMULATED_VEC power) {
    EMULATED(lanes) r = EMULATED(split)(v), n = EMULATED(split)(power);
    EACH_LANE {
        double whole = fmin(fmax(floor((double)n.x[i]), -9999), 9999); /* NaN: -9999 */
        double scaled = ldexp((double)r.x[i], (int)whole);
        r.x[i] = (EMULATED_REAL)(!(mask >> i & 1) ? 0 : isnan(n.x[i]) ? NAN : scaled);
    }
    return EMULATED_LOAD(r.x);
}

/* floor(log2 |x|), of a normal x, of 0 and of what is not finite. */
static inline EMULATED_VEC EMULATED(getexp)(EMULATED_VEC v) {
    EMULATED(lanes) r = EMULATED(split)(v);
    EACH_LANE r.x[i] = isnan(r.x[i]) ? r.x[i] : (EMULATED_REAL)logb((double)r.x[i]);
    return EMULATED_LOAD(r.x);
}

/* x / 2^n in [3/4, 3/2), of a normal x > 0; the kernels replace what comes of others. */
static inline EMULATED_VEC EMULATED(getmant)(EMULATED_VEC v) {
    EMULATED(lanes) r = EMULATED(split)(v);
    EACH_LANE {
        int ignored;
        double half = frexp((double)r.x[i], &ignored); /* in [1/2, 1) */
        r.x[i] = (EMULATED_REAL)(half < 0.75 ? 2 * half : half);
    }
    return EMULATED_LOAD(r.x);
}

/* Quarters two of a, then two of b, chosen by two bits of `which` each. */
static inline EMULATED_VEC EMULATED(shuffle)(EMULATED_VEC a, EMULATED_VEC b, int which) {
    enum { QUARTER = EMULATED_LANES / 4 };
    EMULATED(lanes) from[2] = {EMULATED(split)(a), EMULATED(split)(b)}, r;
    EACH_LANE {
        int quarter = i / QUARTER, chosen = which >> 2 * quarter & 3;
        r.x[i] = from[quarter / 2].x[chosen * QUARTER + i % QUARTER];
    }
    return EMULATED_LOAD(r.x);
}

/* Within each quarter, the elements chosen by as many bits of `which` as number them: for doubles
 * its bits go on from quarter to quarter, for floats all quarters are alike. */
static inline EMULATED_VEC EMULATED(permute)(EMULATED_VEC v, int which) {
    enum { QUARTER = EMULATED_LANES / 4 };
    EMULATED(lanes) from = EMULATED(split)(v), r;
    EACH_LANE {
        int chosen = QUARTER == 4 ? which >> 2 * (i % 4) & 3 : which >> i & 1;
        r.x[i] = from.x[i / QUARTER * QUARTER + chosen];
    }
    return EMULATED_LOAD(r.x);
}

#undef EACH_LANE
#undef EMULATED_REAL
#undef EMULATED_LANES
#undef EMULATED
#undef EMULATED_VEC
#undef EMULATED_LOAD
#undef EMULATED_STORE
